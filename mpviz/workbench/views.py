"""The plain records that a screen is drawn from: numpy arrays, numbers and words, no toolkit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

JobState = Literal["idle", "running", "done", "cancelled", "failed"]


@dataclass(frozen=True)
class TailView:
    """A power law λ^−α above x_min, on the scale of X. no_tail: it is not one, and `why` says so."""

    alpha: float
    x_min: float
    ks: float
    n_tail: int
    no_tail: bool
    why: str = ""


@dataclass(frozen=True, eq=False)
class SpectrumView:
    """One layer's spectrum and its Marchenko–Pastur fit, ready to draw. Eigenvalues are those of X = WᵀW / N.

    shape: (N outputs, M inputs). eigenvalues: Float64["min(N, M)"] ascending. law_pdf: density of the fitted law on
    the scale of X, vectorised. edges: (λ₋, λ₊); threshold: the Tracy–Widom corrected edge T₊, both on the scale of
    X. sigma_plus: √(N λ₊). rigidity: p·KS; above rigidity_limit the fit is called bad. spikes: the largest first, each
    with rank (from 1), eigenvalue, strength (the singular value of the signal behind it) and overlap (0 … 1, or a
    (left, right) pair). Numbers that the fit could not give are NaN, and `verdict` says why.
    law_cdf, law_ppf: distribution function and quantiles of the fitted law over x > 0; None without a fit.
    rigidity_limit: what 99 of 100 noise layers of this size stay below; p_value: how often it is larger there. reason:
    the verdict as one of a few words. grade: "good" where mp_like, "fair" close to it, "poor", or "none" without a fit.
    sigma_plus_interval: 95 % interval of σ₊. shuffled: eigenvalues of the same entries in random order. tail: the power
    law fitted to the largest eigenvalues.
    """

    layer: str
    role: str
    shape: tuple[int, int]
    eigenvalues: np.ndarray
    law_pdf: Callable[[np.ndarray], np.ndarray]
    edges: tuple[float, float]
    threshold: float
    sigma_plus: float
    n_spikes: int
    bulk_fraction: float
    rigidity: float
    mp_like: bool
    grade: str
    verdict: str
    spikes: Sequence[Mapping[str, Any]] = ()
    law_cdf: Callable[[np.ndarray], np.ndarray] | None = None
    law_ppf: Callable[[np.ndarray], np.ndarray] | None = None
    rigidity_limit: float = 5.0
    p_value: float = math.nan
    reason: str = ""
    sigma_plus_interval: tuple[float, float] = (math.nan, math.nan)
    shuffled: np.ndarray | None = None
    tail: TailView | None = None

    @property
    def fitted(self) -> bool:
        """True when there is a bulk to draw: finite edges and threshold."""
        return all(math.isfinite(x) for x in (*self.edges, self.threshold))


@dataclass(frozen=True, eq=False)
class CurveView:
    """Coverage and accuracy along the sparsity slider. All shares are 0 … 1; NaN where nothing was measured yet.

    positions, coverage, unchanged, accuracy: Float64["21"]. coverage: share of samples whose label is certified
    (margin > 2η); unchanged: share whose label is in fact the dense one, never below coverage. current: the chosen
    position as a dict with sparsity, coverage, unchanged, accuracy and tier ("measured" or "estimate"), or None.
    stale: the curve belongs to earlier budgets and is being measured again. limit: the most that can go, below 1 when
    layers are locked; nothing is measured beyond it.
    """

    positions: np.ndarray
    coverage: np.ndarray
    unchanged: np.ndarray
    accuracy: np.ndarray
    current: Mapping[str, Any] | None = None
    n_samples: int = 0
    split: str = "test"
    stale: bool = False
    limit: float = 1.0

    @property
    def progress(self) -> tuple[int, int]:
        """How many positions are measured, and how many can be; an old curve counts for nothing."""
        reachable = self.positions <= self.limit
        return 0 if self.stale else int(np.isfinite(self.coverage[reachable]).sum()), int(reachable.sum())


@dataclass(frozen=True)
class JobStatus:
    """What the background work is doing. progress: 0 … 1; seconds_left: None while it cannot be told."""

    name: str = ""
    state: JobState = "idle"
    progress: float = 0.0
    message: str = ""
    seconds_left: float | None = None

    @property
    def busy(self) -> bool:
        """True while the work runs and can be cancelled."""
        return self.state == "running"
