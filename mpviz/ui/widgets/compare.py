"""Methods side by side in a notebook: curves, what was removed where, spectra and the table of one grid of runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ipywidgets as w
import param

from mpviz.errors import MpvizError
from mpviz.grid_results import GridResult, committed_grid, committed_grids, read_grid, spectra_after
from mpviz.ui import tables, text
from mpviz.ui.comparison import comparison_figure, comparison_table_html
from mpviz.ui.export import file_stem
from mpviz.ui.method_figures import removed_figure, spectra_figure, usual_sparsity
from mpviz.ui.theme import Json, empty
from mpviz.ui.widgets import panels
from mpviz.ui.widgets.desk import Desk, View

FACES = {
    "curves": "accuracy, certified share, budget and cross-entropy against sparsity",
    "removed": "what each method removed, by layer",
    "spectra": "singular values of a layer before and after",
    "table": "all numbers, mean ± spread over the seeds",
}
_HEIGHT = 470  # pixels


class Grids(param.Parameterized):
    """Which grid is looked at, and how. found: what was read of it; part: a sparsity or a layer, where a face has some.

    known: a name and a title for each grid; own: how those are read that do not come with mpviz.
    """

    grid = param.String("")
    face = param.Selector(default="curves", objects=list(FACES))
    part = param.Parameter("")
    found = param.Parameter(None)
    error = param.String("")

    def __init__(self, own: dict[str, Callable[[], GridResult]]) -> None:
        super().__init__()
        self.own = own
        self.known = {name: name for name in own} | committed_grids()
        self._spectra: tuple[GridResult | None, Any] = (None, None)
        self.read(next(iter(self.known)))

    def read(self, name: str) -> None:
        """Look at a grid as it is now. Raises MpvizError, and then the one that was seen stays."""
        found = self.own[name]() if name in self.own else committed_grid(name)
        self.param.update(grid=name, found=found, part=self._parts(found, self.face)[1])

    def turn(self, face: str) -> None:
        """Show another face of the grid."""
        self.param.update(face=face, part=self._parts(self.found, face)[1])

    @property
    def parts(self) -> list[tuple[str, Any]]:
        """What the present face can be looked at for: labels and values, none where it is shown whole."""
        return self._parts(self.found, self.face)[0]

    def _parts(self, found: GridResult, face: str) -> tuple[list[tuple[str, Any]], Any]:
        if face == "removed" and len(found.layers):
            sparsities = sorted(set(found.layers["sparsity"]))
            return [(f"{100 * at:g} % removed", at) for at in sparsities], usual_sparsity(found.layers)
        if face == "spectra" and (spectra := self.spectra(found)) is not None:
            names = list(dict.fromkeys(spectra["layer"]))
            return [(text.short_name(name), name) for name in names], next(iter(names), "")
        return [], ""

    def spectra(self, found: GridResult) -> Any:
        """Spectra before and after of a grid, kept for the next look; None where its checkpoints are gone."""
        if self._spectra[0] is not found:
            try:
                kept = spectra_after(found)
            except MpvizError:
                kept = None
            self._spectra = (found, kept)
        return self._spectra[1]


def compare_view(of: GridResult | Path | str | None = None, theme: str | None = None) -> View:
    """The methods of one grid side by side; a field leads to the grids that come with mpviz. `.close()` ends it.

    of: what `mp.run_grid` returned, or its folder, which may still be running: the button reads it again. None for the
    committed measurements alone. theme: "light", "dark", or None to follow the page. Raises CheckpointError for a
    folder that holds no grid.
    """
    own: dict[str, Callable[[], GridResult]] = {}
    if isinstance(of, GridResult):
        own[of.folder.name] = lambda: of
    elif of is not None:
        own[Path(of).name] = lambda: read_grid(Path(of))
    desk = Desk(Grids(own), theme)
    body = w.VBox([_figure(desk), _table(desk)])
    return panels.view(desk, [_bar(desk), body, _about(desk)], "methods side by side")


def _bar(desk: Desk) -> w.Widget:
    """Which grid, which face of it, and what of that."""
    state: Grids = desk.workbench
    wide = w.Layout(width="270px")
    grid = w.Dropdown(options=[(title, name) for name, title in state.known.items()], value=state.grid,
                      tooltip="A grid of methods, sparsities and seeds", layout=wide)  # fmt: skip
    face = panels.choice([(name, name) for name in FACES], "70px", list(FACES.values()))
    part = w.Dropdown(tooltip="The sparsity or the layer that is shown", layout=w.Layout(width="200px"))
    again = w.Button(icon="refresh", tooltip="Read the grid again, as it is on disk now", layout=w.Layout(width="34px"))

    def follow() -> None:
        grid.value, face.value = state.grid, state.face
        parts = state.parts
        part.layout.visibility = "visible" if parts else "hidden"
        if tuple(parts) != part.options:
            part.options = parts
        if parts:
            part.value = state.part

    grid.observe(lambda change: desk.act(state.read, change["new"]), "value")
    face.observe(lambda change: desk.act(state.turn, change["new"]), "value")
    part.observe(lambda change: desk.act(setattr, state, "part", change["new"]), "value")
    again.on_click(lambda _: desk.act(state.read, state.grid))
    desk.paint(("grid", "face", "part", "found"), follow)
    return w.HBox([grid, again, face, part], layout=w.Layout(flex_flow="row wrap", align_items="center"))


def _figure(desk: Desk) -> w.Widget:
    def draw(state: Grids, theme: str) -> Json:
        figure = _drawn(state, theme)
        figure["layout"]["meta"] = file_stem(state.grid.replace("/", "-"), state.face)
        figure["layout"]["uirevision"] = f"{state.grid} {state.face} {state.part}"
        return figure

    return panels.while_seen(
        desk, ("face",), lambda: desk.workbench.face != "table",
        lambda: desk.figure(("found", "face", "part"), draw, _HEIGHT),
    )  # fmt: skip


def _drawn(state: Grids, theme: str) -> Json:
    """The figure of the present face, or why there is none."""
    found: GridResult = state.found
    methods = list(dict.fromkeys(found.metrics["method"]))
    if state.face == "removed":
        if found.layers.empty:
            return empty("This grid does not say what was removed from which layer.", theme)
        return removed_figure(found.layers, state.part, methods, theme)
    if state.face == "spectra":
        spectra = state.spectra(found)
        if spectra is None:
            return empty("The checkpoints of this grid are not here, so its spectra cannot be drawn.", theme)
        return spectra_figure(spectra, state.part, methods, theme)
    return comparison_figure(found.metrics, theme)


def _table(desk: Desk) -> w.Widget:
    words = w.HTML()
    box = w.Box([words], layout=w.Layout(max_height=f"{_HEIGHT}px", overflow="auto", display="none"))
    box.add_class("mpviz-scroll")

    def follow() -> None:
        state: Grids = desk.workbench
        shown = state.face == "table"
        box.layout.display = "block" if shown else "none"
        words.value = comparison_table_html(state.found.metrics, desk.theme) if shown else ""

    desk.paint(("found", "face", "theme"), follow)
    return box


def _about(desk: Desk) -> w.Widget:
    """How the numbers came to be."""
    words = w.HTML()

    def follow() -> None:
        found: GridResult = desk.workbench.found
        seeds = text.plural(found.metrics["seed"].nunique(), "seed")
        facts = [str(found.environment[key]) for key in ("command", "date", "hardware") if found.environment.get(key)]
        said = text.escape(" · ".join([f"{len(found.metrics)} cells, {seeds}", *facts]))
        chip = tables.chip("measured", desk.theme)
        words.value = f"<div class='mpviz-line mpviz-quiet' title='{said}'>{chip} {said}</div>"

    desk.paint(("found", "theme"), follow)
    return words
