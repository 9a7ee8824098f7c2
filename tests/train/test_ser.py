"""Prune–restore and gradual pruning: what trains, what comes back, exact counts, and going on where a run stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import mpviz as mp
from mpviz.errors import Cancelled, CheckpointError, TrainingError
from mpviz.prune.masks import Ranking
from mpviz.train.ser import StepPlan, prune_in_steps
from tests.train.recovery_case import digits, mlp

FAST = {"optimizer": "sgd", "learning_rate": 0.05, "batch": 128}


def trained():  # type: ignore[no-untyped-def]
    model, (x, y) = mlp(0), digits().sample()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def model():  # type: ignore[no-untyped-def]
    return trained()


@pytest.mark.parametrize("schedule", ["magnitude", "seb", "ser", "hybrid"])
def test_each_stage_has_exactly_its_sparsity_and_removed_entries_stay_removed(model, schedule: str) -> None:  # type: ignore[no-untyped-def]
    seen = []
    found = prune_in_steps(
        model, digits(), 0.4, StepPlan(schedule, step=0.1),
        after_stage=lambda row, net, masks: seen.append((row, masks)), **FAST,
    )  # fmt: skip
    total = Ranking(model).total
    for (row, masks), after in zip(seen, [masks for _, masks in seen][1:], strict=False):
        assert row["removed"] == round(row["target"] * total) == sum(int((~m).sum()) for m in masks.values())
        for name in masks:
            assert not (after[name] & ~masks[name]).any(), "what earlier steps removed does not come back"
    restoring = [row["restored"] > 0 for row, _ in seen]
    assert restoring == {"ser": [True] * 4, "hybrid": [False, True, True]}.get(schedule, [False] * len(seen))
    assert found.log["target"].iloc[-1] == 0.4
    for name, mask in found.masks.items():
        assert not found.model.get_parameter(name).detach()[~mask].any()


def test_equal_makes_a_step_without_selection_longer(model) -> None:  # type: ignore[no-untyped-def]
    made = prune_in_steps(
        model, digits(), 0.5, StepPlan("hybrid", selection=1.0, equal=True, targets=(0.2, 0.5)), **FAST
    )
    assert made.log["target"].tolist() == [0.2, 0.5]
    assert made.log["recovery_epochs"].tolist() == [2, 1]
    assert (made.log["recovery_epochs"] + made.log["selection_epochs"]).tolist() == [2.0, 2.0]


def test_what_sets_each_apart_changes_the_mask(model) -> None:  # type: ignore[no-untyped-def]
    made = {}
    for name, plan in {
        "magnitude": StepPlan("magnitude", step=0.3), "seb": StepPlan("seb", step=0.3),
        "ser": StepPlan("ser", step=0.3), "divide": StepPlan("ser", step=0.3, factor="divide"),
    }.items():  # fmt: skip
        made[name] = prune_in_steps(model, digits(), 0.3, plan, **FAST).masks
    flat = {name: torch.cat([m.flatten() for m in masks.values()]) for name, masks in made.items()}
    names = list(flat)
    for i, one in enumerate(names):
        for other in names[:i]:
            assert not torch.equal(flat[one], flat[other]), (one, other)


def test_candidates_from_all_removed_may_bring_back_earlier_ones(model) -> None:  # type: ignore[no-untyped-def]
    seen = []
    prune_in_steps(model, digits(), 0.6, StepPlan("ser", step=0.3, candidates="all"),
                   after_stage=lambda row, net, masks: seen.append(masks), **FAST)  # fmt: skip
    back = sum(int((seen[1][name] & ~seen[0][name]).sum()) for name in seen[0])
    assert back > 0


def test_a_run_that_stopped_goes_on_and_ends_the_same(model, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    plan = StepPlan("ser", step=0.1)
    whole = prune_in_steps(model, digits(), 0.3, plan, seed=3, **FAST)
    calls = []

    def stop_in_the_middle() -> bool:
        calls.append(1)
        return len(calls) > 20

    with pytest.raises(Cancelled):
        prune_in_steps(model, digits(), 0.3, plan, seed=3, out=tmp_path / "run", cancelled=stop_in_the_middle, **FAST)
    assert list((tmp_path / "run").glob("stage-*.safetensors")), "a stage was finished before it stopped"
    again = prune_in_steps(model, digits(), 0.3, plan, seed=3, out=tmp_path / "run", **FAST)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])
    assert all(torch.equal(whole.masks[name], again.masks[name]) for name in whole.masks)
    assert again.log["removed"].tolist() == whole.log["removed"].tolist()
    kept = mp.load(tmp_path / "run" / "stage-0.3000.safetensors", model)
    x, _ = digits().sample(20)
    assert torch.equal(kept.model(x), whole.model(x))
    with pytest.raises(CheckpointError, match="another run: seed"):
        prune_in_steps(model, digits(), 0.3, plan, seed=4, out=tmp_path / "run", **FAST)


def test_the_threshold_turns_magnitude_into_restoration(model) -> None:  # type: ignore[no-untyped-def]
    check = mp.load_data("digits").calibration
    plan = StepPlan("drop-threshold", step=0.2, drop=-1.0)  # any accuracy is below
    found = prune_in_steps(model, digits(), 0.6, plan, check=check, **FAST)
    assert found.log["restored"].iloc[0] == 0 and (found.log["restored"].iloc[1:] > 0).all()
    never = prune_in_steps(model, digits(), 0.6, StepPlan("drop-threshold", step=0.2, drop=1.0), check=check, **FAST)
    assert (never.log["restored"] == 0).all()
    with pytest.raises(TrainingError, match="give check="):
        prune_in_steps(model, digits(), 0.6, plan)
    with pytest.raises(TrainingError, match="give check="):
        prune_in_steps(model, digits(), 0.6, plan, check=mp.load_data("digits").test)


@pytest.mark.parametrize(
    ("plan", "words"),
    [(StepPlan("hybird"), "did you mean 'hybrid'"),
     (StepPlan(restored="zero"), "restored 'zero'; known: moved, before"),
     (StepPlan(by="chance"), "by 'chance'; known: movement, agreement"),
     (StepPlan(selection=0.0), "above 0"), (StepPlan(recovery=-1), "from 0 on")],
)  # fmt: skip
def test_impossible_plans_are_sentences(model, plan: StepPlan, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(TrainingError, match=words):
        prune_in_steps(model, digits(), 0.3, plan)


def test_agreement_brings_back_the_largest_products_with_the_old_value(model, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    seen = {}

    def selection(network, open_, *_, **__):  # type: ignore[no-untyped-def]
        seen.update({name: torch.where(may, torch.randn(may.shape), 0.0) for name, may in open_.items()})
        return dict(seen)

    monkeypatch.setattr("mpviz.train.stage.movement_of", selection)
    plan = StepPlan("ser", targets=(0.8,), by="agreement", factor="none", restored="before", ratio=1.1, recovery=0)
    found = prune_in_steps(model, digits(), 0.8, plan)
    product = {name: seen[name] * model.get_parameter(name).detach() for name in seen}
    came = {name: (seen[name] != 0) & found.masks[name] for name in seen}
    count = sum(int(mask.sum()) for mask in came.values())
    assert count == found.log["restored"].iloc[0] > 0
    largest = torch.cat([value.flatten() for value in product.values()]).topk(count).values.min()
    assert all(bool((product[name][came[name]] >= largest).all()) for name in seen)
    assert all(torch.equal(found.model.get_parameter(n)[came[n]], model.get_parameter(n)[came[n]]) for n in seen)
