"""What is known about the predictions, tier by tier: coverage, margins, and what each layer takes of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mpviz.ui import text
from mpviz.ui._coverage import spread
from mpviz.ui.theme import Colour, Json, Palette, axis, empty, faint, hatch, layout, note, palette

if TYPE_CHECKING:
    from mpviz.workbench.proof_views import CertificateView, SampleView, TierCurve

EMPTY = "Nothing is proved yet: press <b>Prove</b>."
_DASH = {"slider": "solid", "path": "dash", "bracket": "dashdot", "sub-masks": "dot", "ball": "longdash",
         "first order": "dot"}  # fmt: skip
TIER_WORDS = {"measured": "margin > 2η", "population": "all data, at least", "gaussian": "if Gaussian"}
_LABEL_GAP = 14.0
_BINS = 40
_MOST_BARS = 32
_MOST_NAMES = 12


def tiers(view: CertificateView | None, theme: str = "light", shown: Sequence[str] | None = None) -> Json:
    """Share of predictions against sparsity, one line a tier, and a band from the best bound up to what is measured.

    shown: names of the tiers to draw, all when None. A tier without a proof is not drawn, and the second line says so:
    no bound is not 0 %.
    """
    if view is None:
        return empty(EMPTY, theme)
    colours = palette(theme)
    names = [name for name in view.curves if shown is None or name in shown]
    drawn = {name: view.curves[name] for name in names if np.isfinite(view.curves[name].coverage).any()}
    x = (100 * view.positions).tolist()
    data = [_band(x, drawn, colours)] if {"unchanged"} < set(drawn) and view.scope == "all layers" else []
    data += [_model_band(x, curve, colours) for curve in drawn.values() if curve.tier == "gaussian"]
    data += [_line(x, curve, view, colours) for curve in drawn.values()]
    base = layout(theme, *_title(view, names, drawn, theme))
    base["margin"]["r"] = 118
    percent: Json = {"range": [0, 102], "tick0": 0, "dtick": 25, "fixedrange": True}
    chosen = 100 * view.sparsity
    base |= {
        "xaxis": axis(theme, "sparsity, % of prunable weights removed", grid=False, ticks="outside",
                      **(percent | {"range": [0, 100]})),
        "yaxis": axis(theme, "predictions, %", **percent),
        "annotations": _labels(x, drawn, colours),
        "shapes": [{"type": "line", "x0": chosen, "x1": chosen, "y0": 0, "y1": 1, "yref": "paper",
                    "line": {"color": colours.ink, "width": 1}}],
        "dragmode": False,
        "uirevision": "tiers",
    }  # fmt: skip
    return {"data": data, "layout": base}


def _tier_colour(curve: TierCurve, colours: Palette) -> Colour:
    return colours.tier(curve.tier)


def _line(x: list[float], curve: TierCurve, view: CertificateView, colours: Palette) -> Json:
    colour = _tier_colour(curve, colours)
    y = [None if not math.isfinite(v) else 100 * v for v in curve.coverage.tolist()]
    scope = "" if curve.tier != "bound" or view.scope == "all layers" else f"<br>{text.escape(view.scope)}"
    words = [
        f"<b>{'–' if v is None else text.percent(v / 100)}</b> at {s:g}{text.THIN}% sparsity"
        f"<br>{text.escape(curve.tier)}: {text.escape(curve.about)}{scope}"
        for s, v in zip(x, y, strict=True)
    ]
    style: Json = {"mode": "lines", "line": {"color": colour.line, "width": 2, "dash": _DASH.get(curve.name, "solid")}}
    if curve.name == "measured":
        style = {
            "mode": "markers",
            "marker": {"size": 7, "color": colour.fill, "line": {"color": colour.line, "width": 1}},
        }
    elif curve.name == "unchanged":
        style["line"] = {"color": colour.line, "width": 2}
    elif curve.tier == "population":
        style = {"mode": "markers", "marker": {"symbol": "line-ew-open", "size": 13, "color": colour.line}}
    return {"type": "scatter", "name": curve.name, "x": x, "y": y, "hovertext": words, "hoverinfo": "text", **style}


def _band(x: list[float], drawn: dict[str, TierCurve], colours: Palette) -> Json:
    """Between the strongest guarantee and what was measured: what is so here, but was not proved."""
    bounds = [curve.coverage for curve in drawn.values() if curve.tier == "bound"]
    top = drawn["unchanged"].coverage
    low = np.fmax.reduce(bounds) if bounds else top
    ys = [*(100 * top).tolist(), *(100 * low[::-1]).tolist()]
    return {"type": "scatter", "name": "band", "x": [*x, *x[::-1]], "y": ys, "mode": "lines", "line": {"width": 0},
            "fill": "toself", "fillcolor": faint(colours.bound.fill, 0.16), "hoverinfo": "skip"}  # fmt: skip


def _model_band(x: list[float], curve: TierCurve, colours: Palette) -> Json:
    """Below the gaussian line: what would hold of a model of the removed weights."""
    ys = [100 * value for value in curve.coverage.tolist() if math.isfinite(value)]
    xs = [at for at, value in zip(x, curve.coverage.tolist(), strict=True) if math.isfinite(value)]
    return {"type": "scatter", "name": "model", "x": xs, "y": ys, "mode": "lines", "line": {"width": 0},
            "fill": "tozeroy", "fillcolor": faint(colours.gaussian.fill, 0.3), "hoverinfo": "skip"}  # fmt: skip


def _labels(x: list[float], drawn: dict[str, TierCurve], colours: Palette) -> list[Json]:
    ends = []
    for name, curve in drawn.items():
        known = np.flatnonzero(np.isfinite(curve.coverage))
        ends.append((100 * float(curve.coverage[known[-1]]), name, x[known[-1]]))
    ends.sort(key=lambda end: -end[0])
    heights = spread([end[0] for end in ends], min(_LABEL_GAP, 96 / max(len(ends), 1)))
    right = max((end[2] for end in ends), default=0.0)
    return [
        note(
            TIER_WORDS.get(name, name),
            _tier_colour(drawn[name], colours).text,
            x=at,
            y=end,
            # a thin line from the end of the curve to its name, which may have had to step aside
            ax=right + 4,
            ay=height,
            axref="x",
            ayref="y",
            showarrow=True,
            arrowhead=0,
            arrowwidth=0.8,
            arrowcolor=_tier_colour(drawn[name], colours).line,
            xanchor="left",
        )
        for height, (end, name, at) in zip(heights, ends, strict=True)
    ]


def _title(view: CertificateView, names: list[str], drawn: dict[str, TierCurve], theme: str) -> tuple[str, str]:
    """Short enough for a card of 390 pixels: what the bounds speak about stands in front, as it is easily missed."""
    colours = palette(theme)
    known = [name for name in ("slider", "path") if name in drawn and math.isfinite(view.here.get(name, math.nan))]
    whole, at = view.scope == "all layers", f"at {text.percent(view.sparsity)} sparsity"
    images = f"{text.count(len(view.samples))} images"
    missing = ", ".join(TIER_WORDS.get(name, name) for name in names if name not in drawn)
    if not known:
        scoped = not whole and any(curve.tier == "bound" for curve in drawn.values())
        about = f"bounds: other layers dense; {images}" if scoped else f"{at}; {images}"
        about = f"no proof: {text.elided(missing, 28)}; {images}" if missing else about
        return f"<b>{text.percent(view.here['unchanged'])}</b> of predictions unchanged", text.escape(about)
    about = f"{known[0]} {at}; {images}"
    if missing:
        about = f"{known[0]}, {images}; no proof: {text.elided(missing, 18)}"
    word = f"<span style='color:{colours.bound.text}'><b>{text.percent(view.here[known[0]])}</b></span>"
    title = f"{word} of predictions proved" if whole else f"{word} proved, <b>other layers dense</b>"
    return title, text.escape(about)


def margins(view: CertificateView | None, theme: str = "light", sample: int | None = None) -> Json:
    """Margins of the dense network, stacked by what pruning did: certified, unchanged without proof, changed.

    Lines: 2η of the median sample and of the one at the 95th percentile; a margin right of its own 2η cannot have
    changed its label. sample: a row of the samples whose margin (solid) and 2η (dashed) are
    marked.
    """
    if view is None:
        return empty(EMPTY, theme)
    colours, s = palette(theme), view.samples
    top = max(float(s.margin.max()), 1e-9) * 1.02
    edges = np.linspace(0.0, top, _BINS + 1)
    groups = [
        ("certified", s.certified, colours.measured, None),
        ("unchanged, not certified", ~s.certified & ~s.changed, colours.neutral, None),
        ("changed", s.changed, colours.threshold, "/"),
    ]
    data = []
    for name, chosen, colour, shape in groups:
        counts = np.histogram(s.margin[chosen], edges)[0]
        marker: Json = {"color": colour.fill, "line": {"color": colour.line, "width": 0.5}}
        if shape:
            marker["pattern"] = hatch(colour, shape)
        data.append({"type": "bar", "name": name, "x": (0.5 * (edges[1:] + edges[:-1])).tolist(),
                     "y": [count or None for count in counts.tolist()], "width": float(edges[1]), "marker": marker,
                     "hovertemplate": f"{name}: %{{y}} predictions<br>margin %{{x:.2f}}<extra></extra>"})  # fmt: skip
    base = layout(theme, *_margin_title(view, sample))
    base |= {
        "xaxis": axis(theme, "margin: top logit minus runner-up, dense network", grid=False, range=[0, top]),
        "yaxis": axis(theme, "predictions"),
        "barmode": "stack",
        "bargap": 0,
        "shapes": [],
        "annotations": [],
    }
    eta = 2 * s.eta
    lines = [(float(np.median(eta)), "2η median", colours.ink, "dash"),
             (float(np.quantile(eta, 0.95)), "2η 95 %", colours.ink, "dot")]  # fmt: skip
    if sample is not None:
        lines += [(float(s.margin[sample]), "", colours.spike.line, "solid"),
                  (float(eta[sample]), "", colours.spike.line, "dash")]  # fmt: skip
    for i, (at, words, ink, dash) in enumerate(lines):
        if at > top:
            continue
        base["shapes"].append({"type": "line", "x0": at, "x1": at, "y0": 0, "y1": 1, "yref": "paper",
                               "line": {"color": ink, "width": 1.5, "dash": dash}})  # fmt: skip
        if words:
            base["annotations"].append(
                note(words, ink, x=at, y=1 - 0.13 * i, yref="paper", bgcolor=colours.paper, xanchor="left", xshift=4)
            )
    return {"data": data, "layout": base}


def _margin_title(view: CertificateView, sample: int | None) -> tuple[str, str]:
    s = view.samples
    counts = (int(s.certified.sum()), int((~s.certified & ~s.changed).sum()), int(s.changed.sum()))
    certified, open_, changed = map(text.count, counts)
    title = f"<b>{certified}</b> certified, {open_} unchanged, {changed} changed"
    marked = "" if sample is None else f"; orange: sample {int(s.index[sample])}"
    return title, f"measured on {text.count(len(s))} images{marked}"


def attribution(view: CertificateView | None, theme: str = "light", sample: int | None = None) -> Json:
    """How far each layer's pruning moves the dense top-2 margin, layers pruned in the order of the network.

    The mean of the absolute change over the samples; with `sample`, the signed change of that one, which add up to
    its whole change. Measured. The largest are shown where there are many.
    """
    if view is None:
        return empty(EMPTY, theme)
    colours, s = palette(theme), view.samples
    values = np.array(list(view.attribution.values())) if sample is None else s.steps[sample]
    order = np.sort(np.argsort(-np.abs(values), kind="stable")[:_MOST_BARS])[::-1]
    names = [s.layers[i] for i in order]
    bars = [float(values[i]) for i in order]
    fills = [colours.removed.fill if (v >= 0 and sample is None) or v < 0 else colours.neutral.fill for v in bars]
    top = int(np.argmax(np.abs(values))) if len(values) else 0
    word = text.escape(text.elided(text.short_name(s.layers[top]), 24)) if s.layers else ""
    if sample is None:
        heading = (
            f"<b>{word}</b> moves margins most",
            "mean |change| of the top-2 margin, layer by layer",
        )
    else:
        heading = (
            f"<b>{word}</b> moves it most",
            f"sample {int(s.index[sample])}: changes add up to {text.significant(float(values.sum()))}",
        )
    base = layout(theme, *heading)
    base |= {
        "xaxis": axis(theme, "logits"),
        # every k-th name where all would print over each other; the mouse tells the others
        "yaxis": axis(theme, grid=False, tickmode="array", tickvals=list(range(len(names)))[::_every(len(names))],
                      ticktext=[text.escape(text.elided(text.short_name(name), 22)) for name in names]
                      [::_every(len(names))]),
        "bargap": 0.25,
    }  # fmt: skip
    return {
        "data": [{"type": "bar", "orientation": "h", "x": bars, "y": list(range(len(names))), "customdata": names,
                  "marker": {"color": fills, "line": {"color": colours.removed.line, "width": 0.5}},
                  "hovertemplate": "%{customdata}<br>%{x:.3g} logits<extra></extra>"}],
        "layout": base,
    }  # fmt: skip


def _every(count: int) -> int:
    return -(-count // _MOST_NAMES)


def aged(figure: Json, why: str = "of an older plan: press Prove again") -> Json:
    """The figure greyed, with a title that says so: what is drawn no longer belongs to the controls beside it."""
    for trace in figure["data"]:
        trace["opacity"] = 0.35
    title = figure["layout"].get("title")
    if title and figure["data"]:
        title["text"] = f"<b>{why}</b><br>{title['text'].partition('<br>')[2]}"
    return figure


def why_not(samples: SampleView, row: int, classes: Sequence[str] = ()) -> list[str]:
    """Why a sample is certified or not, in sentences: margin against 2η, each bound, and the layers that took most."""
    name = lambda c: classes[c] if c < len(classes) else f"class {c}"  # noqa: E731
    margin, eta = float(samples.margin[row]), 2 * float(samples.eta[row])
    first, second = (name(int(c)) for c in samples.dense_top[row])
    said = [f"Dense network: {first}, {text.significant(margin)} logits ahead of {second}."]
    if samples.changed[row]:
        said.append(f"Pruned network: {name(int(samples.pruned_top[row, 0]))}. The prediction changed.")
    elif samples.certified[row]:
        said.append(f"Pruning moved no logit by more than {text.significant(eta / 2)}; twice that is less: certified.")
    else:
        said.append(
            f"Pruning moved a logit by {text.significant(eta / 2)}; twice that, {text.significant(eta)}, is more than "
            "the margin, so the measured certificate cannot speak, although the prediction is the same."
        )
    for tier, lower in samples.lower.items():
        least = float(lower[row])
        if math.isinf(least):
            said.append(f"{tier}: not proved.")
            continue
        verdict = "proved" if least > 0 else f"not proved, by {text.significant(-least)} logits"
        said.append(f"{tier}: {verdict} (least margin over the set: {text.significant(least)}).")
    order = np.argsort(samples.steps[row])[:3]
    worst = [f"{samples.layers[i]} ({text.significant(float(samples.steps[row, i]))})" for i in order
             if samples.steps[row, i] < 0]  # fmt: skip
    if worst:
        said.append(f"Its margin fell most by {', '.join(worst)}.")
    return said
