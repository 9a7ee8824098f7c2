"""Tables, law and training in a notebook, without a notebook."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ipywidgets as w
import pytest

from mpviz.errors import MpvizError
from mpviz.nets.evolution import Evolution
from mpviz.train.limit import from_record
from mpviz.ui import text
from mpviz.ui.widgets import evolution_view, law_view, layer_table_view, limit_view, spike_table_view, workbench_view
from mpviz.ui.widgets.figure import Figure
from mpviz.ui.widgets.table import Rows
from mpviz.workbench.state import Workbench
from tests.ui.views import eventually, parts


@pytest.fixture
def wb() -> Iterator[Workbench]:
    bench = Workbench("fashion-mlp", samples=50)
    yield bench
    bench.close()


def say(table: Rows, what: str, row: str = "") -> None:
    table.said = {"what": what, "row": row, "times": str(time.monotonic_ns())}


def test_the_tables_follow_and_lead(wb: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    layers_view, spikes_view = layer_table_view(wb), spike_table_view(wb)
    try:
        layers, spikes = parts(layers_view, Rows)[0], parts(spikes_view, Rows)[0]
        assert layers.ids == wb.layers and len(spikes.ids) == wb.spectrum.n_spikes
        say(layers, "pick", wb.layers[1])
        assert wb.layer == wb.layers[1] == layers.selected
        assert eventually(lambda: len(spikes.ids) == wb.spectrum.n_spikes and wb.layer in spikes.label)
        cells = layers.cells
        wb.sparsity = 0.2
        say(layers, "lock", wb.layers[0])
        assert wb.locked == [wb.layers[0]] and layers.live["lock"]["state"][0] == "locked"
        assert layers.cells is cells, "what does not follow the sliders is not sent again"
        say(layers, "pick", "<script>")
        alert = next(html for html in parts(layers_view, w.HTML) if "alert" in html.value)
        assert "Unknown layer" in alert.value and "<script>" not in alert.value
        sent: list[Any] = []
        monkeypatch.setattr(layers, "send", sent.append)
        say(layers, "parquet")
        assert sent[0]["name"] == "fashion-mlp-layers.parquet"
    finally:
        layers_view.close()
        spikes_view.close()


def test_the_workbench_switches_between_budgets_and_tables(wb: Workbench) -> None:
    view = workbench_view(wb, "light")
    try:
        switch = next(s for s in parts(view, w.ToggleButtons) if "spikes" in dict(s.options))
        tables = parts(view, Rows)
        faces = [box for box in parts(view, w.VBox) if len(box.children) == 1 and box.children[0] in tables]
        assert [face.layout.display for face in faces] == ["none", "none", "none"]
        switch.value = "spikes"
        assert [face.layout.display for face in faces] == ["none", None, "none"]
        looks = next(d for d in parts(view, w.Dropdown) if d.value == "histogram")
        density = next(s for s in parts(view, w.ToggleButtons) if "log" in dict(s.options))
        looks.value = "tail"
        assert wb.view == "tail" and density.disabled
        next(b for b in parts(view, w.ToggleButton) if b.description == "shuffled").value = True
        assert wb.wait_shuffled()
        assert parts(view, Figure)[1].picture["layout"]["meta"] == "fashion-mlp-features.fc1.weight-tail"
    finally:
        view.close()


def test_only_what_is_seen_follows_the_slider_and_the_rest_is_right_once_it_is_shown(wb: Workbench) -> None:
    view = workbench_view(wb, "light")
    try:
        switch = next(s for s in parts(view, w.ToggleButtons) if "spikes" in dict(s.options))
        layers = next(table for table in parts(view, Rows) if table.ids == wb.layers)
        recipe = parts(view, w.Textarea)[0]
        slider = next(s for s in parts(view, w.FloatSlider) if s.description == "sparsity, %")
        live, said = layers.live, recipe.value
        slider.value = 71
        assert layers.live is live and recipe.value == said, "nobody sees them"
        switch.value = "recipe"
        assert "sparsity = 0.71" in recipe.value and layers.live is live
        slider.value = 33
        assert "sparsity = 0.33" in recipe.value, "what is seen follows at once"
        switch.value = "layers"
        shares = [share for share in layers.live["sparsity"]["sort"] if share is not None]
        assert shares == pytest.approx(wb.budgets["sparsity"].tolist()) and layers.live != live
    finally:
        view.close()


def test_a_figure_gives_itself_away_as_a_page(wb: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    view = workbench_view(wb)
    try:
        figure, sent = parts(view, Figure)[0], []
        monkeypatch.setattr(figure, "send", sent.append)
        figure._handle_custom_msg({"want": "html"}, [])
        figure._handle_custom_msg({"want": "the moon"}, [])
        assert [message["name"] for message in sent] == ["fashion-mlp-strip.html"]
    finally:
        view.close()


def test_the_law_answers_its_sliders_and_draws_anew(root: Path) -> None:
    view = law_view("light")
    try:
        figure, state = parts(view, Figure)[0], view.desk.workbench
        sliders = {s.description: s for s in parts(view, w.IntSlider) + parts(view, w.FloatSlider)}
        for control in (*sliders.values(), *parts(view, w.Button)):
            assert control.tooltip
        sliders["strength × BBP"].value = 0.5
        words = next(html for html in parts(view, w.HTML) if "planted" in html.value)
        assert "none seen" in words.value
        sliders["strength × BBP"].value = 3.0
        assert ": 3 seen" in words.value and "3 spikes" in figure.picture["layout"]["title"]["text"]
        before = figure.picture["data"][0]["y"]
        parts(view, w.Button)[0].click()
        assert state.seed == 1 and figure.picture["data"][0]["y"] != before
        sliders["N, rows"].value, sliders["M, columns"].value = 40, 500
        assert "40 × 500" in figure.picture["layout"]["title"]["text"] and state.error == ""
    finally:
        view.close()


@pytest.fixture(scope="module")
def limit(root: Path) -> Any:
    return from_record(json.loads((root / "data/benchmarks/training-limit.json").read_text()))


def test_one_slider_moves_all_figures_of_the_limit(limit: Any) -> None:
    view = limit_view(limit)
    try:
        drawn = parts(view, Figure)
        assert len(drawn) == 4
        before = [figure.picture for figure in drawn]
        slider = parts(view, w.IntSlider)[0]
        slider.value = slider.max
        assert all(figure.picture != old for figure, old in zip(drawn, before, strict=True))
        last = limit.penalised.table.index[-1]
        assert drawn[0].picture["layout"]["shapes"][0]["x0"] == last
        assert f"epoch {last:g}" in "".join(html.value for html in parts(view, w.HTML))
        plays = parts(view, w.Play)
        assert plays[0].max == slider.max == len(limit.penalised.evolution) - 1
    finally:
        view.close()


def test_an_evolution_is_stepped_through(limit: Any) -> None:
    followed = limit.free.evolution
    view = evolution_view(followed, "dark")
    try:
        figure, slider = parts(view, Figure)[0], parts(view, w.IntSlider)[0]
        titles = set()
        for step in range(0, len(followed), 5):
            slider.value = step
            titles.add(figure.picture["layout"]["title"]["text"])
        assert len(titles) == len(range(0, len(followed), 5))
    finally:
        view.close()
    with pytest.raises(MpvizError, match="no checkpoint to show"):
        evolution_view(Evolution("fc", (2, 2), (), (), ()))


def inside(part):
    yield part
    for child in getattr(part, "children", ()):
        yield from inside(child)


def test_certificates_follow_the_proofs_one_sample_and_the_switches():
    from mpviz.ui.widgets import certificate_view
    from mpviz.ui.widgets.table import Rows
    from mpviz.workbench.state import Workbench

    wb = Workbench("fashion-mlp", sparsity=0.4)
    view = certificate_view(wb, "light")
    try:
        wb.certify(40).wait(120)
        view.desk.flush()
        parts = list(inside(view))
        table = next(part for part in parts if isinstance(part, Rows))
        words = next(part for part in parts if isinstance(part, w.HTML) and "logits ahead of" in part.value)
        order = wb.proofs.samples.pruned_margin.argsort(kind="stable")
        assert table.ids == [str(row) for row in order]
        table.said = {"what": "pick", "row": str(order[3]), "times": "1"}
        view.desk.flush()
        assert wb.sample == int(order[3])
        assert table.selected == str(order[3])
        dense = text.significant(float(wb.proofs.samples.margin[wb.sample]))
        assert f"{dense} logits ahead of" in words.value
        prove = next(part for part in parts if isinstance(part, w.Button) and part.description == "Prove")
        assert not prove.disabled
        ball = next(part for part in parts if isinstance(part, w.Checkbox) and part.description == "ball")
        claims = next(part for part in parts if isinstance(part, w.HTML) and "class='theorem" in part.value)
        assert "one grey level" not in claims.value
        ball.value = True
        view.desk.flush()
        assert "ball" in wb.tiers
        assert "Every image within one grey level" in claims.value
        wb.tiers = ["ball"]
        view.desk.flush()
        assert [part.value for part in parts if isinstance(part, w.Checkbox)].count(True) == 1
    finally:
        view.close()
        wb.close()
