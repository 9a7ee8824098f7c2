"""Methods side by side over a grid of sparsities and seeds: curves with bands, what was removed where, one page."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import pandas as pd

from mpviz.errors import DataError
from mpviz.nets.paths import data_root
from mpviz.ui import tables, text
from mpviz.ui.page import filled_page, footer
from mpviz.ui.theme import CONFIG, Json, axis, faint, hatch, layout, note, palette

METRICS = (
    "method", "seed", "sparsity", "phase", "accuracy", "dense_accuracy", "coverage", "budget", "cross_entropy_change",
)  # fmt: skip
LAYERS = ("method", "seed", "sparsity", "layer", "role", "params", "removed", "restored")
PANELS = {
    "accuracy": ("accuracy, %", 100.0),
    "coverage": ("certified, %", 100.0),
    "budget": ("B<sub>T</sub> = 2·mean ‖Δz‖<sub>∞</sub>", 1.0),
    "cross_entropy_change": ("change of cross-entropy, nats", 1.0),
}
_DASHES = ("solid", "dash", "dot", "dashdot")
_MARKS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "triangle-down")


def comparison_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """Mean and sample standard deviation over the seeds, one row a phase, method and sparsity; NaN spread for one seed.

    metrics: of `mp.run_grid`. Raises DataError for a frame without rows or columns that are needed.
    """
    _check(metrics, METRICS)
    groups = metrics.groupby(["phase", "method", "sparsity"], sort=True)
    table = pd.DataFrame({"seeds": groups["seed"].nunique()})
    for name in PANELS:
        table[name], table[f"{name}_spread"] = groups[name].mean(), groups[name].std(ddof=1)
    return table.reset_index()


def comparison_figure(metrics: pd.DataFrame, theme: str = "light", phase: str | None = None) -> Json:
    """Four panels over the sparsity: accuracy, certified share, measured B_T and the cross-entropy's change.

    A line is the mean over seeds, its band ± one sample standard deviation; a method keeps colour and mark in all
    panels, and its numbers before recovery are hollow. phase: "pruned" or "recovered" alone. Raises DataError.
    """
    table = comparison_table(metrics)
    phases = [name for name in ("pruned", "recovered") if name in set(table["phase"])]
    if phase is not None:
        if phase not in phases:
            raise DataError(f"the grid has no phase '{phase}'; it has {', '.join(phases)}")
        phases = [phase]
    methods, colours = list(dict.fromkeys(metrics["method"])), palette(theme)
    figure: Json = {"data": [], "layout": layout(theme)}
    page = figure["layout"]
    for number, (name, (words, scale)) in enumerate(PANELS.items(), start=1):
        key = "" if number == 1 else str(number)
        column, row = (number - 1) % 2, (number - 1) // 2
        page[f"xaxis{key}"] = axis(theme, "sparsity, %" if row else "", domain=[0.56 * column, 0.44 + 0.56 * column],
                                   anchor=f"y{key}")  # fmt: skip
        page[f"yaxis{key}"] = axis(theme, words, domain=[0.56, 1.0] if row == 0 else [0.0, 0.42], anchor=f"x{key}")
        if name == "budget" and (table[name] > 0).all():
            page[f"yaxis{key}"] |= {"type": "log", "dtick": "D2"}
        for place, method in enumerate(methods):
            for one in phases:
                rows = table[(table["method"] == method) & (table["phase"] == one)]
                hollow = one == "pruned" and "recovered" in phases
                legend = number == 1 and not hollow
                figure["data"] += _lines(rows, name, scale, key, place, hollow, legend, theme)
        if name == "accuracy":
            _dense(figure, float(metrics["dense_accuracy"].mean()), colours.muted)
    page |= {
        "showlegend": True,
        "legend": {"orientation": "h", "x": 0, "y": 1.04, "yanchor": "bottom", "font": {"size": 12}},
        "margin": {"l": 64, "r": 16, "t": 60, "b": 48},
    }
    return figure


def _lines(
    rows: pd.DataFrame, name: str, scale: float, key: str, place: int, hollow: bool, legend: bool, theme: str
) -> list[Json]:
    """The line of a method in a panel, and the band behind it where there are seeds enough."""
    if rows.empty:
        return []
    colour, method = _colour(place, theme), str(rows["method"].iloc[0])
    shown = {"xaxis": f"x{key}", "yaxis": f"y{key}", "legendgroup": method}
    x, y = (100 * rows["sparsity"]).tolist(), (scale * rows[name]).tolist()
    spread = (scale * rows[f"{name}_spread"]).fillna(0.0).tolist()
    made: list[Json] = []
    if any(spread):
        low, high = zip(*((m - s, m + s) for m, s in zip(y, spread, strict=True)), strict=True)
        made.append({
            "type": "scatter", "mode": "lines", "x": x + x[::-1], "y": [*high, *low[::-1]], "fill": "toself",
            "fillcolor": faint(colour, 0.16), "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False, **shown,
        })  # fmt: skip
    words = "before recovery" if hollow else "measured"
    custom = [[s, n] for s, n in zip(spread, rows["seeds"].tolist(), strict=True)]
    made.append({
        "type": "scatter", "mode": "lines+markers", "name": text.escape(method), "x": x, "y": y, "customdata": custom,
        "line": {"color": colour, "width": 1.2 if hollow else 2, "dash": "dot" if hollow else _DASHES[place // 8 % 4]},
        "marker": {"symbol": _MARKS[place % 8] + ("-open" if hollow else ""), "size": 7, "color": colour},
        "hovertemplate": f"{text.escape(method)}, {words}<br>%{{x:.0f}} %: %{{y:.4g}} ± %{{customdata[0]:.2g}} "
                         "(%{customdata[1]} seeds)<extra></extra>",
        "showlegend": legend, **shown,
    })  # fmt: skip
    return made


def _colour(place: int, theme: str) -> str:
    colours = palette(theme)
    names = ("measured", "threshold", "edge", "spike", "removed", "bulk", "muted", "ink")
    found = getattr(colours, names[place % len(names)])
    return found if isinstance(found, str) else found.line


def _dense(figure: Json, accuracy: float, colour: str) -> None:
    line = {"color": colour, "width": 1, "dash": "dot"}
    place = {"x0": 0, "x1": 1, "xref": "x domain", "y0": 100 * accuracy, "y1": 100 * accuracy, "yref": "y"}
    figure["layout"].setdefault("shapes", []).append({"type": "line", "line": line, **place})
    words = note("dense", colour, x=1, xref="x domain", y=100 * accuracy, yref="y", xanchor="right", yanchor="bottom")
    figure["layout"].setdefault("annotations", []).append(words)


def removed_figure(layers: pd.DataFrame, sparsity: float | None = None, theme: str = "light") -> Json:
    """What each method removed of each kind of layer (each layer if all are alike) at one sparsity, and what came back.

    Bars are shares of the entries of that kind, means over seeds; the hatched part was removed in the last step of
    prune–restore and has come back. Raises DataError.
    """
    _check(layers, LAYERS)
    at = layers["sparsity"].max() if sparsity is None else sparsity
    rows = layers[(layers["sparsity"] - at).abs() < 1e-9]
    if rows.empty:
        known = ", ".join(f"{value:g}" for value in sorted(layers["sparsity"].unique()))
        raise DataError(f"the grid has no sparsity {at:g}; it has {known}")
    kind = "role" if rows["role"].nunique() > 1 else "layer"  # one bar for a whole network would say nothing
    sums = rows.groupby(["method", kind], sort=False)[["params", "removed", "restored"]].sum()
    shares = sums[["removed", "restored"]].div(sums["params"], axis=0)
    roles = list(dict.fromkeys(rows[kind]))
    figure: Json = {"data": [], "layout": layout(theme)}
    for place, method in enumerate(dict.fromkeys(layers["method"])):
        if method not in shares.index.get_level_values(0):
            continue
        own, colour = shares.loc[method].reindex(roles).fillna(0.0), _colour(place, theme)
        common = {"type": "bar", "x": [text.escape(text.short_name(role)) for role in roles], "offsetgroup": str(place),
                  "legendgroup": method}  # fmt: skip
        figure["data"].append(common | {
            "name": text.escape(method), "y": (100 * own["removed"]).tolist(), "marker": {"color": colour},
            "hovertemplate": f"{text.escape(method)}: %{{y:.2f}} % of %{{x}} removed<extra></extra>",
        })  # fmt: skip
        if own["restored"].any():
            figure["data"].append(common | {
                "name": f"{text.escape(method)}, came back", "y": (100 * own["restored"]).tolist(),
                "base": (100 * own["removed"]).tolist(),
                "marker": {"color": faint(colour, 0.25), "pattern": hatch(palette(theme).neutral, "/")},
                "hovertemplate": f"{text.escape(method)}: %{{y:.2f}} % of %{{x}} came back<extra></extra>",
            })  # fmt: skip
    figure["layout"] |= {
        "barmode": "group", "showlegend": True, "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "xaxis": axis(theme, grid=False), "yaxis": axis(theme, f"removed at sparsity {100 * at:.0f} %, % of the kind"),
        "margin": {"l": 64, "r": 16, "t": 48, "b": 44},
    }  # fmt: skip
    return figure


def comparison_html(
    metrics: pd.DataFrame, layers: pd.DataFrame, title: str, about: Mapping[str, str], theme: str = "light",
    when: datetime | None = None,
) -> str:  # fmt: skip
    """A page of its own with both figures and the table; it fetches nothing. about: facts, such as model and versions.

    Raises DataError for frames that are no grid's, MpvizError for an unknown theme.
    """
    drawn = {"config": CONFIG, "curves": comparison_figure(metrics, theme),
             "removed": removed_figure(layers, theme=theme)}  # fmt: skip
    parts = {
        "title": text.escape(title),
        "measured": tables.chip("measured", theme),
        "table": _table_html(metrics, theme),
        "paper": paper_table(sorted(set(metrics["sparsity"])), theme),
        "about": tables.html_table(("", ""), [[text.escape(k), text.escape(v)] for k, v in about.items()], theme),
        "footer": footer(when or datetime.now().astimezone()),
    }
    return filled_page("comparison.html", parts, drawn, theme)


def _table_html(metrics: pd.DataFrame, theme: str) -> str:
    table = comparison_table(metrics)

    def spread(row: pd.Series, name: str, scale: float) -> str:
        mean = f"{scale * row[name]:.4g}" if scale == 1 else f"{scale * row[name]:.2f}"
        mean = mean.replace("-", "−")
        return mean if pd.isna(row[f"{name}_spread"]) else f"{mean} ± {scale * row[f'{name}_spread']:.2g}"

    rows = [
        [text.escape(row["method"]), text.escape(row["phase"]), f"{100 * row['sparsity']:g}", str(row["seeds"]),
         *(spread(row, name, scale) for name, (_, scale) in PANELS.items())]
        for _, row in table.sort_values(["sparsity", "method", "phase"]).iterrows()
    ]  # fmt: skip
    head = ("method", "phase", "sparsity, %", "seeds", "accuracy, %", "certified, %", "B_T", "change of CE, nats")
    return tables.html_table(head, rows, theme)


def paper_table(sparsities: list[float], theme: str = "light") -> str:
    """The paper's ViT-B/16 on ImageNet at the nearest of its sparsities, as HTML; none of it was measured here.

    Source: arXiv:2606.02608; data/paper.
    """
    theirs: pd.DataFrame = pd.read_csv(data_root() / "paper" / "vitb_sparsity_grid.csv", index_col="method")
    known = {float(name): name for name in theirs.columns}
    near = sorted({min(known, key=lambda k: abs(k - s)) for s in sparsities if s <= max(known) + 1e-9})
    if not near:
        return "<p>Its table ends below the sparsities of this grid.</p>"
    rows = [[text.escape(str(m)), *(f"{float(row[known[s]]):.2f}" for s in near)] for m, row in theirs.iterrows()]
    return tables.html_table(("top-1, %", *(f"{100 * s:g} %" for s in near)), rows, theme)


def _check(frame: pd.DataFrame, columns: tuple[str, ...]) -> None:
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise DataError(f"this is no table of a grid: {', '.join(missing)} missing; take it from mp.run_grid")
    if frame.empty:
        raise DataError("the table of the grid has no rows; run the recipe first")
