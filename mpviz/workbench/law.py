"""A random matrix for the lecture hall: noise of known σ with planted spikes, and what theory says of it beforehand."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from mpviz.errors import SpectrumError
from mpviz.nets.layer_spectrum import LayerSpectrum
from mpviz.nets.layers import LayerInfo
from mpviz.nets.spectra import spectrum
from mpviz.rmt import MarchenkoPastur, fit_bulk, lower_edge, spike_strengths, threshold, upper_edge
from mpviz.workbench.sources import spectrum_view
from mpviz.workbench.views import SpectrumView

FEWEST, MOST = 2, 4000  # rows or columns


@dataclass(frozen=True)
class LawPlan:
    """What is drawn: W = S + R, Float["rows cols"], R Gaussian of standard deviation sigma, S of rank `spikes`.

    strength: singular values of S in units of the Baik–Ben Arous–Péché threshold σ (N M)^¼, all equal. seed: of the
    draw. Raises SpectrumError for a plan that cannot be drawn.
    """

    rows: int = 600
    cols: int = 300
    sigma: float = 1.0
    spikes: int = 3
    strength: float = 1.5
    seed: int = 0

    def __post_init__(self) -> None:
        if not (FEWEST <= self.rows <= MOST and FEWEST <= self.cols <= MOST):
            raise SpectrumError(
                f"a {self.rows} x {self.cols} matrix is not drawn here; sides go from {FEWEST} to {MOST}"
            )
        if not (self.sigma > 0 and math.isfinite(self.sigma) and self.strength >= 0):
            raise SpectrumError(f"σ = {self.sigma} and strength {self.strength} are no noise and signal; choose σ > 0")
        if not 0 <= self.spikes < min(self.rows, self.cols):
            raise SpectrumError(f"{self.spikes} spikes do not fit into {self.rows} x {self.cols}; plant fewer")


@dataclass(frozen=True, eq=False)
class LawDraw:
    """One matrix, seen. view: its spectrum with the law of the σ that is known, not fitted. seen: eigenvalues above the
    Tracy–Widom threshold. expected: singular value at which theory puts the spikes; nan below the transition, where
    they drown in the bulk. fitted_sigma: what `fit_bulk` makes of the spectrum alone; nan where it cannot.
    """

    plan: LawPlan
    view: SpectrumView
    seen: int
    expected: float
    fitted_sigma: float


def draw_law(plan: LawPlan) -> LawDraw:
    """Draw the matrix, take its singular values, and set them beside the law.  Marchenko & Pastur (1967).

    >>> done = draw_law(LawPlan(rows=400, cols=200, spikes=4, strength=2.0))
    >>> done.seen, draw_law(LawPlan(rows=400, cols=200, spikes=4, strength=0.5)).seen
    (4, 0)
    """
    shape, variance = (plan.rows, plan.cols), plan.sigma**2
    # σ only scales: planted strengths are in units of a threshold that has the same factor
    eigenvalues = variance * _unit_spectrum(plan.rows, plan.cols, plan.spikes, plan.strength, plan.seed)
    fitted = fit_bulk(eigenvalues, shape, strict=False)
    aspect, top = plan.cols / plan.rows, threshold(variance, shape)
    seen = int(np.count_nonzero(eigenvalues > top))
    edge = upper_edge(variance, aspect)
    known = replace(
        fitted,
        law=MarchenkoPastur(aspect=aspect, variance=variance),
        edges=(lower_edge(variance, aspect), edge),
        threshold=top,
        variance=variance,
        sigma_plus=math.sqrt(plan.rows * edge),
        n_spikes=seen,
        bulk_fraction=1.0 - seen / min(shape),
    )
    info = LayerInfo(
        f"{plan.rows} × {plan.cols} noise", "random", "Gaussian", *shape, plan.rows * plan.cols, False, "", 0
    )
    layer = LayerSpectrum(info, eigenvalues, known, spike_strengths(eigenvalues, known), math.nan, math.nan)
    sigma = math.sqrt(fitted.variance) if fitted.law is not None else math.nan
    return LawDraw(plan, spectrum_view(layer), seen, expected_spike(plan), sigma)


def expected_spike(plan: LawPlan) -> float:
    """Where a planted singular value shows up in W, s = σ √(N (1 + t²)(c + t²)) / t with t² = strength² √c.

    nan up to a strength of 1, where nothing stands out.  Benaych-Georges & Nadakuditi (2012).
    """
    if plan.strength <= 1 or plan.spikes == 0:
        return math.nan
    aspect = plan.cols / plan.rows
    signal = plan.strength**2 * math.sqrt(aspect)
    return plan.sigma * math.sqrt(plan.rows * (1 + signal) * (aspect + signal) / signal)


@lru_cache(maxsize=8)
def _unit_spectrum(rows: int, cols: int, spikes: int, strength: float, seed: int) -> np.ndarray:
    """Eigenvalues of WᵀW / rows for σ = 1, ascending: Float64["min(rows, cols)"]."""
    draws = np.random.default_rng(seed)
    matrix = draws.standard_normal((rows, cols))
    if spikes and strength:
        left, _ = np.linalg.qr(draws.standard_normal((rows, spikes)))
        right, _ = np.linalg.qr(draws.standard_normal((cols, spikes)))
        matrix += strength * (rows * cols) ** 0.25 * left @ right.T
    values = spectrum(matrix)
    values.setflags(write=False)
    return values
