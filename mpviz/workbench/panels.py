"""Panels by their public names: made a floor above, where the notebook's toolkit is, and only when asked for."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpviz.workbench.run_queue import RunQueue

if TYPE_CHECKING:
    from mpviz.benchmark.ledger import BenchReport
    from mpviz.grid_results import GridResult
    from mpviz.workbench.state import Workbench


def SpectrumExplorer(wb: Workbench, theme: str | None = None) -> Any:
    """The whole network, a cell a layer, over the spectrum of the layer in view: bulk, edge, spikes, and its null.

    theme: of this panel and the others: "light", "dark", or None to follow the page. All panels of one workbench move
    together, and `.close()` ends one of them.
    """
    return import_module("mpviz.ui.widgets").explorer_view(wb, theme)


def BudgetPanel(wb: Workbench, theme: str | None = None) -> Any:
    """What each layer loses, beside the sliders that decide it, undo and redo."""
    return import_module("mpviz.ui.widgets").budget_view(wb, theme)


def CertificatePanel(wb: Workbench, theme: str | None = None, samples: int | None = None) -> Any:
    """What is proved about the plan's predictions, tier by tier, on so many images, and why a sample is or is not."""
    return import_module("mpviz.ui.widgets").certificate_view(wb, theme, samples)


def BenchmarkPanel(of: Workbench | BenchReport | str | Path | None = None, theme: str | None = None) -> Any:
    """Every way to run a network side by side, dense and 2:4: throughput, what each step is worth, layers.

    of: a Workbench, whose network a button times on this machine; what `mp.bench` returned, or the folder of its
    cells; None for the measurements that come with mpviz. Raises CheckpointError for a file there that is no cell.
    """
    return import_module("mpviz.ui.widgets").benchmark_view(of, theme)


def ComparePanel(of: GridResult | str | Path | None = None, theme: str | None = None) -> Any:
    """The methods of a grid side by side: curves with bands, what went from which layer, spectra, and the table.

    of: what `mp.run_grid` returned, or its folder, which may still be running; None for the grids that come with
    mpviz. Raises CheckpointError for a folder that holds no grid.
    """
    return import_module("mpviz.ui.widgets").compare_view(of, theme)


def RunPanel(of: RunQueue | Workbench | str | Path = "runs", theme: str | None = None) -> Any:
    """The queue of runs in a notebook: list, progress, time left, live loss and accuracy, log, and buttons.

    of: a RunQueue, the folder of one, or a Workbench, whose plan a button then submits to the queue in "runs". theme:
    "light", "dark", or None to follow the page. Runs go on without the panel, and one that is made anew, in this
    notebook or another, shows them as they are.
    """
    widgets = import_module("mpviz.ui.widgets")
    if isinstance(of, (RunQueue, str, Path)):
        return widgets.run_view(of, theme=theme)
    return widgets.run_view(workbench=of, theme=theme)
