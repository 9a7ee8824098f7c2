"""Scalar signals of a spectrum: exponent, ranks, entropy and norms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpviz.errors import SpectrumError
from mpviz.rmt.checks import check_eigenvalues, check_shape, numerical_rank

if TYPE_CHECKING:
    from mpviz.rmt.fit import BulkFit


def hill_alpha(eigs: ArrayLike, tail: float = 0.5) -> float:
    """Hill estimate α = 1 + k / Σ log(λ_i / λ_ref) of the power-law exponent of the largest eigenvalues.

    eigs: eigenvalues of X = WᵀW / rows, any order; zeros are left out. tail: share of them in the tail; k =
    ⌊tail·n⌋ of n, and λ_ref is the largest one outside it. Without unit, at least 1, small for heavy tails; infinite
    when the whole tail is one value. It is a number for any spectrum: a pure Marchenko–Pastur bulk, which has no tail
    at all, gives 2.1 (c = 1) to 4.9 (c = 0.1). Whether there is a tail is told by `power_law_tail(eigs).no_tail`.
    Hill (1975); with tail = 0.5 the signal of AlphaPruning, Lu et al. (2024).

    >>> pareto = [(1 - q) ** -0.5 for q in (i / 4000 for i in range(4000))]      # density ~ λ^-3
    >>> round(hill_alpha(pareto), 2)
    3.0
    """
    if not 0 < tail < 1:  # NaN fails as well
        raise SpectrumError(f"tail {tail} is not a share of the eigenvalues; choose it between 0 and 1")
    values = positive(eigs)
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
    values = positive(eigs)
    return float(np.sum(values / values[-1]))


def entropy(eigs: ArrayLike) -> float:
    """Spectral entropy −Σ p log p / log(rank) with p = λ / Σλ, in [0, 1]: 1 for equal eigenvalues, 0 for rank one.

    eigs: eigenvalues of X = WᵀW / rows, any order; zeros are left out. Equals WeightWatcher's matrix entropy wherever
    both find the same rank.  Martin & Mahoney (2021).

    >>> round(entropy([2.0, 2.0, 2.0]), 12), entropy([0.0, 3.0])
    (1.0, 0.0)
    """
    values = positive(eigs)
    if len(values) == 1:
        return 0.0
    share = values / values[-1]
    share = share / np.sum(share)
    return float(min(1.0, -np.sum(share * np.log(share)) / math.log(len(share))))


def soft_rank(eigs: ArrayLike, fit: BulkFit) -> float:
    """MP soft rank λ₊ / λ_max: about 1 for pure noise, towards 0 the further the largest spike stands out; without
    unit.

    eigs: the eigenvalues that were fitted. nan where no bulk was fitted.  Martin & Mahoney (2021).

    >>> import numpy as np
    >>> from mpviz.rmt.fit import fit_bulk
    >>> noise = np.random.default_rng(0).normal(size=(300, 200))
    >>> eigs = np.linalg.eigvalsh(noise.T @ noise) / 300
    >>> round(soft_rank(eigs, fit_bulk(eigs, shape=(300, 200))), 1)
    1.0
    """
    return fit.edges[1] / float(positive(eigs)[-1])


@dataclass(frozen=True)
class Norms:
    """Norms of W in units of its entries: Frobenius √Σs², spectral max s, nuclear Σs, s its singular values.

    log_frobenius, log_spectral: base-10 logarithms of the norms. WeightWatcher squares both norms first, so its
    log_norm and log_spectral_norm are twice these. Of an all-zero W the norms are 0 and the logarithms −inf.
    """

    frobenius: float
    spectral: float
    nuclear: float
    log_frobenius: float
    log_spectral: float


def norms(eigs: ArrayLike, shape: Sequence[int]) -> Norms:
    """Norms of W from the spectrum of X = WᵀW / rows.

    eigs: all min(rows, cols) eigenvalues, any order. shape: (rows, cols) of W. Equal to ``numpy.linalg.norm`` with
    "fro", 2 and "nuc".

    >>> found = norms([1.0, 4.0], shape=(4, 2))         # singular values 2 and 4
    >>> round(found.frobenius, 4), found.spectral, found.nuclear
    (4.4721, 4.0, 6.0)
    """
    sides = check_shape(shape)
    singular = np.sqrt(check_eigenvalues(eigs, sides) * sides[0])
    spectral = float(singular[-1])
    unit = spectral or 1.0  # squares of singular values may overflow where the values do not
    frobenius = unit * float(np.sqrt(np.sum((singular / unit) ** 2)))
    logs = [math.log10(norm) if norm > 0 else -math.inf for norm in (frobenius, spectral)]
    return Norms(frobenius, spectral, float(np.sum(singular)), *logs)


def positive(eigs: ArrayLike) -> NDArray[np.float64]:
    """The eigenvalues that are not numerically zero, ascending."""
    values = np.asarray(eigs, dtype=np.float64).ravel()
    if not np.isfinite(values).all():
        raise SpectrumError("the spectrum holds NaN or infinite eigenvalues; check the weights of this layer")
    values = np.sort(np.maximum(values, 0.0))
    rank = numerical_rank(values, len(values)) if len(values) else 0
    if not rank:
        raise SpectrumError("no eigenvalue is above zero: the layer is all-zero and has no such signal; leave it out")
    return values[len(values) - rank :]
