"""Spikes above the bulk: how strong the signal behind each is, and how well its singular vectors can be trusted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpviz.errors import SpectrumError

if TYPE_CHECKING:
    from mpviz.rmt.fit import BulkFit

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SpikeStrengths:
    """The spikes of one layer, strongest first; every array has shape (n_spikes,).

    eigenvalue: λ on the scale of X = WᵀW / rows.
    strength: estimated singular value of the signal S in W = S + R, on the scale of the singular values of W;
        smaller than √(rows·λ), because noise inflates every spike.
    overlap_left, overlap_right: expected squared cosine between the singular vector of W on the output (row)
        and input (column) side and that of S; 1 is perfect, 0 is lost in the noise.
    """

    eigenvalue: Floats
    strength: Floats
    overlap_left: Floats
    overlap_right: Floats

    def __len__(self) -> int:
        return len(self.eigenvalue)


def bbp_roots(inflated: ArrayLike, aspect: float) -> tuple[Floats, Floats]:
    """Both roots (t², c/t²) of y = (1 + t²)(c + t²)/t², the map from a signal to its spike.

    inflated: y = λ_spike / (n·σ²) for eigenvalues of the Gram matrix, n the longer side, any shape.
    aspect: c = shorter / longer side, at most 1.
    The signal singular value is t·σ·√n. It is seen only above the transition, t² > √c; eigenvalues at or below
    the edge are answered with t² = √c.  Baik, Ben Arous & Péché (2005); Benaych-Georges & Nadakuditi (2012).

    >>> signal, twin = bbp_roots([(1 + 2.0) * (0.5 + 2.0) / 2.0], aspect=0.5)
    >>> signal.tolist(), twin.tolist()
    ([2.0], [0.25])
    """
    total = np.maximum(np.asarray(inflated, dtype=np.float64) - 1.0 - aspect, 2.0 * math.sqrt(aspect))
    signal = 0.5 * (total + np.sqrt(np.maximum(total * total - 4.0 * aspect, 0.0)))
    return signal, aspect / signal


def spike_strengths(eigs: ArrayLike, fit: BulkFit) -> SpikeStrengths:
    """Signal behind each eigenvalue above the threshold, strongest first.

    eigs: the min(rows, cols) eigenvalues of X = WᵀW / rows that were fitted, any order. fit: what `fit_bulk` returned
    for them. A fit without a bulk has no spikes.  Benaych-Georges & Nadakuditi (2012), section 3.1.

    >>> import numpy as np
    >>> from mpviz.rmt.fit import fit_bulk
    >>> noise = np.random.default_rng(0).normal(size=(300, 200))
    >>> noise[:, 0] += 5.0                                     # a signal of singular value 5·√300 = 86.6
    >>> eigs = np.linalg.eigvalsh(noise.T @ noise) / 300
    >>> found = spike_strengths(eigs, fit_bulk(eigs, shape=(300, 200)))
    >>> len(found), bool(abs(found.strength[0] - 86.6) < 2)
    (1, True)
    """
    values = np.asarray(eigs, dtype=np.float64)
    if fit.law is None:
        return SpikeStrengths(*(np.empty(0) for _ in range(4)))
    if values.ndim != 1 or len(values) != min(fit.shape):
        raise SpectrumError(
            f"{values.size} eigenvalues do not belong to a fit of a {fit.shape[0]} x {fit.shape[1]} layer; "
            f"pass the {min(fit.shape)} that were fitted"
        )
    spikes = np.sort(values[values > fit.threshold])[::-1]
    # The law of the rest is an (rows−k) × (cols−k) block; its shorter/longer aspect and scale are what spikes feel.
    wide = fit.law.aspect > 1
    aspect = 1.0 / fit.law.aspect if wide else fit.law.aspect
    unit = fit.law.variance * (fit.law.aspect if wide else 1.0)  # n σ² / rows, the scale of λ
    signal, _ = bbp_roots(spikes / unit, aspect)
    short_side = 1.0 - aspect * (1.0 + signal) / (signal * (signal + aspect))
    long_side = 1.0 - (aspect + signal) / (signal * (signal + 1.0))
    short_side, long_side = np.clip(short_side, 0.0, 1.0), np.clip(long_side, 0.0, 1.0)
    strength = np.sqrt(signal * unit * fit.shape[0])
    left, right = (short_side, long_side) if wide else (long_side, short_side)
    return SpikeStrengths(eigenvalue=spikes, strength=strength, overlap_left=left, overlap_right=right)
