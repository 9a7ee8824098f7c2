"""The reservoir of prune–restore: what each step held back of each layer, and how much of it came back."""

from __future__ import annotations

import pandas as pd

from mpviz.errors import DataError, nearest
from mpviz.ui import text
from mpviz.ui._layers import depth_ticks
from mpviz.ui.method_figures import LAYERS, check_columns
from mpviz.ui.theme import Json, axis, layout, note, palette

NAMED = 40  # layers that can each have a name at the axis
LABELLED = 400  # cells that can each have a number


def restoring_methods(layers: pd.DataFrame) -> list[str]:
    """The methods of a grid that had a reservoir, in the order of its rows; none where it was not recorded."""
    if "reservoir" not in layers:
        return []
    return [str(method) for method in dict.fromkeys(layers.loc[layers["reservoir"] > 0, "method"])]


def reservoir_figure(layers: pd.DataFrame, method: str, theme: str = "light") -> Json:
    """The reservoir of one method by step and layer: left its share of the layer, right how much of it came back.

    layers: of `mp.run_grid`. Percent, sums over the seeds; a step is named by the sparsity that it ends with, layers
    stand in the order of the network, the first on top. Empty where the step held nothing of the layer back. Raises
    DataError for a method without a reservoir.
    """
    check_columns(layers, (*LAYERS, "reservoir"))
    known = restoring_methods(layers)
    if method not in known:
        raise DataError(f"no reservoir of the method '{method}' is known; {nearest(method, known)}")
    own = layers[(layers["method"] == method) & layers["reservoir"].notna()]
    names, steps = list(dict.fromkeys(layers["layer"])), sorted(own.loc[own["reservoir"] > 0, "sparsity"].unique())
    sums = own.groupby(["layer", "sparsity"])[["params", "reservoir", "restored"]].sum()
    table = {column: sums[column].unstack().reindex(index=names, columns=steps) for column in sums}
    held = table["reservoir"].where(table["reservoir"] > 0)
    colours, words = palette(theme), [f"{100 * step:g} %" for step in steps]
    figure: Json = {"data": [], "layout": layout(theme)}
    parts = (
        ("", 100 * held / table["params"], "of the layer in the reservoir", colours.removed.line, held),
        ("2", 100 * table["restored"] / held, "of that came back", colours.bulk.line, table["restored"]),
    )
    page = figure["layout"]
    page["annotations"] = []
    for key, shares, what, colour, counts in parts:
        numbers = [[None if pd.isna(value) else round(float(value), 4) for value in row] for row in shares.to_numpy()]
        hover = [
            [
                f"{text.escape(name)}, step to {step}: {_count(counts.loc[name, at])} entries"
                for at, step in zip(steps, words, strict=True)
            ]
            for name in names
        ]
        figure["data"].append({
            "type": "heatmap", "x": words, "y": list(range(len(names))), "z": numbers, "text": hover, "zmin": 0,
            "zmax": max((value for row in numbers for value in row if value is not None), default=1.0) or 1.0,
            "colorscale": [[0.0, colours.grid], [1.0, colour]], "showscale": False, "xgap": 2, "ygap": 1,
            "texttemplate": "%{z:.0f}" if len(names) * len(steps) <= LABELLED else "", "xaxis": f"x{key}",
            "yaxis": f"y{key}", "hovertemplate": f"%{{text}}, %{{z:.1f}} % {what}<extra></extra>", "hoverongaps": False,
        })  # fmt: skip
        place = {"xref": f"x{key} domain", "x": 0, "yref": "paper", "y": 1, "xanchor": "left", "yanchor": "bottom"}
        page["annotations"].append(note(f"% {what}", colours.ink, yshift=4, **place))
    roles = layers.drop_duplicates("layer").set_index("layer")["role"]
    if len(names) <= NAMED:
        places, labels = list(range(len(names))), [text.escape(text.short_name(name)) for name in names]
    else:
        places, labels = depth_ticks(names, [str(roles[name]) for name in names])
    ticks = {"tickmode": "array", "tickvals": places, "ticktext": labels, "autorange": "reversed"}
    page |= {
        "xaxis": axis(theme, "step to sparsity", grid=False, domain=[0.0, 0.48], anchor="y", type="category"),
        "xaxis2": axis(theme, "step to sparsity", grid=False, domain=[0.52, 1.0], anchor="y2", type="category"),
        "yaxis": axis(theme, "", grid=False, anchor="x", **ticks),
        "yaxis2": axis(theme, "", grid=False, anchor="x2", matches="y", showticklabels=False, ticks=""),
        "margin": {"l": 64, "r": 16, "t": 36, "b": 48},
        "height": 84 + min(max(17 * len(names), 180), 640),  # a row a layer
    }  # fmt: skip
    return figure


def _count(value: float) -> str:
    return text.count(value if value > 0 else 0)  # nothing where it is not a number
