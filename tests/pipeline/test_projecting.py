"""A projection plan from end to end: what it finds and writes, going on after a stop, and whole folders or none."""

from __future__ import annotations

import errno
import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import mpviz as mp
from mpviz import cli, pipeline, projecting
from mpviz.certificates.objective import Penalty
from mpviz.errors import Cancelled, CheckpointError, MpvizError, PatternError, RecipeError, TrainingError
from mpviz.nets import store
from mpviz.nets.tome import schedule_of
from mpviz.nets.zoo import model_card
from mpviz.projecting import ProjectionResult, check_reload, project_by_plan, run_projection, write_projection
from mpviz.prune.cast import Projected
from mpviz.prune.pruning import Pruning
from mpviz.recipe import CertifyPlan, DataPlan, GridPlan, ModelPlan, ProjectPlan, Recipe, RecoverPlan, read_recipe
from mpviz.recipe_parts import source_options
from mpviz.structured import restore_certificates
from mpviz.train.augment import FlipShift

PLAN = Recipe(
    ModelPlan("fashion-mlp"), DataPlan(folder="bundled"), certify=CertifyPlan(samples=120, seed=3),
    grid=GridPlan(seeds=[5]), project=ProjectPlan("2:4", permute="interleave", images=32),
)  # fmt: skip
STEPS: dict[str, Any] = {"targets": [0.2, 0.35], "selection": 0.02, "recovery": 0.03}
RECOVER = RecoverPlan(
    0.2, optimizer="sgd", learning_rate=0.01, batch=100, options={"smoothing": 0.0, "every": 4}
)  # 18 steps
SER = replace(
    PLAN,
    recover=RECOVER,
    project=replace(PLAN.project, source="ser", source_options=STEPS, alpha_ser=0.1, repair=True),
)
WRITTEN = {
    "recipe.toml", "environment.json", "layers.csv", "macs.csv", "metrics.csv", "samples.csv", "results.json",
    "projected.safetensors",
}  # fmt: skip
TRAINED = WRITTEN | {"recovery.csv", "recovered-samples.csv", "report.html"}


def with_project(recipe: Recipe = PLAN, **changes: Any) -> Recipe:
    return replace(recipe, project=replace(recipe.project, **changes))


def dense() -> nn.Module:
    return mp.load_model("fashion-mlp")


def splits() -> Any:
    return mp.load_data(folder="bundled")


def state(network: nn.Module) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in network.state_dict().items()}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def same_masks(one: Projected, other: Projected) -> bool:
    pairs = ((one.masks, other.masks), (one.permutations, other.permutations))
    return all(set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a) for a, b in pairs)


def quiet(*_: Any, **__: Any) -> Any:
    raise AssertionError("nothing may be asked of this here")


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> ProjectionResult:
    """Projected, without a source or training."""
    return run_projection(PLAN, tmp_path_factory.mktemp("projections") / "plain")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> ProjectionResult:
    """Pruned by prune–restore, projected, trained."""
    return run_projection(SER, tmp_path_factory.mktemp("projections") / "ser", report=lambda found: "<p>a report")


# --- what a run finds -----------------------------------------------------------------------------------------------


def test_the_masks_are_those_of_the_public_function(result: ProjectionResult) -> None:
    expected = mp.project(dense(), "2:4", splits().calibration, permute="interleave", images=32, seed=5)
    assert same_masks(result.projected, expected) and len(result.projected.permutations) == 2
    assert state(result.model) == state(expected.model)
    pd.testing.assert_frame_equal(result.projected.cost, expected.cost, check_exact=True)
    other = mp.project(dense(), "2:4", splits().calibration, permute="interleave", images=32, seed=0)
    assert not same_masks(expected, other), "the seed decides, or this test could not fail"
    assert result.restore is None and result.curve is None and set(result.certificates) == {"projected"}


def another(value: Any) -> Any:
    """A value of the same type."""
    if isinstance(value, bool):
        return not value
    more = {str: "x", list: ["x"], int: 1, float: 0.25}
    return value | {"x": 1} if isinstance(value, dict) else value + more[type(value)]


def test_every_key_of_the_plan_reaches_the_projection(monkeypatch: pytest.MonkeyPatch) -> None:
    default = ProjectPlan()
    plan = replace(default, **{name: another(value) for name, value in vars(default).items()})
    assert all(value != getattr(default, name) for name, value in vars(plan).items())
    seen: dict[str, Any] = {}
    names = ("model", "pattern", "calibration", "source", "source_masks")
    monkeypatch.setattr(projecting, "project", lambda *args, **more: seen.update(zip(names, args, strict=True), **more))
    project_by_plan("model", plan, "images", "source", "masks", seed=4)  # type: ignore[arg-type]
    assert seen.pop("model") == "model" and seen.pop("calibration") == "images" and seen.pop("seed") == 4
    assert seen.pop("source") == "source" and seen.pop("source_masks") == "masks"
    of_others = {"source", "source_sparsity", "source_options", "restore_images", "lambda2", "lambda1"}
    assert seen == {name: value for name, value in vars(plan).items() if name not in of_others}
    monkeypatch.setattr(projecting, "project", lambda *_, layers, **__: layers)
    assert project_by_plan(dense(), default, splits().calibration) is None  # type: ignore[comparison-overlap]


def test_the_samples_that_the_recipe_names_are_measured(result: ProjectionResult) -> None:
    cert = mp.certify(dense(), result.model, splits().test, samples=120, seed=3)
    ours = result.certificates["projected"]
    assert ours.split == "test" and np.array_equal(ours.indices, cert.indices) and len(ours) == 120
    assert np.allclose(ours.eta, cert.eta, rtol=1e-4, atol=1e-6) and np.array_equal(ours.labels, cert.labels)
    row = result.metrics.iloc[0]
    assert row["phase"] == "projected" and row["samples"] == 120
    assert (row["accuracy"], row["dense_accuracy"], row["coverage"], row["unchanged"]) == (
        ours.accuracy, ours.dense_accuracy, ours.coverage, ours.unchanged
    )  # fmt: skip
    assert row["budget"] == pytest.approx(2 * ours.eta.mean())


@pytest.mark.parametrize(("samples", "count"), [(0, 1000), (70, 70)])
def test_the_calibration_split_can_be_measured_in_part_or_whole(samples: int, count: int) -> None:
    found = run_projection(replace(PLAN, certify=CertifyPlan(split="calibration", samples=samples, seed=1)))
    cert = found.certificates["projected"]
    assert cert.split == "calibration" and len(cert) == count and found.folder is None and found.checkpoint is None
    assert np.array_equal(cert.indices, splits().calibration.indices(samples or None, 1))


def test_multiply_adds_are_counted_as_executed_and_by_the_papers_convention(tmp_path: Path) -> None:
    vit = replace(PLAN, model=ModelPlan("fashion-vit"), certify=CertifyPlan(samples=32))
    plan = with_project(vit, permute="none", images=16, tome=4, layers=["mlp", "blocks.2.attn.qkv"])
    found = run_projection(plan, tmp_path / "vit")
    model = mp.load_model("fashion-vit")
    layers = [*(name for name in found.projected.masks if ".mlp." in name), "blocks.2.attn.qkv.weight"]
    assert len(layers) == 13 == len(found.projected.masks)
    counted = {
        convention: mp.count_macs(model, pattern="2:4", tome=4, convention=convention, layers=layers)
        for convention in ("executed", "paper")
    }
    assert (found.macs.dense, found.macs.sparse) == (counted["executed"].dense, counted["executed"].sparse)
    assert found.macs_paper.sparse == counted["paper"].sparse > found.macs.sparse
    pd.testing.assert_frame_equal(found.macs.table, counted["executed"].table)
    expected = mp.project(
        model, "2:4", splits().calibration, tome=4, layers=["mlp", "blocks.2.attn.qkv"], images=16, seed=5
    )
    assert same_masks(found.projected, expected) and schedule_of(found.model) == (4,) * 6 == found.projected.tome
    written = json.loads((tmp_path / "vit" / "results.json").read_text())
    assert written["tome"] == [4] * 6 and written["layers"] == 13 and written["left_dense"] == 0
    assert written["macs"] == {
        "dense": found.macs.dense, "executed": found.macs.sparse, "reduction": found.macs.reduction,
        "paper_convention": found.macs_paper.sparse, "paper_reduction": found.macs_paper.reduction,
    }  # fmt: skip
    assert found.checkpoint is not None and mp.load(found.checkpoint).tome == (4,) * 6
    check_reload(found, splits().test.sample(5)[0])


# --- where it starts from -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["magnitude", "seb", "wanda"])
def test_a_source_may_be_pruned_at_once(method: str) -> None:
    plan = with_project(source=method, source_sparsity=0.6, alpha_ser=0.2, images=24)
    found = run_projection(plan)
    model, data = dense(), splits()
    looked = {"seb": {"table": mp.analyze(model)},
              "wanda": {"calibration": mp.second_moments(model, data.calibration, n=24, seed=5)}}  # fmt: skip
    pruned = mp.prune_model(model, method, 0.6, seed=5, **looked.get(method, {}))
    expected = mp.project(
        model, "2:4", data.calibration, pruned.of(model), pruned.masks, permute="interleave", alpha_ser=0.2, images=24,
        seed=5,
    )  # fmt: skip
    assert same_masks(found.projected, expected) and (found.projected.cost["restored"] > 0).all()
    assert not same_masks(found.projected, run_projection(with_project(alpha_ser=0.2, images=24)).projected)


def test_a_source_has_its_options() -> None:
    layerwise = with_project(source="magnitude", source_sparsity=0.6, source_options={"scope": "layer"})
    found = run_projection(layerwise)
    model, data = dense(), splits()
    pruned = mp.prune_model(model, "magnitude", 0.6, scope="layer")
    expected = mp.project(
        model, "2:4", data.calibration, pruned.of(model), pruned.masks, permute="interleave", images=32, seed=5
    )
    assert found.projected.cost["restored"].to_dict() == expected.cost["restored"].to_dict()
    plain = run_projection(with_project(layerwise, source_options={}))
    assert plain.projected.cost["restored"].to_dict() != expected.cost["restored"].to_dict()


def test_a_source_may_come_from_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = dense()
    pruned = mp.prune_model(model, "magnitude", 0.6)
    path = mp.save(tmp_path / "pruned", pruned.of(model), pruned.masks)
    monkeypatch.setattr(projecting, "prune_model", quiet)
    found = run_projection(with_project(source=str(path), alpha_ser=0.2))
    expected = mp.project(
        model, "2:4", splits().calibration, pruned.of(model), pruned.masks, permute="interleave", alpha_ser=0.2,
        images=32, seed=5,
    )  # fmt: skip
    assert same_masks(found.projected, expected)
    with pytest.raises(CheckpointError, match="no checkpoint at gone"):
        run_projection(with_project(source="gone.safetensors"))


def test_pruned_in_steps_projected_and_trained_as_the_recipe_says(
    trained: ProjectionResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = dense(), splits()
    recovery = {"optimizer": "sgd", "learning_rate": 0.01, "batch": 100, "smoothing": 0.0, "augment": FlipShift()}
    pruned = mp.prune_model(model, "ser", 0.35, data=data.train, seed=5, **STEPS, **recovery)
    expected = mp.project(
        model, "2:4", data.calibration, pruned.of(model), pruned.masks, permute="interleave", alpha_ser=0.1, images=32,
        seed=5, repair=True,
    )  # fmt: skip
    assert same_masks(trained.projected, expected)
    after = mp.distill(expected.model, model, data.train, expected.masks, 0.2, seed=5, **recovery)
    assert state(trained.model) == state(after.model) and state(trained.projected.model) == state(expected.model)
    assert trained.curve is not None and len(trained.curve) == 18
    pd.testing.assert_frame_equal(trained.curve, after.curve, check_exact=True)
    trained.projected.check(trained.model)
    assert state(trained.model) != state(trained.projected.model)
    for phase, network in (("projected", trained.projected.model), ("recovered", trained.model)):
        ours = trained.certificates[phase]
        cert = mp.certify(model, network, data.test, samples=120, seed=3)
        assert ours.accuracy == cert.accuracy and np.allclose(ours.eta, cert.eta, rtol=1e-4, atol=1e-5)
    assert trained.metrics["phase"].tolist() == ["projected", "recovered"]


def test_drop_threshold_looks_at_the_calibration_split(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def prune(*_: Any, **given: Any) -> Pruning:
        seen.update(given)
        raise Cancelled("seen enough")

    monkeypatch.setattr(projecting, "prune_model", prune)
    for method, split in (("drop-threshold", "calibration"), ("hybrid", None)):
        with pytest.raises(Cancelled):
            run_projection(with_project(SER, source=method))
        assert (None if seen["check"] is None else seen["check"].name) == split
        assert seen["data"].name == "train" and seen["out"] is None and seen["seed"] == 5


def test_a_network_is_analysed_only_for_methods_that_look_at_spectra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projecting, "analyze", quiet)
    run_projection(with_project(source="magnitude"))
    with pytest.raises(AssertionError):
        run_projection(with_project(source="seb"))


# --- was it worth to restore ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "expected"), [({}, None), ({"lambda2": 3e-6, "lambda1": 2e-7}, Penalty(3e-6, 2e-7))])
def test_restore_certificates_are_there_when_asked_for(
    tmp_path: Path, given: dict[str, float], expected: Penalty | None
) -> None:
    card = model_card("fashion-mlp")["recipe"]
    penalty = expected or Penalty(card["lambda2"], card["lambda1"])
    assert penalty.lambda2 > 0
    plan = with_project(source="magnitude", source_sparsity=0.6, restore_images=5, **given)
    found = run_projection(plan, tmp_path / "out")
    model = dense()
    pruned = mp.prune_model(model, "magnitude", 0.6)
    images = splits().calibration.sample(5, 5)[0]
    table = restore_certificates(model, found.projected, pruned.masks, images, penalty)
    assert found.restore is not None
    pd.testing.assert_frame_equal(found.restore, table)
    written = pd.read_csv(tmp_path / "out" / "restore.csv", index_col="layer")
    assert written["drop"].to_numpy() == pytest.approx(table["drop"].to_numpy()) and len(written) == 2


def test_restore_certificates_are_not_taken_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projecting, "restore_certificates", quiet)
    assert run_projection(with_project(source="magnitude"), tmp_path / "out").restore is None
    assert not (tmp_path / "out" / "restore.csv").exists()


# --- what a run writes ----------------------------------------------------------------------------------------------


def test_the_folder_holds_the_whole_run(result: ProjectionResult, trained: ProjectionResult) -> None:
    for found, plan, names in ((result, PLAN, WRITTEN), (trained, SER, TRAINED)):
        assert found.folder is not None and {path.name for path in found.folder.iterdir()} == names
        assert found.checkpoint == found.folder / "projected.safetensors"
        assert read_recipe(found.folder / "recipe.toml") == plan
        layers = pd.read_csv(found.folder / "layers.csv", index_col="layer", dtype=str, keep_default_na=False)
        assert [float(value) for value in layers["cost"]] == list(found.projected.cost["cost"])  # bit by bit
        assert list(layers.columns) == list(found.projected.cost.columns)
        metrics = pd.read_csv(found.folder / "metrics.csv", index_col="phase")
        assert metrics["accuracy"].tolist() == found.metrics["accuracy"].tolist()
        macs = pd.read_csv(found.folder / "macs.csv", index_col="name")
        assert macs["sparse"].sum() == found.macs.sparse and macs["dense"].sum() == found.macs.dense
        about = json.loads((found.folder / "environment.json").read_text())
        assert about == found.environment and about["torch"].startswith(torch.__version__.split("+")[0])
        samples = pd.read_csv(found.folder / "samples.csv", index_col="sample", dtype=str)
        assert [float(value) for value in samples["eta"]] == list(found.certificates["projected"].eta)
    assert trained.folder is not None and (trained.folder / "report.html").read_text() == "<p>a report"
    after = pd.read_csv(trained.folder / "recovered-samples.csv", index_col="sample", dtype=str)
    assert [float(value) for value in after["eta"]] == list(trained.certificates["recovered"].eta)
    curve = pd.read_csv(trained.folder / "recovery.csv", index_col="step")
    assert trained.curve is not None and curve["loss"].to_numpy() == pytest.approx(trained.curve["loss"].to_numpy())


def test_all_training_images_are_trained_on_where_the_recipe_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(projecting, "prune_model", watched(projecting.prune_model, seen))
    found = run_projection(replace(SER, recover=replace(RECOVER, whole=True)))
    assert found.curve is not None and len(found.curve) == 20 and seen == [10_000]  # a fifth of 100 batches


def watched(prune: Callable[..., Any], seen: list[int]) -> Callable[..., Any]:
    """`mp.prune_model` that notes how many images it gets."""

    def pruned(*arguments: Any, **options: Any) -> Any:
        seen.append(len(options["data"]))
        return prune(*arguments, **options)

    return pruned


def test_the_results_are_the_numbers_of_the_run(result: ProjectionResult, trained: ProjectionResult) -> None:
    for found in (result, trained):
        assert found.folder is not None and found.checkpoint is not None
        written = json.loads((found.folder / "results.json").read_text())
        checkpoint = mp.load(found.checkpoint)
        assert checkpoint.results == written and checkpoint.recipe == found.recipe.to_dict()
        cost = found.projected.cost
        assert written["cost_share"] == pytest.approx(cost["left"].sum() / cost["power"].sum())
        assert (cost["left"] < cost["cost"]).all() or found is result, "a repair leaves less"
        assert written["pattern"] == "2:4" and written["exact"] is True and written["permuted"] == 2
        assert written["settings"]["source"] == ("dense" if found is result else "pruned")
        assert set(written["measured"]) == set(found.metrics["phase"])
        for row in found.metrics.to_dict("records"):
            numbers = written["measured"][row.pop("phase")]
            assert numbers == row and all(math.isfinite(value) for value in numbers.values())


def test_the_checkpoint_comes_back_with_the_same_bits(result: ProjectionResult, trained: ProjectionResult) -> None:
    images = splits().test.sample(40)[0]
    for found in (result, trained):
        assert found.checkpoint is not None
        kept = mp.load(found.checkpoint)
        assert state(kept.model) == state(found.model) and not kept.model.training
        with torch.no_grad():
            assert torch.equal(kept.model(images), found.model(images))
        assert kept.pattern == {"pattern": "2:4", "conv": "flattened"}
        for name, mask in found.projected.masks.items():
            assert torch.equal(kept.masks[name], mask)
            assert torch.equal(kept.permutations[name], found.projected.permutations[name])
        check_reload(found, images)
    with pytest.raises(MpvizError, match="no checkpoint"):
        check_reload(replace(result, checkpoint=None), images)
    with pytest.raises(MpvizError, match="gives other logits"):
        check_reload(replace(result, checkpoint=trained.checkpoint), images)


def test_a_second_run_leaves_nothing_of_the_first_behind(
    result: ProjectionResult, trained: ProjectionResult, tmp_path: Path
) -> None:
    write_projection(trained, tmp_path, "<p>old")
    (tmp_path / "restore.csv").write_text("old")
    (tmp_path / "notes.txt").write_text("mine")
    assert {path.name for path in tmp_path.iterdir()} == TRAINED | {"restore.csv", "notes.txt"}
    write_projection(result, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == WRITTEN | {"notes.txt"}


def test_a_finished_projection_makes_way_for_its_own_recipe_only(result: ProjectionResult, tmp_path: Path) -> None:
    write_projection(result, tmp_path)
    before = contents(tmp_path)
    with pytest.raises(CheckpointError, match=r"a projection by another recipe \(project\.permute: 'interleave'"):
        run_projection(with_project(permute="none"), tmp_path)
    assert contents(tmp_path) == before
    again = run_projection(PLAN, tmp_path)
    assert state(again.model) == state(result.model)


def test_progress_rises_from_nothing_to_all() -> None:
    said: list[tuple[float, str]] = []
    plan = replace(SER, recover=replace(RECOVER, epochs=0.05))
    run_projection(plan, progress=lambda *what: said.append(what))
    shares = [share for share, _ in said]
    assert shares == sorted(shares) and shares[0] == 0.0 and shares[-1] == 1.0
    words = " ".join(what for _, what in said)
    assert all(part in words for part in ("loading", "to 20 %: selecting", "calibration", "dense network", "step 1 of"))


# --- stopped, killed, failed ----------------------------------------------------------------------------------------


def asked_times(limit: float) -> tuple[Callable[[], bool], list[int]]:
    asked: list[int] = []

    def cancelled() -> bool:
        asked.append(1)
        return len(asked) > limit

    return cancelled, asked


def test_a_cancelled_run_writes_nothing_wherever_it_stops(tmp_path: Path) -> None:
    plan = with_project(source="wanda", source_sparsity=0.5, images=8)
    never, asked = asked_times(math.inf)
    run_projection(plan, cancelled=never)
    assert len(asked) > 12
    for after in {*range(0, len(asked), 4), len(asked) - 1}:
        with pytest.raises(Cancelled, match="cancelled"):
            run_projection(plan, tmp_path / "out", cancelled=asked_times(after)[0])
        assert list(tmp_path.iterdir()) == [], after


@pytest.mark.parametrize("moment", ["features.fc1.weight", "dense network", "projected network"])
def test_each_part_looks_whether_to_stop(tmp_path: Path, moment: str) -> None:
    said: list[str] = []
    with pytest.raises(Cancelled):
        run_projection(
            PLAN, tmp_path / "out", progress=lambda _, words: said.append(words), cancelled=lambda: moment in said
        )
    assert said[-1] == moment and list(tmp_path.iterdir()) == []


def first_step(said: list[str], total: int) -> int:
    words = next(words for words in said if words.startswith("epoch 1 of 1, step "))
    assert f" of {total}," in words
    return int(words.split("step ")[1].split(" ")[0])


def test_a_run_that_stopped_in_its_source_goes_on_there(trained: ProjectionResult, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    first = folder / "source" / "stage-0.2000.safetensors"
    with pytest.raises(Cancelled):
        run_projection(SER, folder, cancelled=first.exists)
    assert [path.name for path in folder.iterdir()] == ["source"]  # no half-written run
    said: list[str] = []
    again = run_projection(SER, folder, progress=lambda _, words: said.append(words), report=lambda _: "<p>a report")
    assert any("to 35 %" in words for words in said) and not any("to 20 %" in words for words in said)
    assert same_masks(again.projected, trained.projected) and state(again.model) == state(trained.model)
    assert {path.name for path in folder.iterdir()} == TRAINED


def test_a_run_that_stopped_in_its_training_goes_on_there(trained: ProjectionResult, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with pytest.raises(Cancelled, match="after step"):
        run_projection(SER, folder, cancelled=(folder / "recovery" / "step-00000008.safetensors").exists)
    assert {path.name for path in folder.iterdir()} == {"source", "recovery"}
    done = int(max(folder.glob("recovery/step-*.safetensors")).stem.removeprefix("step-"))
    said: list[str] = []
    again = run_projection(SER, folder, progress=lambda _, words: said.append(words))
    assert not any("to 20 %" in words or "to 35 %" in words for words in said), "the source is not pruned again"
    assert first_step(said, 18) == done + 1 > 8
    assert state(again.model) == state(trained.model)
    assert {path.name for path in folder.iterdir()} == TRAINED - {"report.html"}
    assert trained.curve is not None and again.curve is not None
    pd.testing.assert_frame_equal(again.curve, trained.curve, check_exact=True)


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(trained: ProjectionResult, tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(SER.to_toml(), encoding="utf-8")
    folder, command = tmp_path / "plan-run", ["run", str(tmp_path / "plan.toml")]
    for moment in ("source/stage-0.2000.safetensors", "recovery/step-*.safetensors"):
        process = subprocess.Popen(
            [sys.executable, "-m", "mpviz", *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while not list(folder.glob(moment)):
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (folder / "results.json").exists()
    assert cli.main(command) == 0  # another process than those that were killed
    assert state(mp.load(folder / "projected.safetensors").model) == state(trained.model)
    assert {path.name for path in folder.iterdir()} == TRAINED


def test_what_others_left_in_the_folder_is_not_tidied_away(tmp_path: Path) -> None:
    for name in ("source", "recovery"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "kept.py").write_text("mine")
    run_projection(PLAN, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == WRITTEN | {"source", "recovery"}
    assert (tmp_path / "source" / "kept.py").read_text() == "mine" == (tmp_path / "recovery" / "kept.py").read_text()


def test_another_training_or_source_in_the_folder_is_not_mixed_in(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with pytest.raises(Cancelled):
        run_projection(SER, folder, cancelled=lambda: bool(list(folder.glob("recovery/step-*.safetensors"))))
    before = contents(folder)
    with pytest.raises(CheckpointError, match=r"holds another recovery .*smoothing"):
        run_projection(replace(SER, project=replace(SER.project, source="dense", source_options={}),
                               recover=replace(RECOVER, options={"smoothing": 0.1})), folder)  # fmt: skip
    with pytest.raises(CheckpointError, match=r"source holds another run: .*selection"):
        run_projection(with_project(SER, source_options=STEPS | {"selection": 0.03}), folder)
    assert contents(folder) == before


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("owner", "name"), [(store, "save_file"), (pd.DataFrame, "to_csv"), (Path, "write_text")], ids=lambda one: str(one)
)
def test_a_full_disk_leaves_what_was_there(
    result: ProjectionResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    old = tmp_path / "old"
    write_projection(result, old, "<p>old")
    before = contents(old)
    changed = replace(result, metrics=result.metrics.assign(accuracy=0.0))
    for folder in (old, tmp_path / "new" / "deep"):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, full)
            words = r"cannot write the run into \S+: \[Errno 28\] No space left on device; what was there is unchanged"
            with pytest.raises(CheckpointError, match=f"^{words}$"):
                write_projection(changed, folder, "<p>new")
    assert contents(old) == before and [path.name for path in tmp_path.iterdir()] == ["old"]
    write_projection(changed, old)
    assert contents(old) != before and not (old / "report.html").exists()


def test_a_report_that_fails_leaves_the_work_and_no_half_of_a_run(tmp_path: Path) -> None:
    plan = replace(PLAN, recover=replace(RECOVER, epochs=0.05))
    with pytest.raises(AssertionError):
        run_projection(plan, tmp_path / "out", report=quiet)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["recovery"]
    said: list[str] = []
    run_projection(plan, tmp_path / "out", progress=lambda _, words: said.append(words), report=lambda _: "<p>")
    assert not any(", step " in words for words in said), "nothing is trained again"
    assert {path.name for path in (tmp_path / "out").iterdir()} == TRAINED


def test_a_training_that_explodes_leaves_its_checkpoints_alone(tmp_path: Path) -> None:
    plan = replace(PLAN, recover=replace(RECOVER, learning_rate=1e30))
    with pytest.raises(TrainingError, match="lower the learning rate"):
        run_projection(plan, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["recovery"]


def test_a_broken_pattern_ends_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []

    def broken(self: Projected, model: nn.Module) -> None:
        looked.append((self, model))
        raise PatternError("the pattern broke")

    monkeypatch.setattr(Projected, "check", broken)
    with pytest.raises(PatternError, match="the pattern broke"):
        run_projection(replace(PLAN, recover=replace(RECOVER, epochs=0.02)), tmp_path / "out")
    assert len(looked) == 1 and not (tmp_path / "out" / "results.json").exists()


def test_runs_of_different_kinds_do_not_share_a_folder(result: ProjectionResult, tmp_path: Path) -> None:
    write_projection(result, tmp_path / "projection")
    plan = Recipe(ModelPlan("fashion-mlp"), certify=CertifyPlan(samples=20))
    grid = replace(plan, grid=GridPlan(["magnitude"], [0.5]))
    before = contents(tmp_path / "projection")
    with pytest.raises(CheckpointError, match="projection holds a projection; choose another folder"):
        mp.run(plan, tmp_path / "projection")
    with pytest.raises(CheckpointError, match="projection holds a projection; choose another folder"):
        mp.run_grid(grid, tmp_path / "projection")
    assert contents(tmp_path / "projection") == before
    for name, what in (("cells", "a grid of methods"), ("pruned.safetensors", "the run of a plan")):
        (tmp_path / what / name).mkdir(parents=True)
        with pytest.raises(CheckpointError, match=f"holds {what}; choose another folder"):
            run_projection(PLAN, tmp_path / what)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match="is a file where the run needs a folder"):
        run_projection(PLAN, tmp_path / "file" / "deep")


# --- refused --------------------------------------------------------------------------------------------------------

MADE_OF_IT = [
    ({"pattern": ""}, r"no project\.pattern; set one, such as 2:4, or give it to mp\.run$"),
    ({"pattern": "two of four"}, r"table \[project\]: 'two of four' is no k:n pattern; write 2:4"),
    ({"pattern": "5:4"}, r"table \[project\]: 5:4 is no k:n pattern"),
    ({"pattern": "2:64"}, r"groups of up to 32 are known"),
    ({"source": "sre"}, "'project.source' is 'sre', no method and no .safetensors file; did you mean 'ser'"),
    ({"source": "run/pruned.pt"}, "'project.source' is 'run/pruned.pt', no method and no .safetensors file"),
    ({"criterion": "cats"}, r"unknown criterion 'cats'; did you mean 'cast'"),
    ({"permute": "hungary"}, "unknown permutation 'hungary'; did you mean 'hungarian'"),
    ({"prior": "txt"}, "unknown prior 'txt'; did you mean 'text'"),
    ({"conv": "flat"}, "unknown way to group a convolution 'flat'"),
    ({"alpha_ser": math.inf}, "alpha_ser is a strength of at least 0; got inf"),
    ({"alpha_ser": math.nan}, "'project.alpha_ser' is a strength, at least 0; got nan"),
    ({"tome": -1}, "'project.tome' counts pairs of tokens, 0 = none; got -1"),
    ({"images": 0}, "'project.images' counts images, at least 1; got 0"),
    ({"source_sparsity": 1.0}, r"'project.source_sparsity' must be in \(0, 1\); got 1.0"),
    ({"restore_images": -1}, "'project.restore_images' counts images, 0 = none; got -1"),
    ({"lambda2": -1.0}, "'project.lambda2' is a strength, at least 0; got -1.0"),
    ({"lambda1": math.nan}, "'project.lambda1' is a strength, at least 0; got nan"),
    ({"source_options": {"step": 0.1}}, "'project.source_options': the source 'dense' is not pruned here"),
    ({"source": "ser", "source_options": {"stepp": 0.1}}, "has no option 'stepp'; did you mean 'step'"),
    ({"source": "ser", "source_options": {"seed": 1}}, "'project.source_options': .* has no option 'seed'"),
    ({"source": "ser", "source_options": {"out": "x"}}, "'project.source_options': .* has no option 'out'"),
    ({"source": "ser", "source_options": {"step": 7.0}}, r"a step is a difference of sparsities in \(0, 1\); got 7"),
    ({"source": "ser", "source_options": {"selection_batch": 0}}, "selection_batch = 0; give a number of images"),
    ({"source": "ser", "source_options": {"optimizer": "adan"}}, "unknown optimizer 'adan'"),
    ({"source": "magnitude", "source_options": {"seed": 1}}, "'magnitude' has no option 'seed'"),
    ({"source": "magnitude", "source_options": {"scope": 3}}, "cannot take scope = 3"),
]


@pytest.mark.parametrize(("changes", "words"), MADE_OF_IT, ids=lambda one: str(one)[:60])
def test_a_wrong_plan_is_a_sentence_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], words: str
) -> None:
    for name in ("dense_model", "load_data"):
        monkeypatch.setattr(projecting, name, quiet)
    with pytest.raises(RecipeError, match=words) as told:
        run_projection(with_project(**changes), tmp_path / "out")
    assert "\n" not in str(told.value) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"grid": GridPlan(seeds=[0, 1])}, "'grid.seeds' has 2 seeds; a projection runs with one"),
        ({"certify": CertifyPlan(["measured", "path"])}, r"'certify.tiers': a projection is measured; leave it at"),
        ({"certify": CertifyPlan(split="train")}, "'certify.split' must be 'test' or 'calibration'; got 'train'"),
        ({"grid": GridPlan(["seb"])}, "'project.pattern' and 'grid.methods' exclude each other; make two recipes"),
        ({"grid": GridPlan(["seb"]), "project": ProjectPlan()}, r"no project\.pattern; .* give it to mp\.run_grid$"),
        ({"project": ProjectPlan("2:4", restore_images=3)}, "'project.restore_images' is about a pruned source"),
        ({"recover": RecoverPlan(1, options={"seed": 3})}, r"'recover.options.seed' follows from grid\.seeds"),
        ({"recover": RecoverPlan(1, optimizer="adan")}, r"table \[recover\]: unknown optimizer 'adan'"),
    ],
)
def test_what_a_projection_cannot_do_is_a_sentence_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], words: str
) -> None:
    for name in ("dense_model", "load_data"):
        monkeypatch.setattr(projecting, name, quiet)
    with pytest.raises(RecipeError, match=words):
        run_projection(replace(PLAN, **changes), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"pattern": "3:9"}, PatternError, "3:9 needs a multiple of 9 inputs; features.fc1.weight has 784"),
        ({"layers": ["conv"]}, PatternError, "no prunable layer of the role 'conv'"),
        ({"layers": ["features.fc3"]}, MpvizError, "unknown layer 'features.fc3'; did you mean 'features.fc"),
        ({"tome": 4}, MpvizError, "whose tokens alone can be merged"),
        ({"renew": True}, MpvizError, "no batch norms to renew; leave renew off"),
    ],
)
def test_what_does_not_fit_the_network_is_a_sentence_before_its_source_is_pruned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    for name in ("load_data", "prune_model"):
        monkeypatch.setattr(projecting, name, quiet)
    with pytest.raises(error, match=words):
        run_projection(with_project(SER, **changes), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_options_of_a_source_are_those_of_the_recovery_and_its_own() -> None:
    train = splits().train
    options = source_options(SER, train)
    assert isinstance(options.pop("augment"), FlipShift)
    assert options == {"optimizer": "sgd", "learning_rate": 0.01, "batch": 100, "smoothing": 0.0, "every": 4, **STEPS}
    assert source_options(with_project(SER, source_options=STEPS | {"batch": 50}), train)["batch"] == 50
    assert source_options(PLAN, train) == {} == source_options(with_project(source="magnitude"), train)


def test_a_recipe_with_a_pattern_is_handed_on_by_other_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pipeline, "dense_model", quiet)
    monkeypatch.setattr("mpviz.grid.dense_model", quiet)
    words = r"this recipe has a k:n pattern \(project\.pattern\); give it to mp\.run_projection"
    for run in (mp.run, mp.run_grid):
        with pytest.raises(RecipeError, match=words):
            run(PLAN, tmp_path / "out")
    both = replace(PLAN, grid=GridPlan(["seb"]))
    with pytest.raises(RecipeError, match="exclude each other"):
        mp.run_grid(both, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_may_be_a_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(PLAN.to_toml(), encoding="utf-8")
    assert run_projection(str(path)).recipe == PLAN == read_recipe(path)
    path.write_text(PLAN.to_toml().replace('criterion = "cast"', 'criterium = "cast"'), encoding="utf-8")
    with pytest.raises(RecipeError, match=r"plan.toml: unknown recipe key 'project.criterium'; did you mean 'criter"):
        run_projection(path)
