"""The tables' columns as plain lists: words, sort keys, shares, marks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace

import pytest

from mpviz.rmt.checks import GRADES
from mpviz.ui import layer_figure, rows
from mpviz.ui.css import read_shared
from mpviz.ui.text import NONE
from mpviz.ui.theme import THEMES
from mpviz.workbench.state import Workbench


@pytest.fixture(scope="module")
def wb() -> Iterator[Workbench]:
    bench = Workbench("fashion-mlp", samples=50)
    yield bench
    bench.close()


def test_every_column_has_a_cell_for_every_row_and_is_plain_json(wb: Workbench) -> None:
    cells = rows.layer_cells(wb.table) | rows.budget_cells(wb.table, wb.budgets)
    assert set(cells) == {column.name for column in rows.LAYER_COLUMNS}
    for column in cells.values():
        assert {len(values) for values in column.values()} == {len(wb.table)}
    json.dumps(cells, allow_nan=False)
    assert rows.keys(cells, "layer") == wb.layers
    assert cells["sigma_plus"]["sort"] == pytest.approx(wb.table["sigma_plus"].tolist())


def test_a_layer_without_a_fit_sorts_last_and_says_why(wb: Workbench) -> None:
    table = wb.table.copy()
    broken = table.index[1]
    numbers = ["sigma_plus", "bulk_fraction", "n_spikes", "rigidity", "alpha", "tail_alpha", "stable_rank"]
    table[numbers] = table[numbers].astype(float)
    table.loc[broken, numbers] = float("nan")
    table.loc[broken, ["grade", "verdict", "reason"]] = ["none", "NaN in 3 entries; check it", "no spectrum"]
    cells = rows.layer_cells(table)
    for name in ("sigma_plus", "bulk", "spikes", "fit", "alpha", "stable_rank"):
        assert cells[name]["sort"][1] is None
    assert cells["sigma_plus"]["text"][1] == cells["spikes"]["text"][1] == NONE
    assert (cells["fit"]["text"][1], cells["fit"]["state"][1]) == ("no spectrum", "none")
    assert cells["fit"]["tip"][1] == "NaN in 3 entries; check it"
    json.dumps(cells, allow_nan=False)


def test_a_bad_fit_has_its_reason_in_words(wb: Workbench) -> None:
    table = wb.table.copy()
    table["grade"], table["reason"], table["rigidity"] = ["good", "poor", "poor"], ["MP-like", "heavy tail", "x"], 12.3
    fit = rows.layer_cells(table)["fit"]
    assert fit["text"] == ["12", "12 heavy tail", "12 x"] and fit["state"] == ["good", "poor", "poor"]
    table["no_tail"], table["tail_alpha"] = [True, False, False], [9.0, 2.5, 3.25]
    tail = rows.layer_cells(table)["tail"]
    assert tail["text"] == ["no tail", "2.50", "3.25"] and tail["sort"] == [None, 2.5, 3.25]


def test_locks_and_budgets_follow_the_plan(wb: Workbench) -> None:
    wb.change(sparsity=0.2, locked=["features.fc1.weight"])
    live = rows.budget_cells(wb.table, wb.budgets)
    assert live["lock"]["state"] == ["locked", "open", "none"] and live["lock"]["sort"] == [1, 0, None]
    assert live["sparsity"]["share"][0] == 0.0 and live["sparsity"]["text"][2] == NONE
    assert live["lock"]["tip"][2].startswith("not prunable")
    wb.change(locked=[])


def test_spikes_are_told_with_strength_and_overlaps(wb: Workbench) -> None:
    view = wb.spectrum
    cells = rows.spike_cells(view)
    assert rows.keys(cells, "rank") == [str(i + 1) for i in range(view.n_spikes)]
    assert set(cells) == {column.name for column in rows.SPIKE_COLUMNS}
    assert all(s > theta for s, theta in zip(cells["singular"]["sort"], cells["strength"]["sort"], strict=True))
    one = replace(view, spikes=[{"rank": 1, "eigenvalue": 4.0, "strength": 2.0, "overlap": 0.5}], shape=(100, 50))
    cells = rows.spike_cells(one)
    assert cells["singular"]["sort"] == [20.0] and cells["left"]["share"] == cells["right"]["share"] == [0.5]
    assert rows.spike_cells(None)["rank"]["text"] == []


def test_a_name_is_toggled() -> None:
    assert rows.toggled(["a", "b"], "a") == ["b"] and rows.toggled(["b"], "a") == ["b", "a"]


def test_every_view_says_formula_and_source_and_has_a_figure(wb: Workbench) -> None:
    from mpviz.workbench.names import VIEWS

    assert tuple(look.name for look in layer_figure.LOOKS) == VIEWS == tuple(wb.param["view"].objects)
    drawn = [layer_figure.layer_figure(wb.spectrum, look.name, "singular", True) for look in layer_figure.LOOKS]
    assert len({figure["layout"]["uirevision"] for figure in drawn}) == len(drawn)
    for look in layer_figure.LOOKS:
        assert "(" in look.tip and look.tip[-5:-1].isdigit(), look.tip
    with pytest.raises(Exception, match="did you mean 'tail'"):
        layer_figure.layer_figure(wb.spectrum, "tial", "singular", False)


def test_a_fair_fit_is_neither_good_nor_poor(wb: Workbench) -> None:
    table = wb.table.copy()
    table["grade"], table["reason"] = ["good", "fair", "poor"], ["MP-like", "x", "x"]
    table["rigidity"] = [2.0, 3.6, 12.3]
    fit = rows.layer_cells(table)["fit"]
    assert fit["text"] == ["2.0", "3.6 x", "12 x"]
    assert fit["state"] == ["good", "fair", "poor"] and fit["sort"] == [2.0, 3.6, 12.3]


def test_each_grade_has_a_mark_and_a_colour_of_its_own() -> None:
    marks = re.search(r"const MARKS = \{(.*)\};", read_shared("table.js"))
    assert marks is not None
    assert dict(re.findall(r'(\w+): "(.?) ?"', marks[1])) == {"good": "●", "fair": "▼", "poor": "▲", "none": ""}
    colours = dict(re.findall(r'\[data-state="(\w+)"\] \{ color: var\(--(\w+)-text\)', read_shared("table.css")))
    assert set(colours) == set(GRADES) - {"none"}  # without a fit: plain ink
    for name, palette in THEMES.items():
        assert len({getattr(palette, colour).text for colour in colours.values()} | {palette.ink}) == 4, name
