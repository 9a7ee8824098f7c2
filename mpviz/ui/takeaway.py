"""What a workbench shows, as files: each figure as HTML, each table as CSV or Parquet, named after what is in it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING

import pandas as pd

from mpviz.errors import MpvizError, nearest
from mpviz.ui import figures
from mpviz.ui.export import File, curve_table, figure_html, file_stem, layer_table, spike_table, table_file
from mpviz.ui.layer_figure import layer_figure
from mpviz.ui.theme import Json

_drawn = count()

if TYPE_CHECKING:
    from mpviz.nets.evolution import Evolution
    from mpviz.workbench.state import Workbench


def proof_figure(wb: Workbench, what: str, theme: str) -> Json:
    """The figure "tiers", "margins" or "attribution", greyed when it is no longer of the present plan."""
    view = wb.proofs
    if view is None and wb.job.busy and wb.job.name == "prove":
        return figures.empty("Proving …<br>the lines appear when all of them are there.", theme)
    if what == "tiers":
        figure = figures.tiers(view, theme, wb.tiers)
    else:
        row = None if view is None else min(wb.sample, len(view.samples) - 1)
        figure = {"margins": figures.margins, "attribution": figures.attribution}[what](view, theme, row)
    return figure if wb.proofs_are_current else figures.aged(figure)


def _tiers_table(wb: Workbench) -> pd.DataFrame | None:
    view = wb.proofs
    if view is None:
        return None
    columns = {name: curve.coverage for name, curve in view.curves.items()}
    return pd.DataFrame(columns, index=pd.Index(view.positions, name="sparsity"))


def _samples_table(wb: Workbench) -> pd.DataFrame | None:
    view = wb.proofs
    if view is None:
        return None
    s = view.samples
    plain = {"label": s.label, "dense": s.dense_top[:, 0], "dense_second": s.dense_top[:, 1],
             "pruned": s.pruned_top[:, 0], "pruned_second": s.pruned_top[:, 1], "margin": s.margin,
             "pruned_margin": s.pruned_margin, "eta": s.eta, "changed": s.changed,
             "certified": s.certified}  # fmt: skip
    return pd.DataFrame(plain | dict(s.lower), index=pd.Index(s.index, name="sample"))


FIGURES: dict[str, Callable[[Workbench, str], Json]] = {
    "strip": lambda wb, theme: figures.strip(wb.table, wb.layer, theme),
    "spectrum": lambda wb, theme: layer_figure(wb.spectrum, wb.view, wb.scale, wb.log_y, theme),
    "coverage": lambda wb, theme: figures.coverage(wb.curve, theme),
    "budgets": lambda wb, theme: figures.budgets(wb.budgets, wb.layer, theme),
    "tiers": lambda wb, theme: proof_figure(wb, "tiers", theme),
    "margins": lambda wb, theme: proof_figure(wb, "margins", theme),
    "attribution": lambda wb, theme: proof_figure(wb, "attribution", theme),
}
TABLES: dict[str, Callable[[Workbench], pd.DataFrame | None]] = {
    "layers": lambda wb: layer_table(wb.table, wb.budgets),
    "spikes": lambda wb: spike_table(wb.spectrum),
    "budgets": lambda wb: wb.budgets,
    "curve": lambda wb: curve_table(wb.curve),
    "comparison": lambda wb: wb.comparison,
    "tiers": _tiers_table,
    "samples": _samples_table,
}


def stem(wb: Workbench, what: str) -> str:
    """How a file with this is called, without its ending: the network, and the layer where it is about one."""
    if what == "spectrum":
        return file_stem(wb.model, wb.layer, wb.view)
    return file_stem(wb.model, *((wb.layer,) if what == "spikes" else ()), what)


def take(wb: Workbench, what: str, form: str, theme: str = "light") -> File:
    """One figure or table of the workbench as it stands.

    what: of FIGURES for form "html", of TABLES for "csv" and "parquet". Raises MpvizError for what is not there.
    """
    if form == "html":
        if what not in FIGURES:
            raise MpvizError(f"no figure is called {what!r}; {nearest(what, FIGURES)}")
        name = stem(wb, what)
        return File(f"{name}.html", figure_html(FIGURES[what](wb, theme), name).encode())
    if what not in TABLES:
        raise MpvizError(f"no table is called {what!r}; {nearest(what, TABLES)}")
    table = TABLES[what](wb)
    if table is None:
        if what == "comparison":
            raise MpvizError("nothing is pruned yet, so there is no before and after; press Prune first")
        raise MpvizError("nothing is proved yet; press Prove first")
    return table_file(table, stem(wb, what), form)


def evolution_file(followed: Evolution, theme: str = "light") -> File:
    """All checkpoints of a layer as one page that plays them, with a slider; needs nothing else to be seen."""
    name = file_stem(followed.layer, "evolution")
    stills = [figures.evolution(followed, step, theme) for step in range(len(followed))]
    return File(f"{name}.html", figure_html(figures.animated(stills, followed.labels), name).encode())


def stamped(figure: Json, wb: Workbench, what: str) -> Json:
    """The figure with the name that its picture files get, where the page finds it: `layout.meta`.

    And with a number in front of all else: who compares two figures, as param does, is done after one step.
    """
    figure["layout"]["meta"] = stem(wb, what)
    return {"drawn": next(_drawn), **figure}
