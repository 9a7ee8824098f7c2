"""Prune–restore (SER): which entries go beyond the target, which come back, and the steps on the way. Ranks only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mpviz.errors import BudgetError, nearest
from mpviz.prune.allocate import check_sparsity
from mpviz.prune.masks import Ranking
from mpviz.prune.pruning import smallest

FACTORS = ("multiply", "divide", "none")
STEP = 0.05  # sparsity between two targets
BELOW = 0.20  # up to where the hybrid is plain magnitude


@dataclass(frozen=True)
class Stage:
    """One step of a schedule. target: sparsity at its end; over: sparsity before entries come back."""

    target: float
    over: float

    @property
    def restores(self) -> bool:
        """Whether the step prunes further than it ends."""
        return self.over > self.target


def stages(
    sparsity: float,
    ratio: float = 1.6,
    magnitude_until: float = 0.0,
    step: float = STEP,
    targets: Sequence[float] = (),
) -> list[Stage]:
    """The steps of SER up to a sparsity, or of the hybrid when magnitude_until > 0.

    ratio: what a step removes over what it keeps removed; the paper removes 8 points per step of 5 and gives 3 back.
    magnitude_until: up to there one magnitude step, without restoration. targets: the sparsities to stop at, instead of
    every `step`; those above `sparsity` are left out. Raises BudgetError. Source: arXiv:2606.02608.

    >>> [(s.target, s.over) for s in stages(0.3, magnitude_until=0.2)]
    [(0.2, 0.2), (0.25, 0.28), (0.3, 0.33)]
    """
    goal = check_sparsity(sparsity)
    if not 1 <= ratio < math.inf:
        raise BudgetError(f"the over-pruning ratio is at least 1; got {ratio}")
    if not 0 <= magnitude_until < 1:
        raise BudgetError(f"magnitude goes up to a sparsity in [0, 1); got {magnitude_until}")
    if not 0 < step < 1:
        raise BudgetError(f"a step is a difference of sparsities in (0, 1); got {step}")
    ladder = [check_sparsity(target) for target in targets]
    if ladder != sorted(set(ladder)) or (ladder and ladder[0] <= 0):
        raise BudgetError(f"targets are sparsities that rise from above 0; got {', '.join(map(str, targets))}")
    made: list[Stage] = []
    at = 0.0
    if magnitude_until > 0:
        at = round(min(magnitude_until, goal), 10)
        made.append(Stage(at, at))
    while goal - at > 1e-9:
        above = [target for target in ladder if target - at > 1e-9]
        following = round(min(above[0] if above else goal if ladder else at + step, goal), 10)
        over = round(min(at + ratio * (following - at), 0.999), 10)
        made.append(Stage(following, max(over, following)))
        at = following
    return made


def over_prune(
    ranking: Ranking, weights: Mapping[str, float] | None, kept: Mapping[str, Tensor], magnitudes: Mapping[str, Tensor],
    over: float,
) -> dict[str, Tensor]:  # fmt: skip
    """Masks at sparsity `over` that remove what `kept` removes, and then the smallest |W|/w of the rest.

    magnitudes: |W| as trained so far, like the masks. weights: SEB weights, 1 where None; 0 locks a layer.
    """
    count = round(check_sparsity(over) * ranking.total)
    scores = {}
    for name in ranking.names:
        w = 1.0 if weights is None else float(weights.get(name, 1.0))
        value = magnitudes[name].double() / w if w > 0 else torch.full_like(magnitudes[name].double(), 1e300)
        scores[name] = torch.where(kept[name], value, torch.full_like(value, -1.0))
    gone = sum(int((~mask).sum()) for mask in kept.values())
    if count < gone:
        raise BudgetError(f"{gone} entries are removed already, more than sparsity {over:g} removes ({count})")
    free = sum(int(kept[name].sum()) for name in ranking.names if weights is None or weights.get(name, 1.0) > 0)
    if count - gone > free:
        raise BudgetError("locked layers leave too few entries to over-prune; unlock a layer or lower the sparsity")
    return smallest(scores, count)


def restore(
    before: Mapping[str, Tensor],
    over: Mapping[str, Tensor],
    movement: Mapping[str, Tensor],
    sparsity: float,
    weights: Mapping[str, float] | None = None,
    factor: str = "multiply",
    candidates: str = "step",
) -> dict[str, Tensor]:
    """Masks of exactly `sparsity` after the best of the removed entries have come back.

    before: masks before the step; over: after over-pruning, which remove more. movement: how far each removed entry
    moved from zero in the selection phase, like the masks. Score: |movement| × w_ℓ ("multiply", as the paper's
    algorithm), ÷ w_ℓ ("divide": protected layers, whose w is small, come back first), or alone ("none"). candidates:
    entries removed in this "step", or "all" removed ones. Ties: earlier layers, then smaller indices, come back first.
    Raises BudgetError when there are too few candidates, or masks that do not fit.
    """
    if factor not in FACTORS:
        raise BudgetError(f"unknown factor '{factor}'; {nearest(factor, FACTORS)}")
    if candidates not in ("step", "all"):
        raise BudgetError(f"unknown candidates '{candidates}'; give 'step' or 'all'")
    total = sum(mask.numel() for mask in over.values())
    gone = sum(int((~mask).sum()) for mask in over.values())
    back = gone - round(check_sparsity(sparsity) * total)
    open_ = {name: (before[name] if candidates == "step" else True) & ~over[name] for name in over}
    available = sum(int(mask.sum()) for mask in open_.values())
    if back < 0 or back > available:
        raise BudgetError(
            f"{back} entries should come back, {available} can; over-prune to a sparsity that lies higher"
        )
    scores = {}
    for name, mask in over.items():
        if movement[name].shape != mask.shape:
            raise BudgetError(f"the movement of {name} is of another shape than its mask")
        w = 1.0 if weights is None or factor == "none" else float(weights.get(name, 1.0))
        moved = movement[name].double().abs() * (w if factor != "divide" else 1.0 / max(w, 1e-12))
        scores[name] = torch.where(open_[name], -moved, torch.full_like(moved, 1.0))  # the largest come first
    kept_removed = smallest(scores, back)
    return {name: over[name] | ~kept_removed[name] for name in over}
