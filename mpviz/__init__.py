"""See what is random in a trained network, what it learned, and how much can go without changing an answer.

    import mpviz as mp
    model = mp.load_model("fashion-vit")
    table = mp.analyze(model)

A name is imported when it is first used, so ``import mpviz`` is quick and loads neither torch nor a user interface.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpviz.benchmark.running import bench
    from mpviz.certificates.certify import certify
    from mpviz.errors import MpvizError
    from mpviz.grid import run_grid
    from mpviz.nets.calibrate import second_moments
    from mpviz.nets.compare import compare
    from mpviz.nets.data import load_data
    from mpviz.nets.macs import count_macs
    from mpviz.nets.spectra import analyze, spectrum
    from mpviz.nets.store import load, save
    from mpviz.nets.tome import merged_tokens
    from mpviz.nets.zoo import load_model
    from mpviz.pipeline import run
    from mpviz.projecting import run_projection
    from mpviz.prune.allocate import allocate
    from mpviz.prune.cast import project
    from mpviz.prune.fold import fold_permutations
    from mpviz.prune.masks import apply_masks, magnitude_masks
    from mpviz.rmt.fit import fit_bulk
    from mpviz.rmt.law import MarchenkoPastur
    from mpviz.sweeping import sweep
    from mpviz.train.any_method import prune_model
    from mpviz.train.distill import distill
    from mpviz.workbench.panels import (
        BenchmarkPanel,
        BudgetPanel,
        CertificatePanel,
        ComparePanel,
        RunPanel,
        SpectrumExplorer,
    )
    from mpviz.workbench.run_queue import RunQueue
    from mpviz.workbench.state import Workbench

__version__ = "0.1.0"

__all__ = [
    # networks and data
    "load_model",
    "load_data",
    # spectra
    "MarchenkoPastur",
    "spectrum",
    "fit_bulk",
    "analyze",
    "compare",
    # pruning and what it keeps
    "allocate",
    "magnitude_masks",
    "apply_masks",
    "second_moments",
    "prune_model",
    "certify",
    "distill",
    # k:n patterns, merged tokens and what runs then
    "project",
    "fold_permutations",
    "merged_tokens",
    "count_macs",
    "bench",
    # files and whole plans
    "save",
    "load",
    "run",
    "run_grid",
    "run_projection",
    "sweep",
    # the screen
    "Workbench",
    "SpectrumExplorer",
    "BudgetPanel",
    "CertificatePanel",
    "RunQueue",
    "RunPanel",
    "BenchmarkPanel",
    "ComparePanel",
    # what all errors have in common
    "MpvizError",
]

_HOMES = {
    "load_model": "mpviz.nets.zoo",
    "load_data": "mpviz.nets.data",
    "MarchenkoPastur": "mpviz.rmt.law",
    "spectrum": "mpviz.nets.spectra",
    "fit_bulk": "mpviz.rmt.fit",
    "analyze": "mpviz.nets.spectra",
    "compare": "mpviz.nets.compare",
    "allocate": "mpviz.prune.allocate",
    "magnitude_masks": "mpviz.prune.masks",
    "apply_masks": "mpviz.prune.masks",
    "second_moments": "mpviz.nets.calibrate",
    "prune_model": "mpviz.train.any_method",
    "certify": "mpviz.certificates.certify",
    "distill": "mpviz.train.distill",
    "save": "mpviz.nets.store",
    "load": "mpviz.nets.store",
    "project": "mpviz.prune.cast",
    "fold_permutations": "mpviz.prune.fold",
    "merged_tokens": "mpviz.nets.tome",
    "count_macs": "mpviz.nets.macs",
    "bench": "mpviz.benchmark.running",
    "run": "mpviz.pipeline",
    "run_projection": "mpviz.projecting",
    "run_grid": "mpviz.grid",
    "RunPanel": "mpviz.workbench.panels",
    "SpectrumExplorer": "mpviz.workbench.panels",
    "BudgetPanel": "mpviz.workbench.panels",
    "CertificatePanel": "mpviz.workbench.panels",
    "BenchmarkPanel": "mpviz.workbench.panels",
    "ComparePanel": "mpviz.workbench.panels",
    "RunQueue": "mpviz.workbench.run_queue",
    "sweep": "mpviz.sweeping",
    "Workbench": "mpviz.workbench.state",
    "MpvizError": "mpviz.errors",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        # The words Python itself uses: `from mpviz import errors` tries the submodule only after an AttributeError.
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
