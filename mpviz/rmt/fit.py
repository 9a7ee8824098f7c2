"""Fitting the Marchenko–Pastur bulk of one layer: its variance, its threshold and how far to trust them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpviz.errors import SpectrumError
from mpviz.rmt.checks import (
    DEFAULT_TRIM,
    Refusal,
    check_arguments,
    check_eigenvalues,
    check_rank,
    check_shape,
    numerical_rank,
    window,
)
from mpviz.rmt.estimators import Block, estimate, gaps
from mpviz.rmt.law import MarchenkoPastur
from mpviz.rmt.nulls import Null, null_of
from mpviz.rmt.verdict import Quality, first_words, grade_of, reason_of, sentence

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class BulkFit:
    """The noise part of one layer's spectrum. λ, edges and threshold are on the scale of X = WᵀW / rows.

    variance: σ² of one noise entry of W, corrected for what the spikes take out of the bulk (not by "bema-once" and
        "median", which never take them out).
    edges: (λ₋, λ₊) of the bulk, those of `law`; without spikes σ²(1 ∓ √c)².
    sigma_plus: √(rows·λ₊), the upper edge as a singular value of W.
    sigma_plus_interval: 95 % interval of the true edge of the block that the spikes leave (that of `edges`, below
        σ(√rows + √cols) when there are many), from the simulated scatter of this method on Gaussian noise of
        this shape. It holds for layers that are MP-like; spikes near the threshold, heavy-tailed entries (`explain`
        knows them) and another trim than the default widen the scatter, methods that match once leave out what spikes
        add, and a bad fit has no true edge.
    threshold: T₊, eigenvalues above it are spikes.
    bulk_fraction: share of all min(rows, cols) eigenvalues at or below the threshold.
    fit_error: largest gap between the empirical and the fitted distribution function, over the central window.
    rigidity: p × KS, number of bulk eigenvalues × the largest such gap over the whole bulk. For true noise its median
        grows like log p, from 1.5 at p = 16 to 3.4 at p = 2048.
    p_value: share of noise layers of this shape that the same method gives a larger p × KS, from a table of 10 000
        simulated draws a shape; never below 0.001, where the table ends. Below 16 eigenvalues those of 16 stand in,
        which makes it too large.
    rigidity_limit: the p × KS above which the verdict calls the fit bad: noise exceeds it once in a hundred layers.
    rank: eigenvalues that are not numerically zero; the others (dead rows or columns) were left out of the fit.
    verdict, reason, mp_like: the answer as a sentence, as one of REASONS and as one bit.
    grade: one of GRADES. "good": mp_like. "fair": noise is worse less than once in a hundred layers, but the gap to
        the law is below 5 % and 1.5 times the limit, so that σ is off by some per cent at most (measured: `grade_of`);
        the verdict then begins with "nearly MP-like". "poor": everything else; "none": no fit.
    law: the MP law of the bulk; None when there is none. With k spikes taken out it is the law of the remaining
        (rows−k) × (cols−k) block, so its aspect is not quite cols / rows.
    method: how the variance was found, one of METHODS. why: what the fit chose by itself.

    Where there is no bulk to fit, the numbers are nan, n_spikes is 0 and the verdict is the reason.
    """

    shape: tuple[int, int]
    method: str
    variance: float
    edges: tuple[float, float]
    sigma_plus: float
    sigma_plus_interval: tuple[float, float]
    threshold: float
    n_spikes: int
    bulk_fraction: float
    fit_error: float
    rigidity: float
    p_value: float
    rigidity_limit: float
    rank: int
    verdict: str
    reason: str
    mp_like: bool
    grade: str
    law: MarchenkoPastur | None
    why: str


def fit_bulk(
    eigs: ArrayLike,
    shape: tuple[int, int],
    method: str = "bema",
    trim: float = DEFAULT_TRIM,
    level: float = 0.99,
    strict: bool = True,
) -> BulkFit:
    """Marchenko–Pastur fit of the bulk, and the eigenvalues that stand out of it.

    eigs: all min(rows, cols) eigenvalues of X = WᵀW / rows, any order. shape: (rows, cols) of W.
    method: "bema", quantile matching over the central window of ranks [trim, 1−trim], repeated with the
    eigenvalues above the threshold taken out until their number repeats; "bema-once", the same without repeating;
    "median", from the median of all; "trace", from the mean of what is not spike; "ks", least p × KS. The last two
    repeat as well. On pure Gaussian noise "trace" is the sharpest; "bema" bears unequal columns and weak spikes better.
    level: probability that noise alone stays below the threshold. strict: raise SpectrumError when nothing can be
    fitted; else the verdict says why.
    Ke, Ma & Lin (2021); Gavish & Donoho (2014); Kritchman & Nadler (2009); threshold by Johnstone (2001) and Ma (2012).

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
        reason = problem.reason if isinstance(problem, Refusal) else "no spectrum"
        return no_fit(shape, rank, str(problem), reason=reason, method=method)
    return _fit(values[len(values) - rank :], shape, method, trim, level)


def no_fit(
    shape: tuple[int, int], rank: int, verdict: str, reason: str = "no spectrum", method: str = "bema"
) -> BulkFit:
    """The answer for a layer without a bulk: every number nan, no spikes, and a sentence that says why.

    verdict: the sentence, with its remedy. reason: the one of REASONS that it belongs to.
    """
    nan = math.nan
    return BulkFit(
        shape=shape,
        method=method,
        variance=nan,
        edges=(nan, nan),
        sigma_plus=nan,
        sigma_plus_interval=(nan, nan),
        threshold=nan,
        n_spikes=0,
        bulk_fraction=nan,
        fit_error=nan,
        rigidity=nan,
        p_value=nan,
        rigidity_limit=nan,
        rank=rank,
        verdict=verdict,
        reason=reason,
        mp_like=False,
        grade="none",
        law=None,
        why="no fit",
    )


def _fit(nonzero: Floats, shape: tuple[int, int], method: str, trim: float, level: float) -> BulkFit:
    """The fit itself, of spectra that passed all checks. nonzero: ascending, without numerical zeros."""
    rows, cols = shape
    # Dead rows or columns shorten the short side; the nonzero eigenvalues are those of the living part.
    short, full = len(nonzero), min(rows, cols)
    block = estimate(method, nonzero * rows, max(rows, cols), trim, level)
    sides = (block.short, block.long) if cols > rows else (block.long, block.short)
    law = MarchenkoPastur(aspect=sides[1] / sides[0], variance=block.variance * sides[0] / rows)
    cut = block.cut / rows
    n_spikes = int(np.count_nonzero(nonzero > cut))
    sigma_plus = math.sqrt(rows * law.edges[1])
    null = null_of(method, block.short, block.long)
    return BulkFit(
        shape=shape,
        method=method,
        variance=block.corrected,
        edges=law.edges,
        sigma_plus=sigma_plus,
        sigma_plus_interval=null.interval(sigma_plus, block.short, block.long),
        threshold=cut,
        n_spikes=n_spikes,
        bulk_fraction=(full - n_spikes) / full,
        rank=short,
        law=law,
        why=_why(block, short, method, trim, level),
        **_quality(nonzero, block, law, null, trim, full, cut),
    )


def _quality(
    nonzero: Floats, block: Block, law: MarchenkoPastur, null: Null, trim: float, full: int, threshold: float
) -> dict[str, Any]:
    """The fields of BulkFit that say how good the fit is. full: how many eigenvalues there are with the zeros."""
    short = len(nonzero)
    bulk = nonzero[: short - block.spikes]
    distances = gaps(bulk, law)
    ranks = window(len(bulk), trim)
    rigidity = len(bulk) * float(distances.max())
    grade = grade_of(block, short, full, rigidity, null.limit)
    reason = reason_of(nonzero, block, grade == "good", full, threshold)
    quality = Quality(rigidity, null.limit, null.p_value(rigidity))
    return {
        "fit_error": float(distances[ranks.start : ranks.stop].max(initial=0.0)),
        "rigidity": rigidity,
        "p_value": quality.p_value,
        "rigidity_limit": quality.limit,
        "mp_like": grade == "good",
        "grade": grade,
        "reason": reason,
        "verdict": sentence(reason, first_words(reason, block.settled), quality, short, full, grade == "fair"),
    }


def _precision(eigs: ArrayLike) -> float:
    """Machine epsilon of the given numbers: float32 spectra have float32 zeros."""
    kind = np.asarray(eigs).dtype
    return float(np.finfo(kind if kind.kind == "f" else np.float64).eps)


def _why(block: Block, rank: int, method: str, trim: float, level: float) -> str:
    used = f"{len(window(block.short, trim))} of {rank} eigenvalues (trim {trim:g})"
    matched = {
        "bema": f"quantiles matched on {used}",
        "bema-once": f"quantiles matched once on {used}",
        "median": f"the median of {rank} eigenvalues matched once",
        "trace": f"the mean of {block.short} of {rank} eigenvalues matched",
        "ks": f"least distance over {block.short} of {rank} eigenvalues",
    }[method]
    spikes = f"{block.spikes} spikes taken out" if not block.once else "spikes left in"
    end = "" if block.settled else ", stopped before the number of spikes settled"
    return f"{matched}, {spikes}, rounds: {block.rounds}, threshold at the {level:.4g} Tracy–Widom level{end}"
