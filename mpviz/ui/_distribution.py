"""How well the Marchenko–Pastur law fits one layer: distribution function with its residual, and Q–Q plot."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mpviz.ui import text
from mpviz.ui._spectrum_numbers import AXIS_TITLE, Floats, nonzero, on_scale
from mpviz.ui.theme import Colour, Json, axis, empty, faint, layout, note, palette

if TYPE_CHECKING:
    from mpviz.workbench.views import SpectrumView

NO_FIT = "There is no fitted law to compare with;<br>the histogram shows the eigenvalues as they are."
_LAW_POINTS = 241


def distribution(view: SpectrumView | None, scale: str = "eigenvalue", theme: str = "light") -> Json:
    """Empirical distribution function of the bulk over the fitted law, and below it what the fit leaves.

    The residual is p·(F_empirical − F_law): eigenvalues of true noise are rigid, so that it grows only like log p; the
    dashed lines are the limit of the verdict. Five traces: empirical, law, residual, spikes, shuffled.
    scale: "eigenvalue" or "singular".  Raises MpvizError for an unknown scale or theme.
    """
    if view is None or view.law_cdf is None:
        return _nothing(view, theme)
    colours, rows = palette(theme), view.shape[0]
    bulk, spikes = _parts(view)
    steps = (np.arange(len(bulk)) + 0.5) / max(1, len(bulk))
    # both ends of every step, so that the largest residual is the p·KS of the verdict
    below = np.arange(len(bulk)) - len(bulk) * np.asarray(view.law_cdf(bulk))
    residual = np.column_stack([below, below + 1.0]).ravel()
    x = on_scale(bulk, rows, scale).tolist()
    line = np.linspace(*view.edges, _LAW_POINTS)
    data = [
        _line("empirical", x, steps.tolist(), colours.bulk, shape="hv"),
        {
            **_line("law", on_scale(line, rows, scale).tolist(), np.asarray(view.law_cdf(line)).tolist(), colours.bulk),
            "line": {"color": colours.ink, "width": 1.5},
        },
        {
            **_line("residual", np.repeat(x, 2).tolist(), residual.tolist(), colours.bulk),
            "yaxis": "y2",
            "hovertemplate": _RESIDUAL_HOVER,
        },
        _dots("spikes", on_scale(spikes, rows, scale).tolist(), [1.0] * len(spikes), colours.spike),
        _shuffled(view, scale, theme),
    ]
    limit = view.rigidity_limit
    high = max(1.25 * limit, 1.1 * float(np.abs(residual).max(initial=0.0)))
    base = layout(theme, text.spectrum_title(view, theme), _fit_note(view))
    base |= {
        "xaxis": axis(theme, AXIS_TITLE[scale], grid=False, ticks="outside", range=_range(view, scale), anchor="y2"),
        "yaxis": axis(theme, "share of bulk", domain=[0.46, 1], range=[-0.02, 1.06]),
        "yaxis2": axis(theme, "p·(F − law)", domain=[0, 0.36], range=[-high, high], zeroline=True, nticks=5),
        "shapes": [_level(y, colours.threshold.line) for y in (-limit, limit)],
        "annotations": [
            note(
                f"limit ±{text.significant(limit, 2)}",
                colours.threshold.text,
                x=1, xref="paper", xanchor="right", y=limit, yref="y2", yanchor="bottom",
                hovertext="99 of 100 noise layers of this size stay inside; simulated",
            )
        ],
        "uirevision": f"{view.layer}|{scale}|distribution",
    }  # fmt: skip
    return {"data": data, "layout": base}


def quantiles(view: SpectrumView | None, scale: str = "eigenvalue", theme: str = "light") -> Json:
    """Q–Q plot: each eigenvalue against the quantile that the fitted law gives its rank.

    Bulk on the diagonal means a law that fits; spikes stand over the right end, at the edge.
    Three traces: diagonal, bulk, spikes. scale: "eigenvalue" or "singular".
    Raises MpvizError for an unknown scale or theme.
    """
    if view is None or view.law_ppf is None:
        return _nothing(view, theme)
    colours, rows = palette(theme), view.shape[0]
    bulk, spikes = _parts(view)
    expected = on_scale(np.asarray(view.law_ppf((np.arange(len(bulk)) + 0.5) / max(1, len(bulk)))), rows, scale)
    seen = on_scale(bulk, rows, scale)
    edge = float(on_scale(np.array([view.edges[1]]), rows, scale)[0])
    above = on_scale(spikes, rows, scale)
    low, high = _range(view, scale)
    reach = [low, edge * 1.02]
    data = [
        {**_line("law", reach, reach, colours.bulk), "line": {"color": colours.ink, "width": 1.5}},
        {
            **_dots("bulk", expected.tolist(), seen.tolist(), colours.bulk),
            "marker": {"color": colours.bulk.fill, "size": 5, "line": {"color": colours.bulk.line, "width": 0.6}},
            "hovertemplate": "law %{x:.3~g}<br>layer %{y:.3~g}<extra></extra>",
        },
        _dots("spikes", [edge] * len(above), above.tolist(), colours.spike),
    ]
    base = layout(theme, text.spectrum_title(view, theme), _fit_note(view))
    symbol = "s" if scale == "singular" else "λ"
    base |= {
        "xaxis": axis(theme, f"{symbol} expected of the fitted law at this rank", ticks="outside", range=reach),
        "yaxis": axis(theme, f"{symbol} of this layer", range=[low, min(high, 2.2 * edge)]),
        "shapes": [_level(edge, colours.edge.line, "y")],
        "annotations": [
            note("MP edge", colours.edge.text, x=0, xref="paper", xanchor="left", y=edge, yanchor="bottom"),
            *_cut_off(above, min(high, 2.2 * edge), colours.spike, theme),
        ],
        "uirevision": f"{view.layer}|{scale}|quantiles",
    }
    return {"data": data, "layout": base}


def _nothing(view: SpectrumView | None, theme: str) -> Json:
    """What stands in for a comparison with a law that is not there."""
    return empty(text.EMPTY_SPECTRUM if view is None else NO_FIT, theme)


_RESIDUAL_HOVER = "p·(F − law) = %{y:.2f}<extra></extra>"


def _parts(view: SpectrumView) -> tuple[Floats, Floats]:
    """Bulk and spikes of the nonzero eigenvalues, each ascending."""
    values = nonzero(view)
    return values[values <= view.threshold], values[values > view.threshold]


def _range(view: SpectrumView, scale: str) -> list[float]:
    """The bulk with room for the nearest spikes; the far ones are one double click away."""
    values = nonzero(view)
    low, edge = on_scale(np.array([view.edges[0], view.edges[1]]), view.shape[0], scale).tolist()
    first, last = on_scale(np.array([values[0], values[-1]]), view.shape[0], scale).tolist()
    low = min(low, first)
    room = 0.04 * (edge - low)
    return [low - room, min(last, edge + 1.2 * (edge - low)) + room]


def _fit_note(view: SpectrumView) -> str:
    """How far the fit may be trusted: the distance, its limit, and how often noise is further off."""
    words = f"p·KS {text.significant(view.rigidity)}, limit {text.significant(view.rigidity_limit)}"
    if np.isfinite(view.p_value):
        words += f"; noise of this size exceeds it in {text.percent(view.p_value, 2)} of simulations"
    if not view.mp_like:
        fair = "nearly MP-like, " if view.grade == "fair" else ""
        words += f"; {fair}{text.escape(view.reason or text.elided(view.verdict, 40))}"
    return words


def _line(name: str, x: list[float], y: list[float], colour: Colour, shape: str = "linear") -> Json:
    style = {"color": colour.line, "width": 2, "shape": shape}
    return {"type": "scatter", "mode": "lines", "name": name, "x": x, "y": y, "line": style, "hoverinfo": "skip"}


def _dots(name: str, x: list[float], y: list[float], colour: Colour) -> Json:
    marker = {"symbol": "diamond", "size": 9, "color": colour.fill, "line": {"color": colour.line, "width": 1}}
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": x,
        "y": y,
        "marker": marker,
        "hovertemplate": f"{name.removesuffix('s')} at %{{x:.4~g}}<extra></extra>",
    }


def _shuffled(view: SpectrumView, scale: str, theme: str) -> Json:
    """Distribution function of the shuffled entries; empty when they were not computed."""
    colours = palette(theme)
    values = np.zeros(0) if view.shuffled is None else np.sort(view.shuffled[view.shuffled > 0])
    steps = (np.arange(len(values)) + 0.5) / max(1, len(values))
    trace = _line("shuffled", on_scale(values, view.shape[0], scale).tolist(), steps.tolist(), colours.neutral)
    return {**trace, "line": {"color": colours.neutral.line, "width": 1.5, "dash": "dot"}}


def _level(y: float, colour: str, axis_name: str = "y2") -> Json:
    style = {"color": colour, "width": 1.2, "dash": "dash"}
    return {"type": "line", "x0": 0, "x1": 1, "xref": "paper", "y0": y, "y1": y, "yref": axis_name, "line": style}


def _cut_off(above: Floats, top: float, colour: Colour, theme: str) -> list[Json]:
    """Spikes over the upper end of the axis, said where the eye looks for them."""
    hidden = int(np.count_nonzero(above > top))
    if not hidden:
        return []
    words = f"{text.plural(hidden, 'spike')} further up ▴"
    place = {"x": 1, "xref": "paper", "xanchor": "right", "y": 1, "yref": "paper", "yanchor": "top"}
    return [note(words, colour.text, **place, bgcolor=faint(palette(theme).paper, 0.8))]
