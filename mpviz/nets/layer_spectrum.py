"""What is known of one layer: eigenvalues, fit, spikes and signals, each computed from what the engine found."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np

from mpviz.errors import SpectrumError
from mpviz.nets.cache import Measured
from mpviz.nets.engine import too_spiked
from mpviz.nets.layers import LayerInfo, group_infos
from mpviz.rmt.entries import EntryStats, explain
from mpviz.rmt.fit import BulkFit, fit_bulk, no_fit
from mpviz.rmt.law import MarchenkoPastur
from mpviz.rmt.signals import Norms, entropy, hill_alpha, norms, soft_rank, stable_rank
from mpviz.rmt.spikes import SpikeStrengths, spike_strengths
from mpviz.rmt.tail import PowerLawTail, power_law_tail


@dataclass(frozen=True)
class FitArguments:
    """How the bulk is fitted, as for `fit_bulk`; shuffled: seed of the null, None for none."""

    method: str = "bema"
    level: float = 0.99
    trim: float = 0.1
    shuffled: int | None = None


@dataclass(frozen=True)
class Shuffled:
    """The null hypothesis: the same entries in an order drawn by `seed`, their eigenvalues and fit."""

    eigenvalues: np.ndarray
    fit: BulkFit
    seed: int


@dataclass(frozen=True)
class LayerSpectrum:
    """What is known of one layer: eigenvalues Float64["min(rows, cols)"] ascending, their fit and spikes.

    alpha: Hill exponent; stable_rank, entropy, soft_rank: see mpviz.rmt. tail, entries, norms: None where the layer
    has too few eigenvalues. shuffled: the null, where it was asked for. engine: the arithmetic and why; why: engine,
    and where the numbers were found. A layer that cannot be analysed has no eigenvalues, and a reason as verdict.

    A grouped convolution has a matrix in every group: eigenvalues and spikes are those of all groups together, every
    number is the median over the groups, and parts holds the groups.
    """

    info: LayerInfo
    eigenvalues: np.ndarray
    fit: BulkFit
    spikes: SpikeStrengths
    alpha: float
    stable_rank: float
    entropy: float = math.nan
    soft_rank: float = math.nan
    norms: Norms | None = None
    tail: PowerLawTail | None = None
    entries: EntryStats | None = None
    shuffled: Shuffled | None = None
    engine: str = ""
    why: str = ""
    parts: tuple[LayerSpectrum, ...] = ()


NO_SPIKES = SpikeStrengths(*(np.empty(0) for _ in range(4)))


def layer_of(info: LayerInfo, found: Measured, null: Measured | None, arguments: FitArguments) -> LayerSpectrum:
    """All numbers of a layer. found: of its groups, one for a plain layer; null: of the shuffled entries."""
    entries = found.entries or (None,) * len(found.eigenvalues)
    nulls = (None,) * len(found.eigenvalues) if null is None else tuple(null.eigenvalues)
    if info.groups == 1:
        return _one(info, found.eigenvalues[0], entries[0], nulls[0], arguments, found.engine)
    parts = [
        _one(part, found.eigenvalues[i], entries[i], nulls[i], arguments, found.engine)
        for i, part in enumerate(group_infos(info))
    ]
    return _pooled(info, tuple(parts), arguments)


def named(layer: LayerSpectrum, info: LayerInfo, why: str) -> LayerSpectrum:
    """Results of equal weights under the name that they have here. why: where they were found."""
    words = f"{layer.engine}; {why}"
    parts = layer.parts
    if parts:
        parts = tuple(replace(part, info=one, why=words) for part, one in zip(parts, group_infos(info), strict=True))
    return replace(layer, info=info, parts=parts, why=words)


def spiked(layer: LayerSpectrum) -> str:
    """The reason in words when a spike drowns the fitted bulk in the rounding of float32, else ""."""
    found = [too_spiked(float(part.eigenvalues[-1]), part.fit.edges[1]) for part in layer.parts or (layer,)]
    return next(filter(None, found), "")


def failed(info: LayerInfo, reason: str) -> LayerSpectrum:
    """The row of a layer that cannot be analysed: its verdict is the reason."""
    verdict = no_fit(info.matrix, 0, f"{info.name}: {reason}", "no spectrum")
    return LayerSpectrum(info, np.empty(0), verdict, NO_SPIKES, math.nan, math.nan, why="no spectrum")


def depthwise(info: LayerInfo) -> LayerSpectrum:
    """The row of a convolution whose groups are single rows: there is nothing to fit."""
    rows, cols = info.matrix
    words = f"{info.groups} groups: a {rows} x {cols} group has one eigenvalue and no bulk"
    verdict = no_fit(info.matrix, 1, words, "too few eigenvalues")
    return LayerSpectrum(info, np.empty(0), verdict, NO_SPIKES, math.nan, math.nan, why="nothing to compute")


def _one(
    info: LayerInfo,
    eigenvalues: np.ndarray,
    entries: EntryStats | None,
    null: np.ndarray | None,
    arguments: FitArguments,
    engine: str,
) -> LayerSpectrum:
    """One matrix. null: eigenvalues of its shuffled entries."""

    def fitted(values: np.ndarray) -> BulkFit:
        return fit_bulk(values, info.matrix, arguments.method, arguments.trim, arguments.level, strict=False)

    fit = fitted(eigenvalues)
    shuffled = None
    if null is not None and arguments.shuffled is not None:
        shuffled = Shuffled(_frozen(null), fitted(null), arguments.shuffled)
    if entries is not None:
        fit = explain(fit, entries, None if shuffled is None else shuffled.fit)
    edge = fit.threshold if math.isfinite(fit.threshold) and fit.threshold > 0 else None
    return LayerSpectrum(
        info=info,
        eigenvalues=_frozen(eigenvalues),
        fit=fit,
        spikes=_frozen_spikes(spike_strengths(eigenvalues, fit)),
        alpha=_or(math.nan, lambda: hill_alpha(eigenvalues)),
        stable_rank=_or(math.nan, lambda: stable_rank(eigenvalues)),
        entropy=_or(math.nan, lambda: entropy(eigenvalues)),
        soft_rank=_or(math.nan, lambda: soft_rank(eigenvalues, fit)),
        norms=_or(None, lambda: norms(eigenvalues, info.matrix)),
        tail=_or(None, lambda: power_law_tail(eigenvalues, edge)),
        entries=entries,
        shuffled=shuffled,
        engine=engine,
    )


T = TypeVar("T")


def _or(otherwise: Any, signal: Callable[[], T]) -> T | Any:
    try:
        return signal()
    except SpectrumError:  # too few eigenvalues for this signal; the verdict of the fit says why
        return otherwise


def _frozen(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)  # results are shared by all who analyse the same weights
    return array


def _frozen_spikes(spikes: SpikeStrengths) -> SpikeStrengths:
    for field in fields(spikes):
        _frozen(getattr(spikes, field.name))
    return spikes


# --- groups together ------------------------------------------------------------------------------------------------


def _pooled(info: LayerInfo, parts: tuple[LayerSpectrum, ...], arguments: FitArguments) -> LayerSpectrum:
    nulls = [part.shuffled for part in parts if part.shuffled is not None]
    shuffled = None
    if nulls and arguments.shuffled is not None:
        values = np.sort(np.concatenate([null.eigenvalues for null in nulls]))
        shuffled = Shuffled(_frozen(values), pooled_fit([null.fit for null in nulls]), arguments.shuffled)

    def middle(name: str) -> float:
        return _median([getattr(part, name) for part in parts])

    def together(name: str) -> Any:
        records = [getattr(part, name) for part in parts if getattr(part, name) is not None]
        return medians(records) if records else None

    return LayerSpectrum(
        info=info,
        eigenvalues=_frozen(np.sort(np.concatenate([part.eigenvalues for part in parts]))),
        fit=pooled_fit([part.fit for part in parts]),
        spikes=_strongest([part.spikes for part in parts]),
        alpha=middle("alpha"),
        stable_rank=middle("stable_rank"),
        entropy=middle("entropy"),
        soft_rank=middle("soft_rank"),
        norms=together("norms"),
        tail=together("tail"),
        entries=together("entries"),
        shuffled=shuffled,
        engine=parts[0].engine,
        parts=parts,
    )


def pooled_fit(fits: Sequence[BulkFit]) -> BulkFit:
    """The groups' fits as one: medians of the numbers, the law of the median variance, and how many groups are what."""
    counts = Counter(fit.reason for fit in fits).most_common()
    words = f"{len(fits)} groups: " + ", ".join(f"{count} {reason}" for reason, count in counts)
    laws = [fit.law for fit in fits if fit.law is not None]
    both = replace(medians(fits), grade=_middle_grade([fit.grade for fit in fits], bool(laws)))
    if not laws:
        return replace(both, verdict=f"{words} ({fits[0].verdict})", reason=counts[0][0])
    law = MarchenkoPastur(
        aspect=statistics.median(law.aspect for law in laws), variance=statistics.median(law.variance for law in laws)
    )
    words = f"nearly MP-like: {words}" if both.grade == "fair" else words
    return replace(both, law=law, verdict=words, reason=counts[0][0], why=f"medians of {len(fits)} groups")


def _middle_grade(grades: Sequence[str], fitted: bool) -> str:
    """The lower of the middle grades, so that "good" is that of a majority; groups without a fit count as poor."""
    if not fitted:
        return "none"
    ranks = sorted(("none", "poor", "fair", "good").index(one) for one in grades)
    return ("poor", "poor", "fair", "good")[ranks[(len(ranks) - 1) // 2]]


def medians(records: Sequence[Any]) -> Any:
    """A record whose numbers are the medians of equal records; what is no number is that of the first.

    Whole numbers are rounded, a flag is that of the majority.
    """
    first = records[0]
    changes = {
        field.name: _middle([getattr(record, field.name) for record in records])
        for field in fields(first)
        if isinstance(getattr(first, field.name), (bool, int, float, tuple))
    }
    return replace(first, **changes)


def _middle(values: Sequence[Any]) -> Any:
    if isinstance(values[0], tuple):
        return tuple(_middle(column) for column in zip(*values, strict=True))
    if isinstance(values[0], bool):
        return 2 * sum(values) > len(values)
    return round(_median(values)) if isinstance(values[0], int) else _median(values)


def _median(values: Sequence[float]) -> float:
    """The median of the numbers that are there; nan when there are none."""
    there = [value for value in values if not math.isnan(value)]
    return statistics.median(there) if there else math.nan


def _strongest(all_spikes: Sequence[SpikeStrengths]) -> SpikeStrengths:
    """The spikes of all groups, strongest first."""
    columns = {
        field.name: np.concatenate([getattr(spikes, field.name) for spikes in all_spikes])
        for field in fields(SpikeStrengths)
    }
    order = np.argsort(-columns["eigenvalue"], kind="stable")
    return _frozen_spikes(SpikeStrengths(**{name: column[order] for name, column in columns.items()}))
