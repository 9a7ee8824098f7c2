"""Five ways to find the variance of the noise in a spectrum, and the spikes that go with it.

All of them see the nonzero eigenvalues of the Gram matrix of the shorter side, so they are the same for tall, square
and wide layers. They differ in what they match with the Marchenko–Pastur law and in whether they repeat the match once
the spikes are known.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from mpviz.rmt.checks import MIN_WINDOW, window
from mpviz.rmt.edge import threshold
from mpviz.rmt.law import MarchenkoPastur
from mpviz.rmt.spikes import bbp_roots

Floats = NDArray[np.float64]
Match = Callable[[Floats, int, int, float], float]  # (bulk of the Gram matrix, p, n, trim) → variance

_MAX_ROUNDS = 50
_LEAST = MIN_WINDOW // 2  # eigenvalues of the window that must stay when spikes are taken out


@dataclass(frozen=True)
class Block:
    """The noise block that is left when k spikes are taken out, and the variance that was matched to it.

    short, long: sides of the block. spikes: eigenvalues taken out of the match, so p − k belong to the block.
    variance: of one entry of the block, as its eigenvalues show it. corrected: of one noise entry, without the pull of
    the spikes. cut: the threshold on the scale of the Gram matrix, at the corrected variance.
    settled: the threshold finds no more spikes than were taken out. rounds: matches made. once: the method makes only
    one.
    """

    short: int
    long: int
    spikes: int
    variance: float
    corrected: float
    cut: float
    settled: bool
    rounds: int
    once: bool

    @property
    def law(self) -> MarchenkoPastur:
        """Law of the eigenvalues of the block, on the scale of Gram / long."""
        return MarchenkoPastur(aspect=self.short / self.long, variance=self.variance)

    @property
    def edge(self) -> float:
        """Upper edge as a singular value, σ (√long + √short)."""
        return math.sqrt(self.variance) * (math.sqrt(self.long) + math.sqrt(self.short))


def estimate(method: str, gram: Floats, long: int, trim: float, level: float) -> Block:
    """The block that `method` finds in a spectrum.

    gram: nonzero eigenvalues of the Gram matrix of the shorter side, ascending. long: the longer side of W. trim: share
    left out at each end where the method has a window. level: of the Tracy–Widom threshold.

    "bema"       quantiles over the central window, repeated with the spikes taken out.  Ke, Ma & Lin (2021), iterated.
    "bema-once"  the same, matched once with every eigenvalue.  Ke, Ma & Lin (2021).
    "median"     the median of every eigenvalue.  Gavish & Donoho (2014), with this threshold instead of theirs.
    "trace"      the mean of what is not spike, repeated.  Kritchman & Nadler (2009); their correction of the pull that
                 spikes have on the rest is applied to every method that repeats, and to its threshold.
    "ks"         the least Kolmogorov–Smirnov distance of what is not spike, repeated.
    """
    match, once = _MATCHES[method]
    if once:
        return _one_match(match, gram, long, trim, level)
    return _climb(match, gram, long, trim, level)


def rigidity(block: Block, gram: Floats) -> float:
    """Number of bulk eigenvalues × the largest gap between their empirical and their fitted distribution function.

    gram: the eigenvalues that were given to `estimate`.
    """
    bulk = gram[: len(gram) - block.spikes]
    return len(bulk) * float(gaps(bulk / block.long, block.law).max())


def gaps(bulk: Floats, law: MarchenkoPastur) -> Floats:
    """At each of the ascending eigenvalues the larger distance between the fitted and the empirical step."""
    fitted = law.cdf_nonzero(bulk)
    steps = np.arange(len(bulk) + 1) / len(bulk)
    return np.maximum(steps[1:] - fitted, fitted - steps[:-1])


def _one_match(match: Match, gram: Floats, long: int, trim: float, level: float) -> Block:
    """One match with all eigenvalues; what lies above the threshold is a spike, and that is all."""
    short = len(gram)
    variance = match(gram, short, long, trim)
    cut = threshold(variance, (long, short), level) * long
    spikes = int(np.count_nonzero(gram > cut))
    return Block(short, long, spikes, variance, variance, cut, settled=2 * spikes <= short, rounds=1, once=True)


def _climb(match: Match, gram: Floats, long: int, trim: float, level: float) -> Block:
    """Match, cut at the threshold, repeat without the spikes.

    A larger k lifts the quantiles that the rest is matched with, so the variance and the threshold fall: the rounds
    climb from k = 0 to the smallest k beyond which no eigenvalue stands out. The guards are for spectra without bulk.
    """
    short, spikes, rounds = len(gram), 0, 0
    while True:
        rounds += 1
        p, n = short - spikes, long - spikes
        variance = match(gram[:p], p, n, trim)
        corrected = variance / (1.0 - _pull(gram[p:], variance, p, n))
        cut = threshold(corrected, (n, p), level) * n
        found = int(np.count_nonzero(gram > cut))
        settled = found <= spikes  # fewer: the last one taken out lies within the correction of the threshold
        # what is mostly spikes has no bulk: without this stop the rounds would eat a heavy tail to its root
        too_many = 2 * found > short or len(window(short - found, trim)) < _LEAST
        if settled or too_many or rounds == _MAX_ROUNDS:
            return Block(p, n, spikes, variance, corrected, cut, settled, rounds, once=False)
        spikes = found


def _pull(spikes: Floats, variance: float, p: int, n: int) -> float:
    """Share of its variance that the bulk loses to the spikes, to first order. spikes: Gram eigenvalues taken out.

    A signal t (in units of σ√n) leaves a bulk that is smaller by the factor 1 − c/(t² p): the trace shows it, and to
    first order in 1/t² the whole bulk shrinks by it. Quantile matching alone would call that a smaller σ, by 0.3 %
    for 20 spikes in 384 × 384.
    """
    if not len(spikes):
        return 0.0
    _, twins = bbp_roots(spikes / (n * variance), p / n)
    return min(float(np.sum(twins)) / p, 0.5)


def _by_quantiles(bulk: Floats, p: int, n: int, trim: float) -> float:
    """Σ qλ / Σ q² over the central window, q the midpoint quantiles: least squares through the origin."""
    ranks = window(p, trim)
    central = slice(ranks.start, ranks.stop)
    q = _quantiles(p, n)[central]
    return float(q @ bulk[central]) / (float(q @ q) * n)


def _by_median(bulk: Floats, p: int, n: int, trim: float) -> float:
    return float(np.median(bulk)) / (n * float(MarchenkoPastur(aspect=p / n).ppf(0.5)))


def _by_trace(bulk: Floats, p: int, n: int, trim: float) -> float:
    return float(np.mean(bulk)) / n  # the mean of the law is its variance


def _by_distance(bulk: Floats, p: int, n: int, trim: float) -> float:
    """The variance of least Kolmogorov–Smirnov distance over the whole bulk.

    A larger variance lifts the largest excess of the empirical over the fitted distribution function and lowers the
    largest excess the other way; the larger of both is least where they meet, which is a root of a monotone function.
    """
    law = MarchenkoPastur(aspect=p / n)
    steps = np.arange(p + 1) / p

    def balance(log_variance: float) -> float:
        fitted = law.cdf_nonzero(bulk / (n * math.exp(log_variance)))
        return float(np.max(steps[1:] - fitted) - np.max(fitted - steps[:-1]))

    middle = math.log(_by_median(bulk, p, n, trim))
    reach = 0.1
    while balance(middle - reach) > 0 or balance(middle + reach) < 0:
        reach *= 2  # ends: far to the left every eigenvalue is above the law, far to the right below
    return math.exp(brentq(balance, middle - reach, middle + reach, xtol=1e-9))


@lru_cache(maxsize=256)
def _quantiles(p: int, n: int) -> Floats:
    """Midpoint quantiles (i+½)/p of the law of a p × n block at variance 1, on the scale of Gram / n."""
    q = MarchenkoPastur(aspect=p / n).ppf((np.arange(p) + 0.5) / p)
    q.setflags(write=False)
    return q


_MATCHES: dict[str, tuple[Match, bool]] = {
    "bema": (_by_quantiles, False),
    "bema-once": (_by_quantiles, True),
    "median": (_by_median, True),
    "trace": (_by_trace, False),
    "ks": (_by_distance, False),
}
