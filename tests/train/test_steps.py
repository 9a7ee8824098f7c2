"""Pruning in steps: what each part of a stage is given, and folders that take up what they hold and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import mpviz as mp
from mpviz.errors import BudgetError, Cancelled, CheckpointError, TrainingError
from mpviz.nets.data import Split
from mpviz.prune.magnitude import SEB, regime
from mpviz.prune.masks import Ranking
from mpviz.prune.restore import over_prune
from mpviz.train import stage as stage_module
from mpviz.train.ser import Gradual, StepPlan, prune_in_steps
from tests.train.recovery_case import digest, digits
from tests.train.steps_case import network

FAST = {"optimizer": "sgd", "learning_rate": 0.05, "batch": 128}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def run(plan: StepPlan, sparsity: float, **more: Any) -> tuple[Gradual, list[tuple[dict[str, Any], nn.Module, dict]]]:
    seen: list[tuple[dict[str, Any], nn.Module, dict]] = []
    found = prune_in_steps(
        network(), digits(), sparsity, plan, after_stage=lambda row, net, masks: seen.append((row, net, dict(masks))),
        **(FAST | more),
    )  # fmt: skip
    return found, seen


def spied(monkeypatch: pytest.MonkeyPatch, name: str) -> list[tuple[tuple, dict]]:
    """The arguments of all calls of a function that stages use."""
    calls: list[tuple[tuple, dict]] = []
    original = getattr(stage_module, name)

    def spy(*arguments: Any, **more: Any) -> Any:
        calls.append((arguments, more))
        return original(*arguments, **more)

    monkeypatch.setattr(stage_module, name, spy)
    return calls


def test_the_dense_network_teaches_selection_and_recovery(monkeypatch: pytest.MonkeyPatch) -> None:
    recoveries, selections = spied(monkeypatch, "distill"), spied(monkeypatch, "movement_of")
    run(StepPlan("ser", targets=(0.3, 0.6), selection_batch=48), 0.6)
    assert len(recoveries) == len(selections) == 2
    for (student, teacher, *_), _ in recoveries:
        assert digest(teacher) == digest(network()) != digest(student)
    for (student, _, _, teacher, epochs, batch, rate), more in selections:
        assert digest(teacher) == digest(network()) != digest(student)
        assert (epochs, batch, rate, more["renew"]) == (0.2, 48, 1e-3, False)


def test_the_last_stage_trains_for_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    recoveries = spied(monkeypatch, "distill")
    found, _ = run(StepPlan("magnitude", targets=(0.3, 0.6), recovery=0.5, last=1), 0.6)
    assert found.log["recovery_epochs"].tolist() == [0.5, 1.5] == [arguments[4] for arguments, _ in recoveries]


def test_the_threshold_once_passed_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    accuracies = iter([0.9, 0.895, 0.88, 0.95, 0.95])  # dense; a drop too small, one large enough, and a recovery
    monkeypatch.setattr(stage_module.Stages, "_accuracy", lambda self, network: next(accuracies))
    plan = StepPlan("drop-threshold", targets=(0.2, 0.4, 0.6, 0.8), drop=0.007)
    found, _ = run(plan, 0.8, check=mp.load_data("digits").calibration)
    assert (found.log["restored"] > 0).tolist() == [False, False, True, True]
    assert found.log["check_accuracy"].tolist() == [0.895, 0.88, 0.95, 0.95]


@pytest.mark.parametrize("seb", [None, SEB("alpha", 0.8, 2.0, {}, ("features.fc2.weight",))])
@pytest.mark.parametrize("schedule", ["seb", "ser"])
def test_spectral_steps_go_by_the_network_as_it_is(schedule: str, seb: SEB | None) -> None:
    """Oracle: weights from the spectra of the network that the step begins with, at the step's own sparsity."""
    found, seen = run(StepPlan(schedule, targets=(0.15, 0.45, 0.6), seb=seb), 0.6)
    model, masks = network(), {name: torch.ones(shape).bool() for name, shape in Ranking(network()).shapes.items()}
    for row, after, kept in seen:
        how = seb or regime(row["target"])
        weights = mp.allocate(
            mp.analyze(model), row["target"], how.signal, how.beta, how.decay_end, how.beta_by_role, how.locked
        )
        assert {name: row[f"weight of {name}"] for name in weights.index} == pytest.approx(weights.to_dict())
        magnitudes = {name: model.get_parameter(name).detach().abs() for name in masks}
        over = over_prune(Ranking(model), weights.to_dict(), masks, magnitudes, row["over"])
        for name in masks:
            assert row[f"removed in {name}"] == int((~kept[name]).sum())
            back = int((kept[name] & ~over[name]).sum())
            assert not (over[name] & ~kept[name]).any() and back == row.get(f"restored in {name}", 0)
            might = int((masks[name] & ~over[name]).sum()) if schedule == "ser" else 0
            assert might == row.get(f"reservoir in {name}", 0)
        model, masks = after, kept
    if seb is not None:
        assert found.masks["features.fc2.weight"].all(), "a locked layer loses nothing"
    written = {"signal": "alpha", "beta": 0.8, "decay_end": 2.0, "beta_by_role": {}, "locked": ["features.fc2.weight"]}
    assert found.plan.record()["seb"] == (None if seb is None else written)


def test_all_that_is_removed_may_be_the_reservoir() -> None:
    found, _ = run(StepPlan("ser", targets=(0.3, 0.6), ratio=1.5, candidates="all", recovery=0), 0.6)
    total = sum(mask.numel() for mask in found.masks.values())
    assert found.log["reservoir"].tolist() == [round(0.45 * total), round(0.75 * total)]
    assert (found.log["restored"] == found.log["reservoir"] - found.log["removed"]).all()


def test_the_strengths_change_the_mask() -> None:
    plans = [StepPlan("seb", targets=(0.4,), seb=seb, recovery=0) for seb in (None, SEB(), SEB("alpha"), SEB(beta=0.0))]
    masks = [torch.cat([mask.flatten() for mask in run(plan, 0.4)[0].masks.values()]) for plan in plans]
    for i, one in enumerate(masks):
        assert not any(torch.equal(one, other) for other in masks[:i])
    plain, _ = run(StepPlan("magnitude", targets=(0.4,), recovery=0), 0.4)
    assert torch.equal(masks[3], torch.cat([mask.flatten() for mask in plain.masks.values()])), "β = 0 is magnitude"


def test_without_recovery_the_kept_weights_stay() -> None:
    found, _ = run(StepPlan("hybrid", targets=(0.2, 0.5), recovery=0, restored="before"), 0.5)
    assert found.log["recovery_epochs"].tolist() == [0, 0] and found.log["restored"].iloc[1] > 0
    for name, parameter in network().named_parameters():
        mask = found.masks.get(name, torch.ones(1, dtype=torch.bool))
        assert torch.equal(found.model.get_parameter(name), torch.where(mask, parameter, 0.0))


# --- folders --------------------------------------------------------------------------------------------------------

PLAN = StepPlan("ser", targets=(0.3, 0.6), selection=1.0)


def test_a_folder_is_of_one_network_data_set_and_plan(tmp_path: Path) -> None:
    model, data = network(), digits()
    prune_in_steps(model, data, 0.3, PLAN, out=tmp_path, **FAST)
    half = Split("train", torch.utils.data.Subset(data.dataset, range(600)), data.classes)
    longer = StepPlan("ser", targets=(0.3, 0.6), selection=1.0, recovery=2)
    stronger = StepPlan("ser", targets=(0.3, 0.6), selection=1.0, seb=SEB())
    for words, arguments, more in [
        ("network", (network(1), data, 0.3, PLAN), {}), ("data", (model, half, 0.3, PLAN), {}),
        ("recovery", (model, data, 0.3, longer), {}), ("seb", (model, data, 0.3, stronger), {}),
        ("seed, training", (model, data, 0.3, PLAN), {"seed": 4}),
        ("training", (model, data, 0.3, PLAN), {"temperature": 3.0}),
    ]:  # fmt: skip
        with pytest.raises(CheckpointError, match=f"holds another run: {words} differ; choose another folder"):
            prune_in_steps(*arguments, out=tmp_path, **(FAST | more))
    assert "0x" not in (tmp_path / "steps.json").read_text(), "no address of this process"


def test_more_stages_may_be_asked_for_later_unless_the_last_one_is_special(tmp_path: Path) -> None:
    run(PLAN, 0.3, out=tmp_path / "a")
    assert (tmp_path / "a" / "selected-0.3000.safetensors").exists()
    longer, _ = run(PLAN, 0.6, out=tmp_path / "a")
    assert digest(longer.model) == digest(run(PLAN, 0.6)[0].model)
    assert not (tmp_path / "a" / "selected-0.3000.safetensors").exists()
    special = StepPlan("magnitude", targets=(0.3, 0.6), recovery=0.2, last=1)
    run(special, 0.3, out=tmp_path / "b")
    with pytest.raises(CheckpointError, match="holds another run: stages differ"):
        run(special, 0.6, out=tmp_path / "b")


def stopped(folder: Path, words: str, share: float) -> None:
    """A run that is cancelled once it has told that much progress with these words."""
    told: list[bool] = []

    def progress(done: float, text: str) -> None:
        told.append(words in text and done >= share)

    with pytest.raises(Cancelled):
        run(PLAN, 0.6, out=folder, every=2, progress=progress, cancelled=lambda: bool(told) and told[-1])


def forbid(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    for name in names:
        monkeypatch.setattr(stage_module, name, lambda *_, name=name, **__: pytest.fail(f"{name} is called again"))


def test_a_stage_that_stopped_in_its_recovery_does_not_select_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread count or device would select a little differently, and the recovery would be another one."""
    whole, _ = run(PLAN, 0.6)
    stopped(tmp_path, "to 60 %: epoch", 0.0)
    left = {path.name for path in tmp_path.iterdir()}
    assert {"selected-0.6000.safetensors", "recovery-0.6000"} <= left and "stage-0.6000.safetensors" not in left
    forbid(monkeypatch, "analyze", "movement_of", "over_prune", "restore")
    again, _ = run(PLAN, 0.6, out=tmp_path, every=2)
    assert digest(again.model) == digest(whole.model)
    assert again.log.drop(columns="loss").equals(whole.log.drop(columns="loss"))
    assert all(torch.equal(whole.masks[name], again.masks[name]) for name in whole.masks)
    left = {path.name for path in tmp_path.iterdir()}
    assert not any(name.startswith(("over", "selecting")) or name == "selected-0.3000.safetensors" for name in left)


def test_a_stage_that_stopped_in_its_selection_goes_on_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = run(PLAN, 0.6)
    stopped(tmp_path, "to 60 %: selecting", 0.5 + 0.5 * 0.3 * 0.5)
    assert (tmp_path / "over-0.6000.safetensors").exists() and list(tmp_path.glob("selecting-0.6000/step-*"))
    forbid(monkeypatch, "analyze", "over_prune")
    told: list[str] = []
    again, _ = run(PLAN, 0.6, out=tmp_path, every=2, progress=lambda share, text: told.append(text))
    assert digest(again.model) == digest(whole.model)
    assert 0 < sum("60 %: selecting" in text for text in told) < 9, "of the selection only what was left"


def test_the_network_before_its_last_recovery_is_kept_and_told_again(tmp_path: Path) -> None:
    first: list[tuple[float, str]] = []
    again: list[tuple[float, str]] = []
    run(PLAN, 0.6, out=tmp_path, before_recovery=lambda target, net: first.append((target, digest(net))))
    assert [target for target, _ in first] == [0.3, 0.6]
    run(PLAN, 0.6, out=tmp_path, before_recovery=lambda target, net: again.append((target, digest(net))))
    assert again == first[1:]
    kept = mp.load(tmp_path / "selected-0.6000.safetensors", network())
    assert sum(int((~mask).sum()) for mask in kept.masks.values()) == round(0.6 * Ranking(network()).total)


def test_many_processes_need_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainingError, match="give out=, a folder all of them see"):
        run(PLAN, 0.3)


def test_killed_at_random_moments_it_ends_with_the_same_bits(root: Path, tmp_path: Path) -> None:
    script = root / "tests" / "train" / "step_kills.py"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), "8", "1"], cwd=root, capture_output=True, text=True, timeout=280,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    assert report["same steps"] and report["same training"] and not report["unreadable"]
    assert max(report["lost"]) <= 2, "at most the current interval of MP training is lost"
    assert report["kills of steps"] >= 3 and report["kills of training"] >= 3


# --- what it refuses ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plan", "words"),
    [(StepPlan(ratio="much"), "ratio = 'much'; give a number"), (StepPlan(factor="times"), "unknown factor 'times'"),
     (StepPlan(candidates="some"), "unknown candidates 'some'"), (StepPlan(selection_rate=0.0), "selection_rate = 0.0"),
     (StepPlan(selection_rate="x"), "selection_rate = 'x'; give a number"), (StepPlan(renew=1), "give true or false"),
     (StepPlan(seb=SEB(beta="strong")), "beta = 'strong'"), (StepPlan(seb="alpha"), "seb = 'alpha'; give SEB or none"),
     (StepPlan(targets=("a",)), "give a list of numbers"), (StepPlan(selection_batch=0), "selection_batch = 0; give a"),
     (StepPlan(selection_batch=2.5), "selection_batch = 2.5; give a whole number")],
)  # fmt: skip
def test_wrong_values_of_a_plan_are_sentences(plan: StepPlan, words: str) -> None:
    with pytest.raises(TrainingError, match=words):
        run(plan, 0.3)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"temperature": "hot"}, "temperature = 'hot'; give a number"), ({"epochs": 3}, "the plan's recovery says"),
     ({"masks": {}}, "no option 'masks'"), ({"in_place": True}, "no option 'in_place'"), ({"every": 0}, "every = 0"),
     ({"learning_rates": 1.0}, "did you mean 'learning_rate'")],
)  # fmt: skip
def test_wrong_options_of_the_recovery_are_told_before_anything_is_pruned(
    options: dict, words: str, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=words):
        run(PLAN, 0.3, out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_impossible_targets_are_told_before_the_folder_is_claimed(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="targets are sparsities that rise"):
        run(StepPlan(targets=(0.5, 0.2)), 0.6, out=tmp_path / "run")
    with pytest.raises(TrainingError, match="give check="):
        run(StepPlan("drop-threshold"), 0.6, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
