"""What other packages make of a spectrum: WeightWatcher and scikit-rmt, each called as its documentation says.

Neither is needed. ``pip install --no-deps --target FOLDER weightwatcher==0.7.7 scikit-rmt==2.1.1 powerlaw`` puts them
where ``--peers FOLDER`` finds them; both also need matplotlib, and scikit-rmt scikit-learn.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import math
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

# (Gram eigenvalues of the shorter side ascending, rows, cols) -> (σ of one entry, number of spikes)
Peer = Callable[[np.ndarray, int, int], tuple[float, int]]


def load(folder: str | None) -> tuple[dict[str, Peer], dict[str, str]]:
    """The peers that can be imported, and a version or the reason why not for each package."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    if folder:
        sys.path.append(folder)
    peers: dict[str, Peer] = {}
    notes = {}
    for package, maker in (("weightwatcher", _weightwatcher), ("scikit-rmt", _scikit_rmt)):
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                found, version = maker()
        except ImportError as problem:
            notes[package] = f"not measured: {problem}"
            print(
                f"{package} left out: {problem}. pip install --no-deps --target FOLDER {package}, then --peers FOLDER"
            )
            continue
        peers |= found
        notes[package] = version
    return peers, notes


def _weightwatcher() -> tuple[dict[str, Peer], str]:
    """`WeightWatcher.mp_fit`, which is what ``analyze(mp_fit=True)`` puts into its table."""
    package: Any = importlib.import_module("weightwatcher")
    logging.getLogger("weightwatcher").setLevel(logging.ERROR)
    logging.getLogger().setLevel(logging.WARNING)  # its import turns every INFO message on
    watcher = package.WeightWatcher()

    def fit(gram: np.ndarray, rows: int, cols: int) -> tuple[float, int]:
        n, m = max(rows, cols), min(rows, cols)
        spikes, sigma, _, _, _, scale = watcher.mp_fit(
            gram, n, m, 1, "", 0, 0, False, False, "", "black", 0.5, True, gram
        )  # fmt: skip
        return float(sigma) / (float(scale) * math.sqrt(n)), int(spikes)

    return {"WeightWatcher mp_fit": fit}, package.__version__


def check_weightwatcher(matrix: np.ndarray, peer: Peer, gram: np.ndarray) -> bool:
    """Whether `mp_fit` gives what a user of ``analyze(mp_fit=True)`` gets for a linear layer of this weight."""
    import torch

    package: Any = importlib.import_module("weightwatcher")
    layer = torch.nn.Sequential(torch.nn.Linear(matrix.shape[1], matrix.shape[0], bias=False))
    with torch.no_grad():
        layer[0].weight.copy_(torch.as_tensor(matrix))
    with contextlib.redirect_stdout(io.StringIO()):
        row = package.WeightWatcher().analyze(model=layer, mp_fit=True, plot=False).iloc[0]
    sigma, spikes = peer(gram, *matrix.shape)
    users = float(row["sigma_mp"]) / (float(row["W_scale"]) * math.sqrt(max(matrix.shape)))
    return spikes == int(row["num_spikes"]) and math.isclose(sigma, users, rel_tol=1e-4)


def _scikit_rmt() -> tuple[dict[str, Peer], str]:
    """The noise estimators of `MarchenkoPasturPCADenoiser.fit`; its spikes are what its hard threshold keeps.

    It has no fit of a Marchenko–Pastur law to a spectrum apart from these, no Tracy–Widom threshold and no verdict.
    """
    import scipy.misc

    if not hasattr(scipy.misc, "derivative"):
        # It asks for a scipy that still had this function; only its Tracy–Widom approximation calls it.
        scipy.misc.derivative = None
    denoise: Any = importlib.import_module("skrmt.denoise")
    version = importlib.import_module("skrmt").__version__

    def maker(name: str) -> Peer:
        def fit(gram: np.ndarray, rows: int, cols: int) -> tuple[float, int]:
            n, p = max(rows, cols), min(rows, cols)
            # what `fit` does after its own SVD, and the λ₊ that its `transform` cuts at
            sigma = denoise.MarchenkoPasturPCADenoiser._estimate_sigma(gram / n, p / n, name)
            return sigma, int(np.count_nonzero(gram / n > sigma**2 * (1 + math.sqrt(p / n)) ** 2))

        return fit

    return {f"scikit-rmt {name}": maker(name) for name in ("median", "min_eigen", "mp_fit")}, version
