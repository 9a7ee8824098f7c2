"""A finished projection as one HTML page: what was kept, what it costs, what runs, and what training gave back."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import pandas as pd

from mpviz.ui import tables, text
from mpviz.ui.page import filled_page, footer
from mpviz.ui.pattern_figures import layer_costs_figure, macs_figure
from mpviz.ui.theme import CONFIG

if TYPE_CHECKING:
    from mpviz.projecting import ProjectionResult

_PHASES = {"projected": "projected", "recovered": "after training"}


def projection_html(result: ProjectionResult, theme: str = "light", when: datetime | None = None) -> str:
    """A page of its own; it fetches nothing. Raises MpvizError for an unknown theme."""
    found, recipe = result.projected, result.recipe
    merged = f", {max(found.tome)} pairs of tokens merged a block" if found.tome else ""
    parts = {
        "title": text.escape(f"{recipe.model.name} at {found.pattern}{merged}"),
        "measured": tables.chip("measured", theme),
        "phases": phases_table(result.metrics, theme),
        "macs": _macs_words(result),
        "layers": _layers_table(found.cost, theme),
        "no_restore": "hidden" if result.restore is None else "",
        "restore": "" if result.restore is None else _restore_table(result.restore, theme),
        "about": tables.html_table(("", ""), _about(result), theme),
        "footer": footer(when or datetime.now().astimezone()),
    }
    figures = {"macs": macs_figure(_stages(result), theme), "costs": layer_costs_figure(found.cost, theme)}
    return filled_page("projection.html", parts, {"config": CONFIG, **figures}, theme)


def _stages(result: ProjectionResult) -> list[tuple[str, pd.DataFrame]]:
    """Dense, then with each saving. What merging alone saves follows from the places that each weight is applied to."""
    table = result.macs.table
    dense = result.macs.by_role()
    stages = [("dense", dense)]
    if result.macs.schedule:
        alone = table.assign(sparse=(table["sparse"] / table["density"].where(table["density"] > 0, 1.0)))
        stages.append(("merging", _by_role(alone)))
    stages.append((str(result.projected.pattern), dense))
    return stages


def _by_role(table: pd.DataFrame) -> pd.DataFrame:
    return table.groupby("role")[["dense", "sparse"]].sum()


def phases_table(metrics: pd.DataFrame, theme: str) -> str:
    """What the samples say of each phase."""
    rows = [
        [_PHASES[row["phase"]], text.percent(row["accuracy"], 4), text.percent(row["dense_accuracy"], 4),
         text.percent(row["coverage"]), text.percent(row["unchanged"]), text.significant(row["budget"]),
         text.significant(row["cross_entropy_change"]), str(row["samples"])]
        for row in metrics.to_dict("records")
    ]  # fmt: skip
    head = ("", "accuracy", "dense", "certified", "unchanged", "least B_T", "change of CE, nats", "samples")
    return tables.html_table(head, rows, theme)


def _macs_words(result: ProjectionResult) -> str:
    macs, theirs = result.macs, result.macs_paper
    scale, unit = (1e9, "G") if macs.dense >= 1e9 else (1e6, "M")
    words = (
        f"{macs.dense / scale:.4g} {unit} multiply–adds of one image dense, {macs.sparse / scale:.4g} {unit} as "
        f"executed: {text.percent(macs.reduction, 4)} fewer. "
    )
    if theirs.sparse != macs.sparse:
        words += (
            f"By the paper's convention, which bills each MLP at the tokens before they merge, "
            f"{theirs.sparse / scale:.4g} {unit} and {text.percent(theirs.reduction, 4)}. "
        )
    return text.escape(words)


def _layers_table(cost: pd.DataFrame, theme: str) -> str:
    rows = []
    for name, row in cost.iterrows():
        head = [text.escape(text.short_name(str(name))), text.escape(row["role"]), f"{row['rows']} × {row['cols']}"]
        if row["why"]:
            rows.append([*head, *["–"] * 5, text.escape(row["why"])])
            continue
        moved = f"{int(row['restored'])} / {int(row['dropped'])}" if row["restored"] or row["dropped"] else "–"
        rows.append([
            *head, text.escape("own" if row["order"] == "none" else row["order"]), text.percent(row["share"]),
            text.significant(row["left"] / row["cost"]) if row["cost"] > 0 else "–", moved,
            "proved" if row["exact"] else "–", "",
        ])  # fmt: skip
    columns = ("layer", "role", "shape", "order", "cost, of Σ w² E h²", "left by the repair", "restored / dropped",
               "least cost", "stays dense because")  # fmt: skip
    return tables.html_table(columns, rows, theme)


def _restore_table(restore: pd.DataFrame, theme: str) -> str:
    rows = [
        [text.escape(text.short_name(str(name))), text.count(row["restored"]), text.significant(row["budget_with"]),
         text.significant(row["budget_without"]), text.significant(row["drop"]), text.significant(row["price"]),
         "–" if row["restore"] is None else "yes" if row["restore"] else "no", tables.chip(row["tier"], theme),
         text.escape(row["why"])]
        for name, row in restore.iterrows()
    ]  # fmt: skip
    head = ("layer", "restored", "B_T(Q + P)", "B_T(P)", "falls by", "price of Q", "worth it", "known as", "note")
    return tables.html_table(head, rows, theme)


def _about(result: ProjectionResult) -> list[list[str]]:
    facts = {"data": result.recipe.data.name, **result.projected.settings, **result.environment}
    return [[text.escape(name), text.escape(str(value))] for name, value in facts.items() if value is not None]
