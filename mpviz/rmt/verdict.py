"""The verdict of a fit: one reason of a few, and a sentence.

From the eigenvalues alone the rule is, in this order: "low rank" when most of them are zero; "MP-like" when p × KS is
below the limit, the rounds settled and no more than a third are spikes; "other structure" when they lie closer together
than those of noise; "heavy tail" when the rounds found no stable line between bulk and spikes, or when the upper tail
is a power law with α up to 6; else "column scales differ". Very unequal columns have a heavy tail as well: which of the
two it is can only be told from the entries, and `explain` does.

The grade puts a second line below "good": a "fair" bulk keeps its reason, but lies close enough to the law for its
numbers to be of use; `grade_of` says how close, and how far off they were in simulations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpviz.rmt.estimators import Block
from mpviz.rmt.tail import power_law_tail

Floats = NDArray[np.float64]

MOST_SPIKES = 3  # one in so many eigenvalues may be a spike; trained layers have up to one in six
HEAVIEST = 6.0  # exponents up to this count as heavy-tailed; Martin & Mahoney (2021) draw the same line
FAIR = 1.5  # a fair p × KS is at most so many times the limit of noise
FAIR_GAP = 0.05  # and its distribution functions nowhere further apart than this
SURE = 0.001  # p-value that leaves no doubt of a bad fit: the last one in the table of nulls
_REGULAR = 0.9  # of the spread that the law has

_WORDS = {
    "column scales differ": "column scales differ, to judge by the eigenvalues",
    "heavy tail": "heavy tail",
    "other structure": "eigenvalues closer together than those of noise",
}


def grade_of(block: Block, count: int, full: int, rigidity: float, limit: float) -> str:
    """Good, fair or poor. count: eigenvalues above zero, of `full`. rigidity: p × KS of the bulk.

    Good: p × KS within the limit of noise, the rounds settled, at most a third spikes, at least half above zero. Fair:
    the same, with p × KS up to 1.5 times the limit and the distribution functions at most 5 % apart, which small
    layers (below about 90 eigenvalues) can hardly tell from good and rarely are.

    What fair costs, from 1100 fair fits of Gaussian noise with unequal columns, 64 × 256 to 1024 × 512, spread 5 to
    28 %: with uniform scales σ is within 2 % and σ₊ at most 9 % too low in 95 of 100 layers (good ones: 1 % and 4 %);
    with lognormal scales, where a few columns are much larger than the rest, 6 % and 23 % (good ones: 2 % and 7 %).
    Square layers of 128 are the worst; from 512 eigenvalues on σ is within 1 % and σ₊ within 4 %.
    """
    sound = block.settled and MOST_SPIKES * block.spikes <= count and 2 * count >= full
    if not sound:
        return "poor"
    if rigidity <= limit:
        return "good"
    near = rigidity <= FAIR * limit and rigidity <= FAIR_GAP * (count - block.spikes)
    return "fair" if near else "poor"


def reason_of(nonzero: Floats, block: Block, mp_like: bool, full: int, threshold: float) -> str:
    """One of REASONS, from the eigenvalues alone. nonzero: on the scale of X, as is the threshold; full: with zeros."""
    if 2 * len(nonzero) < full:
        return "low rank"
    if mp_like:
        return "MP-like"
    spread = float(np.std(nonzero) / np.mean(nonzero))
    if not block.spikes and spread < _REGULAR * math.sqrt(block.short / block.long):
        return "other structure"
    if not block.settled:
        return "heavy tail"
    tail = power_law_tail(nonzero, threshold)
    return "heavy tail" if not tail.no_tail and tail.alpha <= HEAVIEST else "column scales differ"


def first_words(reason: str, settled: bool) -> str:
    """The middle of the sentence, as far as eigenvalues can tell."""
    return "heavy tail, no stable line between bulk and spikes" if not settled else _WORDS.get(reason, reason)


@dataclass(frozen=True)
class Quality:
    """The numbers behind a verdict: p × KS, its limit and the share of noise layers that is worse."""

    rigidity: float
    limit: float
    p_value: float

    def __str__(self) -> str:
        share = "p ≤ 0.001" if self.p_value <= SURE else f"p = {self.p_value:.2g}"
        return f"p*KS {self.rigidity:.1f}, limit {self.limit:.1f}, {share}"


def sentence(reason: str, words: str, quality: Quality, rank: int, full: int, fair: bool = False) -> str:
    """The verdict. words: what is wrong, for fits that are, or fair ones. rank: eigenvalues above zero, of `full`."""
    if reason == "low rank":
        return f"low rank: only {rank} of {full} eigenvalues are above zero"
    text = "MP-like" if reason == "MP-like" else f"{'nearly' if fair else 'not'} MP-like: {words} ({quality})"
    return text + (f"; {full - rank} of {full} eigenvalues are zero" if rank < full else "")
