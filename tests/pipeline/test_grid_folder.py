"""The folder of a grid: what is there while it runs, whose it is, and the log of what each step decided."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

import mpviz as mp
from mpviz import cli
from mpviz.errors import Cancelled, CheckpointError, TrainingError
from mpviz.grid import run_grid
from mpviz.grid_folder import GridFolder
from mpviz.grid_results import GridResult, read_grid
from mpviz.pipeline import run
from mpviz.recipe import CertifyPlan, DataPlan, GridPlan, ModelPlan, Recipe, RecoverPlan, read_recipe
from mpviz.ui.grid_page import compare_page

PLAN = Recipe(
    ModelPlan("fashion-mlp"), DataPlan(folder="bundled"), certify=CertifyPlan(samples=100),
    grid=GridPlan(["magnitude", "seb", "haar"], [0.3, 0.6]),
)  # fmt: skip
TRAINED = replace(
    PLAN, grid=GridPlan(["regimes", "hybrid"], [0.3, 0.6]),
    recover=RecoverPlan(0.2, 0.2, optimizer="sgd", learning_rate=0.01, batch=500),
)  # fmt: skip


def cancelled_after(folder: Path, cells: int, recipe: Recipe = PLAN) -> None:
    with pytest.raises(Cancelled):
        run_grid(recipe, folder, cancelled=lambda: len(list(folder.glob("cells/*/*/cell-*.json"))) >= cells)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> GridResult:
    return run_grid(TRAINED, tmp_path_factory.mktemp("grid") / "b")


def test_a_grid_can_be_looked_at_while_it_runs(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path / "out"
    cancelled_after(folder, 1)
    assert read_recipe(folder / "recipe.toml") == PLAN
    about = json.loads((folder / "environment.json").read_text())
    assert about["seconds"] > 0 and about["torch"]
    found = read_grid(folder)
    assert found.metrics["method"].tolist() == ["magnitude"] and found.environment == about
    there, page = compare_page([folder])
    assert there and "fashion-mlp: methods side by side" in page and "Nothing to compare" not in page
    assert cli.main(["report", str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder / 'report.html'}\n"
    assert "methods side by side" in (folder / "report.html").read_text(encoding="utf-8")
    assert cli.main(["report", str(tmp_path)]) == 2


def test_seconds_are_those_of_all_calls(tmp_path: Path) -> None:
    cancelled_after(tmp_path, 1)
    about = json.loads((tmp_path / "environment.json").read_text())
    (tmp_path / "environment.json").write_text(json.dumps(about | {"seconds": 1000.0}))
    assert run_grid(PLAN, tmp_path).environment["seconds"] > 1000.0


def test_a_recipe_that_fails_leaves_the_folder_to_the_mended_one(tmp_path: Path) -> None:
    wild = replace(TRAINED, recover=replace(TRAINED.recover, learning_rate=1e20))
    with pytest.raises(TrainingError) as failed:
        run_grid(wild, tmp_path)
    note = json.loads((tmp_path / "cells/regimes/seed-0/failed.json").read_text())
    assert note == {"error": str(failed.value)}
    cancelled_after(tmp_path, 1, TRAINED)
    assert read_recipe(tmp_path / "recipe.toml") == TRAINED and len(read_grid(tmp_path).metrics) == 2
    with pytest.raises(CheckpointError, match=r"another recipe \(recover\.learning_rate: 0\.01 there, 1e\+20 asked\)"):
        run_grid(wild, tmp_path)  # by now there is something to lose


def test_a_training_that_was_stopped_is_not_thrown_away(tmp_path: Path) -> None:
    recipe = replace(TRAINED, recover=replace(TRAINED.recover, options={"every": 2}))
    with pytest.raises(Cancelled):
        run_grid(recipe, tmp_path, cancelled=lambda: bool(list(tmp_path.glob("cells/*/*/recovery-*/*.safetensors"))))
    there = sorted(tmp_path.glob("cells/**/*.safetensors"))
    assert there and not list(tmp_path.glob("cells/*/*/cell-*.json"))
    with pytest.raises(CheckpointError, match=r"another recipe \(recover\.options\.every: 2 there, None asked\)"):
        run_grid(TRAINED, tmp_path)
    assert sorted(tmp_path.glob("cells/**/*.safetensors")) == there


def test_options_of_a_method_without_cells_may_be_mended(tmp_path: Path) -> None:
    haar = replace(PLAN, grid=replace(PLAN.grid, options={"haar": {"z0": 0.1}, "magnitude": {"scope": "layer"}}))
    cancelled_after(tmp_path, 2, haar)
    mended = replace(haar, grid=replace(haar.grid, options=haar.grid.options | {"haar": {"z0": 0.2}}))
    assert set(run_grid(mended, tmp_path).metrics["method"]) == {"magnitude", "seb", "haar"}
    for options, key in ((haar.grid.options, "haar.z0"), ({"haar": {"z0": 0.2}}, "magnitude.scope")):
        with pytest.raises(CheckpointError, match=rf"another recipe \(grid\.options\.{key}: \S+ there, \S+ asked\)"):
            run_grid(replace(mended, grid=replace(mended.grid, options=options)), tmp_path)


def test_a_grid_and_a_single_run_do_not_share_a_folder(tmp_path: Path) -> None:
    single = replace(PLAN, grid=GridPlan())
    run(single, tmp_path / "run")
    with pytest.raises(CheckpointError, match="holds the run of a plan; choose another folder"):
        run_grid(PLAN, tmp_path / "run")
    assert not (tmp_path / "run" / "cells").exists()
    cancelled_after(tmp_path / "grid", 1)
    with pytest.raises(CheckpointError, match="holds a grid of methods; choose another folder"):
        run(single, tmp_path / "grid")
    assert len(read_grid(tmp_path / "grid").metrics) == 1


def test_what_goes_missing_is_named(tmp_path: Path) -> None:
    cancelled_after(tmp_path, 1)
    (tmp_path / "environment.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"environment\.json is missing or damaged"):
        read_grid(tmp_path)
    (tmp_path / "recipe.toml").unlink()
    with pytest.raises(CheckpointError, match="whose recipe is lost"):
        run_grid(PLAN, tmp_path)


def test_a_full_disk_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    cancelled_after(tmp_path, 1)
    monkeypatch.setattr("mpviz.grid_folder.write_text", full)
    with pytest.raises(CheckpointError, match=r"cannot write .*cell-0\.6000.*No space left"):
        run_grid(PLAN, tmp_path)
    assert len(read_grid(tmp_path).metrics) == 1


def test_the_log_says_what_a_method_went_by(tmp_path: Path) -> None:
    result = run_grid(PLAN, tmp_path)
    log = pd.read_csv(tmp_path / "log.csv")
    assert len(log) == len(result.log) == 3 * 2 * 2  # methods, sparsities, layers
    dense = mp.load_model("fashion-mlp")
    table = mp.analyze(dense)
    for method in PLAN.grid.methods:
        for sparsity in PLAN.grid.sparsities:
            own = log[(log["method"] == method) & (log["target"] == sparsity)].reset_index(drop=True)
            decided = mp.prune_model(dense, method, sparsity, table=table).log.drop(columns="role")
            pd.testing.assert_frame_equal(own[list(decided)], decided, check_dtype=False)
    weights = log[(log["method"] == "seb") & (log["target"] == 0.3)].set_index("layer")["weight"]
    pd.testing.assert_series_equal(weights, mp.allocate(table, 0.3), check_names=False)


def test_the_log_of_steps_has_all_of_them(trained: GridResult) -> None:
    log = pd.read_csv(trained.folder / "log.csv")
    removed = log.groupby(["method", "target"])["removed"].sum()
    total = 512 * (784 + 512)
    for method in TRAINED.grid.methods:
        assert removed[method].to_dict() == {s: round(s * total) for s in (0.2, 0.3, 0.6)}
    steps = log.groupby(["method", "target"])["step"].unique().map(list)
    assert steps["regimes"].tolist() == [["seb"]] * 3
    assert steps["hybrid"].tolist() == [["magnitude"], ["restore"], ["restore"]]
    cells = trained.layers.set_index(["method", "sparsity", "layer"])["restored"]
    back = log[log["target"] > 0.2].set_index(["method", "target", "layer"])["restored"]
    assert back.to_dict() == cells.to_dict() and cells.sum() > 0
    keys = ["method", "sparsity", "layer"]
    written = pd.read_csv(trained.folder / "layers.csv").set_index(keys)[["removed", "reservoir", "restored"]]
    logged = log.drop(columns="sparsity").rename(columns={"target": "sparsity"}).set_index(keys)[list(written)]
    assert written.to_dict() == logged.loc[written.index].to_dict()
    before = logged["removed"].groupby(["method", "layer"]).shift(fill_value=0)  # rows are in the order of the steps
    hybrid, plain = logged.loc["hybrid"].query("sparsity > 0.2"), logged.loc["regimes"]
    assert (plain[["reservoir", "restored"]] == 0).all(axis=None)
    assert (hybrid["reservoir"] == hybrid["removed"] + hybrid["restored"] - before["hybrid"].loc[hybrid.index]).all()
    assert (hybrid["reservoir"] >= hybrid["restored"]).all()
    held = hybrid["reservoir"].groupby("sparsity").sum()
    assert held.to_dict() == {
        0.3: round(0.36 * total) - round(0.2 * total),
        0.6: round(0.78 * total) - round(0.3 * total),
    }
    assert not [name for name in log if "features" in name]


def test_a_kill_between_record_and_tidying_leaves_nothing(trained: GridResult) -> None:
    recipe = replace(PLAN, grid=GridPlan(["haar"], [0.3]), recover=replace(TRAINED.recover, epochs=0.1, selection=0.1))
    folder = trained.folder.parent / "c"
    run_grid(recipe, folder)
    left = folder / "cells/haar/seed-0/recovery-0.3000/step-00000004.safetensors"
    left.write_bytes(b"")
    run_grid(recipe, folder)
    assert not left.exists()
    assert GridFolder(folder).path("haar", 0) == folder / "cells/haar/seed-0"
