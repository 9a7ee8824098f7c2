"""The panels by their public names: one state behind several, grids and benchmarks as a reader finds them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ipywidgets as w
import pytest

import mpviz as mp
from mpviz.benchmark.ledger import cells_table, write_cell
from mpviz.errors import CheckpointError, MpvizError
from mpviz.grid_results import committed_grid, committed_grids
from mpviz.recipe import CertifyPlan, DataPlan, GridPlan, ModelPlan, Recipe
from mpviz.two_four import benchmark_cells, hardware
from mpviz.ui.bench_figures import throughput_figure
from mpviz.ui.comparison import comparison_figure
from mpviz.ui.widgets.desk import View
from mpviz.ui.widgets.figure import Figure
from tests.ui.views import parts


@pytest.fixture(scope="module")
def wb() -> Iterator[mp.Workbench]:
    workbench = mp.Workbench("fashion-mlp", samples=60)
    yield workbench
    workbench.close()


@pytest.fixture
def opened() -> Iterator[list[View]]:
    views: list[View] = []
    yield views
    for view in views:
        view.close()


def named(view: View, kind: type, name: str) -> Any:
    return next(part for part in parts(view, kind) if name in (part.description, part.tooltip))


def said(view: View) -> str:
    return " ".join(part.value for part in parts(view, w.HTML))


def test_panels_of_one_workbench_move_together(wb: mp.Workbench, opened: list[View]) -> None:
    explorer, budgets = mp.SpectrumExplorer(wb), mp.BudgetPanel(wb)
    opened += [explorer, budgets, mp.CertificatePanel(wb, samples=20), mp.RunPanel(wb)]
    named(explorer, w.Button, "Next layer").click()
    assert wb.layer == wb.layers[1]
    spectrum = parts(explorer, Figure)[1].picture["layout"]["title"]["text"]
    assert "fc2" in spectrum
    named(budgets, w.FloatSlider, "sparsity, %").value = 37
    assert wb.sparsity == 0.37
    assert "37" in parts(budgets, Figure)[0].picture["layout"]["title"]["text"]


def test_a_committed_grid_is_compared_in_four_ways(opened: list[View]) -> None:
    view = mp.ComparePanel()
    opened.append(view)
    figure, (faces,) = parts(view, Figure)[0], parts(view, w.ToggleButtons)
    grid, part = parts(view, w.Dropdown)
    names = [value for _, value in grid.options]
    assert names == list(committed_grids())
    grid.value = "methods/fashion-resnet"
    found = committed_grid("methods/fashion-resnet")
    expected = comparison_figure(found.metrics)
    assert [trace.name for trace in figure.data] == [trace.get("name") for trace in expected["data"]]
    assert list(figure.data[-1].y) == list(expected["data"][-1]["y"])

    faces.value = "removed"
    assert [value for _, value in part.options] == sorted(set(found.layers["sparsity"]))
    part.value = 0.5
    assert "50" in str(figure.picture["layout"])
    faces.value = "spectra"
    assert part.options[0][1] in str(figure.picture["layout"]["xaxis"]["title"])
    faces.value = "table"
    assert "89.6" in said(view) and "least B_T" in said(view)  # SER at 80 %
    assert "measured" in said(view) and "methods_table.py" in said(view)


def test_a_grid_that_says_no_more_is_shown_as_far_as_it_goes(tmp_path: Path, opened: list[View]) -> None:
    plan = Recipe(ModelPlan("fashion-mlp"), DataPlan(folder="bundled"), certify=CertifyPlan(samples=40),
                  grid=GridPlan(["magnitude"], [0.5]))  # fmt: skip
    folder = tmp_path / "grid"
    mp.run_grid(plan, folder)
    view = mp.ComparePanel(folder)
    opened.append(view)
    assert [value for _, value in parts(view, w.Dropdown)[0].options] == ["grid", *committed_grids()]
    before = len(parts(view, Figure)[0].data[0].x)
    mp.run_grid(Recipe(plan.model, plan.data, certify=plan.certify, grid=GridPlan(["magnitude"], [0.5, 0.9])), folder)
    named(view, w.Button, "Read the grid again, as it is on disk now").click()
    assert len(parts(view, Figure)[0].data[0].x) == before + 1
    for path in folder.rglob("*.safetensors"):
        path.unlink()
    view.desk.workbench.read("grid")
    parts(view, w.ToggleButtons)[0].value = "spectra"
    assert "checkpoints of this grid are not here" in str(parts(view, Figure)[0].picture["layout"])
    with pytest.raises(CheckpointError):
        mp.ComparePanel(tmp_path / "nowhere")


def test_a_network_is_timed_from_its_panel(wb: mp.Workbench, opened: list[View]) -> None:
    view = mp.BenchmarkPanel(wb)
    opened.append(view)
    which, committed = parts(view, w.Dropdown)[0], benchmark_cells()
    assert len(which.options) == len(committed) and "fashion-mlp" in which.label
    batches, state = named(view, w.Text, "batches"), view.desk.workbench
    batches.value = "two"
    named(view, w.Button, "Time this network").click()
    assert "'two' are no batch sizes" in said(view).replace("&#39;", "'").replace("&#x27;", "'")
    before = {name: value.clone() for name, value in wb.network.state_dict().items()}
    batches.value = "2"
    named(view, w.Button, "Time this network").click()
    with pytest.raises(MpvizError, match="something runs already"):
        state.time_it("2")
    assert state._job.wait(120).state == "done", state.error
    view.desk.flush()
    assert len(which.options) == len(committed) + 1 and "batch 2" in which.options[0][0]
    assert state.cell.model == "fashion-mlp" and state.cell.arm("fp32").timing is not None
    assert all((wb.network.state_dict()[name] == value).all() for name, value in before.items())
    assert "estimate" in said(view)


def test_cells_of_a_folder_and_of_mpviz(tmp_path: Path, opened: list[View]) -> None:
    cell = next(one for one in benchmark_cells() if one.model == "fashion-vit")
    write_cell(tmp_path / "one.json", cell)
    view = mp.BenchmarkPanel(tmp_path)
    opened.append(view)
    state = view.desk.workbench
    assert not [button for button in parts(view, w.Button) if button.description == "Time this network"]
    assert (state.cell.model, state.place) == ("fashion-vit", 0)
    expected = throughput_figure(cells_table([one for one in state.cells if one.model == "fashion-vit"
                                              and hardware(one) == hardware(cell)]))  # fmt: skip
    assert len(parts(view, Figure)[0].data) == len(expected["data"])
    parts(view, w.ToggleButtons)[0].value = "table"
    assert "images/s" in said(view)
    with pytest.raises(MpvizError, match="make the panel of a workbench"):
        state.time_it("1")
    (tmp_path / "two.json").write_text("{}")
    with pytest.raises(CheckpointError):
        mp.BenchmarkPanel(tmp_path)
