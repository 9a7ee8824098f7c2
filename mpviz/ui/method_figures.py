"""What methods did to the layers: what each removed by type and by layer, and the spectra before and after."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mpviz.errors import DataError, nearest
from mpviz.ui import text
from mpviz.ui._layers import depth_ticks
from mpviz.ui.theme import Json, axis, faint, hatch, layout, note, palette

LAYERS = ("method", "seed", "sparsity", "layer", "role", "params", "removed", "restored")
SPECTRA = ("method", "layer", "values", "sigma_plus", "grade")
BINS = 60
MARKS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "triangle-down")


def method_colour(place: int, theme: str) -> str:
    """The colour of the method at a place in the order of the methods, the same in all figures of a grid."""
    colours = palette(theme)
    lines = (colours.measured, colours.threshold, colours.edge, colours.spike, colours.removed)
    made = [*(colour.line for colour in lines), colours.muted, colours.ink, colours.bulk.fill]
    return made[place % len(made)]


def check_columns(frame: pd.DataFrame, columns: tuple[str, ...]) -> None:
    """Raises DataError for a frame without rows, or without columns that are needed."""
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise DataError(f"this is no table of a grid: {', '.join(missing)} missing; take it from mp.run_grid")
    if frame.empty:
        raise DataError("the table of the grid has no rows; run the recipe first")


def usual_sparsity(layers: pd.DataFrame) -> float:
    """The largest sparsity that most methods reached."""
    reached = layers.groupby("sparsity")["method"].nunique()
    return float(reached[reached == reached.max()].index.max())


def removed_figure(
    layers: pd.DataFrame, sparsity: float | None = None, methods: Sequence[str] | None = None, theme: str = "light"
) -> Json:
    """What each method removed at one sparsity, and what came back: left of each type of layer, right of each layer.

    Shares of the entries of that type or layer, means over seeds; layers stand in the order of the network. What came
    back had been removed in the last step of prune–restore: hatched on the bars, hollow marks for the layers. sparsity:
    None takes `usual_sparsity`. methods: in the order of the other figures, so that each keeps its colour. Raises
    DataError.
    """
    check_columns(layers, LAYERS)
    at = usual_sparsity(layers) if sparsity is None else sparsity
    rows = layers[(layers["sparsity"] - at).abs() < 1e-9]
    if rows.empty:
        known = ", ".join(f"{value:g}" for value in sorted(layers["sparsity"].unique()))
        raise DataError(f"the grid has no sparsity {at:g}; it has {known}")
    names, roles = list(dict.fromkeys(rows["layer"])), list(dict.fromkeys(rows["role"]))
    shares = {kind: _shares(rows, kind) for kind in ("role", "layer")}
    figure: Json = {"data": [], "layout": layout(theme)}
    for place, method in enumerate(dict.fromkeys(layers["method"]) if methods is None else methods):
        if method in set(rows["method"]):
            figure["data"] += _bars(shares["role"].loc[method].reindex(roles).fillna(0.0), method, place, theme)
            figure["data"] += _marks(shares["layer"].loc[method].reindex(names), method, place, theme)
    places, words = depth_ticks(names, [str(rows[rows["layer"] == name]["role"].iloc[0]) for name in names])
    ticks = {"tickmode": "array", "tickvals": places, "ticktext": words, "tickangle": 0}
    span = {"domain": [0.38, 1.0], "range": [-0.7, len(names) - 0.3]}
    figure["layout"] |= {
        "barmode": "group", "showlegend": True, "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "xaxis": axis(theme, "type", grid=False, domain=[0.0, 0.3], anchor="y"),
        "yaxis": axis(theme, f"removed at sparsity {100 * at:g} %, % of the type", anchor="x"),
        "xaxis2": axis(theme, "layer, in the order of the network", grid=False, anchor="y2", **span, **ticks),
        "yaxis2": axis(theme, "% of the layer", anchor="x2"),
        "margin": {"l": 64, "r": 16, "t": 48, "b": 48},
    }  # fmt: skip
    return figure


def _shares(rows: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Percent removed and restored, by method and type or layer."""
    sums = rows.groupby(["method", kind], sort=False)[["params", "removed", "restored"]].sum()
    return (100 * sums[["removed", "restored"]].div(sums["params"], axis=0)).round(4)


def _bars(own: pd.DataFrame, method: str, place: int, theme: str) -> list[Json]:
    """What a method removed of each type, and what came back."""
    colour, name = method_colour(place, theme), text.escape(method)
    common = {"type": "bar", "x": [text.escape(role) for role in own.index], "offsetgroup": str(place),
              "legendgroup": method}  # fmt: skip
    made: list[Json] = [common | {
        "name": name, "y": own["removed"].tolist(), "marker": {"color": colour},
        "hovertemplate": f"{name}: %{{y:.2f}} % of %{{x}} removed<extra></extra>",
    }]  # fmt: skip
    if own["restored"].any():
        made.append(common | {
            "name": f"{name}, came back", "y": own["restored"].tolist(), "base": own["removed"].tolist(),
            "marker": {"color": faint(colour, 0.25), "pattern": hatch(palette(theme).neutral, "/")},
            "hovertemplate": f"{name}: %{{y:.2f}} % of %{{x}} came back<extra></extra>",
        })  # fmt: skip
    return made


def _marks(own: pd.DataFrame, method: str, place: int, theme: str) -> list[Json]:
    """What a method removed of each layer; hollow: where it stood before entries came back."""
    colour, name = method_colour(place, theme), text.escape(method)
    common = {"type": "scatter", "xaxis": "x2", "yaxis": "y2", "legendgroup": method, "showlegend": False,
              "x": list(range(len(own)))}  # fmt: skip
    symbol, removed = MARKS[place % 8], own["removed"]
    words = [text.escape(text.short_name(str(layer))) for layer in own.index]
    made: list[Json] = [common | {
        "mode": "lines+markers", "name": name, "y": _numbers(removed), "customdata": words,
        "line": {"color": colour, "width": 1}, "marker": {"symbol": symbol, "size": 7, "color": colour},
        "hovertemplate": f"{name}: %{{y:.2f}} % of %{{customdata}} removed<extra></extra>",
    }]  # fmt: skip
    if own["restored"].any():
        back = [[layer, share] for layer, share in zip(words, _numbers(own["restored"]), strict=True)]
        made.append(common | {
            "mode": "markers", "name": f"{name}, came back", "y": _numbers(removed + own["restored"]),
            "customdata": back, "marker": {"symbol": f"{symbol}-open", "size": 7, "color": colour},
            "hovertemplate": f"{name}: %{{customdata[1]:.2f}} % of %{{customdata[0]}} came back<extra></extra>",
        })  # fmt: skip
    return made


def _numbers(values: pd.Series) -> list[float | None]:
    return [None if pd.isna(value) else float(value) for value in values]


def spectra_figure(
    spectra: pd.DataFrame, layer: str | None = None, methods: Sequence[str] | None = None, theme: str = "light"
) -> Json:
    """Singular values of a layer: of the dense network as an area, after each method as a line, in common bins.

    spectra: of `mpviz.grid_results.spectra_after`. layer: the first when None. methods: in the order of the other
    figures, so that each keeps its colour. Dashed: the fitted edges σ₊ where the fit is not poor. Raises DataError.
    """
    check_columns(spectra, SPECTRA)
    names = list(dict.fromkeys(spectra["layer"]))
    shown = names[0] if layer is None else layer
    rows = {str(row["method"]): row for row in spectra[spectra["layer"] == shown].to_dict("records")}
    if not rows:
        raise DataError(f"no spectra of the layer '{shown}'; {nearest(str(shown), names)}")
    order = list(methods) if methods is not None else [name for name in rows if name != "dense"]
    top = max(max(row["values"], default=0.0) for row in rows.values())
    edges = np.linspace(0.0, 1.02 * top or 1.0, BINS + 1)
    middles = ((edges[1:] + edges[:-1]) / 2).tolist()
    figure: Json = {"data": [], "layout": layout(theme)}
    shapes: list[Json] = []
    tallest, beyond = 1, 0  # what is near zero would flatten everything else
    for name in ("dense", *order):
        if name not in rows:
            continue
        colour = palette(theme).neutral.line if name == "dense" else method_colour(order.index(name), theme)
        counts, _ = np.histogram(rows[name]["values"], edges)
        tallest = max(tallest, int(counts[2:].max()))
        beyond = max(beyond, int(counts[:2].max()))
        area = {"fill": "tozeroy", "fillcolor": faint(colour, 0.25)} if name == "dense" else {}
        figure["data"].append({
            "type": "scatter", "mode": "lines", "name": text.escape(name), "x": middles, "y": counts.tolist(), **area,
            "line": {"shape": "hvh", "color": colour, "width": 1 if name == "dense" else 1.8},
            "hovertemplate": f"{text.escape(name)}, fit {text.escape(rows[name]['grade'])}: %{{y}} singular values "
                             "at %{x:.3g}<extra></extra>",
        })  # fmt: skip
        if rows[name]["grade"] in ("good", "fair"):
            at = float(rows[name]["sigma_plus"])
            line = {"color": colour, "width": 1.2, "dash": "dash"}
            shapes.append({"type": "line", "x0": at, "x1": at, "y0": 0, "y1": 1, "yref": "y domain", "line": line})
    if beyond > 1.1 * tallest:
        words = note(f"↑ to {beyond}", palette(theme).muted, x=0, xref="x domain", y=1, yref="y domain", xanchor="left",
                     xshift=26, yanchor="top")  # fmt: skip
        figure["layout"]["annotations"] = [words]
    figure["layout"] |= {
        "shapes": shapes, "showlegend": True, "hovermode": "x unified",
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "xaxis": axis(theme, f"singular value of {text.escape(shown)}", grid=False),
        "yaxis": axis(theme, "how many", range=[0, 1.1 * tallest]),
        "margin": {"l": 64, "r": 16, "t": 48, "b": 48},
    }  # fmt: skip
    return figure
