"""Orders of input channels that let a k:n pattern keep more: which inputs should share a group.

All rules look at scores S Float["rows units"], S_iu = Σ w² E[h²] over what unit u gives to row i (one column, or a
channel's pixel by pixel): what the cost of removing it would be if inputs were uncorrelated. A group costs, summed over
rows, its n − k smallest scores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mpviz.errors import Cancelled, PatternError, nearest
from mpviz.nets.kn_pattern import KN

RULES = ("none", "interleave", "snake", "greedy", "hungarian")
ROWS = 2048  # of the scores that an assignment looks at; evenly spaced ones where there are more
_SWEEPS = 6  # each takes every slot of the groups once
_ENOUGH = 1e-3  # a sweep that saves less of the cost is the last
_BLOCK = 2**22  # numbers of one table of minima


@dataclass(frozen=True, eq=False)
class Order:
    """order: Int["units"], the unit that stands at each place. cost: of the scores, relative to the order as it was."""

    rule: str
    order: Tensor
    cost: float


def find_order(
    rule: str,
    scores: Tensor,
    importance: Tensor,
    pattern: KN,
    blocks: int = 1,
    seed: int = 0,
    cancelled: Callable[[], bool] | None = None,
) -> Order:
    """The order that a rule gives.

    rule: "none"; "interleave", the paper's: sorted by importance, and one of each quarter after the other; "snake":
    dealt to the groups by importance, to and fro; "greedy": dealt in rounds of falling importance, each unit to the
    group where it costs least; "hungarian": the greedy order, then one unit of every group at a time is dealt again,
    as an optimal assignment, until a sweep saves less than 0.1 %. scores: Float["rows units"], not negative.
    importance: Float["units"], Σ_i |W_iu| · mean|h_u|. blocks: equal stretches of units that stay apart, such as the
    heads of an attention. seed: of the slots that are dealt again.
    Raises PatternError for an unknown rule or units that do not fill whole groups in each block, Cancelled.
    """
    if rule not in RULES:
        raise PatternError(f"unknown permutation '{rule}'; {nearest(str(rule), RULES)}")
    units = scores.shape[1]
    if units % blocks or (units // blocks) % pattern.n:
        raise PatternError(f"{units} inputs in {blocks} blocks do not fill whole groups of {pattern.n} in each block")
    some = scores[:: -(-len(scores) // ROWS)].float()
    width = units // blocks
    parts = []
    for block in range(blocks):
        if cancelled is not None and cancelled():
            raise Cancelled("the search for an order was cancelled; nothing was changed")
        here = slice(block * width, (block + 1) * width)
        found = _ORDERS[rule](some[:, here], importance[here].double(), pattern, seed + block)
        parts.append(found + block * width)
    order = torch.cat(parts).cpu()
    before = score_cost(scores, torch.arange(units), pattern)
    return Order(rule, order, score_cost(scores, order, pattern) / before if before > 0 else 1.0)


def score_cost(scores: Tensor, order: Tensor, pattern: KN) -> float:
    """Sum over rows and groups of the n − k smallest scores, for units in this order."""
    total = 0.0
    for part in scores.split(max(1, _BLOCK // scores.shape[1])):
        cells = part[:, order.to(part.device)].reshape(len(part), -1, pattern.n)
        total += float(cells.sort(dim=2).values[..., : pattern.removed].double().sum())
    return total


def _none(scores: Tensor, importance: Tensor, pattern: KN, seed: int) -> Tensor:
    return torch.arange(scores.shape[1])


def _falling(importance: Tensor) -> Tensor:
    return torch.sort(importance.cpu(), descending=True, stable=True).indices


def _interleave(scores: Tensor, importance: Tensor, pattern: KN, seed: int) -> Tensor:
    quarters = np.array_split(_falling(importance).numpy(), 4)
    order = [int(quarter[i]) for i in range(len(quarters[0])) for quarter in quarters if i < len(quarter)]
    return torch.tensor(order)


def _snake(scores: Tensor, importance: Tensor, pattern: KN, seed: int) -> Tensor:
    rounds = _falling(importance).reshape(pattern.n, -1).clone()
    rounds[1::2] = rounds[1::2].flip(1)
    return rounds.T.reshape(-1)


def _greedy(scores: Tensor, importance: Tensor, pattern: KN, seed: int) -> Tensor:
    """Round r gives each group its r-th unit; of r units in a group, so far r(n − k)/n would go."""
    rounds = _falling(importance).reshape(pattern.n, -1)
    groups = rounds.shape[1]
    members = rounds[0][:, None].clone()
    for units in rounds[1:]:
        gone = round((members.shape[1] + 1) * pattern.removed / pattern.n)
        cost = _added_cost(scores, members, units, gone).cpu()
        # those that have most to lose by a bad place choose first
        hurry = (cost.mean(dim=0) - cost.amin(dim=0)).argsort(descending=True)
        taken = torch.empty(groups, dtype=torch.int64)
        for unit in hurry.tolist():
            group = int(cost[:, unit].argmin())
            taken[group] = units[unit]
            cost[group] = torch.inf
        members = torch.cat([members, taken[:, None]], dim=1)
    return members.reshape(-1)


def _hungarian(scores: Tensor, importance: Tensor, pattern: KN, seed: int) -> Tensor:
    from scipy.optimize import linear_sum_assignment

    draws = np.random.default_rng(seed)
    members = _greedy(scores, importance, pattern, seed).reshape(-1, pattern.n)
    groups = len(members)
    before = score_cost(scores, members.reshape(-1), pattern)
    if groups == 1 or pattern.removed == 0:
        return members.reshape(-1)
    for _ in range(_SWEEPS):
        # a slot of its own in each group, so that units of all sizes are dealt together
        slots = np.stack([draws.permutation(pattern.n) for _ in range(groups)])
        for slot in slots.T:
            places = torch.from_numpy(slot)[:, None]
            units = members.gather(1, places).squeeze(1)
            rest = members[members.new_ones(members.shape, dtype=torch.bool).scatter_(1, places, False)]
            cost = _added_cost(scores, rest.reshape(groups, -1), units, pattern.removed)
            _, chosen = linear_sum_assignment(cost.cpu().numpy())
            members.scatter_(1, places, units[torch.from_numpy(chosen)][:, None])
        after = score_cost(scores, members.reshape(-1), pattern)
        if after > (1 - _ENOUGH) * before:
            break
        before = after
    return members.reshape(-1)


def _added_cost(scores: Tensor, members: Tensor, units: Tensor, gone: int) -> Tensor:
    """Float["groups units"]: the `gone` smallest scores of each group's members and one more unit, summed over rows.

    With a the sum of the gone − 1 smallest of the members and t the next, that is a + min(t, score of the unit).
    """
    groups = len(members)
    cost = torch.zeros(groups, len(units), device=scores.device)
    if gone == 0:
        return cost
    step = max(1, _BLOCK // (groups * max(len(units), members.shape[1])))
    for part in scores.split(step):
        inside = part[:, members.to(part.device)].sort(dim=2).values
        base = inside[..., : gone - 1].sum(dim=(0, 2))
        limit = inside[..., gone - 1] if gone <= members.shape[1] else torch.full_like(inside[..., 0], torch.inf)
        cost += base[:, None] + torch.minimum(limit[:, :, None], part[:, None, units.to(part.device)]).sum(dim=0)
    return cost


_ORDERS: dict[str, Callable[[Tensor, Tensor, KN, int], Tensor]] = {
    "none": _none,
    "interleave": _interleave,
    "snake": _snake,
    "greedy": _greedy,
    "hungarian": _hungarian,
}
