"""The workbench in a notebook: ipywidgets and plotly's FigureWidget, alone or together, full width.

wb = mp.Workbench("fashion-vit")     # as the last line of a cell: everything
spectrum_view(wb)                    # one panel of it, on the same state
"""

from __future__ import annotations

import ipywidgets as w

from mpviz.ui.widgets import panels as parts
from mpviz.ui.widgets.controls import sparsity_slider
from mpviz.ui.widgets.desk import Desk, View
from mpviz.ui.widgets.panels import share
from mpviz.workbench.state import Workbench

__all__ = ["budget_view", "coverage_view", "spectrum_view", "strip_view", "workbench_view"]


def workbench_view(wb: Workbench, theme: str | None = None) -> View:
    """All panels on one state: model strip, spectrum, coverage, budgets, sliders, Prune, before and after.

    theme: "light", "dark", or None to follow the page. `.close()` ends it; the workbench lives on.
    """
    desk = Desk(wb, theme)
    middle = parts.row([share(58, parts.spectrum(desk, 238)), share(42, parts.coverage(desk, 238))])
    lower = parts.row([share(60, parts.budgets(desk, 154)), share(40, parts.plan(desk))])
    view = _view(desk, [parts.strip(desk, 128), middle, lower, parts.pruning(desk)])
    wb.start_preview()
    return view


def strip_view(wb: Workbench, theme: str | None = None) -> View:
    """The whole model, a cell a layer; a click selects."""
    desk = Desk(wb, theme)
    return _view(desk, [parts.strip(desk, 190)])


def spectrum_view(wb: Workbench, theme: str | None = None) -> View:
    """The spectrum of the layer in view, with buttons to walk through the layers."""
    desk = Desk(wb, theme)
    return _view(desk, [parts.spectrum(desk, 390)])


def budget_view(wb: Workbench, theme: str | None = None) -> View:
    """What each layer loses, beside the sliders that decide it."""
    desk = Desk(wb, theme)
    return _view(desk, [parts.row([share(60, parts.budgets(desk, 260)), share(40, parts.plan(desk))])])


def coverage_view(wb: Workbench, theme: str | None = None) -> View:
    """The certified share of the predictions along the sparsity, over its slider."""
    desk = Desk(wb, theme)
    view = _view(desk, [parts.coverage(desk, 320), sparsity_slider(desk)])
    wb.start_preview()
    return view


def _view(desk: Desk, children: list[w.Widget]) -> View:
    view = View(desk, [parts.sheet(desk), *children, parts.errors(desk)], layout=w.Layout(width="100%"))
    view.add_class("mpviz")

    def dress() -> None:
        view.remove_class("mpviz-dark" if desk.theme == "light" else "mpviz-light")
        view.add_class(f"mpviz-{desk.theme}")

    desk.paint(("theme",), dress)
    desk.start()
    return view
