"""Orders of inputs: each rule against what it says, and that the better ones are better."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from mpviz.errors import Cancelled, PatternError
from mpviz.nets.kn_pattern import KN
from mpviz.prune.permute import RULES, find_order, score_cost


def scores_of(rows: int = 96, units: int = 128, spread: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Scores with log-normal scales of the inputs, and importances."""
    draw = torch.Generator().manual_seed(seed)
    weight, scale = torch.randn(rows, units, generator=draw), torch.exp(spread * torch.randn(units, generator=draw))
    return weight.square() * scale.square(), weight.abs().sum(dim=0) * scale


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("text", ["2:4", "8:16", "1:2", "3:4"])
def test_an_order_is_a_permutation_and_its_cost_is_told(rule: str, text: str) -> None:
    scores, importance = scores_of()
    pattern = KN.parse(text)
    found = find_order(rule, scores, importance, pattern)
    assert found.order.sort().values.tolist() == list(range(128))
    cells = scores[:, found.order].reshape(96, -1, pattern.n).sort(dim=2).values[..., : pattern.removed].sum()
    whole = scores.reshape(96, -1, pattern.n).sort(dim=2).values[..., : pattern.removed].sum()
    assert found.cost == pytest.approx(float(cells / whole), rel=1e-5)
    again = find_order(rule, scores, importance, pattern)
    assert torch.equal(again.order, found.order)


def test_interleave_takes_one_of_each_quarter_in_turn() -> None:
    importance = torch.tensor([1.0, 8.0, 3.0, 6.0, 5.0, 4.0, 7.0, 2.0])
    order = find_order("interleave", torch.ones(1, 8), importance, KN(2, 4)).order
    assert importance[order].tolist() == [8, 6, 4, 2, 7, 5, 3, 1]


def test_snake_deals_to_and_fro() -> None:
    importance = torch.arange(12, 0, -1).float()
    order = find_order("snake", torch.ones(1, 12), importance, KN(2, 4)).order
    assert importance[order].reshape(3, 4).tolist() == [[12, 7, 6, 1], [11, 8, 5, 2], [10, 9, 4, 3]]


@pytest.mark.parametrize("text", ["2:4", "4:8", "8:16"])
def test_dealing_again_is_best_and_beats_the_rule_of_the_paper(text: str) -> None:
    scores, importance = scores_of(rows=200, units=512)
    costs = {rule: find_order(rule, scores, importance, KN.parse(text)).cost for rule in RULES}
    assert costs["none"] == 1.0
    assert costs["hungarian"] < costs["greedy"] < costs["snake"] < costs["interleave"]
    assert costs["snake"] < 1.0


def test_two_groups_come_near_the_best_of_all_orders() -> None:
    """Of 35 ways to make two groups of four."""
    for seed in range(5):
        scores, importance = scores_of(rows=7, units=8, seed=seed)
        found = find_order("hungarian", scores, importance, KN(2, 4))
        best = min(
            score_cost(scores, torch.tensor([*one, *sorted(set(range(8)) - set(one))]), KN(2, 4))
            for one in itertools.combinations(range(8), 4)
        )
        assert score_cost(scores, found.order, KN(2, 4)) <= 1.1 * best


def test_blocks_keep_their_inputs() -> None:
    scores, importance = scores_of(units=64)
    for rule in RULES:
        order = find_order(rule, scores, importance, KN(2, 4), blocks=4).order
        assert (order // 16).tolist() == sorted((order // 16).tolist())


def test_many_rows_are_thinned_out_and_the_order_is_nearly_as_good() -> None:
    scores, importance = scores_of(rows=5000, units=64)
    thin = find_order("hungarian", scores, importance, KN(2, 4))
    assert thin.cost < find_order("greedy", scores, importance, KN(2, 4)).cost


def test_what_is_refused() -> None:
    scores, importance = scores_of(units=32)
    with pytest.raises(PatternError, match="did you mean 'hungarian'"):
        find_order("hungarien", scores, importance, KN(2, 4))
    with pytest.raises(PatternError, match="32 inputs in 4 blocks do not fill whole groups of 16"):
        find_order("snake", scores, importance, KN(8, 16), blocks=4)
    with pytest.raises(Cancelled):
        find_order("snake", scores, importance, KN(2, 4), cancelled=lambda: True)
