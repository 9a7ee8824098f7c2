"""All layers side by side, depth from left to right: the model strip and the layer budgets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mpviz.ui import text
from mpviz.ui.theme import LIGHT, Json, Palette, axis, empty, faint, hatch, layout, note, palette

if TYPE_CHECKING:
    import pandas as pd

_ROW_OF_ROLE = {"attention": "attention", "mlp": "mlp", "conv": "conv", "depthwise": "conv"}
_ROWS = ("attention", "mlp", "conv", "other")
_TALLEST = 0.7  # of a row; the fit mark stands above
_MARK = 0.88
_SHORTEST = 0.3  # of the tallest bar: the smallest layer's shares stay readable
_FEWEST_COLUMNS = 6  # three layers should not become three walls
_BOTTOM = 26  # px: tick labels and no axis title
_FIT_SHAPE = {"good": "circle", "fair": "triangle-down", "poor": "triangle-up"}
_LETTERS = 150  # tick letters that fit side by side in the narrowest page


def strip(table: pd.DataFrame | None, selected: str | None = None, theme: str = "light") -> Json:
    """The whole model: one bar a layer in the row of its role.

    Bar height: parameters, logarithmic. Sky blue: the bulk's share of the eigenvalues; orange: the spikes'. Marks:
    ● good fit, ▼ fair, ▲ poor, hollow and pale for layers that are not prunable. customdata = parameter name.
    table: as made by `analyze`. selected: outlined; ignored when it is not in the table. Always five traces: bulk,
    spikes, no fit, fit, layers.
    """
    if table is None or len(table) == 0:
        return empty(text.EMPTY_STRIP, theme)
    colours = palette(theme)
    names = [str(name) for name in table.index]
    row_of = [_ROW_OF_ROLE.get(role, "other") for role in table["role"].tolist()]
    rows = [row for row in _ROWS if row in row_of]
    base = [float(len(rows) - 1 - rows.index(row)) for row in row_of]
    data = [*_share_bars(table, base, colours), _fit_marks(table, base, colours), _targets(table, names, base)]
    shares = f"{text.key('■', 'bulk', colours.bulk)}, {text.key('▧', 'spikes', colours.spike)}"
    keys = f"height: parameters, log scale, {shares}, ● fit good, ▼ fair, ▲ poor, ○ not prunable"
    figure_layout = layout(theme, text.strip_title(table, theme), keys)
    figure_layout["margin"]["b"] = _BOTTOM
    figure_layout |= {
        "xaxis": _depth_axis(names, table["role"].tolist(), theme),
        "yaxis": axis(
            theme,
            grid=False,
            range=[-0.06, len(rows) + 0.04],
            tickmode="array",
            tickvals=[len(rows) - 1 - i + _TALLEST / 2 for i in range(len(rows))],
            ticktext=list(rows),
            fixedrange=True,
        ),
        "barmode": "overlay",
        "dragmode": False,
        "shapes": [_outline(names.index(selected), base[names.index(selected)], colours)] if selected in names else [],
        "uirevision": "strip",
    }
    return {"data": data, "layout": figure_layout}


def _share_bars(table: pd.DataFrame, base: list[float], colours: Palette) -> list[Json]:
    heights = _heights(table["params"].tolist())
    shares = [float(s) for s in table["bulk_fraction"].tolist()]
    opacity = [1.0 if prunable else 0.5 for prunable in table["prunable"].tolist()]
    known = [math.isfinite(share) for share in shares]
    parts = {  # name: (colour, start within the bar, length), as shares of the bar
        "bulk": (colours.bulk, [(0.0, s if ok else 0.0) for s, ok in zip(shares, known, strict=True)]),
        "spikes": (colours.spike, [(s, 1 - s) if ok else (0.0, 0.0) for s, ok in zip(shares, known, strict=True)]),
        "no fit": (colours.neutral, [(0.0, 0.0 if ok else 1.0) for ok in known]),
    }
    return [
        {
            "type": "bar",
            "name": name,
            "x": list(range(len(base))),
            "base": [b + h * start for b, h, (start, _) in zip(base, heights, spans, strict=True)],
            "y": [h * length for h, (_, length) in zip(heights, spans, strict=True)],
            "width": [0.8] * len(base),
            "marker": {
                "color": colour.fill,
                "opacity": opacity,
                "line": {"color": colour.line, "width": [1 if length else 0 for _, length in spans]},
                **({"pattern": hatch(LIGHT.spike, "\\")} if name == "spikes" else {}),
            },
            "hoverinfo": "skip",
        }
        for name, (colour, spans) in parts.items()
    ]


def _heights(params: list[int]) -> list[float]:
    """Logarithmic: a stem of 300 weights beside a layer of 300 000 would vanish otherwise."""
    logs = [math.log(max(p, 1)) for p in params]
    low, span = min(logs), max(logs) - min(logs)
    shares = [(x - low) / span if span > 0 else 1.0 for x in logs]
    return [_TALLEST * (_SHORTEST + (1 - _SHORTEST) * share) for share in shares]


def _fit_marks(table: pd.DataFrame, base: list[float], colours: Palette) -> Json:
    symbols, tints = [], []
    columns = (table[c].tolist() for c in ("grade", "prunable", "bulk_fraction"))
    for grade, prunable, share in zip(*columns, strict=True):
        shape = _FIT_SHAPE.get(grade, "x-thin") if math.isfinite(share) else "x-thin"
        symbols.append(shape if prunable and shape != "x-thin" else f"{shape}-open")
        tints.append(colours.ink if prunable else colours.axis)
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "fit",
        "x": list(range(len(base))),
        "y": [b + _MARK for b in base],
        # an array of sizes would make plotly draw the marks see-through
        "marker": {"symbol": symbols, "color": tints, "size": [8 if "tri" in s else 6 for s in symbols], "opacity": 1},
        "cliponaxis": False,
        "hoverinfo": "skip",
    }


def _targets(table: pd.DataFrame, names: list[str], base: list[float]) -> Json:
    """An invisible bar as tall as the row over each layer: small layers are as easy to hit as large ones."""
    return {
        "type": "bar",
        "name": "layers",
        "x": list(range(len(base))),
        "base": base,
        "y": [1.0] * len(base),
        "width": [1.0] * len(base),
        "marker": {"color": "rgba(0,0,0,0)", "line": {"width": 0}},
        "customdata": names,
        "hovertext": layer_words(table),
        "hoverinfo": "text",
    }


def layer_words(table: pd.DataFrame) -> list[str]:
    """What a hover over a layer says; escaped."""
    columns = ("role", "rows", "cols", "params", "sigma_plus", "bulk_fraction", "n_spikes", "fit_error", "grade",
               "verdict", "prunable", "why")  # fmt: skip
    words = []
    for name, *values in zip(table.index, *(table[c].tolist() for c in columns), strict=True):
        row = dict(zip(columns, values, strict=True))
        lines = [
            f"<b>{text.escape(name)}</b>",
            f"{text.escape(row['role'])}, {row['rows']} × {row['cols']}, {text.count(row['params'])} parameters",
        ]
        if math.isfinite(row["bulk_fraction"]):
            spikes = text.plural(int(row["n_spikes"]), "spike")
            lines.append(
                f"σ₊ {text.significant(row['sigma_plus'])}, {text.percent(row['bulk_fraction'])} bulk, {spikes}"
            )
            lines.append(f"MP fit {row['grade']}, largest CDF gap {text.significant(row['fit_error'])}")
        if row["grade"] != "good":
            mark = "▼" if row["grade"] == "fair" else "⚠"
            lines.append(f"{mark} {text.escape(row['verdict'])}")
        if not row["prunable"]:
            lines.append(f"not prunable: {text.escape(row['why'])}")
        words.append("<br>".join(lines))
    return words


def budgets(table: pd.DataFrame | None, selected: str | None = None, theme: str = "light") -> Json:
    """What pruning takes from each layer: purple hatched is removed, sky blue kept, the dashed line the whole network.

    table: index parameter name, columns role, params, weight (SEB), removed, sparsity, locked. customdata = name.
    Always two traces, removed and kept.
    """
    if table is None or len(table) == 0:
        return empty(text.EMPTY_BUDGETS, theme)
    colours = palette(theme)
    names = [str(name) for name in table.index]
    overall = 100 * int(table["removed"].sum()) / max(int(table["params"].sum()), 1)
    keys = f"{text.key('▨', 'removed', colours.removed)}, {text.key('■', 'kept', colours.bulk)}, ┄ whole network"
    figure_layout = layout(theme, text.budgets_title(table, theme), keys)
    figure_layout["margin"] |= {"r": 64, "b": _BOTTOM}
    line = {"color": colours.ink, "width": 1.5, "dash": "dash"}
    place = {"x": 1, "y": overall, "xref": "paper", "xanchor": "left", "xshift": 6}
    figure_layout |= {
        "xaxis": _depth_axis(names, table["role"].tolist(), theme),
        "yaxis": axis(theme, "share of the weights, %", range=[0, 102.5], tick0=0, dtick=25, fixedrange=True),
        "barmode": "overlay",
        "dragmode": False,
        "shapes": [{"type": "line", "x0": 0, "x1": 1, "xref": "paper", "y0": overall, "y1": overall, "line": line}],
        "annotations": [note(f"<b>{text.percent(overall / 100)}</b>", colours.ink, **place)],
        "uirevision": "budgets",
    }
    if selected in names:
        figure_layout["shapes"].append(_outline(names.index(selected), 0.0, colours, height=101.5))
    return {"data": _budget_bars(table, names, colours), "layout": figure_layout}


def _budget_bars(table: pd.DataFrame, names: list[str], colours: Palette) -> list[Json]:
    removed = [100 * float(share) for share in table["sparsity"].tolist()]
    shared = {
        "type": "bar",
        "x": list(range(len(names))),
        "width": [0.8] * len(names),
        "customdata": names,
        "hovertext": _budget_words(table),
        "hoverinfo": "text",
    }
    pale = {"color": faint(colours.removed.fill, 0.45), "line": {"color": colours.removed.line, "width": 1}}
    lock = {
        "text": ["locked" if locked else "" for locked in table["locked"].tolist()],
        "textangle": -90,
        "textposition": "inside",
        "insidetextanchor": "end",
        "textfont": {"color": LIGHT.ink, "size": 12},  # on sky blue, which is bright in both themes
    }
    solid = {"color": colours.bulk.fill, "line": {"color": colours.bulk.line, "width": 1}}
    return [
        {**shared, "name": "removed", "y": removed, "marker": {**pale, "pattern": hatch(colours.removed, "/")}},
        {**shared, "name": "kept", "y": [100 - share for share in removed], "base": removed, "marker": solid, **lock},
    ]


def _budget_words(table: pd.DataFrame) -> list[str]:
    columns = ("role", "params", "weight", "removed", "sparsity", "locked")
    words = []
    for name, role, params, weight, removed, sparsity, locked in zip(
        table.index, *(table[c].tolist() for c in columns), strict=True
    ):
        last = "locked: nothing is removed" if locked else f"SEB weight {text.significant(weight)}"
        words.append(
            f"<b>{text.escape(name)}</b><br>{text.escape(role)}<br>{text.percent(sparsity)} removed:"
            f" {text.count(removed)} of {text.count(params)}<br>{last}"
        )
    return words


def _outline(column: int, base: float, colours: Palette, height: float = 0.98) -> Json:
    """The selected layer's frame."""
    return {
        "type": "rect",
        "x0": column - 0.5,
        "x1": column + 0.5,
        "y0": base - 0.02 * height,
        "y1": base + height,
        "line": {"color": colours.ink, "width": 2},
        "fillcolor": "rgba(0,0,0,0)",
    }


def _depth_axis(names: list[str], roles: Sequence[str], theme: str) -> Json:
    columns = max(len(names), _FEWEST_COLUMNS)
    places, labels = depth_ticks(names, roles)
    return axis(
        theme,
        grid=False,
        range=[-0.6, columns - 0.4],
        tickmode="array",
        tickvals=places,
        ticktext=labels,
        tickangle=0,
        fixedrange=True,
    )


def depth_ticks(names: Sequence[str], roles: Sequence[str]) -> tuple[list[int], list[str]]:
    """Where a new block begins and what to call it; labels that would touch their neighbour are left out. Escaped.

    >>> names = ["stem.weight", "blocks.0.qkv.weight", "blocks.0.fc.weight", "blocks.1.qkv.weight", "head.weight"]
    >>> depth_ticks(names, ["stem", "attention", "mlp", "attention", "head"])
    ([0, 1, 3, 4], ['stem', 'blocks.0', '1', 'head'])
    """
    letters = _LETTERS / max(len(names), _FEWEST_COLUMNS)  # tick letters to a column
    places: list[int] = []
    labels: list[str] = []
    previous, said, free = "", "", -math.inf
    for column, (name, role) in enumerate(zip(names, roles, strict=True)):
        stem, number = _block(name, role)
        if f"{stem}.{number}" == previous:
            continue
        previous = f"{stem}.{number}"
        label = number if number and stem == said else ".".join(filter(None, (stem, number)))
        half = (len(label) + 1) / 2 / letters
        if column - half < free:
            continue
        said, free = stem, column + half
        places.append(column)
        labels.append(text.escape(label))
    return places, labels


def _block(name: str, role: str) -> tuple[str, str]:
    """("blocks", "3") of blocks.3.attn.qkv.weight; the role of a stem or head; else the name and no number."""
    if role in ("stem", "head"):
        return role, ""
    parts = name.removesuffix(".weight").split(".")
    for i, part in enumerate(parts):
        if part.isdigit() and i:
            return ".".join(parts[:i]), part
    return text.short_name(name, 18), ""
