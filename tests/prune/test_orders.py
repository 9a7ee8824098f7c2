"""What the orders of a layer are chosen by: the scores of its weights and the importance of its inputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mpviz.nets.calibrate import BlockMoments
from mpviz.nets.kn_pattern import KN
from mpviz.prune.orders import choices
from mpviz.prune.permute import Order, find_order


def moments_of(power: Tensor, mean_abs: Tensor) -> BlockMoments:
    """Of inputs that do not go together."""
    columns = torch.arange(len(power)).reshape(-1, 4)
    return BlockMoments(columns, torch.diag_embed(power[columns]), power, mean_abs, 10)


def chosen(rule: str, weight: Tensor, moments: BlockMoments, damping: float = 0.0) -> Order:
    (choice,) = choices(
        nn.Identity(), {"fc": weight}, {"fc": moments}, rule, KN(2, 4), "flattened", damping=damping
    )  # fmt: skip
    return choice.candidates[0]["fc"]


def test_the_rule_of_the_paper_goes_by_the_mean_magnitude_of_inputs_not_by_their_power() -> None:
    mean_abs = torch.tensor([1.0, 8.0, 3.0, 6.0, 5.0, 4.0, 7.0, 2.0], dtype=torch.float64)
    moments = moments_of(100 - mean_abs, mean_abs)  # rare large inputs: the other way round
    order = chosen("interleave", torch.ones(3, 8), moments).order
    assert mean_abs[order].tolist() == [8, 6, 4, 2, 7, 5, 3, 1]


def test_orders_are_sought_for_the_damped_scores_that_patterns_are_chosen_by() -> None:
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(24, 16, generator=draw)
    power = torch.exp(2 * torch.randn(16, generator=draw, dtype=torch.float64))
    moments = moments_of(power, power.sqrt() / 2)
    importance = weight.abs().sum(dim=0) * moments.mean_abs.float()
    found = {damping: chosen("hungarian", weight, moments, damping) for damping in (0.0, 0.5)}
    for damping, order in found.items():
        scores = weight.square() * (power + damping * power.mean()).float()
        expected = find_order("hungarian", scores, importance, KN(2, 4))
        assert torch.equal(order.order, expected.order) and order.cost == expected.cost
    assert found[0.0].cost < found[0.5].cost  # damping makes inputs alike, and then orders matter less
