"""The sortable table in a notebook: layers with their budgets, spikes of the layer in view, proved samples."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import anywidget
import traitlets

from mpviz.ui import rows
from mpviz.ui.css import read_shared
from mpviz.ui.rows import LAYER_COLUMNS, SPIKE_COLUMNS, Column
from mpviz.ui.sample_rows import SAMPLE_COLUMNS, SAMPLES_EMPTY, sample_cells
from mpviz.ui.takeaway import take
from mpviz.ui.widgets.desk import Desk


class Rows(anywidget.AnyWidget):
    """A table that the page sorts. said: what somebody did in it, a dict with what and row."""

    _esm = read_shared("download.js", "table.js")
    _css = read_shared("table.css")

    columns: traitlets.List[Any] = traitlets.List().tag(sync=True)
    ids: traitlets.List[Any] = traitlets.List().tag(sync=True)
    cells = traitlets.Dict().tag(sync=True)
    live = traitlets.Dict().tag(sync=True)
    selected = traitlets.Unicode().tag(sync=True)
    label = traitlets.Unicode().tag(sync=True)
    unit = traitlets.Unicode("row").tag(sync=True)
    empty = traitlets.Unicode().tag(sync=True)
    tall = traitlets.Int().tag(sync=True)
    said = traitlets.Dict().tag(sync=True)


def _rows(columns: Iterable[Column], label: str, unit: str, empty: str, height: int) -> Rows:
    return Rows(columns=[column.plain for column in columns], label=label, unit=unit, empty=empty, tall=height)


def layer_rows(desk: Desk, height: int) -> Rows:
    """All layers; a click selects, the lock locks. height: pixels, the table scrolls inside."""
    wb = desk.workbench
    table = _rows(LAYER_COLUMNS, "all layers", "layer", "Choose a model to see its layers.", height)

    def all_cells() -> None:
        cells = rows.layer_cells(wb.table)
        with table.hold_sync():
            table.cells, table.ids = cells, rows.keys(cells, "layer")

    def live_cells() -> None:
        table.live = rows.budget_cells(wb.table, wb.budgets)

    def selected() -> None:
        table.selected = wb.layer

    def react(said: dict[str, Any]) -> None:
        row, what = str(said.get("row", "")), said.get("what")
        if what == "pick":
            wb.select(row)
        elif what == "lock":
            wb.change(locked=rows.toggled(wb.locked, row))
        else:
            table.send(take(wb, "layers", str(what)).message)

    desk.paint(("table",), all_cells)
    desk.paint(("table", "budgets"), live_cells)
    desk.paint(("layer",), selected)
    table.observe(lambda change: desk.act(react, change["new"]), "said")
    return table


def spike_rows(desk: Desk, height: int) -> Rows:
    """The spikes of the layer in view."""
    wb = desk.workbench
    table = _rows(SPIKE_COLUMNS, "spikes", "spike", "Nothing stands out of the bulk here.", height)

    def follow() -> None:
        cells = rows.spike_cells(wb.spectrum)
        with table.hold_sync():
            table.cells, table.ids, table.label = cells, rows.keys(cells, "rank"), f"spikes of {wb.layer}"

    def react(said: dict[str, Any]) -> None:
        if said.get("what") == "pick":
            table.selected = str(said.get("row", ""))
        else:
            table.send(take(wb, "spikes", str(said.get("what"))).message)

    desk.paint(("spectrum",), follow)
    table.observe(lambda change: desk.act(react, change["new"]), "said")
    return table


def sample_rows(desk: Desk, height: int) -> Rows:
    """The proved samples, those that flip or nearly flip first; a click looks at one."""
    wb = desk.workbench
    table = _rows(SAMPLE_COLUMNS, "samples that were proved", "sample", SAMPLES_EMPTY, height)

    def follow() -> None:
        cells = sample_cells(wb.proofs)
        with table.hold_sync():
            table.cells, table.ids = cells, rows.keys(cells, "row")

    def selected() -> None:
        table.selected = "" if wb.proofs is None else str(min(wb.sample, len(wb.proofs.samples) - 1))

    def react(said: dict[str, Any]) -> None:
        row = str(said.get("row", ""))
        if said.get("what") == "pick" and row.isdigit():
            wb.sample = int(row)
        else:
            table.send(take(wb, "samples", str(said.get("what"))).message)

    desk.paint(("proofs",), follow)
    desk.paint(("proofs", "sample"), selected)
    table.observe(lambda change: desk.act(react, change["new"]), "said")
    return table
