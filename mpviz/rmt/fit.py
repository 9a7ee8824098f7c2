"""Fitting the Marchenko–Pastur bulk of one layer: iterated BEMA, its threshold and how far to trust it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpviz.errors import SpectrumError
from mpviz.rmt.checks import (
    MIN_WINDOW,
    check_arguments,
    check_eigenvalues,
    check_rank,
    check_shape,
    numerical_rank,
    window,
)
from mpviz.rmt.edge import threshold
from mpviz.rmt.law import MarchenkoPastur
from mpviz.rmt.spikes import bbp_roots

Floats = NDArray[np.float64]

RIGIDITY_LIMIT = 5.0  # p × KS is about 3 for true noise at every size (largest of a thousand: 4.2)
_MAX_ROUNDS = 50
_LEAST = MIN_WINDOW // 2  # eigenvalues of the window that must stay when spikes are taken out


@dataclass(frozen=True)
class BulkFit:
    """The noise part of one layer's spectrum. λ, edges and threshold are on the scale of X = WᵀW / rows.

    variance: σ² of one noise entry of W, corrected for what the spikes take out of the bulk.
    edges: (λ₋, λ₊) of the bulk, those of `law`; without spikes σ²(1 ∓ √c)².
    sigma_plus: √(rows·λ₊), the upper edge as a singular value of W.
    threshold: T₊, eigenvalues above it are spikes.
    bulk_fraction: share of all min(rows, cols) eigenvalues at or below the threshold.
    fit_error: largest gap between the empirical and the fitted distribution function, over the central window.
    rigidity: number of bulk eigenvalues × the largest such gap over the whole bulk; about 3 for true noise.
    rank: eigenvalues that are not numerically zero; the others (dead rows or columns) were left out of the fit.
    verdict, mp_like: the answer in words and in one bit.
    law: the MP law of the bulk; None when there is none. With k spikes it is the law of the remaining
        (rows−k) × (cols−k) block, so its aspect is not quite cols / rows.
    why: what the fit chose by itself.

    Where there is no bulk to fit, the numbers are nan, n_spikes is 0 and the verdict is the reason.
    """

    shape: tuple[int, int]
    variance: float
    edges: tuple[float, float]
    sigma_plus: float
    threshold: float
    n_spikes: int
    bulk_fraction: float
    fit_error: float
    rigidity: float
    rank: int
    verdict: str
    mp_like: bool
    law: MarchenkoPastur | None
    why: str


def fit_bulk(
    eigs: ArrayLike,
    shape: tuple[int, int],
    method: str = "bema",
    trim: float = 0.1,
    level: float = 0.99,
    strict: bool = True,
) -> BulkFit:
    """Marchenko–Pastur fit of the bulk, and the eigenvalues that stand out of it.

    eigs: all min(rows, cols) eigenvalues of X = WᵀW / rows, any order. shape: (rows, cols) of W.
    method: "bema", quantile matching over the central window of ranks [trim, 1−trim], repeated with the
    eigenvalues above the threshold taken out until their number repeats. level: probability that noise alone stays
    below the threshold. strict: raise SpectrumError when nothing can be fitted; else the verdict says why.
    Ke, Ma & Lin (2021); threshold by Johnstone (2001) and Ma (2012).

    >>> import numpy as np
    >>> noise = np.random.default_rng(0).normal(scale=0.5, size=(400, 200))
    >>> fit = fit_bulk(np.linalg.eigvalsh(noise.T @ noise) / 400, shape=(400, 200))
    >>> round(math.sqrt(fit.variance), 2), fit.n_spikes, fit.verdict
    (0.5, 0, 'MP-like')
    >>> fit_bulk(np.zeros(200), shape=(400, 200), strict=False).verdict
    'the 400 x 200 layer is all-zero: no eigenvalue is above zero; leave it out or restore its weights'
    """
    rank = 0
    try:
        check_arguments(method, trim, level)
        shape = check_shape(shape)
        values = check_eigenvalues(eigs, shape)
        rank = numerical_rank(values, max(shape), _precision(eigs))
        check_rank(rank, trim, shape)
    except SpectrumError as problem:
        if strict:
            raise
        return _no_fit(shape, rank, str(problem))
    return _fit(values[len(values) - rank :], shape, trim, level)


@dataclass(frozen=True)
class _Block:
    """The noise block that is left when k spikes are taken out, and the variance that was matched to it."""

    short: int
    long: int
    spikes: int
    variance: float
    threshold: float  # on the scale of X, as are the eigenvalues
    settled: bool
    rounds: int


def _fit(nonzero: Floats, shape: tuple[int, int], trim: float, level: float) -> BulkFit:
    """The fit itself, of spectra that passed all checks. nonzero: ascending, without numerical zeros."""
    rows, cols = shape
    # Dead rows or columns shorten the short side; the nonzero eigenvalues are those of the living part.
    short, long = len(nonzero), max(rows, cols)
    block = _bema(nonzero * rows, short, long, trim, level, rows)
    wide = cols > rows
    sides = (block.short, block.long) if wide else (block.long, block.short)
    law = MarchenkoPastur(aspect=sides[1] / sides[0], variance=block.variance * sides[0] / rows)
    n_spikes = int(np.count_nonzero(nonzero > block.threshold))
    bulk = nonzero[: short - block.spikes]
    central, whole = _gaps(bulk, law, trim)
    rigidity = len(bulk) * whole
    full = min(rows, cols)
    mp_like = rigidity <= RIGIDITY_LIMIT and block.settled and 2 * short >= full
    return BulkFit(
        shape=shape,
        variance=_without_bias(nonzero[short - block.spikes :] * rows, block),
        edges=law.edges,
        sigma_plus=math.sqrt(rows * law.edges[1]),
        threshold=block.threshold,
        n_spikes=n_spikes,
        bulk_fraction=(full - n_spikes) / full,
        fit_error=central,
        rigidity=rigidity,
        rank=short,
        verdict=_verdict(rigidity, mp_like, block, short, full),
        mp_like=mp_like,
        law=law,
        why=_why(block, short, trim, level),
    )


def _bema(gram: Floats, short: int, long: int, trim: float, level: float, rows: int) -> _Block:
    """Match quantiles, cut at the threshold, repeat. gram: nonzero eigenvalues of the Gram matrix, ascending.

    A larger k lifts the quantiles that the rest is matched with, so the variance and the threshold fall and k can
    only grow: the rounds climb to the smallest k that reproduces itself. The guards are for spectra without bulk.
    """
    spikes, seen, rounds = 0, set[int](), 0
    while True:
        rounds += 1
        p, n = short - spikes, long - spikes
        ranks = window(p, trim)
        central = slice(ranks.start, ranks.stop)
        q = _quantiles(p, n)[central]
        variance = float(q @ gram[:p][central]) / (float(q @ q) * n)
        cut = threshold(variance, (n, p), level) * n  # on the scale of the Gram matrix
        found = int(np.count_nonzero(gram > cut))
        seen.add(spikes)
        settled = found == spikes
        # what is mostly spikes has no bulk: without this stop the rounds would eat a heavy tail to its root
        too_many = 2 * found > short or len(window(short - found, trim)) < _LEAST
        if settled or found in seen or too_many or rounds == _MAX_ROUNDS:
            return _Block(p, n, spikes, variance, cut / rows, settled, rounds)
        spikes = found


@lru_cache(maxsize=256)
def _quantiles(p: int, n: int) -> Floats:
    """Midpoint quantiles (i+½)/p of the law of a p × n block at variance 1, on the scale of Gram / n."""
    q = MarchenkoPastur(aspect=p / n).ppf((np.arange(p) + 0.5) / p)
    q.setflags(write=False)
    return q


def _without_bias(spikes: Floats, block: _Block) -> float:
    """The variance without the first-order pull of the spikes. spikes: Gram eigenvalues above the threshold.

    A signal t (in units of σ√n) leaves a bulk that is smaller by the factor 1 − c/(t² p): the trace shows it, and to
    first order in 1/t² the whole bulk shrinks by it. Quantile matching alone would call that a smaller σ, by 0.3 %
    for 20 spikes in 384 × 384.
    """
    if not block.spikes:
        return block.variance
    _, twins = bbp_roots(spikes / (block.long * block.variance), block.short / block.long)
    pull = float(np.sum(twins)) / block.short
    return block.variance / (1.0 - min(pull, 0.5))


def _gaps(bulk: Floats, law: MarchenkoPastur, trim: float) -> tuple[float, float]:
    """Largest distance of the empirical and the fitted distribution function: central window, whole bulk."""
    count = len(bulk)
    fitted = law.cdf_nonzero(bulk)
    steps = np.arange(count + 1) / count
    gaps = np.maximum(steps[1:] - fitted, fitted - steps[:-1])
    ranks = window(count, trim)
    return float(gaps[ranks.start : ranks.stop].max()), float(gaps.max())


def _precision(eigs: ArrayLike) -> float:
    """Machine epsilon of the given numbers: float32 spectra have float32 zeros."""
    kind = np.asarray(eigs).dtype
    return float(np.finfo(kind if kind.kind == "f" else np.float64).eps)


def _verdict(rigidity: float, mp_like: bool, block: _Block, rank: int, full: int) -> str:
    if 2 * rank < full:
        return f"low rank: only {rank} of {full} eigenvalues are above zero"
    if mp_like:
        words = "MP-like"
    elif not block.settled:
        words = f"not MP-like: heavy tail, no stable line between bulk and spikes (p*KS {rigidity:.1f})"
    else:
        words = f"not MP-like: column scales differ or heavy tail (p*KS {rigidity:.1f})"
    if rank < full:
        words += f"; {full - rank} of {full} eigenvalues are zero"
    return words


def _why(block: _Block, rank: int, trim: float, level: float) -> str:
    inside = len(window(block.short, trim))
    end = "" if block.settled else ", stopped before the number of spikes settled"
    return (
        f"matched {inside} of {rank} eigenvalues (trim {trim:g}), {block.spikes} spikes taken out, "
        f"rounds: {block.rounds}, threshold at the {level:.4g} Tracy–Widom level{end}"
    )


def _no_fit(shape: tuple[int, int], rank: int, reason: str) -> BulkFit:
    nan = math.nan
    return BulkFit(
        shape=shape,
        variance=nan,
        edges=(nan, nan),
        sigma_plus=nan,
        threshold=nan,
        n_spikes=0,
        bulk_fraction=nan,
        fit_error=nan,
        rigidity=nan,
        rank=rank,
        verdict=reason,
        mp_like=False,
        law=None,
        why="no fit",
    )
