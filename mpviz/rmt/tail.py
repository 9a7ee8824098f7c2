"""A power law in the upper tail of a spectrum: its exponent, where it starts, and whether there is a tail at all."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpviz.errors import SpectrumError
from mpviz.rmt.signals import positive

Floats = NDArray[np.float64]

MIN_TAIL = 10  # eigenvalues below which no exponent means anything

_FAR = 0.2  # KS distance at which no reader would call the best power law a description
_COARSE = 256  # starting points tried first; those between the best and its neighbours follow
_GROUP = 32  # starting points treated in one array operation


@dataclass(frozen=True)
class PowerLawTail:
    """The power law density ~ λ^−α for λ ≥ x_min that describes the largest eigenvalues best.

    alpha: maximum-likelihood exponent, without unit. x_min: start of the tail, one of the eigenvalues, on their scale.
    ks: Kolmogorov–Smirnov distance between the tail and its power law. n_tail: eigenvalues in it.
    no_tail: True when the numbers describe the end of a bounded spectrum and not a tail. why: the reason in words.
    With too few eigenvalues the numbers are nan.
    """

    alpha: float
    x_min: float
    ks: float
    n_tail: int
    no_tail: bool
    why: str


def power_law_tail(eigs: ArrayLike, edge: float | None = None) -> PowerLawTail:
    """Maximum-likelihood power law of the tail; x_min is the eigenvalue of least Kolmogorov–Smirnov distance.

    eigs: eigenvalues of X = WᵀW / rows, any order; zeros are left out. edge: threshold T₊ of the bulk when it is known:
    without an eigenvalue above it there is no tail.

    Every spectrum yields an exponent: pure noise gives 2 to 100, by shape. What tells a tail from a bulk is the
    coefficient of variation of log(λ/x_min), 1 for a power law and about 0.65 for the square-root end of a bulk; below
    0.70 + 2 / n_tail^0.97 the flag no_tail is set. In simulations that line kept at least 99 % of the pure bulks of
    every shape below it (p from 16 to 2048, c from 0.03 to 1) and power laws of 64 values or more above it. A bulk with
    spikes on top is not a pure bulk and may count as a tail. The flag is also set where even the best power law is far
    off, at a distance above 0.2 (and above 1.3 / √n_tail, which true ones exceed once in a hundred).
    Clauset, Shalizi & Newman (2009); the coefficient: Malevergne, Pisarenko & Sornette (2011).

    >>> pareto = [(1 - q) ** -0.5 for q in (i / 1000 for i in range(1000))]      # density ~ λ^-3
    >>> found = power_law_tail(pareto)
    >>> round(found.alpha, 1), found.no_tail
    (3.0, False)
    """
    values = positive(eigs)
    if len(values) < MIN_TAIL:
        why = f"only {len(values)} eigenvalues above zero, a tail needs {MIN_TAIL}"
        return PowerLawTail(math.nan, math.nan, math.nan, 0, True, why)
    logs = np.log(values)
    start, rate, distance = _best_start(logs)
    if start < 0:
        return PowerLawTail(math.inf, float(values[0]), math.nan, len(values), True, "all eigenvalues are one value")
    above = logs[start:] - logs[start]
    no_tail, why = _judge(above, distance, float(values[-1]), edge)
    return PowerLawTail(1.0 + rate, float(values[start]), distance, len(above), no_tail, why)


def tail_limit(n_tail: int) -> float:
    """The coefficient of variation of log(λ/x_min) that fewer than one bulk in a hundred exceeds, without unit.

    >>> round(tail_limit(50), 3)
    0.745
    """
    return 0.70 + 2.0 / n_tail**0.97


def _judge(above: Floats, distance: float, largest: float, edge: float | None) -> tuple[bool, str]:
    """above: log(λ/x_min) of the tail, ascending."""
    if edge is not None:
        if not edge > 0:  # NaN fails as well
            raise SpectrumError(f"edge {edge} is no threshold of a spectrum; pass fit.threshold, or nothing")
        if largest <= edge:
            return True, f"no eigenvalue above {edge:.3g}"
    worst = max(_FAR, 1.3 / math.sqrt(len(above)))
    if distance > worst:
        return True, f"no power law is near: KS {distance:.2f}, above {worst:.2f}"
    spread = float(np.std(above) / np.mean(above))
    limit = tail_limit(len(above))
    if spread < limit:
        return True, f"ends like a bulk: spread of the logarithms {spread:.2f}, a tail of {len(above)} has {limit:.2f}"
    return False, f"{len(above)} eigenvalues, spread of the logarithms {spread:.2f}, above {limit:.2f}"


def _best_start(logs: Floats) -> tuple[int, float, float]:
    """(index of x_min, α − 1, distance) of least distance; index −1 when all values are equal. logs: ascending."""
    last = len(logs) - MIN_TAIL
    stride = max(1, -(-(last + 1) // _COARSE))
    sums = np.cumsum(logs[::-1])[::-1]
    found = _search(logs, sums, np.arange(0, last + 1, stride))
    if stride > 1 and found[0] >= 0:
        near = np.arange(max(0, found[0] - stride), min(last, found[0] + stride) + 1)
        found = min(found, _search(logs, sums, near), key=lambda one: one[2])
    return found


def _search(logs: Floats, sums: Floats, starts: NDArray[np.intp]) -> tuple[int, float, float]:
    """The best of some starting points, in groups that are one array operation each.

    sums: sums[i] = Σ logs[i:]. starts: ascending indices into logs.
    """
    count = len(logs)
    sizes = count - starts
    means = sums[starts] / sizes - logs[starts]
    usable = means > 1e-12  # a tail of one value has no exponent
    starts, sizes, rates = starts[usable], sizes[usable], 1.0 / means[usable]
    if not len(starts):
        return -1, math.nan, math.inf
    distances = np.empty(len(starts))
    for low in range(0, len(starts), _GROUP):
        group = slice(low, low + _GROUP)
        first, begin, size = int(starts[low]), starts[group, None], sizes[group, None]
        places = np.arange(first, count)[None, :]
        beyond = np.exp(rates[group, None] * (logs[begin] - logs[None, first:]))  # the power law's share above
        step = (count - places) / size  # the empirical one; the step down at an eigenvalue is 1 / size
        gap = np.maximum(step - beyond, beyond - step + 1.0 / size)
        distances[group] = np.max(gap, axis=1, where=places >= begin, initial=0.0)
    best = int(np.argmin(distances))
    return int(starts[best]), float(rates[best]), float(distances[best])
