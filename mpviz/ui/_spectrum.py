"""The spectrum of one layer: what is bulk, where the edge is, what stands out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mpviz.ui import text
from mpviz.ui._spectrum_numbers import (
    AXIS_TITLE,
    Bins,
    Floats,
    Window,
    bins_of,
    law_line,
    nonzero,
    on_scale,
    shuffled_line,
    window_of,
)
from mpviz.ui.theme import LIGHT, Json, axis, empty, faint, hatch, layout, note, palette

if TYPE_CHECKING:
    from mpviz.workbench.views import SpectrumView

_SYMBOL = {"eigenvalue": "λ", "singular": "s"}
_LANE = 0.09  # of the height, below the bars, for the spike marks
_LABEL = 0.24  # of the width, what the label of the edge needs on its left
_HEADROOM = 1.24  # above the tallest bar, for the labels of the two lines


def spectrum(view: SpectrumView | None, scale: str = "eigenvalue", log_y: bool = False, theme: str = "light") -> Json:
    """Histogram of the nonzero eigenvalues with the fitted Marchenko–Pastur density, edge, threshold and spikes.

    scale: "eigenvalue" (of X = WᵀW/N) or "singular" (s = √(N λ)). Areas are shares of the nonzero eigenvalues; the
    law's area is the share that is bulk. Spike marks have their rank as customdata. The dotted outline is the histogram
    of the same entries in random order, where the view has it. Always six traces: bulk, spikes, law, rug, spike marks,
    shuffled (empty where there is nothing), so that a figure can be updated in place.
    Raises MpvizError for an unknown scale or theme.
    """
    if view is None:
        return empty(text.EMPTY_SPECTRUM, theme)
    bins = bins_of(view, scale)
    window = window_of(view, scale)
    law = law_line(view, scale)
    heights = _heights(bins, float(law[1].max(initial=0.0)), log_y, bool(view.spikes), palette(theme).axis)
    data = [_bars(bins, scale, theme, spikes, view.fitted, heights.base) for spikes in (False, True)]
    data += [_law(*law, log_y, theme), *_spike_marks(view, scale, theme), _shuffled(view, scale, bins, theme)]
    shapes, notes = _lines(view, scale, window, theme) if view.fitted else ([], [])
    notes += _far_spikes(view, scale, window, theme)
    base = layout(theme, text.spectrum_title(view, theme), text.spectrum_note(view, int(bins.counts.sum())))
    base |= {
        "xaxis": axis(theme, AXIS_TITLE[scale], grid=False, range=[window.low, window.high], ticks="outside"),
        "yaxis": axis(theme, "density", **heights.axis),
        # the marks keep their height when the density is zoomed or logarithmic
        "yaxis2": {"overlaying": "y", "range": [0, 1], "visible": False, "fixedrange": True},
        "barmode": "overlay",
        "bargap": 0,
        "shapes": shapes,
        "annotations": notes,
        "uirevision": f"{view.layer}|{scale}|{log_y}",
    }
    return {"data": data, "layout": base}


@dataclass(frozen=True)
class _Heights:
    """The density axis, and where bars stand: on zero, or on the bottom of a logarithmic axis."""

    axis: Json
    base: float


def _heights(bins: Bins, law_top: float, log_y: bool, with_spikes: bool, colour: str) -> _Heights:
    """Room above the bars for the labels of the lines, and a lane below them for the spike marks."""
    bars_top = float(bins.density.max(initial=0.0)) or 1.0
    # the law is infinite at 0 when c = 1, so it may lift the axis only a little
    top = max(bars_top, min(law_top, 1.35 * bars_top))
    lane = _LANE / (1 - _LANE) if with_spikes else 0.0
    if not log_y:
        high = top * _HEADROOM
        return _Heights({"range": [-lane * high, high], "zeroline": True, "zerolinecolor": colour}, 0.0)
    low = math.log10(float(bins.density.min(initial=bars_top))) - 0.4
    high = low + (math.log10(top) - low) * _HEADROOM
    return _Heights({"type": "log", "range": [low - lane * (high - low), high], "dtick": 1}, 10**low)


def _bars(bins: Bins, scale: str, theme: str, spikes: bool, fitted: bool, base: float) -> Json:
    colours = palette(theme)
    chosen = bins.spike == spikes
    colour = (colours.spike if spikes else colours.bulk) if fitted else colours.neutral
    marker: Json = {"color": colour.fill, "line": {"color": colour.line, "width": 0.8}}
    if spikes:  # as bright as the bulk: hatched, so that grey print keeps them apart
        marker["pattern"] = hatch(LIGHT.spike, "\\")
    left, counts = bins.left[chosen].tolist(), bins.counts[chosen].tolist()
    symbol = _SYMBOL[scale]
    return {
        "type": "bar",
        "name": ("spikes" if spikes else "bulk") if fitted else "eigenvalues",
        "x": [x + bins.width / 2 for x in left],
        "y": (bins.density[chosen] - base).tolist(),
        "base": base,
        "width": [bins.width] * len(left),
        "marker": marker,
        "hovertext": [
            f"{text.plural(n, 'eigenvalue')}<br>{text.significant(x)} < {symbol} ≤ {text.significant(x + bins.width)}"
            for x, n in zip(left, counts, strict=True)
        ],
        "hoverinfo": "text",
    }


def _law(x: Floats, y: Floats, log_y: bool, theme: str) -> Json:
    if log_y:
        x, y = x[y > 0], y[y > 0]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "Marchenko–Pastur",
        "x": x.tolist(),
        "y": y.tolist(),
        "line": {"color": palette(theme).ink, "width": 2},
        "hoverinfo": "skip",
    }


def _shuffled(view: SpectrumView, scale: str, bins: Bins, theme: str) -> Json:
    """The null hypothesis as an outline: what the same entries look like without their order."""
    x, y = shuffled_line(view, scale, bins)
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "shuffled entries",
        "x": x.tolist(),
        "y": y.tolist(),
        "line": {"color": palette(theme).muted, "width": 1.5, "dash": "dot", "shape": "hv"},
        "hovertemplate": "the same entries in random order<extra></extra>",
    }


def _spike_marks(view: SpectrumView, scale: str, theme: str) -> list[Json]:
    """A rug and a row of diamonds in the lane below the bars, on the second y axis that runs from 0 to 1."""
    colour = palette(theme).spike
    x = on_scale(np.array([spike["eigenvalue"] for spike in view.spikes]), view.shape[0], scale).tolist()
    shared = {"type": "scatter", "mode": "markers", "x": x, "y": [_LANE / 2] * len(x), "yaxis": "y2"}
    size = 10 if len(x) <= 24 else 8 if len(x) <= 80 else 6
    rug = {
        **shared,
        "name": "rug",
        "marker": {"symbol": "line-ns-open", "size": 15, "color": colour.line, "line": {"width": 1}},
        "hoverinfo": "skip",
    }
    diamonds = {
        **shared,
        "name": "spikes",
        "marker": {"symbol": "diamond", "size": size, "color": colour.fill, "line": {"color": colour.line, "width": 1}},
        "customdata": [int(spike["rank"]) for spike in view.spikes],
        "hovertext": [_spike_words(spike, value, scale) for spike, value in zip(view.spikes, x, strict=True)],
        "hoverinfo": "text",
    }
    return [rug, diamonds]


def _spike_words(spike: Any, value: float, scale: str) -> str:
    overlap = spike["overlap"]
    pair = overlap if isinstance(overlap, (tuple, list)) else (overlap,)
    return (
        f"<b>spike {int(spike['rank'])}</b><br>{_SYMBOL[scale]} = {text.significant(value)}"
        f"<br>strength {text.significant(spike['strength'])}"
        f"<br>overlap {' / '.join(text.percent(o) for o in pair)}"
    )


def _lines(view: SpectrumView, scale: str, window: Window, theme: str) -> tuple[list[Json], list[Json]]:
    """Edge and threshold, each with its label on the outer side: they are often only pixels apart.

    Where the edge is too near the left end of the axis for its label, both stand on the right, one below the other.
    """
    colours = palette(theme)
    places = on_scale(np.array([view.edges[1], view.threshold]), view.shape[0], scale).tolist()
    edge_name = "σ₊" if scale == "singular" else "λ₊"
    kinds = [
        (colours.edge, "dash", "right", -5, f"MP edge {edge_name} = {text.significant(places[0])}",
         "Marchenko–Pastur edge: λ₊ = σ²(1 + √c)² of the block<br>that the spikes leave, σ₊ = √(N λ₊)<br>"
         "Marchenko & Pastur (1967)"),
        (colours.threshold, "solid", "left", 5, f"Tracy–Widom threshold {text.significant(places[1])}",
         "T₊ = σ²(μ + t·s)/N: pure noise stays below it<br>Johnstone (2001), Ma (2012)"),
    ]  # fmt: skip
    cramped = places[0] - window.low < _LABEL * (window.high - window.low)
    shapes, notes = [], []
    for x, (colour, dash, anchor, shift, label, formula) in zip(places, kinds, strict=True):
        line = {"color": colour.line, "width": 2, "dash": dash}
        shapes.append({"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper", "line": line})
        place = {"x": x, "y": 1, "yref": "paper", "xanchor": anchor, "yanchor": "top", "xshift": shift}
        if cramped and anchor == "right":
            place |= {"x": places[1], "xanchor": "left", "xshift": -shift, "yshift": -16}
        notes.append(note(label, colour.text, **place, bgcolor=faint(colours.paper, 0.8), hovertext=formula))
    return shapes, notes


def _far_spikes(view: SpectrumView, scale: str, window: Window, theme: str) -> list[Json]:
    """What lies right of the shown range, said where the eye looks for it."""
    if not window.beyond:
        return []
    colours = palette(theme)
    largest = text.significant(on_scale(nonzero(view)[-1:], view.shape[0], scale).tolist()[0])
    words = (
        f"{text.plural(window.beyond, 'spike')} further right, {'at' if window.beyond == 1 else 'up to'} {largest} ▸"
    )
    place = {"x": 1, "y": 0.5, "xref": "paper", "yref": "paper", "xanchor": "right", "yanchor": "bottom"}
    hint = "double click to show all, again to come back"
    return [note(words, colours.spike.text, **place, hovertext=hint, bgcolor=faint(colours.paper, 0.8))]
