"""The Marchenko–Pastur law in closed form, on both sides of c = 1.

Everything is computed in an angle θ ∈ [0, π] with x/σ² = 1 + c − 2√c cos θ. In that angle the distribution
function is smooth and free of the arcsines near ±1 that lose half of the digits at the edges.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpviz.errors import SpectrumError
from mpviz.rmt.edge import lower_edge, upper_edge

Floats = NDArray[np.float64]

_CELLS = 128  # the angle grid that brackets every root before Newton starts
_MAX_STEPS = 80  # bisection alone reaches the last bit of a cell in about 50


@dataclass(frozen=True)
class MarchenkoPastur:
    """Limit law of the eigenvalues of X = WᵀW / rows for W with iid entries of mean 0.

    aspect: c = cols / rows of W. variance: σ² of one entry. For c > 1 the law has an atom of mass 1 − 1/c at
    zero: `pdf` is the density of the rest, `cdf` and `ppf` include the atom, and the methods ending in
    `_nonzero` belong to the law conditioned on x > 0 (what the min(rows, cols) nonzero eigenvalues follow).
    Marchenko & Pastur (1967).

    >>> law = MarchenkoPastur(aspect=0.25, variance=1.0)
    >>> law.edges
    (0.25, 2.25)
    >>> law.cdf([0.25, 2.25]).tolist()
    [0.0, 1.0]
    >>> MarchenkoPastur(aspect=4.0).atom
    0.75
    """

    aspect: float
    variance: float = 1.0

    def __post_init__(self) -> None:
        upper_edge(self.variance, self.aspect)  # validates both and names the wrong one
        if self.variance == 0:
            raise SpectrumError("the law of variance 0 is a point at zero; give a variance above 0")

    @property
    def edges(self) -> tuple[float, float]:
        """(λ₋, λ₊) = σ²(1 ∓ √c)², the ends of the continuous part."""
        return lower_edge(self.variance, self.aspect), upper_edge(self.variance, self.aspect)

    @property
    def atom(self) -> float:
        """Mass at zero, (1 − 1/c)₊: the share of eigenvalues of WᵀW that vanish when cols > rows."""
        return max(0.0, 1.0 - 1.0 / self.aspect)

    def pdf(self, x: ArrayLike) -> Floats:
        """Density √((λ₊−x)(x−λ₋)) / (2πcσ²x) of the continuous part, which integrates to 1 − atom.

        At x = 0 with c = 1 exactly the density is infinite, and so is the answer. x: any shape; same shape back.

        >>> MarchenkoPastur(aspect=1.0).pdf([1.0, 2.0]).round(6).tolist()
        [0.275664, 0.159155]
        """
        x = _numbers(x, "x")
        low, high = self.edges
        inside = (x > low) & (x < high)
        root = np.sqrt(np.where(inside, high - x, 0.0)) * np.sqrt(np.where(inside, x - low, 0.0))
        density = root / (2 * np.pi * self.aspect * self.variance * np.where(inside, x, 1.0))
        if low == 0:
            density = np.where(x == 0, np.inf, density)
        return density

    def pdf_nonzero(self, x: ArrayLike) -> Floats:
        """Density of the law conditioned on x > 0, which integrates to 1; for c ≤ 1 the same as `pdf`."""
        return self.pdf(x) / (1.0 - self.atom)

    def cdf(self, x: ArrayLike) -> Floats:
        """Share of eigenvalues at or below x, atom included. x: any shape; same shape back.

        >>> MarchenkoPastur(aspect=2.0).cdf([-1.0, 0.0, 100.0]).tolist()
        [0.0, 0.5, 1.0]
        """
        x = _numbers(x, "x")
        return np.where(x < 0, 0.0, 1.0 - (1.0 - self.atom) * (1.0 - self.cdf_nonzero(x)))

    def cdf_nonzero(self, x: ArrayLike) -> Floats:
        """Distribution function of the law conditioned on x > 0; for c ≤ 1 the same as `cdf`."""
        x = _numbers(x, "x")
        low, high = self.edges
        above, x = x >= high, np.clip(x, low, high)
        # tan²(θ/2) = (x − λ₋)/(λ₊ − x) keeps full precision at both edges
        theta = 2 * np.arctan2(np.sqrt(x - low), np.sqrt(high - x))
        return np.where(above, 1.0, np.clip(_mass(theta, self.aspect), 0.0, 1.0))

    def ppf(self, q: ArrayLike) -> Floats:
        """Quantile: the least x with cdf(x) ≥ q; 0 for q within the atom. q: any shape in [0, 1]; same shape back.

        >>> law = MarchenkoPastur(aspect=0.5, variance=2.0)
        >>> bool(np.allclose(law.cdf(law.ppf([0.1, 0.5, 0.9])), [0.1, 0.5, 0.9], atol=1e-12))
        True
        """
        q = _levels(q)
        atom = self.atom
        if atom == 0:
            return self.ppf_nonzero(q)
        rest = np.clip((q - atom) / (1.0 - atom), 0.0, 1.0)
        return np.where(q <= atom, 0.0, self.ppf_nonzero(rest))

    def ppf_nonzero(self, q: ArrayLike) -> Floats:
        """Quantile of the law conditioned on x > 0. q: any shape in [0, 1]; same shape back."""
        q = _levels(q)
        theta = _solve(q, self.aspect)
        low, high = self.edges
        x = low + (high - low) * np.sin(theta / 2) ** 2
        return np.where(q == 1.0, high, x)


def _mass(theta: Floats, aspect: float) -> Floats:
    """Share of the continuous part below angle θ: the integral of √((λ₊−x)(x−λ₋))/x, in closed form."""
    root = math.sqrt(aspect)
    low, high = abs(1 - root), 1 + root  # square roots of the edges at σ² = 1
    omega = 2 * np.arctan2(high * np.sin(theta / 2), low * np.cos(theta / 2))
    integral = 2 * root * np.sin(theta) + (1 + aspect) * theta - low * high * omega
    return integral / (2 * np.pi * min(aspect, 1.0))


def _slope(theta: Floats, aspect: float) -> Floats:
    """Derivative of `_mass`, which vanishes at both edges."""
    root = math.sqrt(aspect)
    x = (1 - root) ** 2 + 4 * root * np.sin(theta / 2) ** 2
    # x = 0 happens only at θ = 0 with c = 1; the answer 0 sends the solver to bisection, which is all it needs there
    return 2 * aspect * np.sin(theta) ** 2 / (np.pi * min(aspect, 1.0) * np.where(x > 0, x, 1.0))


def _solve(q: Floats, aspect: float) -> Floats:
    """Angles with _mass(θ) = q: one cell of a grid brackets each root; Newton, and bisection where it would leave."""
    grid = np.linspace(0.0, np.pi, _CELLS + 1)
    heights = _mass(grid, aspect)
    cell = np.clip(np.searchsorted(heights, q, side="right") - 1, 0, _CELLS - 1)
    left, right = grid[cell], grid[cell + 1]
    rise = heights[cell + 1] - heights[cell]
    theta = left + (right - left) * np.clip((q - heights[cell]) / np.where(rise > 0, rise, 1.0), 0.0, 1.0)
    noise = 4e-16 / min(aspect, 1.0)  # rounding of _mass, whose terms of order 1 are divided by min(c, 1)
    for _ in range(_MAX_STEPS):
        gap = _mass(theta, aspect) - q
        done = np.abs(gap) <= noise
        if done.all():
            break
        left = np.where(gap < 0, theta, left)
        right = np.where(gap > 0, theta, right)
        slope = _slope(theta, aspect)
        newton = theta - gap / np.where(slope > 0, slope, np.inf)
        # a step out of the bracket, or no slope at all, means Newton is of no use here
        good = (newton >= left) & (newton <= right) & (slope > 0)
        theta = np.where(done, theta, np.where(good, newton, 0.5 * (left + right)))
    return theta


def _numbers(x: ArrayLike, name: str) -> Floats:
    values = np.asarray(x, dtype=np.float64)
    if np.isnan(values).any():
        raise SpectrumError(f"{name} holds NaN; give numbers")
    return values


def _levels(q: ArrayLike) -> Floats:
    levels = _numbers(q, "q")
    if levels.size and (levels.min() < 0 or levels.max() > 1):
        raise SpectrumError(f"q must lie in [0, 1]; it runs from {levels.min():g} to {levels.max():g}")
    return levels
