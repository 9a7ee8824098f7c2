"""What a grid hands on to training, what its options mean there, and which are refused before anything runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import mpviz as mp
from mpviz import grid
from mpviz.errors import BudgetError, CheckpointError, RecipeError, TrainingError
from mpviz.grid import run_grid
from mpviz.nets.paths import data_root
from mpviz.recipe import CertifyPlan, DataPlan, GridPlan, ModelPlan, Recipe, RecoverPlan, parse_recipe, read_recipe
from mpviz.recipe_parts import step_plan
from mpviz.train.augment import FlipShift
from mpviz.train.plan import data_digest, digest

PLAN = Recipe(
    ModelPlan("fashion-mlp"), DataPlan(folder="bundled"), certify=CertifyPlan(samples=100),
    grid=GridPlan(["ser"], [0.3, 0.6], [4, 7]),
    recover=RecoverPlan(0.5, 0.25, 1.3, "sgd", 0.03, 700, options={"clip": 1, "every": 3, "momentum": 0.8}),
)  # fmt: skip


class Seen(Exception):
    """Enough was seen."""


def handed_on(monkeypatch: pytest.MonkeyPatch, name: str, recipe: Recipe, folder: Path) -> list[dict[str, Any]]:
    """What the grid calls this function with: its arguments in order as 0, 1, …, and those with names."""
    calls: list[dict[str, Any]] = []

    def seen(*arguments: Any, **options: Any) -> None:
        calls.append(dict(enumerate(arguments)) | options)
        if name == "distill":
            raise Seen

    monkeypatch.setattr(grid, name, seen)
    with pytest.raises((Seen, CheckpointError)):  # no cell is made
        run_grid(recipe, folder)
    return calls


def test_training_in_steps_gets_all_that_the_recipe_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = handed_on(monkeypatch, "prune_in_steps", PLAN, tmp_path / "out")
    assert [call["seed"] for call in calls] == [4, 7]
    for call in calls:
        plan = call[3]
        assert (plan.schedule, plan.ratio, plan.selection, plan.recovery, plan.equal) == ("ser", 1.3, 0.25, 0.5, True)
        assert plan.targets == (0.2, 0.3, 0.6) and call[2] == 0.6
        assert call[1].name == "train" and call["check"].name == "calibration"
        given = {key: call[key] for key in ("optimizer", "learning_rate", "batch", "augment", "clip", "momentum")}
        assert given == {"optimizer": "sgd", "learning_rate": 0.03, "batch": 700, "augment": FlipShift(), "clip": 1.0,
                         "momentum": 0.8}  # fmt: skip
        assert call["every"] == 3 and call["out"] == tmp_path / f"out/cells/ser/seed-{call['seed']}"


def test_training_at_once_gets_all_that_the_recipe_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recipe = replace(PLAN, grid=replace(PLAN.grid, methods=["haar"], seeds=[7]))
    (call,) = handed_on(monkeypatch, "distill", recipe, tmp_path)
    assert call[4] == 0.75  # as long as recovery and selection of the others
    assert (call["seed"], call["optimizer"], call["learning_rate"], call["batch"]) == (7, "sgd", 0.03, 700)
    assert call["augment"] == FlipShift() and call["clip"] == 1.0 and call[2].name == "train"
    for name, value in mp.load_model("fashion-mlp").state_dict().items():
        assert torch.equal(call[1].state_dict()[name], value), "the teacher is the dense network"
    plain = replace(recipe, recover=RecoverPlan(1.0, augment=False))
    (call,) = handed_on(monkeypatch, "distill", plain, tmp_path / "plain")
    assert call["optimizer"] == "adamw" and not {"learning_rate", "batch", "augment"} & set(call)


@pytest.mark.parametrize("asked", [None, "cpu"])
def test_all_happens_on_the_chosen_device(asked: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A device of another name stands for a GPU: the network must be there before it is measured or trained."""
    wanted: list[str | None] = []

    def choose(device: str | None) -> tuple[torch.device, str]:
        wanted.append(device)
        return torch.device("meta"), "a stub"

    def measured(dense: torch.nn.Module, *_: Any, **__: Any) -> None:
        assert {parameter.device.type for parameter in dense.parameters()} == {"meta"}
        raise Seen

    monkeypatch.setattr(grid, "choose_device", choose)
    monkeypatch.setattr(grid, "Samples", measured)
    options = {} if asked is None else {"device": asked}
    with pytest.raises(Seen):
        run_grid(replace(PLAN, recover=replace(PLAN.recover, options=options)), tmp_path / "out")
    assert wanted == [asked] and not (tmp_path / "out").exists()


def test_a_method_means_the_same_with_and_without_recovery(tmp_path: Path) -> None:
    options = {"seb": {"signal": "alpha", "beta": 3, "locked": ["features.fc2"]}}
    recipe = replace(
        PLAN, grid=GridPlan(["magnitude", "seb", "regimes"], [0.2], options=options),
        recover=RecoverPlan(0.1, 0.1, optimizer="sgd", batch=500),
    )  # fmt: skip
    run_grid(recipe, tmp_path / "with")
    run_grid(replace(recipe, recover=RecoverPlan()), tmp_path / "without")
    dense = mp.load_model("fashion-mlp")
    masks = {}
    for method in recipe.grid.methods:
        place = f"cells/{method}/seed-0/stage-0.2000.safetensors"
        trained, plain = (mp.load(tmp_path / folder / place) for folder in ("with", "without"))
        masks[method] = plain.masks["features.fc1.weight"]
        expected = mp.prune_model(dense, method, 0.2, table=mp.analyze(dense), **options.get(method, {})).masks
        for name, mask in expected.items():
            assert torch.equal(mask, plain.masks[name]) and torch.equal(mask, trained.masks[name]), (method, name)
    assert len({mask.numpy().tobytes() for mask in masks.values()}) == 3  # and they are three methods


def test_the_defaults_of_seb_are_its_own_in_steps_too() -> None:
    plans = {name: step_plan(name, replace(PLAN, grid=GridPlan([name]))) for name in ("seb", "regimes", "hybrid")}
    assert plans["seb"].schedule == plans["regimes"].schedule == "seb"
    assert vars(plans["seb"].seb) == vars(grid.SEB()) and plans["regimes"].seb is None is plans["hybrid"].seb
    strong = replace(PLAN, grid=GridPlan(["hybrid"], options={"hybrid": {"seb": {"beta": 2}, "factor": "divide"}}))
    assert step_plan("hybrid", strong).seb == grid.SEB(beta=2.0) and step_plan("hybrid", strong).factor == "divide"


def test_methods_that_prune_at_once_train_as_long_as_those_in_steps(tmp_path: Path) -> None:
    recover = RecoverPlan(1, 2.0, optimizer="sgd", learning_rate=0.01, batch=1000)
    recipe = replace(PLAN, grid=GridPlan(["haar"], [0.6]), recover=recover)
    run_grid(recipe, tmp_path)
    steps = pd.read_csv(tmp_path / "cells/haar/seed-0/recovery-0.6000/metrics.csv")
    assert len(steps) == (1 + 2) * 9 and steps["learning_rate"].max() == pytest.approx(0.01)


def test_the_recipe_of_the_recovery_grid_is_what_its_record_was_measured_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """All that its script hands to `prune_in_steps`: images, epochs, plan, rate, batch, augmentation and seeds."""
    threads = torch.get_num_threads()
    from tests.benchmarks import recovery_grid

    torch.set_num_threads(threads)  # the script sets one
    recipe = read_recipe(data_root() / "recipes" / "recovery.toml")
    assert recipe.certify == CertifyPlan() and recipe.grid.seeds == [0, 1, 2]  # all test images
    fewer = replace(recipe, certify=CertifyPlan(samples=1), grid=replace(recipe.grid, seeds=[2]))
    ours = handed_on(monkeypatch, "prune_in_steps", fewer, tmp_path / "out")
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(recovery_grid, "prune_in_steps", lambda *a, **b: calls.append(dict(enumerate(a)) | b))
    monkeypatch.setattr(recovery_grid, "logits", lambda *_: None)
    record = json.loads((data_root() / "benchmarks" / "recovery-grid.json").read_text(encoding="utf-8"))
    rates = record["rates"][recipe.model.name]
    arms = {"magnitude": "magnitude", "regimes": "regimes", "ser": "ser, mended", "hybrid": "hybrid, mended"}
    for method in recipe.grid.methods:
        recovery_grid.path_of(recipe.model.name, arms[method], 2, tmp_path, float(min(rates, key=rates.get)))
    assert len(ours) == len(calls) == 4
    for mine, theirs in zip(ours, calls, strict=True):
        assert digest(mine[0].state_dict()) == digest(theirs[0].state_dict())
        assert len(mine[1]) == 10_000 and data_digest(mine[1]) == data_digest(theirs[1])
        assert mine[2] == theirs[2] == 0.9 and mine["seed"] == theirs["seed"]
        for name in ("batch", "learning_rate", "augment"):
            assert mine[name] == theirs[name], name
        assert mine["optimizer"] == record["optimizer"] == "adamw" and "optimizer" not in theirs  # its default
        one, other = mine[3].record(), theirs[3].record()
        if one["schedule"] in ("magnitude", "seb"):  # only the sum counts where nothing is selected, and no ratio does
            assert one["equal"] and one["selection"] + one["recovery"] == other["selection"] + other["recovery"] == 2
            for plan in (one, other):
                del plan["selection"], plan["recovery"], plan["ratio"]
        assert one == other


def test_all_training_images_are_trained_on_only_where_the_recipe_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for whole, images in ((False, 9_000), (True, 10_000)):
        recipe = replace(PLAN, recover=replace(PLAN.recover, whole=whole))
        [first, _] = handed_on(monkeypatch, "prune_in_steps", recipe, tmp_path / f"steps-{whole}")
        assert len(first[1]) == images and first[1].name == "train"
        at_once = replace(recipe, grid=GridPlan(["haar"], [0.5]))
        [only] = handed_on(monkeypatch, "distill", at_once, tmp_path / f"once-{whole}")
        assert len(only[2]) == images


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"certify": CertifyPlan(split="calibration")}, "which certify.split = 'calibration' measures on"),
        (
            {"grid": GridPlan(["magnitude", "drop-threshold"])},
            "which the method 'drop-threshold' measures its drops on",
        ),
    ],
)
def test_what_is_trained_on_must_not_measure(change: dict, words: str, tmp_path: Path) -> None:
    recipe = replace(PLAN, recover=replace(PLAN.recover, whole=True), **change)
    with pytest.raises(RecipeError, match=f"'recover.whole' trains on the calibration images, {words}"):
        run_grid(recipe, tmp_path / "new")
    assert not (tmp_path / "new").exists()


WRONG = [
    ("ser", {"ratio": 1.2}, {}, r"'grid\.options\.ser\.ratio' follows from recover\.ratio"),
    ("ser", {"selection": 1.0}, {}, r"follows from recover\.selection"),
    ("ser", {"recovery": 1}, {}, r"follows from recover\.epochs"),
    ("ser", {"targets": [0.5]}, {}, r"follows from grid\.sparsities"),
    ("hybrid", {"equal": False}, {}, "follows from"),
    ("hybrid", {"last": 3}, {}, r"follows from recover\.epochs"),
    ("ser", {"schedule": "seb"}, {}, r"follows from grid\.methods"),
    ("ser", {"selection_rate": "x"}, {}, "'grid.options.ser.selection_rate' must be float; got 'x'"),
    ("ser", {"restord": "moved"}, {}, "unknown recipe key 'grid.options.ser.restord'; did you mean 'restored'"),
    ("ser", {"restored": "back"}, {}, r"'grid\.options\.ser': .*restored.*'back'"),
    ("ser", {"seb": {"beta": "strong"}}, {}, "'grid.options.ser.seb.beta' must be float; got 'strong'"),
    ("ser", "fast", {}, r"\[grid\.options\.ser\] must be a table"),
    ("seb", {"beta": "strong"}, {}, "'grid.options.seb.beta' must be float; got 'strong'"),
    ("seb", {"locked": "features.fc2"}, {}, "'grid.options.seb.locked' must be list; got 'features.fc2'"),
    ("seb", {"locked": [2]}, {}, r"'grid\.options\.seb\.locked\[0\]' must be str; got 2"),
    ("seb", {"beta_by_role": {"mlp": True}}, {}, "'grid.options.seb.beta_by_role.mlp' must be float; got True"),
    ("regimes", {"beta": 1.0}, {}, "unknown recipe key 'grid.options.regimes.beta'; there is none"),
    ("magnitude", {"scope": "layer"}, {}, r"'grid\.options\.magnitude\.scope': steps with recovery are global"),
    ("magnitude", {}, {"seed": 3}, r"'recover\.options\.seed' follows from grid\.seeds"),
    ("magnitude", {}, {"learning_rate": 0.1}, r"follows from recover\.learning_rate"),
    ("magnitude", {}, {"out": "here"}, "unknown recipe key 'recover.options.out'"),
    ("magnitude", {}, {"masks": {}}, "unknown recipe key 'recover.options.masks'"),
    ("magnitude", {}, {"temperature": "hot"}, "'recover.options.temperature' must be float; got 'hot'"),
    ("magnitude", {}, {"temperature": 0.0}, r"\[recover\]: temperature = 0.0; it must be above 0"),
    ("magnitude", {}, {"precision": "fp8"}, r"\[recover\]: unknown precision 'fp8'"),
    ("magnitude", {}, {"device": "gpu"}, r"\[recover\]: no device is called 'gpu'"),
    ("magnitude", {}, {"every": 0}, "'recover.options.every' is at least 1; got 0"),
    ("magnitude", {}, {"workers": -1}, "'recover.options.workers' is at least 0; got -1"),
]


@pytest.mark.parametrize("epochs", [0.05, 0.0])
@pytest.mark.parametrize(("method", "options", "training", "words"), WRONG)
def test_wrong_options_are_refused_in_a_sentence(
    method: str, options: Any, training: dict, words: str, epochs: float, tmp_path: Path
) -> None:
    if method == "magnitude" and options and not epochs:
        pytest.skip("without recovery magnitude has that option")
    recover = RecoverPlan(epochs, 0.05, options=training)
    recipe = replace(PLAN, grid=GridPlan([method], [0.5], options={method: options}), recover=recover)
    with pytest.raises(RecipeError, match=words):
        run_grid(parse_recipe(recipe.to_toml()) if isinstance(options, dict) else recipe, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"signal": "sigma"}, "unknown signal 'sigma'"),
        ({"locked": ["features.fc9"]}, "unknown locked layer 'features.fc9'"),
        ({"decay_end": 0.0}, "decay_end"),
        ({"beta": -1.0}, "at least 0"),
        ({"beta_by_role": {"mpl": 1.0}}, "unknown role 'mpl'"),
    ],
)
def test_budgets_that_mean_nothing_are_seen_before_the_first_cell(options: dict, words: str, tmp_path: Path) -> None:
    for epochs in (0.0, 0.05):
        recipe = replace(
            PLAN, grid=GridPlan(["magnitude", "seb"], [0.5], options={"seb": options}), recover=RecoverPlan(epochs)
        )  # fmt: skip
        with pytest.raises(BudgetError, match=words):
            run_grid(recipe, tmp_path / "new")
        assert not (tmp_path / "new").exists()


def test_a_name_for_the_model_stands_in_its_own_place() -> None:
    with pytest.raises(
        RecipeError, match=r"'model\.options\.pretrained' has a place of its own; set model\.pretrained"
    ):
        parse_recipe("[model.options]\npretrained = false\n")


def test_a_training_that_fails_says_so_in_a_sentence(tmp_path: Path) -> None:
    wild = replace(PLAN, recover=replace(PLAN.recover, learning_rate=1e20, options={"every": 100}))
    with pytest.raises(TrainingError, match="loss"):
        run_grid(wild, tmp_path / "out")
