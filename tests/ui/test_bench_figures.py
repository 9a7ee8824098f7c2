"""Pictures of a benchmark, and the way that leads to them: what they show is what was measured, with its label."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from mpviz.benchmark.ledger import cell_path, cells_table, write_cell
from mpviz.errors import CheckpointError, DataError
from mpviz.two_four import benchmark_cells, fastest, hardware, layers_of, route, two_four_gain
from mpviz.ui import theme
from mpviz.ui.bench_figures import layers_figure, steps_figure, throughput_figure
from tests.ui.bench_cells import CPU, GPU, ON_CPU, ON_GPU, ROOFLINE, arm, cell, committed, shape

# --- the way from fp32 to the fastest -------------------------------------------------------------------------------


def test_the_way_changes_one_thing_at_a_time() -> None:
    way = route(cell())
    assert [(one.endpoint, one.before, one.change) for one in way.steps] == [
        ("fp32", "", ""), ("bf16", "fp32", "number type"), ("bf16 compiled", "bf16", "compiled"),
        ("2:4 compiled", "bf16 compiled", "2:4"),
    ]  # fmt: skip
    assert [one.gain and one.gain.value for one in way.steps] == pytest.approx([None, 4.0, 1.25, 1.6])
    assert [one.total and one.total.value for one in way.steps] == pytest.approx([None, 4.0, 5.0, 8.0])
    assert (way.fastest, way.dense, way.limit) == ("2:4 compiled", "bf16 compiled", 1.6)
    assert way.dense_total == pytest.approx(5.0)


def test_a_slower_two_four_is_shown_behind_the_fastest() -> None:
    slow = tuple(one if not one.endpoint.startswith("2:4") else arm("2:4", 40.0) for one in ON_GPU[:5])
    way = route(cell(slow))
    assert way.fastest == "bf16 compiled"
    assert [one.endpoint for one in way.steps] == ["fp32", "bf16", "bf16 compiled", "2:4"]
    last = way.steps[-1]
    assert last.before == "bf16" and last.gain is not None and last.gain.value == pytest.approx(0.5)


def test_convolutions_and_layouts_are_steps_of_their_own() -> None:
    arms = (arm("fp32", 8.0, "float32"), arm("bf16", 4.0), arm("bf16 im2col", 5.0), arm("2:4 im2col", 2.0))
    assert [one.change for one in route(cell(arms)).steps] == ["", "number type", "convolutions as im2col", "2:4"]
    arms = (arm("fp32", 8.0, "float32"), arm("bf16 channels-last compiled", 1.0))
    assert [one.change for one in route(cell(arms)).steps] == ["", "number type, compiled, channels last"]


def test_two_four_is_held_against_its_own_dense_form() -> None:
    gain = two_four_gain(cell())
    assert gain is not None and gain.value == pytest.approx(1.6)
    assert "2:4 compiled against bf16 compiled" in str(gain) and "not the same number type" not in str(gain)
    assert two_four_gain(cell(ON_CPU)) is None
    assert two_four_gain(cell((ON_GPU[0], arm("2:4", 10.0)))) is None, "there is no dense bf16 beside it"


def test_nothing_is_faster_than_fp32() -> None:
    way = route(cell((arm("fp32", 8.0, "float32"), arm("bf16", 9.0))))
    assert [one.endpoint for one in way.steps] == ["fp32"]
    assert "nothing is faster than fp32" in steps_figure(way)["layout"]["title"]["text"]
    with pytest.raises(DataError, match="batch 64 has no timing of fp32"):
        route(cell((arm("bf16", 9.0),)))
    assert fastest(cell((arm("fp32", None, "float32", why="no memory"),))) is None


def test_cells_are_read_where_they_lie(tmp_path: Path) -> None:
    assert benchmark_cells(tmp_path / "none") == []
    for one in committed():
        write_cell(cell_path(tmp_path, one.model, one.batch, one.tome, hardware(one)[8:11].lower()), one)
    found = benchmark_cells(tmp_path)
    assert [(one.model, one.tome, one.batch) for one in found] == sorted(
        (one.model, one.tome, one.batch) for one in committed()
    )
    assert {hardware(one) for one in found} == {"Example GPU", "Example CPU, 2 threads"}
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"cannot read other\.json") as caught:
        benchmark_cells(tmp_path)
    assert str(tmp_path) not in str(caught.value)


# --- throughput -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["light", "dark"])
def test_throughput_is_drawn_with_its_quartiles(name: str) -> None:
    cells = (cell(ON_CPU, batch=8), cell(ON_CPU, batch=8, tome=4), cell(ON_CPU[:1], batch=1))
    figure = throughput_figure(cells_table(cells), name)
    json.dumps(figure, allow_nan=False)
    assert figure["layout"]["paper_bgcolor"] == theme.THEMES[name].paper
    traces = {trace["name"]: trace for trace in figure["data"]}
    assert list(traces) == ["batch 1", "batch 8", "batch 8, 4 merged"]
    eight = traces["batch 8"]
    assert eight["x"] == pytest.approx([200, 160, 400])
    # quartiles 36 and 44 ms
    assert eight["error_x"]["array"][0] == pytest.approx(8 / 0.036 - 200)
    assert eight["error_x"]["arrayminus"][0] == pytest.approx(200 - 8 / 0.044)
    assert eight["error_x"]["array"][1] == pytest.approx(0)
    assert "40.0 ms (36.0 to 44.0)" in eight["text"][0] and "autocast bfloat16" in eight["text"][1]
    ticks = figure["layout"]["yaxis"]["ticktext"]
    assert [tick.split("<br>")[0] for tick in ticks] == ["fp32", "autocast", "bf16"]
    assert "bf16 reaches 400" in figure["layout"]["title"]["text"] and "measured" in figure["layout"]["title"]["text"]
    places = [y for trace in traces.values() for y in trace["y"]]
    assert len(set(places)) == len(places), "no mark hides another"
    assert {round(y) for y in eight["y"]} == {0, 1, 2}


def test_endpoints_without_a_timing_are_counted() -> None:
    title = throughput_figure(cells_table([cell()]))["layout"]["title"]["text"]
    assert "1 endpoint could not be timed" in title
    # one that was timed at another batch is none of them
    both = [cell(), cell((arm("2:4 selective compiled", 1.0),), batch=128)]
    assert "could not" not in throughput_figure(cells_table(both))["layout"]["title"]["text"]


def test_throughput_refuses_what_it_cannot_draw() -> None:
    with pytest.raises(DataError, match="one figure holds one network; the table has a, b"):
        throughput_figure(cells_table([cell(model="b"), cell(model="a")]))
    with pytest.raises(DataError, match="nothing was timed"):
        throughput_figure(cells_table([cell(ON_GPU[-1:])]))
    with pytest.raises(DataError, match="high_ms missing"):
        throughput_figure(cells_table([cell()]).drop(columns="high_ms"))
    figure = throughput_figure(cells_table([cell(model="<b>evil</b>")]))
    assert "<b>" not in json.dumps(figure) and "&lt;b&gt;" in figure["layout"]["title"]["text"]


# --- layers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["light", "dark"])
def test_layers_stand_beside_their_limits(name: str) -> None:
    figure = layers_figure(pd.DataFrame(ROOFLINE), name)
    json.dumps(figure, allow_nan=False)
    traces, page = {trace["name"]: trace for trace in figure["data"]}, figure["layout"]
    assert traces["dense product (measured)"]["y"] == pytest.approx([1.0, 0.5, 0.1])
    assert traces["compute limit (estimate)"]["y"] == pytest.approx([0.8, 0.1, 0.01])
    assert traces["memory limit (estimate)"]["y"] == pytest.approx([0.1, 0.4, 0.02])
    assert traces["dense product (measured)"]["x"] == pytest.approx([6.5536, 3.2768, 0.2048])
    assert page["xaxis"]["type"] == page["yaxis"]["type"] == page["xaxis2"]["type"] == "log"
    ruled = {name: trace["y"] for name, trace in traces.items() if name.startswith("right")}
    assert ruled == {
        "right: ruled by compute": pytest.approx([80]), "right: ruled by memory": pytest.approx([80]),
        "right: ruled by overhead": pytest.approx([20]),
    }  # fmt: skip
    assert "1 of 3 layer shapes reach less than half" in page["title"]["text"]
    assert page["annotations"][0]["text"] == "at its limit (estimate)" and page["shapes"][0]["y0"] == 100
    assert "512 × 64 weights" in traces["right: ruled by compute"]["text"][0]


def test_where_two_four_was_timed_its_gain_is_shown() -> None:
    rows = layers_of(cell(layers=(shape(512, 1e-3, 8e-4, 1e-4, 1.5), {**shape(16, 1e-4, 9e-5, 2e-5), "speedup": None})))
    figure = layers_figure(rows)
    right = [trace for trace in figure["data"] if trace.get("xaxis") == "x2"]
    assert [trace["y"] for trace in right] == [[1.5]]
    assert "2:4 1.50 × as fast" in right[0]["text"][0] and "2:4" not in figure["data"][0]["text"][1]
    assert figure["layout"]["annotations"][0]["text"].endswith("(estimate)")
    assert [line["y0"] for line in figure["layout"]["shapes"]] == [2.0, 1.0]


def test_layers_that_were_not_timed_are_refused() -> None:
    table = pd.DataFrame(ROOFLINE)
    with pytest.raises(DataError, match="of_limit missing"):
        layers_figure(table.drop(columns="of_limit"))
    with pytest.raises(DataError, match="no layer was timed"):
        layers_figure(table.assign(dense_s=float("nan")))
    assert layers_of(cell()).empty


# --- steps ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["light", "dark"])
def test_steps_are_drawn_beside_what_two_four_saves(name: str) -> None:
    figure = steps_figure(route(cell()), name)
    json.dumps(figure, allow_nan=False)
    bars, page = figure["data"][0], figure["layout"]
    assert bars["y"] == pytest.approx([1, 4, 5, 8])
    assert bars["marker"]["pattern"]["shape"] == ["", "/", "/", "/"], "another number type is hatched"
    line = page["shapes"][0]
    assert line["y0"] == line["y1"] == pytest.approx(8.0) and line["line"]["color"] == theme.THEMES[name].estimate.line
    words = [note["text"] for note in page["annotations"]]
    assert words == ["1.00 ×", "4.00 ×", "5.00 ×", "8.00 ×", "2:4 by multiply–adds (estimate): 1.60 × bf16 compiled"]
    assert page["yaxis"]["range"][1] > 8.0
    assert "the largest step, 4.00 ×, is bfloat16 instead of float32" in page["title"]["text"]
    assert (
        "not the same number type" in bars["text"][1]
        and "not the same number type" not in bars["text"][2].split("<br>")[0]
    )


def test_whiskers_are_quartiles_of_the_ratios() -> None:
    bars = steps_figure(route(cell(ON_CPU)))["data"][0]
    assert bars["y"] == pytest.approx([1, 2])
    assert bars["error_y"]["array"] == [None, pytest.approx(0.2)]
    assert bars["error_y"]["arrayminus"] == [None, pytest.approx(0.2)]


def test_hardware_is_the_gpu_where_there_is_one() -> None:
    assert hardware(cell(machine=GPU)) == "Example GPU" and hardware(cell(machine=CPU)) == "Example CPU, 2 threads"
    assert hardware(replace(cell(), machine={})) == "unknown hardware"
