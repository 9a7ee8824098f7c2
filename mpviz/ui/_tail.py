"""The upper tail of one layer's spectrum on logarithmic axes, with the power law that describes it best."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from mpviz.ui import text
from mpviz.ui._spectrum_numbers import AXIS_TITLE, nonzero, on_scale
from mpviz.ui.theme import Json, axis, empty, layout, note, palette

if TYPE_CHECKING:
    from mpviz.workbench.views import SpectrumView

_DECADES = 2.5  # below the largest eigenvalue: the bulk's left end says nothing of the tail


def tail(view: SpectrumView | None, scale: str = "eigenvalue", theme: str = "light") -> Json:
    """Share of eigenvalues at or above each one, both axes logarithmic; a power law λ^−α is a line of slope −(α−1).

    Four traces: bulk, spikes, fitted law, power law (empty when the tail is none). scale: "eigenvalue" or "singular",
    where the slope doubles. Raises MpvizError for an unknown scale or theme.
    """
    if view is None:
        return empty(text.EMPTY_SPECTRUM, theme)
    values = nonzero(view)
    if not len(values):
        return empty("This layer has no eigenvalue above zero.", theme)
    colours, rows = palette(theme), view.shape[0]
    share = (len(values) - np.arange(len(values))) / len(values)
    x = on_scale(values, rows, scale)
    spike = values > view.threshold if view.fitted else np.zeros(len(values), dtype=bool)
    data = []
    for name, chosen, colour, symbol in (
        ("bulk", ~spike, colours.bulk, "circle"),
        ("spikes", spike, colours.spike, "diamond"),
    ):
        marker: Json = {"symbol": symbol, "size": 7 if name == "spikes" else 5, "color": colour.fill}
        marker["line"] = {"color": colour.line, "width": 0.8}
        data.append(
            {"type": "scatter", "mode": "markers", "name": name, "x": x[chosen].tolist(), "y": share[chosen].tolist(),
             "marker": marker, "hovertemplate": "%{x:.4~g}<br>%{y:.3~%} of the spectrum is larger<extra></extra>"}
        )  # fmt: skip
    data += [_law(view, scale, theme), _power_law(view, share, values, scale, theme)]
    low = max(float(x[0]), float(x[-1]) / 10 ** (_DECADES / (2 if scale == "singular" else 1)))
    base = layout(theme, _title(view, theme), _note(view))
    base |= {
        "xaxis": axis(theme, AXIS_TITLE[scale], grid=False, ticks="outside", type="log", exponentformat="power",
                      range=[math.log10(low) - 0.05, math.log10(float(x[-1])) + 0.08]),
        "yaxis": axis(theme, "share at or above", type="log", dtick=1, tickformat="~%",
                      range=[math.log10(float(share[-1])) - 0.25, 0.1]),
        "shapes": _edges(view, scale, theme)[0],
        "annotations": _edges(view, scale, theme)[1],
        "uirevision": f"{view.layer}|{scale}|tail",
    }  # fmt: skip
    return {"data": data, "layout": base}


def _law(view: SpectrumView, scale: str, theme: str) -> Json:
    """What the fitted law says of the same shares, over the share of the spikes; it ends at the edge."""
    x, y = np.zeros(0), np.zeros(0)
    if view.fitted and view.law_cdf is not None:
        span = view.edges[1] - view.edges[0]
        x = view.edges[1] - span * np.geomspace(1.0, 1e-4, 160)
        values = nonzero(view)
        spikes = float(np.mean(values > view.threshold))
        y = spikes + (1.0 - spikes) * (1.0 - np.asarray(view.law_cdf(x)))
        x, y = x[(y > 0) & (x > 0)], y[(y > 0) & (x > 0)]
    line = {"color": palette(theme).ink, "width": 2}
    return {"type": "scatter", "mode": "lines", "name": "Marchenko–Pastur", "hoverinfo": "skip", "line": line,
            "x": on_scale(x, view.shape[0], scale).tolist(), "y": y.tolist()}  # fmt: skip


def _power_law(view: SpectrumView, share: np.ndarray, values: np.ndarray, scale: str, theme: str) -> Json:
    x, y = np.zeros(0), np.zeros(0)
    found = view.tail
    if found is not None and not found.no_tail:
        start = float(share[np.searchsorted(values, found.x_min)])
        x = np.geomspace(found.x_min, float(values[-1]), 40)
        y = start * (x / found.x_min) ** -(found.alpha - 1.0)
    line = {"color": palette(theme).spike.line, "width": 2, "dash": "dashdot"}
    return {"type": "scatter", "mode": "lines", "name": "power law", "hoverinfo": "skip", "line": line,
            "x": on_scale(x, view.shape[0], scale).tolist(), "y": y.tolist()}  # fmt: skip


def _edges(view: SpectrumView, scale: str, theme: str) -> tuple[list[Json], list[Json]]:
    if not view.fitted:
        return [], []
    colours = palette(theme)
    shapes, notes = [], []
    for value, colour, dash, side, name in (
        (view.edges[1], colours.edge, "dash", "right", "MP edge"),
        (view.threshold, colours.threshold, "solid", "left", "threshold"),
    ):
        x = float(on_scale(np.array([value]), view.shape[0], scale)[0])
        style = {"color": colour.line, "width": 2, "dash": dash}
        shapes.append({"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper", "line": style})
        shift = 5 if side == "left" else -5
        place = {"x": math.log10(x), "xanchor": side, "xshift": shift, "y": 1, "yref": "paper", "yanchor": "top"}
        notes.append(note(name, colour.text, **place))
    return shapes, notes


def _title(view: SpectrumView, theme: str) -> str:
    name = f"<b>{text.escape(text.short_name(view.layer))}</b>"
    found = view.tail
    if found is None:
        return f"{name} — upper tail"
    if found.no_tail:
        return f"{name} — no power-law tail"
    alpha = text.key("◆", f"power-law tail, α = {text.significant(found.alpha)}", palette(theme).spike)
    return f"{name} — {alpha}"


def _note(view: SpectrumView) -> str:
    found = view.tail
    if found is None:
        return "maximum-likelihood exponent not computed"
    if found.no_tail:
        return text.escape(text.elided(found.why, 96))
    return (
        f"estimate: maximum likelihood on the {text.plural(found.n_tail, 'eigenvalue')} "
        f"from x_min = {text.significant(found.x_min)}, KS {text.significant(found.ks, 2)}"
    )
