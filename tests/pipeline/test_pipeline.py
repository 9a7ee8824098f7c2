"""A whole plan: what it finds, what it writes, and that nothing is written when it stops or fails."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import pathlib
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import mpviz as mp
from mpviz import files, pipeline
from mpviz.certificates.certify import certify
from mpviz.certificates.summary import results_of
from mpviz.errors import BudgetError, Cancelled, CheckpointError, DataError, ModelError, RecipeError
from mpviz.nets import store
from mpviz.nets.data import Split
from mpviz.nets.paths import data_root
from mpviz.pipeline import run
from mpviz.prune.masks import Ranking
from mpviz.recipe import BudgetPlan, CertifyPlan, DataPlan, ModelPlan, Recipe, RecoverPlan, read_recipe
from mpviz.run_results import read_run, write_run

FULL = OSError(errno.ENOSPC, "No space left on device")
PLAN = Recipe(
    ModelPlan("fashion-mlp"), budget=BudgetPlan(0.55, beta=1.5, locked=[]), certify=CertifyPlan(samples=400, seed=3)
)
WRITTEN = {
    "recipe.toml", "layers.csv", "budgets.csv", "samples.csv", "comparison.csv", "curve.csv", "pruned.safetensors",
    "results.json", "metrics.csv", "environment.json",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs") / "a"


@pytest.fixture(scope="module")
def result(folder):
    return run(PLAN, folder, curve_samples=100)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- what a run finds -----------------------------------------------------------------------------------------------


def test_exactly_the_planned_number_of_weights_goes(result):
    dense = mp.load_model("fashion-mlp")
    total = sum(mask.numel() for mask in result.masks.values())
    removed = sum(int((~mask).sum()) for mask in result.masks.values())
    assert removed == round(0.55 * total) == result.budgets["removed"].sum()
    assert result.budgets["removed"].to_dict() == {name: int((~mask).sum()) for name, mask in result.masks.items()}
    assert list(result.masks) == list(result.table.query("prunable").index)
    for name, weight in result.pruned.state_dict().items():
        before = dense.state_dict()[name]
        if name in result.masks:
            before = torch.where(result.masks[name], before, torch.zeros_like(before))
        assert torch.equal(weight, before), name


def test_the_masks_are_those_of_the_public_functions(result):
    dense = mp.load_model("fashion-mlp")
    weights = mp.allocate(mp.analyze(dense), 0.55, beta=1.5)
    assert np.allclose(result.budgets["weight"], weights)
    masks = mp.magnitude_masks(dense, 0.55, weights)
    assert all(torch.equal(mask, masks[name]) for name, mask in result.masks.items())


def test_the_curve_is_measured_and_agrees_with_the_definition(result):
    curve = result.curve.set_index("sparsity")
    assert set(curve["tier"]) == {"measured"} and set(curve["samples"]) == {100}
    assert len(curve) == 21 and 0.55 in curve.index and (curve["coverage"] <= curve["unchanged"]).all()
    assert curve.loc[0.0, "coverage"] == 1.0
    dense, test = mp.load_model("fashion-mlp"), mp.load_data("fashion-mnist").test
    table = mp.analyze(dense)
    for sparsity in (0.3, 0.9):
        masks = mp.magnitude_masks(dense, sparsity, mp.allocate(table, sparsity, beta=1.5))
        with mp.apply_masks(mp.load_model("fashion-mlp"), masks) as pruned:
            cert = certify(dense, pruned, test, samples=100, seed=3)
        assert (
            curve.loc[sparsity, ["coverage", "unchanged", "accuracy"]] == [cert.coverage, cert.unchanged, cert.accuracy]
        ).all()


def test_a_curve_leaves_out_what_locked_layers_make_impossible():
    plan = dataclasses.replace(PLAN, budget=BudgetPlan(0.2, locked=["features.fc1.weight"]))
    found = run(plan, curve_samples=50)
    free = 512 * 512 / (512 * 512 + 784 * 512)
    assert found.curve["sparsity"].max() == pytest.approx(0.35) and free < 0.4
    assert found.budgets.loc["features.fc1.weight", ["removed", "locked"]].tolist() == [0, True]


def test_masks_are_there_before_any_data_is_read(monkeypatch):
    events = []

    def noted(owner, name, what):
        real = getattr(owner, name)

        def noting(*arguments, **options):
            events.append(what(*arguments))
            return real(*arguments, **options)

        monkeypatch.setattr(owner, name, noting)

    noted(Ranking, "masks", lambda *_: "masks")
    noted(Split, "sample", lambda split, *_: f"sample of {split.name}")
    noted(Split, "loader", lambda split, *_: f"loader of {split.name}")
    noted(pipeline, "load_data", lambda *_: "data")
    run(PLAN)
    assert events == ["masks", "data", "sample of test"]
    events.clear()
    run(dataclasses.replace(PLAN, certify=CertifyPlan(split="calibration", samples=50)))
    assert events == ["masks", "data", "sample of calibration"]


def test_progress_rises_from_nothing_to_all():
    said = []
    run(PLAN, progress=lambda fraction, message: said.append((fraction, message)), curve_samples=20)
    fractions = [fraction for fraction, _ in said]
    assert fractions == sorted(fractions) and fractions[0] == 0.0 and fractions[-1] == 1.0
    assert len(said) > 25 and all(message for _, message in said)


# --- what a run writes ----------------------------------------------------------------------------------------------


def test_the_folder_holds_the_whole_run(folder, result):
    assert set(contents(folder)) == WRITTEN and result.folder == folder
    assert result.checkpoint == folder / "pruned.safetensors"
    assert read_recipe(folder / "recipe.toml") == PLAN
    layers = pd.read_csv(folder / "layers.csv", index_col="layer", dtype=str, keep_default_na=False)
    assert [float(text) for text in layers["sigma_plus"]] == list(result.table["sigma_plus"])  # bit by bit
    assert list(layers.columns) == list(result.table.columns) and list(layers["why"]) == list(result.table["why"])


def test_the_results_are_those_of_the_reloaded_checkpoint(folder, result):
    written = json.loads((folder / "results.json").read_text())
    checkpoint = mp.load(folder / "pruned.safetensors")
    assert checkpoint.results == written and checkpoint.recipe == PLAN.to_dict()
    assert all(torch.equal(mask, result.masks[name]) for name, mask in checkpoint.masks.items())
    cert = certify(
        mp.load_model("fashion-mlp"), checkpoint.model, mp.load_data("fashion-mnist").test, samples=400, seed=3
    )
    assert results_of(cert, result.budgets) == written
    assert written["violations"] == 0 and written["samples"] == 400 and written["tier"] == "measured"
    samples = pd.read_csv(folder / "samples.csv", index_col="sample", dtype=str)
    assert [float(text) for text in samples["eta"]] == list(cert.eta)
    assert [text == "True" for text in samples["certified"]] == list(cert.certified)


def test_a_run_comes_back_from_its_folder(result, folder):
    back = read_run(folder)
    assert back.recipe == result.recipe and back.checkpoint == result.checkpoint
    assert back.environment == result.environment and back.recovered is None
    for name in ("table", "budgets", "comparison", "metrics", "curve"):
        pd.testing.assert_frame_equal(getattr(back, name), getattr(result, name), check_exact=True, obj=name)
    for field in dataclasses.fields(back.certificate):
        assert np.array_equal(getattr(back.certificate, field.name), getattr(result.certificate, field.name))
    assert all(torch.equal(mask, result.masks[name]) for name, mask in back.masks.items())
    assert [type(value) for value in back.comparison["dense"]] == [float, float, float, int, int]


@pytest.mark.parametrize("broken", sorted(WRITTEN - {"layers.csv", "curve.csv"}))
def test_a_folder_that_is_not_whole_is_refused(result, folder, tmp_path, broken):
    copy = shutil.copytree(folder, tmp_path / "copy")
    for damage in (lambda path: path.write_bytes(b"\x00{"), Path.unlink):
        damage(copy / broken)
        with pytest.raises((CheckpointError, RecipeError), match=r"copy"):
            read_run(copy)


# --- nothing is written when a run stops or fails -------------------------------------------------------------------


@pytest.mark.parametrize("after", [0, 1, 4, 6, 8, 10])
def test_a_cancelled_run_writes_nothing(tmp_path, after):
    asked = 0

    def cancelled():
        nonlocal asked
        asked += 1
        return asked > after

    with pytest.raises(Cancelled, match="cancelled"):
        run(PLAN, tmp_path / "out", cancelled=cancelled)
    assert list(tmp_path.iterdir()) == []


def test_a_run_can_be_cancelled_at_its_last_step(tmp_path):
    last = []
    with pytest.raises(Cancelled, match="nothing was written"):
        run(
            PLAN,
            tmp_path / "out",
            progress=lambda fraction, _: last.append(fraction),
            cancelled=lambda: bool(last) and last[-1] > 0.94,
        )
    assert list(tmp_path.iterdir()) == []


WRONG = [
    (ModelPlan("fashion-mpl"), {}, ModelError, "did you mean 'fashion-mlp'"),
    (PLAN.model, {"data": DataPlan("fashion-mnits")}, DataError, "did you mean 'fashion-mnist'"),
    (PLAN.model, {"data": DataPlan(folder="gone")}, DataError, "no train-images"),
    (PLAN.model, {"budget": BudgetPlan(1.0)}, RecipeError, r"in \[0, 1\)"),
    (PLAN.model, {"budget": BudgetPlan(float("nan"))}, RecipeError, r"in \[0, 1\)"),
    (PLAN.model, {"budget": BudgetPlan(signal="sigma")}, BudgetError, "unknown signal 'sigma'"),
    (PLAN.model, {"budget": BudgetPlan(locked=["features.fc3"])}, BudgetError, "did you mean 'features.fc"),
    (PLAN.model, {"budget": BudgetPlan(0.9, locked=["features.fc1.weight"])}, BudgetError, "unlock a layer"),
    (
        ModelPlan("fashion-mlp", str(data_root() / "models" / "fashion-resnet.safetensors")),
        {},
        ModelError,
        "do not fit MLP",
    ),
    (
        ModelPlan("fashion-resnet"),
        {"budget": BudgetPlan(locked=["features.fc1.weight"])},
        BudgetError,
        "unknown locked layer 'features.fc1.weight'",
    ),
    (
        PLAN.model,
        {"budget": BudgetPlan(beta_by_role={"attention": 1.0})},
        BudgetError,
        "no prunable attention layers for a β of their own; it has: mlp",
    ),
    (PLAN.model, {"certify": CertifyPlan(tiers=["mesured"])}, RecipeError, "did you mean 'measured'"),
    (PLAN.model, {"certify": CertifyPlan(split="train")}, RecipeError, "'test' or 'calibration'"),
]


@pytest.mark.parametrize(("model", "parts", "error", "words"), WRONG)
def test_a_wrong_plan_writes_nothing(tmp_path, model, parts, error, words):
    with pytest.raises(error, match=words):
        run(dataclasses.replace(PLAN, model=model, **parts), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["file", "file/deep"])
def test_a_file_where_the_folder_should_be_is_seen_before_the_work(tmp_path, place):
    (tmp_path / "file").write_text("mine")
    said = []
    with pytest.raises(CheckpointError, match="is a file where the run needs a folder"):
        run(PLAN, tmp_path / place, progress=lambda *what: said.append(what))
    assert said == [] and contents(tmp_path) == {"file": b"mine"}


class Faults:
    """Every step of a write, counted; the one with the chosen number fails, the first half of it done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fatal: int) -> None:
        self.count, self.fatal = 0, fatal
        for owner, name, path_at in (
            (pathlib.Path, "mkdir", None),
            (pathlib.Path, "chmod", None),
            (pathlib.Path, "write_text", 0),
            (pd.DataFrame, "to_csv", 1),
            (store, "save_file", 1),
            (tempfile, "mkdtemp", None),
            (tempfile, "mkstemp", None),
            (os, "fsync", None),
            (os, "replace", None),
        ):
            monkeypatch.setattr(owner, name, self._counted(getattr(owner, name), path_at))
        monkeypatch.setattr(files, "open", self._counted(open, None), raising=False)

    def _counted(self, real, path_at):
        def step(*arguments, **options):
            self.count += 1
            if self.count == self.fatal:
                if path_at is not None:
                    with open(arguments[path_at], "wb") as file:
                        file.write(b"half")
                raise FULL
            return real(*arguments, **options)

        return step


def count_steps(result, folder) -> int:
    with pytest.MonkeyPatch.context() as patch:
        faults = Faults(patch, 0)
        write_run(result, folder, {"report.html": "<p>"})
    return faults.count


def test_a_write_that_fails_at_any_step_leaves_the_old_run(result, tmp_path):
    small = dataclasses.replace(result, certificate=result.certificate)
    write_run(small, tmp_path, {"report.html": "old"})
    (tmp_path / "notes.txt").write_text("mine")
    before = contents(tmp_path)
    changed = dataclasses.replace(small, recipe=dataclasses.replace(PLAN, data=DataPlan("digits")))
    steps = count_steps(changed, tmp_path / "trial")
    shutil.rmtree(tmp_path / "trial")
    assert steps > 40
    for fatal in range(1, steps + 1):
        with pytest.MonkeyPatch.context() as patch:
            Faults(patch, fatal)
            with pytest.raises(CheckpointError, match=r"cannot write the run into .*No space left.*unchanged"):
                write_run(changed, tmp_path, {"report.html": "new"})
        assert contents(tmp_path) == before, fatal
        assert len(list(tmp_path.iterdir())) == len(before), fatal  # no empty folder either


def test_a_write_that_fails_at_any_step_leaves_nothing_new(result, tmp_path):
    steps = count_steps(result, tmp_path / "trial" / "run")
    shutil.rmtree(tmp_path / "trial")
    for fatal in range(1, steps + 1):
        with pytest.MonkeyPatch.context() as patch:
            Faults(patch, fatal)
            with pytest.raises(CheckpointError, match="No space left"):
                write_run(result, tmp_path / "trial" / "run", {"report.html": "new"})
        assert list(tmp_path.iterdir()) == [], fatal


def test_an_interrupt_while_writing_leaves_the_old_run(result, tmp_path, monkeypatch):
    write_run(result, tmp_path)
    before = contents(tmp_path)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_run(result, tmp_path)
    assert contents(tmp_path) == before


SMALL = Recipe(model=ModelPlan("fashion-mlp"), certify=CertifyPlan(samples=20))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run(SMALL, tmp_path_factory.mktemp("runs") / "finished").folder


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"budget": BudgetPlan(0.9)}, "budget.sparsity: 0.5 there, 0.9 asked"),
        ({"model": ModelPlan("fashion-mlp-l1")}, "model.name: 'fashion-mlp' there, 'fashion-mlp-l1' asked"),
        ({"recover": RecoverPlan(0.1)}, "recover.epochs: 0.0 there, 0.1 asked"),
        ({"budget": BudgetPlan(0.9, "alpha", 2.0, 0.5)}, "; and 1 more"),
    ],
)
def test_a_finished_run_makes_way_for_no_other_recipe(finished, change, key):
    before, said = contents(finished), []
    with pytest.raises(CheckpointError) as refused:
        mp.run(dataclasses.replace(SMALL, **change), finished, progress=lambda *what: said.append(what))
    words = str(refused.value)
    assert words.startswith(f"{finished} holds the run of a plan by another recipe (") and key in words
    assert words.endswith("; choose another folder, or remove that one") and "\n" not in words
    assert contents(finished) == before and said == []  # before any work


def test_a_finished_run_makes_way_for_its_own_recipe(finished, tmp_path):
    copy = shutil.copytree(finished, tmp_path / "copy")
    with pytest.raises(CheckpointError, match="by another recipe"):
        mp.run(dataclasses.replace(SMALL, budget=BudgetPlan(0.9)), copy)
    mp.run(SMALL, copy)
    assert read_recipe(copy / "recipe.toml") == SMALL
    assert (copy / "results.json").stat().st_mtime_ns > (finished / "results.json").stat().st_mtime_ns


def test_a_finished_run_whose_recipe_is_lost_is_not_written_over(finished, tmp_path):
    copy = shutil.copytree(finished, tmp_path / "copy")
    (copy / "recipe.toml").unlink()
    before = contents(copy)
    with pytest.raises(CheckpointError, match=r"holds work whose recipe is lost .*; choose another folder"):
        mp.run(SMALL, copy)
    assert contents(copy) == before


def test_a_second_run_leaves_nothing_of_the_first_behind(tmp_path):
    mp.run(SMALL, out=tmp_path, curve_samples=20)
    (tmp_path / "report.html").write_text("of the first run")
    assert read_run(tmp_path).curve is not None
    mp.run(SMALL, out=tmp_path)
    assert read_run(tmp_path).curve is None and not (tmp_path / "report.html").exists()
    for damage in ("[]", "null"):
        (tmp_path / "results.json").write_text(damage)
        with pytest.raises(CheckpointError, match="no whole run folder"):
            read_run(tmp_path)
