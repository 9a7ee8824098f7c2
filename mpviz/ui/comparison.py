"""Methods side by side over a grid of sparsities and seeds: curves with bands, what was removed where, one page."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import pandas as pd

from mpviz.errors import DataError
from mpviz.ui import tables, text
from mpviz.ui.method_figures import MARKS, check_columns, method_colour, removed_figure, spectra_figure, usual_sparsity
from mpviz.ui.method_words import glossary_html
from mpviz.ui.page import filled_page, footer
from mpviz.ui.paper_tables import paper_tables
from mpviz.ui.reservoir_figure import reservoir_figure, restoring_methods
from mpviz.ui.theme import CONFIG, Json, axis, faint, layout, note, palette

METRICS = (
    "method", "seed", "sparsity", "phase", "accuracy", "dense_accuracy", "coverage", "budget", "cross_entropy_change",
)  # fmt: skip
PANELS = {
    "accuracy": ("accuracy, %", 100.0),
    "coverage": ("certified, %", 100.0),
    "budget": ("least B<sub>T</sub> (measured)", 1.0),
    "cross_entropy_change": ("change of cross-entropy, nats", 1.0),
}
_DASHES = ("solid", "dash", "dot", "dashdot")


def comparison_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """Mean and sample standard deviation over the seeds, one row a phase, method and sparsity; NaN spread for one seed.

    metrics: of `mp.run_grid`. Raises DataError for a frame without rows or columns that are needed.
    """
    check_columns(metrics, METRICS)
    groups = metrics.groupby(["phase", "method", "sparsity"], sort=True)
    table = pd.DataFrame({"seeds": groups["seed"].nunique()})
    for name in PANELS:
        table[name], table[f"{name}_spread"] = groups[name].mean(), groups[name].std(ddof=1)
    return table.reset_index()


def comparison_figure(metrics: pd.DataFrame, theme: str = "light", phase: str | None = None) -> Json:
    """Panels over the sparsity: accuracy, certified share, least B_T, the cross-entropy's change; what is known.

    The least B_T (measured) is 2·mean‖Δz‖∞ over the samples: no data-path budget B_T = (2/|T|) Σ L_x‖Rψ₁(x)‖∞ can be
    smaller, whatever its constants L_x, and the cross-entropy cannot have changed by more. A line is the mean over
    seeds, its band ± one sample standard deviation; a method keeps colour and mark in all panels, and its numbers
    before recovery are hollow. phase: "pruned" or "recovered" alone. Raises DataError.
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
    known = [name for name in PANELS if table[name].notna().any()]
    for number, name in enumerate(known, start=1):
        key, (words, scale) = "" if number == 1 else str(number), PANELS[name]
        across, up = _domains(number - 1, len(known))
        page[f"xaxis{key}"] = axis(theme, "sparsity, %" if up[0] == 0 else "", domain=across, anchor=f"y{key}")
        if key:
            page[f"xaxis{key}"]["matches"] = "x"  # a panel of which less was measured keeps the same scale
        page[f"yaxis{key}"] = axis(theme, words, domain=up, anchor=f"x{key}")
        low, high = table[name].min(), table[name].max()
        if name == "budget" and low > 0 and high > 10 * low:
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


def _domains(place: int, panels: int) -> tuple[list[float], list[float]]:
    """Where a panel stands, across and up: two in a row, the last one over the whole width when it is alone."""
    column, row, rows = place % 2, place // 2, (panels + 1) // 2
    alone = place == panels - 1 and column == 0
    height = (1.0 - 0.14 * (rows - 1)) / rows
    bottom = 0.0 if row == rows - 1 else 1.0 - (row + 1) * height - 0.14 * row
    return [0.56 * column, 1.0 if alone else 0.44 + 0.56 * column], [bottom, min(bottom + height, 1.0)]


def _lines(
    rows: pd.DataFrame, name: str, scale: float, key: str, place: int, hollow: bool, legend: bool, theme: str
) -> list[Json]:
    """The line of a method in a panel, and the band behind it where there are seeds enough."""
    rows = rows[rows[name].notna()]  # a grid may hold cells of which this was not measured
    if rows.empty:
        return []
    colour, method = method_colour(place, theme), str(rows["method"].iloc[0])
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
        "marker": {"symbol": MARKS[place % 8] + ("-open" if hollow else ""), "size": 7, "color": colour},
        "hovertemplate": f"{text.escape(method)}, {words}<br>at %{{x:.0f}} %, {PANELS[name][0]}: %{{y:.4g}} ± "
                         "%{customdata[0]:.2g} (%{customdata[1]} seeds)<extra></extra>",
        "showlegend": legend, **shown,
    })  # fmt: skip
    return made


def _dense(figure: Json, accuracy: float, colour: str) -> None:
    line = {"color": colour, "width": 1, "dash": "dot"}
    place = {"x0": 0, "x1": 1, "xref": "x domain", "y0": 100 * accuracy, "y1": 100 * accuracy, "yref": "y"}
    figure["layout"].setdefault("shapes", []).append({"type": "line", "line": line, **place})
    words = note("dense", colour, x=1, xref="x domain", y=100 * accuracy, yref="y", xanchor="right", yanchor="bottom")
    figure["layout"].setdefault("annotations", []).append(words)


def comparison_html(
    metrics: pd.DataFrame, layers: pd.DataFrame, title: str, about: Mapping[str, str], theme: str = "light",
    when: datetime | None = None, spectra: pd.DataFrame | None = None, nav: str = "", remark: str = "",
) -> str:  # fmt: skip
    """A page of its own with the figures and the table; it fetches nothing. about: facts, such as model and versions.

    layers: where it has no rows, what was removed where is left out. spectra: of `spectra_after`; None leaves the
    figure out, and remark says why. nav: HTML at the head of the page, already safe.
    Raises DataError for frames that are no grid's, MpvizError for an unknown theme.
    """
    methods = list(dict.fromkeys(metrics["method"]))
    names = [] if spectra is None else list(dict.fromkeys(spectra["layer"]))
    sparsities = [] if layers.empty else sorted(set(layers["sparsity"]))
    restoring = restoring_methods(layers)
    drawn = {
        "config": CONFIG,
        "curves": comparison_figure(metrics, theme),
        "sparsities": [f"{100 * at:g} %" for at in sparsities],
        "first": sparsities.index(usual_sparsity(layers)) if sparsities else 0,
        "removed": [removed_figure(layers, at, methods, theme) for at in sparsities],
        "restoring": restoring,
        "reservoirs": [reservoir_figure(layers, method, theme) for method in restoring],
        "layers": names,
        "spectra": [] if spectra is None else [spectra_figure(spectra, name, methods, theme) for name in names],
    }
    parts = {
        "nav": nav,
        "no_removed": "hidden" if layers.empty else "",
        "no_reservoir": "" if restoring else "hidden",
        "no_spectra": "" if names else "hidden",
        "spectra_at": f"{100 * spectra['sparsity'].iloc[0]:g}" if spectra is not None and names else "",
        "remark": text.escape(remark),
        "title": text.escape(title),
        "glossary": glossary_html(methods),
        "measured": tables.chip("measured", theme),
        "table": comparison_table_html(metrics, theme),
        "paper": paper_tables(set(metrics["sparsity"]), set(metrics["phase"]), theme),
        "about": tables.html_table(("", ""), [[text.escape(k), text.escape(v)] for k, v in about.items()], theme),
        "footer": footer(when or datetime.now().astimezone()),
    }
    return filled_page("comparison.html", parts, drawn, theme)


def comparison_table_html(metrics: pd.DataFrame, theme: str) -> str:
    """The table of `comparison_table` as HTML, mean ± spread; a row a phase, method and sparsity."""
    table = comparison_table(metrics)

    def spread(row: pd.Series, name: str, scale: float) -> str:
        mean = f"{scale * row[name]:.4g}" if scale == 1 else f"{scale * row[name]:.2f}"
        mean = mean.replace("-", "−")
        if pd.isna(row[name]):
            return "–"
        return mean if pd.isna(row[f"{name}_spread"]) else f"{mean} ± {scale * row[f'{name}_spread']:.2g}"

    rows = [
        [text.escape(row["method"]), text.escape(row["phase"]), f"{100 * row['sparsity']:g}", str(row["seeds"]),
         *(spread(row, name, scale) for name, (_, scale) in PANELS.items())]
        for _, row in table.sort_values(["sparsity", "method", "phase"]).iterrows()
    ]  # fmt: skip
    head = ("method", "phase", "sparsity, %", "seeds", "accuracy, %", "certified, %", "least B_T (measured)",
            "change of CE, nats")  # fmt: skip
    return tables.html_table(head, rows, theme)
