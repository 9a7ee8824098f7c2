"""What the entries of a layer say about a bad fit: unequal columns or rows, heavy tails, or neither."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpviz.errors import SpectrumError
from mpviz.rmt.fit import BulkFit
from mpviz.rmt.verdict import SURE, Quality, sentence

Floats = NDArray[np.float64]
Read = Callable[[int, int], NDArray[Any]]

_LEAST_SPREAD = 0.05  # scales that differ by less do not move p × KS above its limit
_TAIL_SPREAD = 0.15  # the least that can make the spectrum look heavy-tailed
_CACHED = 32_768  # entries of a block, 256 kB in float64
_HEAVY = 2.0  # excess kurtosis of entries that are called heavy-tailed; Gaussian 0, uniform −1.2, Laplace 3


@dataclass(frozen=True)
class EntryStats:
    """The entries of one W, without unit.

    kurtosis: excess over the Gaussian's, of all entries together. column_spread, row_spread: standard deviation of the
    norms of columns (rows) relative to their mean, beyond what independent entries of this kurtosis give; 0 when it is
    not more. On iid noise it stays below about (rows² · cols)^−¼. zeros: share of entries that are exactly zero.
    dead_rows, dead_columns: how many hold nothing but zeros.
    """

    kurtosis: float
    column_spread: float
    row_spread: float
    zeros: float
    dead_rows: int = 0
    dead_columns: int = 0


def entry_stats(weight: ArrayLike) -> EntryStats:
    """Kurtosis, spread of column and row scales, and zeros of W, Float["rows cols"].

    >>> import numpy as np
    >>> noise = np.random.default_rng(0).normal(size=(300, 200))
    >>> stats = entry_stats(noise * np.linspace(0.5, 1.5, 200))
    >>> round(stats.column_spread, 2), stats.row_spread < 0.02, stats.zeros
    (0.29, True, 0.0)
    """
    matrix = np.asarray(weight)
    if matrix.ndim != 2 or not matrix.size:
        raise SpectrumError(f"entries come as a matrix; got an array of shape {matrix.shape}; unfold the layer first")
    return entry_stats_of(lambda first, stop: matrix[first:stop], (matrix.shape[0], matrix.shape[1]))


def entry_stats_of(read: Read, shape: tuple[int, int]) -> EntryStats:
    """As `entry_stats`, of a matrix that is read in blocks: read(first, stop) gives its rows [first, stop)."""
    size = _size(read, shape)
    if not math.isfinite(size):  # NaN fails as well
        raise SpectrumError("the matrix has NaN or infinite entries; load the weights again or repair them")
    if size == 0:
        raise SpectrumError("every entry is zero: an all-zero layer has no such statistics; leave it out")
    sums = _sums(read, shape, size)
    kurtosis = _excess(*(sums.powers / math.prod(shape)))
    return EntryStats(
        kurtosis=kurtosis,
        column_spread=_spread(sums.columns, shape[0], kurtosis),
        row_spread=_spread(sums.rows, shape[1], kurtosis),
        zeros=1.0 - sums.nonzero / math.prod(shape),
        dead_rows=int(np.count_nonzero(sums.rows == 0)),
        dead_columns=int(np.count_nonzero(sums.columns == 0)),
    )


@dataclass(frozen=True)
class _Sums:
    """Sums over x / size: of its first four powers, of its squares by column and by row; and how many are not zero."""

    powers: Floats
    columns: Floats
    rows: Floats
    nonzero: int


def _blocks(read: Read, shape: tuple[int, int]) -> Iterator[tuple[int, NDArray[np.floating]]]:
    """(first row, block) of blocks of rows that stay in the cache."""
    step = max(1, _CACHED // shape[1])
    for first in range(0, shape[0], step):
        yield first, read(first, min(first + step, shape[0]))


def _size(read: Read, shape: tuple[int, int]) -> float:
    """The largest absolute value; nan when any entry is."""
    largest = [max(float(np.max(block)), -float(np.min(block))) for _, block in _blocks(read, shape)]
    return float(np.max(largest))


def _sums(read: Read, shape: tuple[int, int], size: float) -> _Sums:
    """All sums in one pass over blocks of rows that stay in the cache, ten times faster than on the whole matrix."""
    rows, cols = shape
    powers, columns, by_row, nonzero = np.zeros(4), np.zeros(cols), np.empty(rows), 0
    for first, part in _blocks(read, shape):
        block = part.astype(np.float64) / size
        squares = block * block
        flat, flat_squares = block.ravel(), squares.ravel()
        powers += (flat.sum(), flat_squares.sum(), flat @ flat_squares, flat_squares @ flat_squares)
        columns += squares.sum(axis=0)
        by_row[first : first + len(block)] = squares.sum(axis=1)
        nonzero += int(np.count_nonzero(flat))
    return _Sums(powers, columns, by_row, nonzero)


def _excess(one: float, two: float, three: float, four: float) -> float:
    """Excess kurtosis from the means of the first four powers; nan where all entries are alike."""
    variance = two - one**2
    if variance <= 1e-12 * two:
        return math.nan
    return float((four - 4 * one * three + 6 * one**2 * two - 3 * one**4) / variance**2 - 3.0)


def explain(fit: BulkFit, stats: EntryStats, shuffled_fit: BulkFit | None = None) -> BulkFit:
    """The same fit with reason and verdict as the entries tell them, and an interval that knows their kurtosis.

    fit: of the spectrum of W. stats: of W. shuffled_fit: of the spectrum of the same entries in random order, if there
    is one; when that is MP-like, the entries' own distribution is no cause.

    A bad fit is put down to unequal scales when the norms of columns or rows differ by 5 % or more (15 % where the
    spectrum has a tail), significantly, and no more kurtosis is left than such scales explain; to heavy-tailed entries
    when their excess kurtosis exceeds 2; to a heavy tail of the spectrum alone when the eigenvalues said so; else to
    rows or columns that depend on each other ("other structure"; one noise layer in a hundred ends here, so a p-value
    above 0.001 is called somewhat off). Fits that are good, or none, keep their reason. The interval widens by
    √(1 + kurtosis / 2), the factor on the scatter of the entries' mean square.
    """
    if fit.law is None:
        return fit
    fit = replace(fit, sigma_plus_interval=_widened(fit, stats))
    dead = _dead(fit.shape, stats)
    if fit.reason not in ("column scales differ", "heavy tail"):
        return replace(fit, verdict=fit.verdict + dead)
    reason, words = _cause(fit, stats, shuffled_fit)
    quality = Quality(fit.rigidity, fit.rigidity_limit, fit.p_value)
    verdict = sentence(reason, words, quality, fit.rank, min(fit.shape), fit.grade == "fair")
    return replace(fit, reason=reason, verdict=verdict + dead)


def _dead(shape: tuple[int, int], stats: EntryStats) -> str:
    """The end of the verdict where rows or columns of the longer side are zero: no eigenvalue shows them.

    Those of the shorter side are zero eigenvalues, which the verdict counts.
    """
    rows, cols = shape
    count, side = (stats.dead_rows, "rows") if rows > cols else (stats.dead_columns, "columns")
    return f"; {count:.0f} of {max(shape)} {side} are zero" if count and rows != cols else ""


def _cause(fit: BulkFit, stats: EntryStats, shuffled_fit: BulkFit | None) -> tuple[str, str]:
    """Reason and words of a bad fit."""
    columns = stats.column_spread > _noticeable(fit.shape[0], fit.shape[1], stats.kurtosis)
    rows = stats.row_spread > _noticeable(fit.shape[1], fit.shape[0], stats.kurtosis)
    # the kurtosis of Gaussian entries with lognormal scales of this spread, the largest of the usual mixtures
    explained = 3.0 * ((1.0 + stats.column_spread**2) * (1.0 + stats.row_spread**2)) ** 4 - 3.0
    innocent = shuffled_fit is not None and shuffled_fit.mp_like
    heavy = stats.kurtosis > _HEAVY and not innocent
    # strong spikes make norms differ too, by some per cent; scales that give the spectrum a tail differ by more
    strong = fit.reason != "heavy tail" or max(stats.column_spread, stats.row_spread) >= _TAIL_SPREAD
    if (columns or rows) and strong and not (heavy and stats.kurtosis > _HEAVY + 2.0 * explained):
        return "column scales differ", _scales(stats, columns, rows)
    if heavy:
        zeros = f", {100 * stats.zeros:.0f} % of them zero" if stats.zeros >= 0.5 else ""
        return "heavy tail", f"heavy-tailed entries, excess kurtosis {stats.kurtosis:.1f}{zeros}"
    if fit.reason == "heavy tail":
        return "heavy tail", "heavy tail of the spectrum, not of the entries"
    if fit.p_value > SURE:
        return "other structure", "somewhat off, and neither scales nor entries say why"
    return "other structure", "rows or columns depend on each other, their scales do not differ"


def _scales(stats: EntryStats, columns: bool, rows: bool) -> str:
    both = [("column", stats.column_spread, columns), ("row", stats.row_spread, rows)]
    found = [f"{side} scales differ by {100 * spread:.0f} %" for side, spread, counts in both if counts]
    return " and ".join(found)


def _noticeable(length: int, count: int, kurtosis: float) -> float:
    """The least spread of `count` norms over `length` entries each that is not put down to chance."""
    scatter = (max(0.0, kurtosis) + 2.0) / (4.0 * length)  # of one norm, squared
    return max(_LEAST_SPREAD, math.sqrt(4.0 * scatter * math.sqrt(2.0 / count)))


def _spread(powers: Floats, length: int, kurtosis: float) -> float:
    """Spread of the scales behind norms of `length` entries each. powers: their squares."""
    norms = np.sqrt(powers)
    total = float(np.var(norms)) / float(np.mean(norms)) ** 2
    # norm = scale · (1 + ε) with ε of variance (kurtosis + 2) / (4 length), and the variances multiply
    chance = (kurtosis + 2.0) / (4.0 * length)
    return math.sqrt(max(0.0, (total - chance) / (1.0 + chance)))


def _widened(fit: BulkFit, stats: EntryStats) -> tuple[float, float]:
    low, high = fit.sigma_plus_interval
    factor = math.sqrt(1.0 + max(0.0, stats.kurtosis) / 2.0)
    return fit.sigma_plus * (low / fit.sigma_plus) ** factor, fit.sigma_plus * (high / fit.sigma_plus) ** factor
