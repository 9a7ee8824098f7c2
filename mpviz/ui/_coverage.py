"""Coverage and accuracy against sparsity: what pruning cannot change, what it does not change, what is right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mpviz.ui import text
from mpviz.ui.theme import Colour, Json, Palette, axis, empty, faint, layout, note, palette

if TYPE_CHECKING:
    from mpviz.workbench.views import CurveView

_LABEL_GAP = 9.0  # percentage points between two labels, one text line at the smallest height
_BOX = (26.0, 16.0)  # per cent of the frame that the words at the chosen position take
_GREYED = 0.35


def coverage(curve: CurveView | None, theme: str = "light", draggable: bool = False) -> Json:
    """Certified, unchanged and right predictions against sparsity, in percent.

    Measured positions are solid marks; between them a dotted grey line says *estimate*; positions not measured yet
    are not drawn. Marks have their sparsity (0 … 1) as customdata. draggable: the line of the chosen position, the
    first of `layout.shapes`, can be dragged; the screen must listen to its x0. Always five traces: between, right,
    unchanged, certified, chosen (empty where there is nothing), so that a figure can be updated in place.
    """
    if curve is None:
        return empty(text.EMPTY_COVERAGE, theme)
    colours = palette(theme)
    series = {
        "certified": _points(curve.positions, curve.coverage),
        "unchanged": _points(curve.positions, curve.unchanged),
        "accuracy": _points(curve.positions, curve.accuracy),
    }
    data = _lines(series, colours)
    if curve.stale:
        data = [{**trace, "opacity": _GREYED} for trace in data]
    labels = _labels(series, colours)
    shapes, mark, notes = _current(curve, colours, draggable, _taken(series, labels))
    if not series["certified"]:
        notes.append(note(text.EMPTY_COVERAGE, colours.muted, x=50, y=50, bgcolor=colours.paper))
    base = layout(theme, *text.coverage_title(curve, theme))
    base["margin"]["r"] = 84
    percent_axis: Json = {"range": [0, 102], "tick0": 0, "dtick": 25, "fixedrange": True}
    base |= {
        "xaxis": axis(theme, "sparsity, % of prunable weights removed", grid=False, ticks="outside",
                      **(percent_axis | {"range": [0, 100]})),
        "yaxis": axis(theme, "predictions, %", **percent_axis),
        "dragmode": False,
        "shapes": shapes,
        "annotations": labels + notes,
        "uirevision": "coverage",
    }  # fmt: skip
    return {"data": [*data, mark], "layout": base}


def _points(positions: np.ndarray, shares: np.ndarray) -> list[tuple[float, float]]:
    """The measured points, as (sparsity, share) in 0 … 1."""
    pairs = ((float(x), float(y)) for x, y in zip(positions, shares, strict=True))
    return [(x, y) for x, y in pairs if math.isfinite(y)]


def _trace(name: str, points: list[tuple[float, float]], **style: object) -> Json:
    return {
        "type": "scatter",
        "name": name,
        "x": [100 * x for x, _ in points],
        "y": [100 * y for _, y in points],
        "customdata": [x for x, _ in points],
        "hovertext": [f"{text.percent(y)} {name}<br>at {text.percent(x)} sparsity, measured" for x, y in points],
        "hoverinfo": "text",
        **style,
    }


def _lines(series: dict[str, list[tuple[float, float]]], colours: Palette) -> list[Json]:
    measured, estimate = colours.measured, colours.estimate
    certified = series["certified"]
    between = _trace("between", certified, mode="lines", line={"color": estimate.line, "width": 2, "dash": "dot"})
    between |= {"fill": "tozeroy", "fillcolor": faint(measured.fill, 0.1), "hoverinfo": "skip"}
    thin = {"color": faint(measured.line, 0.75), "width": 1.2}
    accuracy = {"color": colours.muted, "width": 1.5, "dash": "dash"}
    dots = {"color": measured.fill, "size": 7, "line": {"color": measured.line, "width": 1}}
    squares = {"symbol": "square", "size": 4, "color": colours.muted}
    return [
        between,
        _trace("right", series["accuracy"], mode="lines+markers", line=accuracy, marker=squares),
        _trace("unchanged", series["unchanged"], mode="lines", line=thin),
        _trace("certified", certified, mode="markers", marker=dots, cliponaxis=False),
    ]


def _labels(series: dict[str, list[tuple[float, float]]], colours: Palette) -> list[Json]:
    """Names at the right end of their lines, spread so that they never touch."""
    tints = {"certified": colours.measured.text, "unchanged": colours.measured.text, "accuracy": colours.muted}
    ends = [(points[-1][1] * 100, name, points[-1][0] * 100) for name, points in series.items() if points]
    # of two lines that end together the certified one is below: it is never above the unchanged one
    order = {"unchanged": 0, "accuracy": 1, "certified": 2}
    ends.sort(key=lambda end: (-end[0], order[end[1]]))
    heights = spread([end[0] for end in ends], _LABEL_GAP)
    right = max((x for _, _, x in ends), default=0.0)
    right = 100.0 if right > 80 else right  # outside the frame when the curve is nearly complete
    return [
        note(
            f"<b>{name}</b>" if name == "certified" else name,
            tints[name],
            x=right,
            y=height,
            xanchor="left",
            xshift=8,
        )
        for height, (_, name, _) in zip(heights, ends, strict=True)
    ]


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Descending heights moved as little as needed so that neighbours are `gap` apart, half of it above 0.

    >>> spread([98.0, 97.0, 50.0], 9.0)
    [98.0, 89.0, 50.0]
    >>> spread([4.0, 3.0], 9.0)
    [13.5, 4.5]
    """
    placed: list[float] = []
    for height in heights:
        placed.append(min(height, placed[-1] - gap) if placed else height)
    floor = gap / 2
    for i in range(len(placed) - 1, -1, -1):
        placed[i] = max(placed[i], floor)
        floor = placed[i] + gap
    return placed


def _taken(series: dict[str, list[tuple[float, float]]], labels: list[Json]) -> list[tuple[float, float]]:
    """Places, in percent, that words should leave free: the curves, and the labels that stand inside the frame."""
    places = [(100 * x, 100 * y) for points in series.values() for x, y in points]
    return places + [(label["x"] + step, label["y"]) for label in labels if label["x"] < 100 for step in (4, 10, 16)]


def _free(x: float, side: str, taken: list[tuple[float, float]]) -> Json:
    """Where the words beside the chosen position cover least: low, in the middle, or high."""
    left, right = (x - _BOX[0], x) if side == "right" else (x, x + _BOX[0])

    def covered(low: float) -> int:
        return sum(left <= px <= right and low <= py <= low + _BOX[1] for px, py in taken)

    best = min((4.0, 42.0, 80.0), key=covered)
    return {"y": best / 102, "yref": "paper", "yanchor": "bottom"}


def _current(
    curve: CurveView, colours: Palette, draggable: bool, taken: list[tuple[float, float]]
) -> tuple[list[Json], Json, list[Json]]:
    """The chosen position: its line, its mark and its words. taken: places that the words should leave free."""
    now = curve.current
    if now is None:
        return [], _mark([], colours.neutral, colours), []
    x, share, tier = 100 * float(now["sparsity"]), float(now["coverage"]), str(now["tier"])
    line: Json = {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper",
                  "line": {"color": colours.ink, "width": 1.5}}  # fmt: skip
    if draggable:
        line["editable"] = True
    colour = colours.tier(tier)
    if not math.isfinite(share):
        return [line], _mark([], colour, colours), []
    mark = _mark([(x, 100 * share)], colour, colours, hollow=tier != "measured")
    mark |= {"customdata": [float(now["sparsity"])], "hovertext": [_chosen_words(curve)], "hoverinfo": "text"}
    side = "right" if x > 40 else "left"  # the words stand below the falling curve where they can
    words = f"<b>{text.percent(share)}</b> certified<br>{text.escape(tier)}"
    place = {"x": x, "xanchor": side, "xshift": -6 if side == "right" else 6, "align": side}
    box = note(words, colour.text, **place, **_free(x, side, taken), bgcolor=faint(colours.paper, 0.8))
    return [line], mark, [box]


def _mark(points: list[tuple[float, float]], colour: Colour, colours: Palette, hollow: bool = False) -> Json:
    """The chosen position's disc: solid when measured, hollow when estimated."""
    outline = colour.line if hollow else colours.ink
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "chosen",
        "x": [x for x, _ in points],
        "y": [y for _, y in points],
        "marker": {
            "size": 13,
            "color": colours.paper if hollow else colour.fill,
            "line": {"color": outline, "width": 2},
        },
        "cliponaxis": False,
    }


def _chosen_words(curve: CurveView) -> str:
    now = curve.current or {}
    return (
        f"<b>at {text.percent(now['sparsity'])} sparsity ({text.escape(now['tier'])})</b>"
        f"<br>{text.percent(now['coverage'])} certified<br>{text.percent(now['unchanged'])} unchanged"
        f"<br>{text.percent(now['accuracy'])} right"
    )
