"""Edges of the bulk: the Marchenko–Pastur limits and the Tracy–Widom corrected threshold."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from scipy.interpolate import CubicSpline

from mpviz.errors import SpectrumError

# (level, quantile) of the Tracy–Widom law for real matrices, β = 1, from the Fredholm determinant
# F₁(s) = det(1 − Ai(x + y + s)) on L²(0, ∞) (Ferrari & Spohn 2005) by 80-point Gauss–Legendre quadrature
# (Bornemann 2010). The tests compute it again.
TRACY_WIDOM_TABLE: tuple[tuple[float, float], ...] = (
    (0.5, -1.268575),
    (0.55, -1.109767),
    (0.6, -0.946330),
    (0.65, -0.775169),
    (0.7, -0.592287),
    (0.75, -0.391994),
    (0.8, -0.165313),
    (0.85, 0.103838),
    (0.875, 0.263712),
    (0.9, 0.450143),
    (0.925, 0.677908),
    (0.95, 0.979316),
    (0.96, 1.137061),
    (0.97, 1.333213),
    (0.975, 1.453771),
    (0.98, 1.597756),
    (0.985, 1.778132),
    (0.99, 2.023449),
    (0.9925, 2.191898),
    (0.995, 2.422327),
    (0.9975, 2.799791),
    (0.998, 2.917407),
    (0.999, 3.272196),
    (0.9995, 3.612865),
    (0.9998, 4.044764),
    (0.9999, 4.359420),
)


def upper_edge(variance: float, aspect: float) -> float:
    """Marchenko–Pastur upper edge λ₊ = σ²(1+√c)², in units of the weight variance.

    aspect: c = cols / rows of W, for X = WᵀW / rows.  Marchenko & Pastur (1967).

    >>> upper_edge(1.0, 0.25)
    2.25
    """
    _check(variance, aspect)
    return variance * (1.0 + math.sqrt(aspect)) ** 2


def lower_edge(variance: float, aspect: float) -> float:
    """Marchenko–Pastur lower edge λ₋ = σ²(1−√c)², in units of the weight variance; 0 for square matrices.

    aspect: c = cols / rows of W, for X = WᵀW / rows.  Marchenko & Pastur (1967).

    >>> lower_edge(1.0, 0.25)
    0.25
    """
    _check(variance, aspect)
    return variance * (1.0 - math.sqrt(aspect)) ** 2


def tracy_widom_quantile(level: float) -> float:
    """Quantile of the Tracy–Widom law for real matrices (β = 1), without unit, to 1e-4.

    level: probability in [0.5, 0.9999].  Tracy & Widom (1996); computed as in Bornemann (2010).

    >>> round(tracy_widom_quantile(0.95), 4), round(tracy_widom_quantile(0.99), 4)
    (0.9793, 2.0234)
    """
    lowest, highest = TRACY_WIDOM_TABLE[0][0], TRACY_WIDOM_TABLE[-1][0]
    # written so that NaN fails as well
    if not lowest <= level <= highest:
        raise SpectrumError(f"level {level} has no Tracy–Widom quantile here; choose one from {lowest} to {highest}")
    return float(_spline()(-math.log1p(-level)))


def threshold(variance: float, shape: tuple[int, int], level: float = 0.99) -> float:
    """Tracy–Widom threshold T₊ = σ²(μ + t·s)/rows: pure noise stays below it with probability `level`.

    On the scale of X = WᵀW / rows, for tall and wide W alike. With n ≥ p the two sides of the shape,
    μ = (√(n−½) + √(p−½))² and s = (√(n−½) + √(p−½)) (1/√(n−½) + 1/√(p−½))^{1/3}.  Johnstone (2001), Ma (2012).

    >>> threshold(1.0, (400, 100), level=0.99) > upper_edge(1.0, 0.25)
    True
    """
    rows, cols = shape
    if min(rows, cols) < 1:
        raise SpectrumError(f"shape {rows} x {cols} has no spectrum; both sides must be at least 1")
    _check(variance, cols / rows)
    big, small = math.sqrt(max(rows, cols) - 0.5), math.sqrt(min(rows, cols) - 0.5)
    centre = (big + small) ** 2
    scale = (big + small) * (1.0 / big + 1.0 / small) ** (1.0 / 3.0)
    return variance * (centre + tracy_widom_quantile(level) * scale) / rows


@cache
def _spline() -> CubicSpline:
    """The table as a smooth curve in −log(1 − level), in which the tail is nearly straight."""
    levels, quantiles = np.array(TRACY_WIDOM_TABLE).T
    return CubicSpline(-np.log1p(-levels), quantiles)


def _check(variance: float, aspect: float) -> None:
    if not (math.isfinite(variance) and variance >= 0):
        raise SpectrumError(f"variance {variance} is not a variance; give a finite number, at least 0")
    if not (math.isfinite(aspect) and aspect > 0):
        raise SpectrumError(f"aspect {aspect} is not a ratio of sides; give cols / rows, finite and above 0")
