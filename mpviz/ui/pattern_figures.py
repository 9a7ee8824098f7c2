"""Pictures of k:n patterns: a layer's groups, cost and accuracy by pattern, and where the multiply–adds go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mpviz.errors import DataError
from mpviz.ui import text
from mpviz.ui._layers import depth_ticks
from mpviz.ui.method_figures import MARKS, method_colour
from mpviz.ui.theme import Json, axis, faint, layout, note, palette

if TYPE_CHECKING:
    from mpviz.structured import Groups, PatternView

COLUMNS = 64  # inputs that are shown of a layer
CELLS = ("network", "pattern", "criterion", "order", "tome", "repair", "damping", "renew", "seed", "epochs",
         "accuracy", "dense_accuracy", "share")  # fmt: skip
_TINY = 1e-300


def pattern_figure(view: PatternView, theme: str = "light", first: int = 0) -> Json:
    """A layer's groups before and after its inputs were reordered: what is kept, and what each group costs.

    Above, entries of some rows: blue where kept, purple where removed, the stronger the larger |w|·rms(h) is in its
    row; thin lines part the groups. Below, the cost of all groups of the layer, the dearest first, in per cent of what
    all cost together in the layer's own order. first: number of the first group that is shown, in either order.
    """
    sides = [view.before] if view.after.rule == "none" else [view.before, view.after]
    groups, n = view.before.columns.shape
    shown = max(1, min(groups, COLUMNS // n))
    start = min(max(first, 0), groups - shown)
    colours = palette(theme)
    figure: Json = {"data": [], "layout": layout(theme, *_title(view))}
    page, notes, shapes = figure["layout"], [], []
    for number, side in enumerate(sides, start=1):
        key, width = "" if number == 1 else str(number), 1.0 / len(sides)
        across = [(number - 1) * width + (0.04 if number > 1 else 0.0), number * width - (0.0 if number > 1 else 0.02)]
        figure["data"].append(_heat(side, view.rows, start, shown, key, theme))
        words = "inputs in their own order" if side.rule == "none" else f"inputs in {side.rule} order"
        inner = {"domain": across, "anchor": f"y{key}", "showticklabels": False, "range": [-0.5, shown * n - 0.5]}
        page[f"xaxis{key}"] = axis(theme, f"{words}, groups {start + 1} to {start + shown}", grid=False, **inner)
        page[f"yaxis{key}"] = axis(theme, "outputs" if number == 1 else "", grid=False, domain=[0.42, 1.0],
                                   anchor=f"x{key}", autorange="reversed", showticklabels=False)  # fmt: skip
        edges = [i * n - 0.5 for i in range(shown + 1)]
        shapes += [{"type": "line", "xref": f"x{key}", "yref": f"y{key} domain", "x0": x, "x1": x, "y0": 0, "y1": 1,
                    "line": {"color": colours.ink, "width": 1}} for x in edges]  # fmt: skip
    page["xaxis3"] = axis(theme, "groups, the dearest first", grid=False, domain=[0.0, 1.0], anchor="y3")
    page["yaxis3"] = axis(theme, "cost, % of the sum", domain=[0.0, 0.26], anchor="x3", rangemode="tozero")
    lines = (colours.neutral.line, colours.measured.line)
    whole = max(float(view.before.cost.sum()), _TINY)
    for place, (side, colour) in enumerate(zip(sides, lines[-len(sides) :], strict=True)):
        name = "own order" if side.rule == "none" else f"{side.rule} order"
        figure["data"].append(_line(np.sort(side.cost)[::-1] / whole, name, colour))
        words = f"{name}: {text.percent(float(side.cost.sum()) / whole)}"
        notes.append(note(words, colour, xref="x3 domain", yref="y3 domain", x=1, y=1 - 0.22 * place, xanchor="right"))
    page |= {"annotations": notes, "shapes": shapes}
    return figure


def _title(view: PatternView) -> tuple[str, str]:
    before, after = (float(side.cost.sum()) for side in (view.before, view.after))
    name = text.escape(text.short_name(view.layer.removesuffix(".weight")))
    found = f"{name} at {view.pattern}: removing costs {text.significant(100 * after / max(view.power, _TINY))} %"
    if view.after.rule != "none":
        found += f", {text.significant(after / max(before, _TINY))} of what it costs in the layer's own order"
    return found, "of Σ w² E h², measured on calibration images; blue is kept, purple removed"


def _heat(side: Groups, rows: np.ndarray, start: int, shown: int, key: str, theme: str) -> Json:
    colours, count = palette(theme), len(side.score)
    score = side.score[:, start : start + shown].reshape(count, -1)
    kept = side.kept[:, start : start + shown].reshape(count, -1)
    strength = score / np.maximum(score.max(axis=1, keepdims=True), _TINY)
    columns = side.columns[start : start + shown].reshape(-1)
    words = [[f"output {row}, input {column}: {'kept' if k else 'removed'}<br>|w|·rms(h) {s:.3g}"
              for column, k, s in zip(columns, kept[i], score[i], strict=True)]
             for i, row in enumerate(rows)]  # fmt: skip
    scale = [[0.0, colours.removed.line], [0.5, colours.paper], [1.0, colours.measured.fill]]
    # small but never white, so that what is kept and what goes can be told everywhere
    signed = np.where(kept, 1.0, -1.0) * (0.18 + 0.82 * strength)
    return {
        "type": "heatmap", "z": signed.round(4).tolist(), "zmin": -1, "zmax": 1, "colorscale": scale,
        "showscale": False, "text": words, "hovertemplate": "%{text}<extra></extra>", "xgap": 1, "ygap": 1,
        "xaxis": f"x{key}", "yaxis": f"y{key}",
    }  # fmt: skip


def _line(cost: np.ndarray, name: str, colour: str) -> Json:
    shown = np.unique(np.linspace(0, len(cost) - 1, min(len(cost), 400)).astype(int))
    return {
        "type": "scatter", "mode": "lines", "x": shown.tolist(), "y": (100 * cost[shown]).tolist(), "xaxis": "x3",
        "yaxis": "y3", "line": {"color": colour, "width": 2}, "fill": "tozeroy", "fillcolor": faint(colour, 0.12),
        "hovertemplate": f"{name}<br>group %{{x}}: %{{y:.3g}} %<extra></extra>",
    }  # fmt: skip


def arm_name(row: Any) -> str:
    """A word for an arm of the grid of patterns.

    >>> arm_name({"criterion": "cast", "order": "best", "repair": True, "damping": 0.0, "renew": False, "tome": 4})
    'CAST, reordered, repaired, merged 4'
    """
    words = [{"cast": "CAST", "wanda": "Wanda"}.get(row["criterion"], row["criterion"])]
    words += {"none": [], "best": ["reordered"], "interleave": ["interleaved"]}.get(row["order"], [row["order"]])
    words += ["damped"] * bool(row["damping"]) + ["repaired"] * bool(row["repair"])
    words += ["norms renewed"] * bool(row["renew"])
    words += [f"merged {row['tome']}"] * bool(row["tome"])
    return ", ".join(words)


def patterns_figure(
    cells: pd.DataFrame, network: str, theme: str = "light", epochs: int = 0, tome: int = 0, renew: bool = False
) -> Json:
    """Cost (left) and accuracy (right) by pattern, one mark an arm, means over seeds with ± one standard deviation.

    cells: of data/benchmarks/structured-grid.json. epochs: of distillation, 0 for none. tome: pairs of tokens merged a
    block. renew: whether batch norms were renewed. All measured on the test images; the cost on calibration
    images. Raises DataError when there are none.
    """
    missing = [name for name in CELLS if name not in cells.columns]
    if missing:
        raise DataError(f"these are no cells of the grid of patterns: {', '.join(missing)} missing")
    rows = cells[(cells["network"] == network) & (cells["epochs"] == epochs) & (cells["tome"] == tome)]
    rows = rows[rows["renew"] == renew]
    if rows.empty:
        raise DataError(f"the grid has no cells of {network} with {epochs} epochs and {tome} merges")
    rows = rows.assign(arm=[arm_name(row) for row in rows.to_dict("records")])
    arms, patterns = list(dict.fromkeys(rows["arm"])), list(dict.fromkeys(rows["pattern"]))
    colours = palette(theme)
    figure: Json = {"data": [], "layout": layout(theme)}
    for number, (column, scale) in enumerate((("share", 100.0), ("accuracy", 100.0)), start=1):
        key = "" if number == 1 else "2"
        stats = rows.groupby(["arm", "pattern"])[column].agg(["mean", "std", "count"])
        for place, arm in enumerate(arms):
            here = stats.loc[arm]
            step = 0.72 * (place - (len(arms) - 1) / 2) / max(len(arms), 2)
            figure["data"].append({
                "type": "scatter", "mode": "markers", "name": arm, "legendgroup": arm, "showlegend": number == 1,
                "x": [patterns.index(one) + step for one in here.index], "y": (scale * here["mean"]).tolist(),
                "error_y": {"type": "data", "array": (scale * here["std"].fillna(0.0)).tolist(), "thickness": 1.5,
                            "width": 3, "color": method_colour(place, theme)},
                "marker": {"symbol": MARKS[place % 8] + ("-open" if place > 7 else ""), "size": 8,
                           "color": method_colour(place, theme)},
                "xaxis": f"x{key}", "yaxis": f"y{key}", "customdata": [[one] for one in here.index],
                "hovertemplate": f"{arm}, %{{customdata[0]}}: %{{y:.4g}}<extra></extra>",
            })  # fmt: skip
    ticks = {"tickmode": "array", "tickvals": list(range(len(patterns))), "ticktext": patterns,
             "range": [-0.5, len(patterns) - 0.5]}  # fmt: skip
    dense = 100 * float(rows["dense_accuracy"].mean())
    figure["layout"] |= {
        "xaxis": axis(theme, "pattern", grid=False, domain=[0.0, 0.45], anchor="y", **ticks),
        "yaxis": axis(theme, "cost, % of Σ w² E h²", anchor="x", rangemode="tozero"),
        "xaxis2": axis(theme, "pattern", grid=False, domain=[0.55, 1.0], anchor="y2", **ticks),
        "yaxis2": axis(theme, "accuracy, %", anchor="x2"),
        "height": 450,  # without one a second figure in the same place has none
        "showlegend": True,
        "legend": {"orientation": "h", "x": 0, "y": 1.04, "yanchor": "bottom", "font": {"size": 11}},
        "shapes": [{"type": "line", "xref": "x2 domain", "yref": "y2", "x0": 0, "x1": 1, "y0": dense, "y1": dense,
                    "line": {"color": colours.muted, "width": 1, "dash": "dot"}}],
        "annotations": [note(f"dense {dense:.2f} %", colours.muted, xref="x2 domain", yref="y2", x=0.01, y=dense,
                             xanchor="left", yanchor="bottom")],
        "margin": {"l": 64, "r": 16, "t": 72, "b": 48},
    }  # fmt: skip
    return figure


def layer_costs_figure(cost: pd.DataFrame, theme: str = "light") -> Json:
    """What each layer pays, in per cent of Σ w² E h², in the order of the network; faint where a repair took it back.

    cost: the table of `Projected`; layers that stayed dense have no bar.
    """
    rows = cost[cost["why"] == ""]
    if rows.empty:
        raise DataError("no layer was projected, so there is no cost to draw")
    colours, names = palette(theme), [str(name) for name in rows.index]
    power = rows["power"].where(rows["power"] > 0, np.nan)
    left, before = (100 * rows[column] / power for column in ("left", "cost"))
    figure: Json = {"data": [], "layout": layout(theme)}
    words = [text.escape(text.short_name(name)) for name in names]
    bars = [("after the repair", left, colours.measured.fill), ("taken back", before - left, colours.neutral.fill)]
    for name, values, colour in bars if bool((before - left > 1e-9).any()) else [("cost", left, colours.measured.fill)]:
        figure["data"].append({
            "type": "bar", "name": name, "x": list(range(len(names))), "y": values.fillna(0.0).tolist(), "text": words,
            "textposition": "none", "marker": {"color": colour},
            "hovertemplate": f"%{{text}}<br>{name}: %{{y:.3g}} %<extra></extra>",
        })  # fmt: skip
    places, labels = depth_ticks(names, [str(role) for role in rows["role"]])
    figure["layout"] |= {
        "barmode": "stack", "bargap": 0.2, "showlegend": len(figure["data"]) > 1,
        "legend": {"orientation": "h", "x": 1, "xanchor": "right", "y": 1.02, "yanchor": "bottom"},
        "xaxis": axis(theme, "layer, in the order of the network", grid=False, tickmode="array", tickvals=places,
                      ticktext=labels, tickangle=0),
        "yaxis": axis(theme, "cost, % of Σ w² E h²", rangemode="tozero"),
    }  # fmt: skip
    return figure


def macs_figure(stages: list[tuple[str, pd.DataFrame]], theme: str = "light", title: str = "") -> Json:
    """Multiply–adds of one image from the dense network to what runs, each step's savings by type of layer.

    stages: (name, `Macs.by_role()`) from dense on, each with all savings so far in its column "sparse".
    """
    if not stages:
        raise DataError("there is nothing to draw: give the dense network's multiply–adds at least")
    colours = palette(theme)
    names, values, kinds = [stages[0][0]], [float(stages[0][1]["dense"].sum())], ["absolute"]
    last = stages[0][1]["dense"]
    for name, table in stages[1:]:
        for role in table.index:
            saved = float(last.get(role, 0.0) - table.loc[role, "sparse"])
            if abs(saved) > 1e-4 * values[0]:
                names.append(f"{name}:<br>{role}")
                values.append(-saved)
                kinds.append("relative")
        last = table["sparse"]
    names.append("executed")
    values.append(float(last.sum()))
    kinds.append("total")
    scale = 1e9 if values[0] >= 1e9 else 1e6
    unit = "G" if scale == 1e9 else "M"
    figure: Json = {"layout": layout(theme, title)}
    figure["data"] = [{
        "type": "waterfall", "x": names, "y": [value / scale for value in values], "measure": kinds,
        "text": [f"{value / scale:.3g}" for value in values], "textposition": "outside", "cliponaxis": False,
        "decreasing": {"marker": {"color": colours.removed.fill, "line": {"color": colours.removed.line, "width": 1}}},
        "increasing": {"marker": {"color": colours.threshold.fill}},
        "totals": {"marker": {"color": colours.measured.fill}},
        "connector": {"line": {"color": colours.axis, "width": 1}},
        "hovertemplate": "%{x}: %{y:.4g} " + unit + "<extra></extra>",
    }]  # fmt: skip
    share = 1 - values[-1] / values[0]
    figure["layout"] |= {
        "xaxis": axis(theme, "", grid=False),
        "yaxis": axis(theme, f"multiply–adds of one image, {unit}", rangemode="tozero"),
        "annotations": [note(f"{text.percent(share, 4)} fewer multiply–adds, counted as executed; this is no speed",
                             colours.muted, xref="paper", yref="paper", x=1, y=1, xanchor="right")],
    }  # fmt: skip
    return figure
