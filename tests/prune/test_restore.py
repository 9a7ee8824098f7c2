"""Prune–restore by ranks: exact counts, who comes back, and the schedule."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mpviz.errors import BudgetError
from mpviz.prune.masks import Ranking
from mpviz.prune.restore import over_prune, restore, stages


def case(seed: int = 0) -> tuple[nn.Module, Ranking, dict[str, Tensor], dict[str, Tensor]]:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(9, 12), nn.Linear(12, 10), nn.Linear(10, 8), nn.Linear(8, 3)).eval()
    ranking = Ranking(net)
    magnitudes = {name: net.get_parameter(name).detach().abs() for name in ranking.names}
    moved = {name: torch.rand_like(values) for name, values in magnitudes.items()}
    return net, ranking, magnitudes, moved


def test_the_schedule_of_the_paper() -> None:
    steps = stages(0.35, magnitude_until=0.2)
    assert [(s.target, s.over, s.restores) for s in steps] == [
        (0.2, 0.2, False), (0.25, 0.28, True), (0.3, 0.33, True), (0.35, 0.38, True)]  # fmt: skip
    assert [s.target for s in stages(0.12)] == [0.05, 0.1, 0.12]
    assert stages(0.12)[-1].over == pytest.approx(0.132)
    assert [s.target for s in stages(0.15, magnitude_until=0.2)] == [0.15]
    assert stages(0.97)[-1].over <= 0.999
    chosen = stages(0.6, magnitude_until=0.2, targets=(0.2, 0.35, 0.5, 0.7))
    assert [s.target for s in chosen] == [0.2, 0.35, 0.5, 0.6]
    assert [s.over for s in chosen] == pytest.approx([0.2, 0.44, 0.59, 0.66])
    with pytest.raises(BudgetError, match="targets"):
        stages(0.6, targets=(0.5, 0.2))
    assert not any(s.restores for s in stages(0.3, ratio=1.0))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), s=st.floats(0.05, 0.6), factor=st.sampled_from(["multiply", "divide", "none"]))
def test_the_best_come_back_and_nothing_else_changes(seed: int, s: float, factor: str) -> None:
    _, ranking, magnitudes, moved = case(seed)
    w = {name: 0.5 + i for i, name in enumerate(ranking.names)}
    before = ranking.masks(ranking.counts(s, w))
    over = over_prune(ranking, w, before, magnitudes, s + 0.2)
    after = restore(before, over, moved, s + 0.1, w, factor)
    assert sum(int((~m).sum()) for m in over.values()) == round((s + 0.2) * ranking.total)
    assert sum(int((~m).sum()) for m in after.values()) == round((s + 0.1) * ranking.total)
    power = {"multiply": 1, "divide": -1, "none": 0}[factor]
    scores = {name: moved[name].double() * w[name] ** power for name in ranking.names}
    back = torch.cat([scores[n][after[n] & ~over[n]] for n in ranking.names])
    out = torch.cat([scores[n][before[n] & ~after[n]] for n in ranking.names])
    if len(back) and len(out):
        assert back.min() >= out.max() - 1e-12
    for name in ranking.names:
        assert not (over[name] & ~before[name]).any() and not (over[name] & ~after[name]).any()
        assert not (after[name] & ~before[name]).any(), "only what this step removed comes back"


def test_over_pruning_takes_the_smallest_of_what_is_left() -> None:
    _, ranking, magnitudes, _ = case()
    before = ranking.masks(ranking.counts(0.3))
    trained = {name: values.flip(0) for name, values in magnitudes.items()}  # the weights moved since
    over = over_prune(ranking, None, before, trained, 0.5)
    left = torch.cat([trained[n][over[n]] for n in ranking.names])
    new = torch.cat([trained[n][before[n] & ~over[n]] for n in ranking.names])
    assert new.max() <= left.min()
    locked = {name: float(i > 0) for i, name in enumerate(ranking.names)}
    held = over_prune(ranking, locked, before, trained, 0.5)
    assert torch.equal(held[ranking.names[0]], before[ranking.names[0]])


def test_the_factor_and_the_reservoir_change_the_mask() -> None:
    _, ranking, magnitudes, moved = case()
    w = {name: 0.2 + i for i, name in enumerate(ranking.names)}
    before = ranking.masks(ranking.counts(0.3, w))
    over = over_prune(ranking, w, before, magnitudes, 0.6)
    made = [restore(before, over, moved, 0.45, w, factor) for factor in ("multiply", "divide", "none")]
    made.append(restore(before, over, moved, 0.45, w, "none", candidates="all"))
    flat = [torch.cat([m.flatten() for m in one.values()]) for one in made]
    for i in range(len(flat)):
        for j in range(i):
            assert not torch.equal(flat[i], flat[j])


def test_impossible_requests_are_sentences() -> None:
    _, ranking, magnitudes, moved = case()
    before = ranking.masks(ranking.counts(0.3))
    over = over_prune(ranking, None, before, magnitudes, 0.5)
    with pytest.raises(BudgetError, match="unknown factor"):
        restore(before, over, moved, 0.4, factor="time")
    with pytest.raises(BudgetError, match="'step' or 'all'"):
        restore(before, over, moved, 0.4, candidates="some")
    with pytest.raises(BudgetError, match="can; over-prune"):
        restore(before, over, moved, 0.2)
    with pytest.raises(BudgetError, match="can; over-prune"):
        restore(before, over, moved, 0.6)
    with pytest.raises(BudgetError, match="removed already"):
        over_prune(ranking, None, over, magnitudes, 0.4)
    with pytest.raises(BudgetError, match="unlock a layer"):
        over_prune(ranking, dict.fromkeys(ranking.names, 0.0), before, magnitudes, 0.5)
    with pytest.raises(BudgetError, match="another shape"):
        restore(before, over, dict.fromkeys(moved, torch.zeros(2)), 0.4)
    with pytest.raises(BudgetError, match="at least 1"):
        stages(0.5, ratio=0.5)
    with pytest.raises(BudgetError, match="difference of sparsities"):
        stages(0.5, step=0.0)
