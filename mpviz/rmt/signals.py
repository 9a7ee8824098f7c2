"""Scalar signals of a spectrum that need no fit: Hill exponent and stable rank."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpviz.errors import SpectrumError
from mpviz.rmt.checks import numerical_rank


def hill_alpha(eigs: ArrayLike, tail: float = 0.5) -> float:
    """Hill estimate α = 1 + k / Σ log(λ_i / λ_ref) of the power-law exponent of the largest eigenvalues.

    eigs: eigenvalues of X = WᵀW / rows, any order; zeros are left out. tail: share of them in the tail; k =
    ⌊tail·n⌋ of n, and λ_ref is the largest one outside it. Without unit, at least 1, small for heavy tails; infinite
    when the whole tail is one value. It is a number for any spectrum: a pure Marchenko–Pastur bulk, which has no tail
    at all, gives 2.1 (c = 1) to 4.9 (c = 0.1), so read it beside the number of spikes.
    Hill (1975); with tail = 0.5 the signal of AlphaPruning, Lu et al. (2024).

    >>> pareto = [(1 - q) ** -0.5 for q in (i / 4000 for i in range(4000))]      # density ~ λ^-3
    >>> round(hill_alpha(pareto), 2)
    3.0
    """
    if not 0 < tail < 1:  # NaN fails as well
        raise SpectrumError(f"tail {tail} is not a share of the eigenvalues; choose it between 0 and 1")
    values = _positive(eigs)
    count = int(tail * len(values))
    if count < 1:
        raise SpectrumError(
            f"the largest {tail:g} of {len(values)} nonzero eigenvalues holds none; "
            "a Hill estimate needs a larger tail or a layer with more of them"
        )
    logs = np.log(values[-count - 1 :])
    spread = float(np.sum(logs[1:] - logs[0]))
    return 1.0 + count / spread if spread > 0 else math.inf


def stable_rank(eigs: ArrayLike) -> float:
    """Stable rank ‖W‖_F² / ‖W‖₂² = Σλ / λ_max, between 1 and the rank; without unit.

    eigs: eigenvalues of X = WᵀW / rows, any order.  Rudelson & Vershynin (2007).

    >>> stable_rank([1.0, 1.0, 2.0])
    2.0
    """
    values = _positive(eigs)
    return float(np.sum(values / values[-1]))


def _positive(eigs: ArrayLike) -> NDArray[np.float64]:
    """The eigenvalues that are not numerically zero, ascending."""
    values = np.asarray(eigs, dtype=np.float64).ravel()
    if not np.isfinite(values).all():
        raise SpectrumError("the spectrum holds NaN or infinite eigenvalues; check the weights of this layer")
    values = np.sort(np.maximum(values, 0.0))
    rank = numerical_rank(values, len(values)) if len(values) else 0
    if not rank:
        raise SpectrumError("no eigenvalue is above zero: the layer is all-zero and has no such signal; leave it out")
    return values[len(values) - rank :]
