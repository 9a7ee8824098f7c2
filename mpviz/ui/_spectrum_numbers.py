"""Numbers behind the spectrum figure: the binned eigenvalues, the fitted density, and the part of the axis to show.

Everything is computed on the plotted scale: λ itself, or the singular value s = √(N λ), whose density is that of λ
times dλ/ds = 2s/N.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mpviz.errors import MpvizError

if TYPE_CHECKING:
    from mpviz.workbench.views import SpectrumView

Floats = NDArray[np.float64]

SCALES = ("eigenvalue", "singular")
AXIS_TITLE = {
    "eigenvalue": "eigenvalue λ of WᵀW/N",
    "singular": "singular value s of W, s = √(N λ)",
}
_LAW_POINTS = 181
_FEWEST_BINS, _MOST_BINS = 10, 56
_ROOM = 0.6  # free axis right of the threshold for its label, in widths of the bulk
_TOO_FAR = 4.0  # spikes further right than this many widths of the bulk are cut off and counted
_SHOWN = 2.8  # how far the axis reaches at most when it cuts


@dataclass(frozen=True)
class Bins:
    """Equal bins with a border exactly at the threshold; empty ones left out.

    left, density: Float64["bins"]; counts: Int64["bins"]; spike: Bool["bins"], right of the threshold. width: of every
    bin. density · width sums to 1 over the nonzero eigenvalues.
    """

    left: Floats
    density: Floats
    counts: NDArray[np.int64]
    spike: NDArray[np.bool_]
    width: float


@dataclass(frozen=True)
class Window:
    """The stretch of the axis shown first; beyond: how many spikes lie right of it."""

    low: float
    high: float
    beyond: int


def on_scale(eigenvalues: Floats, rows: int, scale: str) -> Floats:
    """Eigenvalues of X = WᵀW / rows as they are plotted: λ, or s = √(rows · λ)."""
    if scale not in SCALES:
        raise MpvizError(f"unknown scale {scale!r}; known: {', '.join(SCALES)}")
    values = np.clip(np.asarray(eigenvalues, dtype=np.float64), 0.0, None)
    return np.sqrt(rows * values) if scale == "singular" else values


def nonzero(view: SpectrumView) -> Floats:
    """The eigenvalues that are not numerically zero, ascending; the limit is numpy's for the rank of a matrix."""
    values = np.asarray(view.eigenvalues, dtype=np.float64)
    values = values[np.isfinite(values)]
    limit = values.max(initial=0.0) * max(view.shape) * np.finfo(np.float64).eps
    return values[values > limit]


def bins_of(view: SpectrumView, scale: str) -> Bins:
    """The histogram; about 1.8 √n bins over the bulk, since eigenvalues are rigid and scatter little."""
    values = nonzero(view)
    plotted = on_scale(values, view.shape[0], scale)
    if len(plotted) == 0:
        nothing = np.zeros(0)
        return Bins(nothing, nothing, nothing.astype(np.int64), nothing.astype(bool), 1.0)
    start, border = _bulk_range(view, plotted, scale)
    is_spike = values > view.threshold if view.fitted else np.zeros(len(values), dtype=bool)
    bulk_size = len(values) - int(is_spike.sum())
    n_bins = int(np.clip(round(1.8 * np.sqrt(bulk_size)), _FEWEST_BINS, _MOST_BINS))
    width = (border - start) / n_bins
    # counted leftwards from the border, closed on the right: an eigenvalue at the threshold is still bulk
    index = np.floor((plotted - border) / width).astype(np.int64)
    index = np.where(is_spike, np.maximum(index, 0), np.clip(index, -n_bins, -1))
    numbers, counts = np.unique(index, return_counts=True)
    density = counts / (len(values) * width)
    return Bins((border + numbers * width).astype(np.float64), density, counts, numbers >= 0, float(width))


def _bulk_range(view: SpectrumView, plotted: Floats, scale: str) -> tuple[float, float]:
    """Where the bulk's bins start and end; the whole spectrum when there is no fit."""
    start, border = float(plotted[0]), float(plotted[-1])
    if view.fitted:
        low, high = on_scale(np.array([view.edges[0], view.threshold]), view.shape[0], scale).tolist()
        start, border = min(start, low), high
    if border <= start:  # all eigenvalues are equal
        return 0.0, border or 1.0
    return start, border


def law_line(view: SpectrumView, scale: str) -> tuple[Floats, Floats]:
    """Density of the fitted law on the plotted scale, as (x, y), Float64["points"] each.

    Its area is the share of the nonzero eigenvalues that are bulk, so that it lies on the bars. Normalised here over
    x > 0, so a law given with or without its atom at zero draws the same line. The points crowd at both edges, where
    the density has its square roots. Empty without a fit.
    """
    if not view.fitted:
        return np.zeros(0), np.zeros(0)
    low, high = view.edges
    step = np.pi / _LAW_POINTS
    angle = (np.arange(_LAW_POINTS) + 0.5) * step
    x = low + (high - low) * (1 - np.cos(angle)) / 2
    density = np.asarray(view.law_pdf(x), dtype=np.float64)
    mass = float(np.sum(density * np.sin(angle)) * step * (high - low) / 2)
    values = nonzero(view)
    share = float(np.mean(values <= view.threshold)) if len(values) else 0.0
    if not np.isfinite(mass) or mass <= 0:
        return np.zeros(0), np.zeros(0)
    y = density * (share / mass)
    plotted = on_scale(x, view.shape[0], scale)
    if scale == "singular":
        y = y * 2 * plotted / view.shape[0]
    ends = on_scale(np.array([low, high]), view.shape[0], scale)
    if low <= 1e-9 * high:  # at c = 1 the density does not fall to zero at the lower edge
        return np.append(plotted, ends[1]), np.append(y, 0.0)
    return np.concatenate([ends[:1], plotted, ends[1:]]), np.concatenate([[0.0], y, [0.0]])


def shuffled_line(view: SpectrumView, scale: str, bins: Bins) -> tuple[Floats, Floats]:
    """Outline (left ends, densities) of the histogram of the shuffled entries, in bins as wide as those of the layer.

    Empty when they were not computed.
    """
    if view.shuffled is None:
        return np.zeros(0), np.zeros(0)
    values = on_scale(view.shuffled[view.shuffled > 0], view.shape[0], scale)
    if not len(values) or not len(bins.left):
        return np.zeros(0), np.zeros(0)
    start = np.floor((float(values.min()) - bins.left[0]) / bins.width)
    end = np.ceil((float(values.max()) - bins.left[0]) / bins.width)
    borders = bins.left[0] + bins.width * np.arange(start, end + 1)
    counts, _ = np.histogram(values, np.append(borders, np.inf))
    return borders, np.append(counts[:-1] / (len(values) * bins.width), 0.0)


def window_of(view: SpectrumView, scale: str) -> Window:
    """The axis range that keeps the bulk readable: far spikes are cut off, counted, and one double click away."""
    plotted = on_scale(nonzero(view), view.shape[0], scale)
    if len(plotted) == 0:
        return Window(0.0, 1.0, 0)
    start, border = _bulk_range(view, plotted, scale)
    span, top = border - start, float(plotted[-1])
    low = max(0.0, start - 0.04 * span)
    if not view.fitted:
        return Window(low, top + 0.04 * span, 0)
    if top <= border + _TOO_FAR * span:
        return Window(low, max(border + _ROOM * span, top + 0.06 * (top - low)), 0)
    seen = plotted[plotted <= border + _SHOWN * span]
    high = max(border + _ROOM * span, float(seen[-1]) + 0.1 * span)
    return Window(low, high, int(np.sum(plotted > high)))
