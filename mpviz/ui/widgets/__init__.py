"""The workbench in a notebook: ipywidgets and plotly's FigureWidget, alone or together, full width.

wb = mp.Workbench("fashion-vit")     # as the last line of a cell: everything
spectrum_view(wb)                    # one panel of it, on the same state
"""

from __future__ import annotations

from mpviz.ui.widgets import panels as parts
from mpviz.ui.widgets.benchmark import benchmark_view
from mpviz.ui.widgets.certificate import certificate_view
from mpviz.ui.widgets.compare import compare_view
from mpviz.ui.widgets.controls import sparsity_slider
from mpviz.ui.widgets.desk import Desk, View
from mpviz.ui.widgets.law import law_view
from mpviz.ui.widgets.over_time import evolution_view, limit_view
from mpviz.ui.widgets.panels import share
from mpviz.ui.widgets.runs import run_view
from mpviz.ui.widgets.table import layer_rows, spike_rows
from mpviz.workbench.state import Workbench

__all__ = [
    "benchmark_view",
    "budget_view",
    "certificate_view",
    "compare_view",
    "coverage_view",
    "evolution_view",
    "explorer_view",
    "law_view",
    "layer_table_view",
    "limit_view",
    "run_view",
    "spectrum_view",
    "spike_table_view",
    "strip_view",
    "workbench_view",
]


def workbench_view(wb: Workbench, theme: str | None = None) -> View:
    """All panels on one state: strip, spectrum, what is measured or proved, budgets, sliders, Prune, before and after.

    theme: "light", "dark", or None to follow the page. `.close()` ends it; the workbench lives on.
    """
    desk = Desk(wb, theme)
    middle = parts.row([share(58, parts.spectrum(desk, 232), 400), share(42, parts.known(desk, 232), 280)])
    lower = parts.row([share(60, parts.lower(desk, 152), 400), share(40, parts.plan(desk), 280)])
    view = parts.view(desk, [parts.strip(desk, 122), middle, lower, parts.pruning(desk)])
    wb.start_preview()
    return view


def strip_view(wb: Workbench, theme: str | None = None) -> View:
    """The whole model, a cell a layer; a click selects."""
    desk = Desk(wb, theme)
    return parts.view(desk, [parts.strip(desk, 190)])


def explorer_view(wb: Workbench, theme: str | None = None) -> View:
    """The whole model, a cell a layer, over the spectrum of the layer in view."""
    desk = Desk(wb, theme)
    return parts.view(desk, [parts.strip(desk, 150), parts.spectrum(desk, 390)])


def spectrum_view(wb: Workbench, theme: str | None = None) -> View:
    """The spectrum of the layer in view, with buttons to walk through the layers."""
    desk = Desk(wb, theme)
    return parts.view(desk, [parts.spectrum(desk, 390)])


def budget_view(wb: Workbench, theme: str | None = None) -> View:
    """What each layer loses, beside the sliders that decide it."""
    desk = Desk(wb, theme)
    return parts.view(desk, [parts.row([share(60, parts.budgets(desk, 260)), share(40, parts.plan(desk), 280)])])


def layer_table_view(wb: Workbench, theme: str | None = None) -> View:
    """All numbers of all layers as a table that sorts; a row selects its layer, its lock locks it."""
    desk = Desk(wb, theme)
    return parts.view(desk, [layer_rows(desk, 390)])


def spike_table_view(wb: Workbench, theme: str | None = None) -> View:
    """The spikes of the layer in view: singular value, strength of the signal behind it, overlaps."""
    desk = Desk(wb, theme)
    return parts.view(desk, [spike_rows(desk, 320)])


def coverage_view(wb: Workbench, theme: str | None = None) -> View:
    """The certified share of the predictions along the sparsity, over its slider."""
    desk = Desk(wb, theme)
    view = parts.view(desk, [parts.coverage(desk, 320), sparsity_slider(desk)])
    wb.start_preview()
    return view
