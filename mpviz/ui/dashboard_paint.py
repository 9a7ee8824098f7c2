"""From the state to the page: which region is drawn from what, and how. No toolkit: regions only get new values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mpviz import __version__
from mpviz.ui import cards, figures, rows, text
from mpviz.ui import dashboard_words as words
from mpviz.ui.export import file_stem
from mpviz.ui.layer_figure import layer_figure, look
from mpviz.ui.sample_rows import sample_cells
from mpviz.ui.takeaway import proof_figure, stamped
from mpviz.workbench.names import PLAN
from mpviz.workbench.views import JobStatus

if TYPE_CHECKING:
    from mpviz.ui.theme import Json
    from mpviz.workbench.state import Workbench

Roots = Mapping[str, Any]

# controls whose value is a setting of the Workbench under the same name
SETTINGS = (
    "sparsity",
    "beta",
    "decay_end",
    "signal",
    "scale",
    "log_y",
    "view",
    "shuffled",
    "split",
    "samples",
    "layer",
)
# a role whose layers can have a β of their own: the setting, and the box that says “as β”
OWN_BETA = {"attention": ("beta_attention", "same_attention"), "mlp": ("beta_mlp", "same_mlp")}
# sliders that a double click sets back to where they began
RESETS = ("sparsity", "beta", "decay_end", "beta_attention", "beta_mlp")
# what waits for a network
_NEEDS_NETWORK = (*SETTINGS, "previous", "next", "recipe", "report", "recipe_text", "apply", "session", "session_file")
_NEEDS_LAYERS = ("lock", *(name for pair in OWN_BETA.values() for name in pair))


@dataclass(frozen=True)
class Seen:
    """What the page shows besides the Workbench. wb: None until the first network is loaded. edit: counts draggings.

    lower: what the card below the spectrum shows, "budgets", "layers", "spikes", "samples" or "recipe". right: what
    the card beside the spectrum shows, "coverage", "tiers", "margins", "attribution" or "cards".
    """

    wb: Workbench | None
    job: JobStatus
    error: str = ""
    theme: str = "light"
    edit: int = 0
    lower: str = "budgets"
    right: str = "coverage"


def _strip(roots: Roots, seen: Seen, wb: Workbench) -> None:
    roots["strip"].object = stamped(_low(figures.strip(wb.table, wb.layer, seen.theme)), wb, "strip")


def _low(figure: Json) -> Json:
    """Without the room for a title of the x axis: here every pixel of height counts."""
    figure["layout"]["margin"]["b"] = 24
    figure["layout"].get("xaxis", {}).pop("title", None)  # plotly keeps a line free for an empty title, too
    return figure


def _spectrum(roots: Roots, seen: Seen, wb: Workbench) -> None:
    figure = layer_figure(wb.spectrum, wb.view, wb.scale, wb.log_y, seen.theme)
    roots["spectrum"].object = stamped(figure, wb, "spectrum")


def _budgets(roots: Roots, seen: Seen, wb: Workbench) -> None:
    if seen.lower == "budgets":
        figure = _low(figures.budgets(wb.budgets, wb.layer, seen.theme))
        roots["budgets"].object = stamped(figure, wb, "budgets")


def _layer_rows(roots: Roots, seen: Seen, wb: Workbench) -> None:
    cells = rows.layer_cells(wb.table)
    roots["layers"].param.update(cells=cells, ids=rows.keys(cells, "layer"))


def _budget_rows(roots: Roots, seen: Seen, wb: Workbench) -> None:
    if seen.lower == "layers":  # each message costs; what is not seen is sent when it is looked at
        roots["layers"].param.update(live=rows.budget_cells(wb.table, wb.budgets), selected=wb.layer)


def _spike_rows(roots: Roots, seen: Seen, wb: Workbench) -> None:
    if seen.lower == "spikes":
        cells = rows.spike_cells(wb.spectrum)
        label = f"spikes of {wb.layer}"
        roots["spikes"].param.update(cells=cells, ids=rows.keys(cells, "rank"), label=label)


def _coverage(roots: Roots, seen: Seen, wb: Workbench) -> None:
    curve = wb.curve
    if curve.current is None:  # the line follows the slider also where nothing is known yet
        unknown = dict.fromkeys(("coverage", "unchanged", "accuracy"), math.nan)
        curve = replace(curve, current={"sparsity": wb.sparsity, "tier": "estimate", **unknown})
    figure = figures.coverage(curve, seen.theme)
    # else plotly keeps the place to which the line was dragged, whatever the state says
    figure["layout"]["editrevision"] = seen.edit
    roots["coverage"].object = stamped(figure, wb, "coverage")


def _proofs(roots: Roots, seen: Seen, wb: Workbench) -> None:
    if seen.right in ("coverage", "cards"):
        return
    view = wb.proofs
    row = None if view is None else min(wb.sample, len(view.samples) - 1)
    roots["proofs"].object = stamped(proof_figure(wb, seen.right, seen.theme), wb, seen.right)
    roots["why"].object = words.why_html(view, seen.right, row, wb.tiers)


def _proving(roots: Roots, seen: Seen, wb: Workbench) -> None:
    if wb.proofs is None and seen.job.name == "prove":
        _proofs(roots, seen, wb)


def _tiers(roots: Roots, seen: Seen, wb: Workbench) -> None:
    roots["tiers"].value = list(wb.tiers)
    if seen.right == "cards":
        roots["cards"].object = cards.html(wb.tiers, wb.proofs)


def _sample_rows(roots: Roots, seen: Seen, wb: Workbench) -> None:
    if seen.lower == "samples":
        cells = sample_cells(wb.proofs)
        selected = "" if wb.proofs is None else str(min(wb.sample, len(wb.proofs.samples) - 1))
        roots["sample_rows"].param.update(cells=cells, ids=rows.keys(cells, "row"), selected=selected)


def _recipe(roots: Roots, seen: Seen, wb: Workbench) -> None:
    if seen.lower == "recipe":
        roots["recipe_text"].value = wb.recipe_text


def _steps(roots: Roots, seen: Seen, wb: Workbench) -> None:
    for name in ("undo", "redo"):
        roots[name].disabled = not getattr(wb, f"{name}able")


def _sample(roots: Roots, seen: Seen, wb: Workbench) -> None:
    if wb.proofs is not None:
        roots["sample_rows"].selected = str(min(wb.sample, len(wb.proofs.samples) - 1))


def _layers(roots: Roots, seen: Seen, wb: Workbench) -> None:
    options = {text.short_name(name): name for name in wb.layers}
    if roots["layer"].options != options:
        roots["layer"].param.update(options=options, value=wb.layer)


def _settings(roots: Roots, seen: Seen, wb: Workbench) -> None:
    for name in SETTINGS:
        if roots[name].value != getattr(wb, name):
            roots[name].value = getattr(wb, name)


def _log_y(roots: Roots, seen: Seen, wb: Workbench) -> None:
    roots["log_y"].disabled = not look(wb.view).log_y


def _betas(roots: Roots, seen: Seen, wb: Workbench) -> None:
    present = set(wb.table.loc[wb.table["prunable"].astype(bool), "role"])
    for role, (setting, box) in OWN_BETA.items():
        own = getattr(wb, setting)
        roots[box].param.update(value=own is None, disabled=role not in present)
        roots[setting].param.update(value=wb.beta if own is None else own, disabled=own is None)


def _lock(roots: Roots, seen: Seen, wb: Workbench) -> None:
    short = text.short_name(wb.layer, 24)
    locked = wb.layer in wb.locked
    prunable = wb.budgets is not None and wb.layer in wb.budgets.index
    label = f"{'locked' if locked else 'lock'}: {short}" if prunable else f"not prunable: {short}"
    roots["lock"].param.update(label=label, value=locked, disabled=not prunable)


def _sources(roots: Roots, seen: Seen, wb: Workbench) -> None:
    if seen.job.busy:  # the lists show what is being loaded
        return
    for name in ("model", "data"):
        now = getattr(wb, name)
        if now not in roots[name].options.values():
            roots[name].options = {**roots[name].options, now: now}
        roots[name].value = now


def _job(roots: Roots, seen: Seen, wb: Workbench | None) -> None:
    busy = seen.job.busy
    for name in ("model", "other", "open", "data"):
        roots[name].disabled = busy
    for name in ("prune", "prove", "precompute"):
        roots[name].disabled = busy or wb is None
    roots["cancel"].disabled = not busy
    roots["checkpoint"].disabled = wb is None or wb.comparison is None
    for name in _NEEDS_NETWORK:
        if name in roots:
            roots[name].disabled = wb is None
    if wb is None:
        roots["status"].object = words.status_html(seen.job)
        _waiting(roots, seen)


def _status(roots: Roots, seen: Seen, wb: Workbench) -> None:
    roots["status"].object = words.status_html(seen.job, wb.curve)


def _files(roots: Roots, seen: Seen, wb: Workbench) -> None:
    """Downloads are called after what is in them."""
    gone = () if wb.pruned_at is None else (f"{100 * wb.pruned_at[0].sparsity:g}",)
    endings = {"checkpoint": ".safetensors", "report": ".html", "recipe": ".toml"}
    for name, ending in endings.items():
        if name in roots:
            what = ("pruned", *gone) if name == "checkpoint" else (name,)
            roots[name].filename = f"{file_stem(wb.model, *what)}{ending}"
    roots["taken"].object = ""


def _waiting(roots: Roots, seen: Seen) -> None:
    """The page before its first network."""
    for name in _NEEDS_LAYERS:
        roots[name].disabled = True
    for name in ("undo", "redo"):
        roots[name].disabled = True
    failed = seen.job.state in ("failed", "cancelled")
    message = "No network yet; choose one on the left." if failed else f"{text.escape(seen.job.message)} …"
    for name in ("strip", "spectrum", "coverage", "budgets"):
        roots[name].object = figures.empty(message if name == "strip" else "", seen.theme)


def _comparison(roots: Roots, seen: Seen, wb: Workbench | None) -> None:
    if wb is None or wb.comparison is None or wb.pruned_at is None:
        roots["comparison"].object = words.comparison_html(None)
        return
    current = wb.comparison_is_current
    caption = text.pruned_words(*wb.pruned_at, current)
    roots["comparison"].object = words.comparison_html(wb.comparison, caption, current)


def _alert(roots: Roots, seen: Seen, wb: Workbench | None) -> None:
    message = seen.error or ("" if wb is None else wb.error)
    # the box around message and button shows itself while it holds something of this class
    roots["alert"].param.update(object=words.alert_html(message), css_classes=["shown"] if message else [])


def _dense(roots: Roots, seen: Seen, wb: Workbench) -> None:
    n_samples = 0 if wb.curve is None else wb.curve.n_samples
    roots["dense"].object = words.dense_html(wb.info, n_samples, wb.split)


def _footer(roots: Roots, seen: Seen, wb: Workbench | None) -> None:
    known = ({}, None) if wb is None else (wb.info, wb.curve)
    roots["footer"].object = words.footer_html(seen.job, known[0], __version__, known[1])


# region: how it is painted, and from what
_WITH_NETWORK: list[tuple[Callable[[Roots, Seen, Workbench], None], set[str]]] = [
    (_layers, {"table"}),
    (_settings, set(SETTINGS)),
    (_betas, {"table", "beta", "beta_attention", "beta_mlp"}),
    (_log_y, {"view", "job"}),
    (_budgets, {"budgets", "layer", "theme", "lower"}),
    (_layer_rows, {"table"}),
    (_budget_rows, {"budgets", "table", "layer", "lower"}),
    (_spike_rows, {"spectrum", "lower"}),
    (_coverage, {"curve", "theme"}),
    (_proofs, {"proofs", "sample", "tiers", "theme", "right", "split", "model", *PLAN}),
    (_proving, {"job"}),
    (_tiers, {"tiers", "proofs", "right"}),
    (_sample_rows, {"proofs", "lower"}),
    (_sample, {"sample"}),
    (_recipe, {"lower", "model", "data", "split", *PLAN}),
    (_steps, {"undoable", "redoable"}),
    (_strip, {"table", "layer", "theme"}),
    (_spectrum, {"spectrum", "scale", "log_y", "view", "theme"}),
    (_lock, {"layer", "locked", "budgets"}),
    (_sources, {"model", "data", "job"}),
    (_status, {"job", "curve"}),
    (_files, {"model", "comparison"}),
    (_dense, {"info", "curve", "split"}),
]
_ALWAYS: list[tuple[Callable[[Roots, Seen, Workbench | None], None], set[str]]] = [
    (_job, {"job", "comparison", "theme"}),
    (_comparison, {"comparison", "split", *PLAN}),
    (_alert, {"error", "job"}),
    (_footer, {"info", "job", "curve"}),
]
EVERYTHING = frozenset().union(*(needs for _, needs in _WITH_NETWORK), *(needs for _, needs in _ALWAYS))


def paint(roots: Roots, seen: Seen, changed: set[str] | frozenset[str]) -> None:
    """Give new values to the regions that are drawn from what has changed, and to no others."""
    for region, needs in _ALWAYS:
        if needs & changed:
            region(roots, seen, seen.wb)
    if seen.wb is None:
        return
    for part, needs in _WITH_NETWORK:
        if needs & changed:
            part(roots, seen, seen.wb)
