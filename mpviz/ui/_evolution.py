"""One layer over its checkpoints: spectrum by spectrum, and what decays against what settles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mpviz.errors import MpvizError
from mpviz.ui import text
from mpviz.ui._coverage import spread
from mpviz.ui._spectrum_numbers import AXIS_TITLE, Floats
from mpviz.ui.theme import LIGHT, Colour, Json, axis, empty, faint, hatch, layout, note, palette

if TYPE_CHECKING:
    from mpviz.nets.evolution import Evolution
    from mpviz.rmt.fit import BulkFit
    from mpviz.train.limit import LimitRun, TrainingLimit

_BINS = 64
_LAW_POINTS = 181
_SPIKES = 8  # largest singular values that are followed as lines


def evolution(followed: Evolution, step: int, theme: str = "light") -> Json:
    """The spectrum at one checkpoint over the outline of the first; axes are the same at every checkpoint.

    step: which checkpoint, from 0. Singular values, so that shrinking noise keeps its shape. Five traces: first, bulk,
    spikes, law, spike marks. Raises MpvizError for a step that is not there.
    """
    if not len(followed):
        return empty("There is no checkpoint to show.", theme)
    if not 0 <= step < len(followed):
        raise MpvizError(f"checkpoint {step} is not there; {followed.layer} has {len(followed)}, from 0")
    colours = palette(theme)
    spectra = [_singular(followed, i) for i in range(len(followed))]
    start, now, fit = spectra[0], spectra[step], followed.fits[step]
    right = 1.05 * max(float(values[-1]) for values in spectra)
    width = right / _BINS
    cut = np.sqrt(followed.shape[0] * fit.threshold) if fit.law is not None else np.inf
    x, y = _bars(now, width)
    x0, y0 = _bars(start, width)
    outline = {"color": colours.muted, "width": 1.5, "dash": "dot", "shape": "hvh"}
    data = [
        {"type": "scatter", "mode": "lines", "name": followed.labels[0], "x": x0.tolist(), "y": np.sqrt(y0).tolist(),
         "line": outline, "hoverinfo": "skip"},
        *[_histogram(x, y, chosen, name, colour, width)
          for name, chosen, colour in (("bulk", x - width / 2 < cut, colours.bulk),
                                       ("spikes", x - width / 2 >= cut, colours.spike))],
        _law(followed, fit, width, theme),
        _marks(now[now > cut], colours.spike),
    ]  # fmt: skip
    base = layout(theme, _title(followed, step, theme), _note(followed, fit))
    top = 1.25 * max(float(_bars(values, width)[1].max()) for values in spectra)
    base |= {
        "xaxis": axis(theme, AXIS_TITLE["singular"], grid=False, ticks="outside", range=[0, right]),
        "yaxis": axis(theme, "eigenvalues a bin", range=[-0.07 * np.sqrt(top), np.sqrt(top)],
                      tickvals=[np.sqrt(v) for v in _ticks(top)], ticktext=[text.count(v) for v in _ticks(top)]),
        "barmode": "overlay",
        "bargap": 0,
        "shapes": _edge(followed, fit, theme),
        "uirevision": followed.layer,
    }  # fmt: skip
    return {"data": data, "layout": base}


def limit_bulk(result: TrainingLimit, step: int | None = None, theme: str = "light") -> Json:
    """Bulk scale σ̂/σ̂₀ over the epochs, with and without weight decay, beside plain decay of the initial noise.

    step: the checkpoint that a line marks. Four traces: plain decay (computed), with decay, without decay, and the
    share of the initial noise that is still in W with decay (all three measured).
    """
    colours = palette(theme)
    decayed, free = result.penalised.table, result.free.table
    epochs = decayed.index.tolist()
    data = [
        _curve("e^(−ηλt), computed", epochs, decayed["plain_decay"].tolist(), colours.ink, "dash"),
        _curve("with decay", epochs, decayed["bulk_scale"].tolist(), colours.measured.line, dots=True),
        _curve("without decay", epochs, free["bulk_scale"].tolist(), colours.bulk.line, dots=True),
        _curve("initial noise left", epochs, decayed["noise_left"].tolist(), colours.muted, "dot"),
    ]
    gap = float(np.max(np.abs(decayed["bulk_scale"] - decayed["plain_decay"])))
    title = f"<b>The bulk follows plain decay</b> within {text.significant(gap, 2)} of σ̂₀; without decay it stays"
    if gap > 0.1 or abs(float(free["bulk_scale"].iloc[-1]) - 1) > 0.25:
        title = f"<b>Bulk scale</b>, up to {text.significant(gap, 2)} of σ̂₀ from plain decay"
    base = layout(theme, title, f"λ = {result.plan.decay:g}, η = {result.plan.rate:g}; measured unless computed")
    base |= {
        "xaxis": axis(theme, "epoch", grid=False, ticks="outside", range=[0, epochs[-1]]),
        "yaxis": axis(theme, "σ̂ / σ̂ at the start", range=[-0.03, 1.15]),
        "shapes": _cursor(epochs, step, colours.ink),
        "annotations": _ends(data, epochs[-1], 1.15),
    }
    base["margin"]["r"] = 150
    return {"data": data, "layout": base}


def limit_spikes(run: LimitRun, step: int | None = None, theme: str = "light") -> Json:
    """The largest singular values and the edge over the epochs: learned spikes settle while the bulk falls.

    step: the checkpoint that a line marks. One trace a rank, then the edge σ₊.
    """
    colours = palette(theme)
    epochs = run.table.index.tolist()
    values = np.array([_singular(run.evolution, i)[::-1][:_SPIKES] for i in range(len(run.evolution))])
    data = [
        _curve(f"spike {rank + 1}", epochs, values[:, rank].tolist(), colours.spike.line) for rank in range(_SPIKES)
    ]
    data.append(_curve("MP edge σ₊", epochs, run.table["sigma_plus"].tolist(), colours.edge.line, "dash"))
    settled = float(np.max(np.abs(values[-1] - values[-2]) / values[-1]))
    kind = f"λ = {run.decay:g}" if run.decay else "no decay"
    title = f"<b>{kind}</b>: the spikes move by {text.percent(settled, 2)} in the last step, the edge is at "
    title += (
        f"{text.percent(float(run.table['sigma_plus'].iloc[-1] / run.table['sigma_plus'].iloc[0]), 2)} of its start"
    )
    base = layout(theme, title, f"the {_SPIKES} largest singular values, measured")
    base |= {
        "xaxis": axis(theme, "epoch", grid=False, ticks="outside"),
        "yaxis": axis(theme, "singular value of W", rangemode="tozero"),
        "shapes": _cursor(epochs, step, colours.ink),
    }
    return {"data": data, "layout": base}


def animated(frames: Sequence[Json], labels: Sequence[str]) -> Json:
    """Figures of equal traces as one figure with a slider and a Play button, for a page of its own.

    Adds "frames", which `plotly.io.to_html` draws; screens that update figures in place do not need it.
    Raises MpvizError when there is no frame, or not one label each.
    """
    if not frames or len(frames) != len(labels):
        raise MpvizError(f"{len(frames)} figures with {len(labels)} labels; give one label each, and at least one")
    still: Json = {"mode": "immediate", "frame": {"duration": 0, "redraw": True}, "transition": {"duration": 0}}
    play: Json = {"fromcurrent": True, "frame": {"duration": 350, "redraw": True}, "transition": {"duration": 0}}
    steps = [{"label": label, "method": "animate", "args": [[label], still]} for label in labels]
    button: Json = {"label": "▶ Play", "method": "animate", "args": [None, play]}
    pause: Json = {"label": "❚❚ Pause", "method": "animate", "args": [[None], still]}
    base = dict(frames[0]["layout"])
    base["margin"] = base["margin"] | {"b": 110}
    base["sliders"] = [{"steps": steps, "pad": {"t": 48}, "currentvalue": {"prefix": ""}, "x": 0.12, "len": 0.88}]
    base["updatemenus"] = [
        {"type": "buttons", "direction": "right", "showactive": False, "buttons": [button, pause], "x": 0, "y": 0,
         "xanchor": "left", "yanchor": "top", "pad": {"t": 52}}
    ]  # fmt: skip
    made = [
        {"name": label, "data": frame["data"], "layout": {k: frame["layout"].get(k) for k in ("title", "shapes")}}
        for label, frame in zip(labels, frames, strict=True)
    ]
    return {"data": frames[0]["data"], "layout": base, "frames": made}


def _singular(followed: Evolution, step: int) -> Floats:
    return np.sqrt(followed.shape[0] * np.clip(followed.eigenvalues[step], 0.0, None))


def _bars(values: Floats, width: float) -> tuple[Floats, Floats]:
    """Centres of the bins and their counts, from 0 to the right end of all checkpoints."""
    counts, borders = np.histogram(values, bins=np.arange(_BINS + 1) * width)
    return (borders[:-1] + borders[1:]) / 2, counts.astype(np.float64)


def _histogram(x: Floats, y: Floats, chosen: np.ndarray, name: str, colour: Colour, width: float) -> Json:
    # heights are square roots, so that one spike is seen beside hundreds of bulk values
    shown = chosen & (y > 0)
    marker: Json = {"color": colour.fill, "line": {"color": colour.line, "width": 0.8}}
    if name == "spikes":
        marker["pattern"] = hatch(LIGHT.spike, "\\")
    words = [text.plural(int(v), "eigenvalue") for v in y[shown]]
    return {"type": "bar", "name": name, "x": x[shown].tolist(), "y": np.sqrt(y[shown]).tolist(), "width": width,
            "marker": marker, "hovertext": words, "hoverinfo": "text+x"}  # fmt: skip


def _law(followed: Evolution, fit: BulkFit, width: float, theme: str) -> Json:
    x, y = np.zeros(0), np.zeros(0)
    if fit.law is not None:
        low, high = np.sqrt(followed.shape[0] * np.asarray(fit.edges))
        borders = np.linspace(low, high, _LAW_POINTS)
        mass = np.diff(fit.law.cdf_nonzero(borders**2 / followed.shape[0]))
        bulk = min(followed.shape) - fit.n_spikes
        x = (borders[:-1] + borders[1:]) / 2
        y = np.sqrt(mass * bulk * width / (borders[1] - borders[0]))
    line = {"color": palette(theme).ink, "width": 2}
    return {"type": "scatter", "mode": "lines", "name": "Marchenko–Pastur", "x": x.tolist(), "y": y.tolist(),
            "line": line, "hoverinfo": "skip"}  # fmt: skip


def _marks(values: Floats, colour: Colour) -> Json:
    marker = {"symbol": "diamond", "size": 8, "color": colour.fill, "line": {"color": colour.line, "width": 1}}
    return {"type": "scatter", "mode": "markers", "name": "spike", "x": values.tolist(), "y": [-0.6] * len(values),
            "marker": marker, "cliponaxis": False, "hovertemplate": "spike at %{x:.3~g}<extra></extra>"}  # fmt: skip


def _ticks(top: float) -> list[int]:
    return [v for v in (0, 1, 4, 16, 64, 256, 1024, 4096) if v <= top]


def _edge(followed: Evolution, fit: BulkFit, theme: str) -> list[Json]:
    if fit.law is None:
        return []
    x = fit.sigma_plus
    line = {"color": palette(theme).edge.line, "width": 2, "dash": "dash"}
    return [{"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper", "line": line}]


def _title(followed: Evolution, step: int, theme: str) -> str:
    colours, fit = palette(theme), followed.fits[step]
    name = f"<b>{text.escape(followed.labels[step])}</b>"
    if fit.law is None:
        return f"{name} — no MP fit"
    scale = np.sqrt(fit.variance / followed.fits[0].variance)
    bulk = text.key("■", f"bulk at {text.percent(float(scale), 2)} of its first scale", colours.bulk)
    return f"{name} — {bulk}, {text.key('◆', text.plural(fit.n_spikes, 'spike'), colours.spike)}"


def _note(followed: Evolution, fit: BulkFit) -> str:
    words = text.fit_words(fit.mp_like, fit.rigidity, fair=fit.grade == "fair")
    return f"{text.escape(text.short_name(followed.layer))}, {words}; dotted: {text.escape(followed.labels[0])}"


def _curve(name: str, x: list[float], y: list[float], colour: str, dash: str = "solid", dots: bool = False) -> Json:
    return {
        "type": "scatter",
        "mode": "lines+markers" if dots else "lines",
        "name": name,
        "x": x,
        "y": y,
        "line": {"color": colour, "width": 2, "dash": dash},
        "marker": {"size": 5, "color": colour},
        "hovertemplate": f"{name}: %{{y:.3~g}} at epoch %{{x}}<extra></extra>",
    }


def _cursor(epochs: list[float], step: int | None, colour: str) -> list[Json]:
    if step is None or not 0 <= step < len(epochs):
        return []
    x = epochs[step]
    return [
        {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper", "line": {"color": faint(colour, 0.5)}}
    ]


def _ends(data: list[Json], last: float, top: float) -> list[Json]:
    """The name of each curve at its right end, spread so that none covers another."""
    ends = sorted(((trace["y"][-1], trace) for trace in data), key=lambda end: -end[0])
    places = spread([end[0] / top * 100 for end in ends], 8.0)
    return [
        note(trace["name"], trace["line"]["color"], x=last, y=place / 100 * top, xanchor="left", xshift=8)
        for place, (_, trace) in zip(places, ends, strict=True)
    ]
