"""The population tier: what samples that nobody has used yet say about all samples, with a stated confidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from mpviz.errors import DataError, MpvizError

USED_SPLITS = ("train", "calibration")
OUTWARD = 1e-12  # by which every limit is moved outwards; beta quantiles are good to about 1e-14


@dataclass(frozen=True)
class PopulationShare:
    """A share of the population, known from k hits among n held-out samples.

    share: k / n. low, high: limits in [0, 1] that all `positions` intervals keep together with probability 1 − delta;
    high is 1 for a one-sided statement. alpha: delta / positions, what this one interval may fail with. sides: 1 or 2.
    """

    hits: int
    samples: int
    share: float
    low: float
    high: float
    delta: float
    positions: int
    sides: int
    tier: str = "population"

    @property
    def alpha(self) -> float:
        """Chance of failure of this one interval, Bonferroni's share of delta."""
        return self.delta / self.positions


def check_delta(delta: float) -> float:
    """The chance of failure as a float. Raises MpvizError outside (0, 1)."""
    if not 0.0 < delta < 1.0:
        raise MpvizError(f"delta is a probability of failure, between 0 and 1; got {delta}")
    return float(delta)


def check_held_out(split: str = "", held_out: bool | None = None) -> None:
    """Refuse samples that the mask or the weights may have seen.

    split: "train" and "calibration" are refused whatever else is said: weights are trained on one, masks chosen on the
    other. Any other name but "test" needs held_out=True, the caller's word that nothing was chosen on these samples.
    """
    if split in USED_SPLITS:
        raise DataError(
            f"the {split} split may have shaped the weights or the mask, so it says nothing about unseen samples; "
            "measure on the test split"
        )
    if held_out is False:
        raise DataError(
            "these samples were used to build the mask; measure on samples that were not, e.g. the test split"
        )
    if held_out is None and split != "test":
        where = f"the split '{split}'" if split else "where these samples come from"
        raise DataError(f"{where} does not say whether they were held out; give split='test', or held_out=True if so")


def clopper_pearson(
    hits: int,
    samples: int,
    delta: float = 0.05,
    positions: int = 1,
    sides: int = 1,
    split: str = "",
    held_out: bool | None = None,
) -> PopulationShare:
    """Limits of the share of the population from k hits among n independent samples (Clopper & Pearson 1934).

    delta: chance that any of the `positions` statements fails. sides: 1 for a lower limit, 2 for an interval.
    split, held_out: see `check_held_out`.

    Proof sketch. Let K ~ Bin(n, p), α = delta / positions, and low(k) = sup {q : P_q(K ≥ k) ≤ α}. P_q(K ≥ k) rises
    with q, so low(K) > p only if P_p(K ≥ k) ≤ α for the observed k, and the k for which that holds form an upper set
    {k ≥ k*} with P_p(K ≥ k*) ≤ α. P_q(K ≥ k) is the Beta(k, n − k + 1) distribution function at q, hence its quantile.
    The upper limit mirrors this; two sides take α/2 each. Over positions the union bound adds up: the same samples
    serve all of them, no independence between positions is used. Positions must be fixed before the samples are seen,
    and neither weights nor masks may depend on the samples; both are hypotheses that only the caller can know.

    >>> clopper_pearson(98, 100, delta=0.05, split="test").low > 0.93
    True
    """
    check_held_out(split, held_out)
    alpha = check_delta(delta) / _check_counts(hits, samples, positions, sides) / sides
    low = 0.0 if hits == 0 else float(stats.beta.ppf(alpha, hits, samples - hits + 1)) - OUTWARD
    high = 1.0
    if sides == 2 and hits < samples:
        high = float(stats.beta.isf(alpha, hits + 1, samples - hits)) + OUTWARD
    return PopulationShare(
        hits=int(hits),
        samples=int(samples),
        share=hits / samples,
        low=max(0.0, low),
        high=min(1.0, high),
        delta=float(delta),
        positions=int(positions),
        sides=sides,
    )


def population_share(
    outcome: ArrayLike,
    delta: float = 0.05,
    positions: int = 1,
    sides: int = 1,
    split: str = "",
    held_out: bool | None = None,
) -> PopulationShare:
    """`clopper_pearson` of the share of True in `outcome`, Bool["n"]: certified, or unchanged, per sample."""
    values = np.asarray(outcome)
    if values.dtype != np.bool_ or values.ndim != 1:
        raise DataError(f"an outcome is one bool a sample; got {values.dtype} of shape {values.shape}")
    return clopper_pearson(int(values.sum()), len(values), delta, positions, sides, split, held_out)


def population_curve(
    outcomes: Sequence[ArrayLike],
    delta: float = 0.05,
    sides: int = 1,
    split: str = "",
    held_out: bool | None = None,
) -> list[PopulationShare]:
    """One statement a slider position, all true together with probability 1 − delta. outcomes: Bool["n"] each."""
    if len(outcomes) == 0:
        raise DataError("no slider position was measured; give one outcome at least")
    return [population_share(one, delta, len(outcomes), sides, split, held_out) for one in outcomes]


def _check_counts(hits: int, samples: int, positions: int, sides: int) -> int:
    """The number of positions, after all counts were found possible."""
    for name, count in (("hits", hits), ("samples", samples), ("positions", positions)):
        if isinstance(count, (bool, np.bool_)) or int(count) != count:
            raise DataError(f"{name} is a count; got {count!r}")
    if samples < 1:
        raise DataError("no samples: nothing can be said about the population; measure on one sample at least")
    if not 0 <= hits <= samples:
        raise DataError(f"{hits} hits among {samples} samples are impossible; count again")
    if positions < 1:
        raise DataError(f"{positions} slider positions; there is one at least")
    if sides not in (1, 2):
        raise MpvizError(f"sides is 1 for a lower limit or 2 for an interval; got {sides}")
    return int(positions)
