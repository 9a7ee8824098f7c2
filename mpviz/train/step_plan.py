"""What pruning in steps depends on, beside network and data: how the sparsity grows, and what each step restores."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

from mpviz.errors import TrainingError, nearest
from mpviz.prune.magnitude import SEB, regime
from mpviz.prune.options import misfit
from mpviz.prune.restore import BELOW, FACTORS, STEP, Stage, stages

SCHEDULES = ("magnitude", "seb", "ser", "hybrid", "drop-threshold")
RESTORING = ("ser", "hybrid", "drop-threshold")  # of these, those whose steps give entries back
_CHOICES = {
    "schedule": SCHEDULES,
    "factor": FACTORS,
    "candidates": ("step", "all"),
    "restored": ("moved", "before"),
    "by": ("movement", "agreement"),
}


@dataclass(frozen=True)
class StepPlan:
    """How the sparsity grows, and what each step restores.

    schedule: "magnitude" and "seb" prune gradually without restoring; "ser" over-prunes by SEB weights and restores;
    "hybrid" is magnitude up to `until`, then SER; "drop-threshold" is magnitude until the accuracy on the check
    split is `drop` below the dense one after recovery, then SER. step: between targets; targets: the sparsities to
    stop at, instead of steps. ratio: what an SER step removes over what it keeps removed. factor, candidates: of
    `restore`. restored: a restored entry begins at the value it "moved" to or that it had "before". by: what brings
    an entry back, its "movement" or its "agreement": the product of movement and old value, where that is positive.
    renew: batch norms of the over-pruned network are measured again before the selection (`movement_of`).
    selection: epochs of the selection phase, at selection_rate and with selection_batch images a step; recovery: epochs
    after each step, 0 for none; last: more of those after the last one; equal: a step without a selection phase trains
    as many epochs longer, so that all schedules see the same number of images. seb: the strengths of spectral steps, at
    all sparsities; None takes those of the four
    regimes. The numbers are those of arXiv:2606.02608 where it names them.
    """

    schedule: str = "hybrid"
    step: float = STEP
    ratio: float = 1.6
    until: float = BELOW
    drop: float = 0.007
    factor: str = "multiply"
    candidates: str = "step"
    restored: str = "moved"
    by: str = "movement"
    renew: bool = False
    selection: float = 0.2
    selection_rate: float = 1e-3
    selection_batch: int = 128
    recovery: float = 1
    last: int = 0
    targets: tuple[float, ...] = ()
    equal: bool = False
    seb: SEB | None = None

    def checked(self) -> StepPlan:
        """Raises TrainingError for an unknown schedule or numbers that mean nothing."""
        wrong = misfit(self) or (self.seb and misfit(self.seb))
        if wrong:
            raise TrainingError(f"a plan of steps cannot take {wrong}")
        for name, known in _CHOICES.items():
            value = getattr(self, name)
            if value not in known:
                raise TrainingError(f"unknown {name} '{value}'; {nearest(value, known)}")
        if not 0 < self.selection < math.inf or not 0 <= self.recovery < math.inf or self.last < 0:
            raise TrainingError("selection takes epochs above 0, recovery and last from 0 on")
        if not 1 <= self.ratio < math.inf:
            raise TrainingError(f"ratio = {self.ratio}; what a step removes over what it keeps removed is 1 or more")
        if not 0 <= self.until < 1:
            raise TrainingError(f"until = {self.until}; give a sparsity in [0, 1)")
        if not math.isfinite(self.drop):
            raise TrainingError(f"drop = {self.drop}; give a difference of accuracies, such as 0.007")
        if self.selection_batch < 1:
            raise TrainingError(f"selection_batch = {self.selection_batch}; give a number of images, 1 or more")
        if not (math.isfinite(self.selection_rate) and self.selection_rate > 0):
            raise TrainingError(f"selection_rate = {self.selection_rate}; give a number above 0")
        return self

    def stages(self, sparsity: float) -> list[Stage]:
        """The targets up to a sparsity. Raises BudgetError for impossible ones."""
        ratio = self.ratio if self.schedule in RESTORING else 1.0
        return stages(sparsity, ratio, self.until if self.schedule == "hybrid" else 0.0, self.step, self.targets)

    def strengths(self, sparsity: float) -> SEB:
        """The SEB settings of a spectral step to this sparsity."""
        return regime(sparsity) if self.seb is None else self.seb

    def record(self) -> dict[str, Any]:
        """The plan as JSON data."""
        made: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return made
