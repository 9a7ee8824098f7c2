"""Speeds in a notebook: every way to run a network side by side, timed here or read from a benchmark's cells."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import ipywidgets as w
import param

from mpviz.benchmark.ledger import BenchReport, Cell, cells_table
from mpviz.errors import MpvizError
from mpviz.two_four import benchmark_cells, gpu_here, hardware, layers_of, missing_here, route
from mpviz.ui import text
from mpviz.ui.bench_figures import layers_figure, run_name, steps_figure, throughput_figure
from mpviz.ui.bench_page import endpoints_table, limit_words, steps_of
from mpviz.ui.export import file_stem
from mpviz.ui.theme import Json, empty
from mpviz.ui.widgets import page, panels
from mpviz.ui.widgets.desk import Desk, View
from mpviz.workbench.jobs import Job
from mpviz.workbench.views import JobStatus

if TYPE_CHECKING:
    from mpviz.workbench.state import Workbench

FACES = {
    "speed": "images a second of every endpoint, measured",
    "steps": "what each step from float32 is worth",
    "layers": "shapes of layers beside what the machine can do",
    "table": "all endpoints: medians with quartiles, or why there is none",
}
_HEIGHT = 340  # pixels
_BATCHES = {"cpu": "1, 8", "cuda": "64, 128"}


class Cells(param.Parameterized):
    """The cells that are known, which of them is in view, and the benchmark that runs."""

    cells = param.List([])
    place = param.Integer(0, doc="of the cell in view")
    face = param.Selector(default="speed", objects=list(FACES))
    job = param.Parameter(JobStatus())
    error = param.String("")

    def __init__(self, cells: Sequence[Cell], workbench: Workbench | None = None) -> None:
        own = [place for place, cell in enumerate(cells) if workbench is not None and cell.model == workbench.model]
        super().__init__(cells=list(cells), place=next(iter(own), 0))
        self.workbench = workbench
        self._job: Job | None = None

    @property
    def cell(self) -> Cell | None:
        """The cell in view."""
        return self.cells[self.place] if self.place < len(self.cells) else None

    @property
    def group(self) -> list[Cell]:
        """All cells of the network and the machine of the one in view."""
        own = self.cell
        if own is None:
            return []
        return [one for one in self.cells if (one.model, hardware(one)) == (own.model, hardware(own))]

    def time_it(self, batches: str) -> Job:
        """Time the workbench's network in the background. Raises MpvizError for batches that are no numbers."""
        from mpviz.benchmark.running import bench

        workbench, sizes = self.workbench, _sizes(batches)
        if workbench is None:
            raise MpvizError("there is no network to time; make the panel of a workbench")
        if self.job.busy or workbench.job.busy:
            raise MpvizError("something runs already, and would be timed with it; wait for it or cancel it")
        network, name = workbench.network, workbench.model

        def work(job: Job) -> None:
            report = bench(network, batches=sizes, name=name, progress=job.tell, cancelled=job.cancelled)
            job.claim()
            self.param.update(cells=[*report.cells, *self.cells], place=0)

        self._job = Job("benchmark", work, self._on_status)
        return self._job.start()

    def cancel(self) -> None:
        """Stop the benchmark that runs; cells that were there stay."""
        if self._job is not None:
            self._job.cancel()

    def _on_status(self, status: JobStatus) -> None:
        self.param.update(job=status, **({"error": status.message} if status.state == "failed" else {}))


def _sizes(words: str) -> list[int]:
    """
    >>> _sizes("1, 8")
    [1, 8]
    """
    try:
        return [int(one) for one in words.replace(",", " ").split()]
    except ValueError:
        raise MpvizError(f"'{words}' are no batch sizes; write numbers such as 1, 8") from None


def benchmark_view(of: Workbench | BenchReport | Path | str | None = None, theme: str | None = None) -> View:
    """Endpoints side by side, dense and 2:4: throughput, what each step is worth, layers beside their limits.

    of: a Workbench, whose network a button times on this machine; what `mp.bench` returned, or the folder of its
    cells; None for the measurements that come with mpviz, which stand behind all others. theme: "light", "dark", or
    None to follow the page. `.close()` ends it. Raises CheckpointError for a file in the folder that is no cell.
    """
    cells: list[Cell] = []
    if isinstance(of, BenchReport):
        cells = list(of.cells)
    elif isinstance(of, (str, Path)):
        cells = benchmark_cells(Path(of))
    workbench = None if of is None or isinstance(of, (BenchReport, str, Path)) else of
    desk = Desk(Cells([*cells, *benchmark_cells()], workbench), theme)
    desk.closing.append(desk.workbench.cancel)
    timing = [] if workbench is None else [_timing(desk)]
    return panels.view(desk, [*timing, _bar(desk), _figure(desk), _words(desk)], "a benchmark")


def _timing(desk: Desk) -> w.Widget:
    """A button that times the network, and what it does."""
    state: Cells = desk.workbench
    gpu = gpu_here()
    batches = w.Text(value=_BATCHES["cuda" if gpu else "cpu"], description="batches", layout=w.Layout(width="170px"),
                     tooltip="Images a call, one benchmark each", style={"description_width": "54px"})  # fmt: skip
    start = w.Button(description="Time this network", button_style="primary", layout=w.Layout(width="140px"),
                     tooltip="Run it in every way that this machine has, in turns, with the same weights")  # fmt: skip
    cancel = w.Button(description="Cancel", tooltip="Stop; what was timed before stays", layout=w.Layout(width="76px"))
    said = w.HTML()
    start.on_click(lambda _: desk.act(state.time_it, batches.value))
    cancel.on_click(lambda _: desk.act(state.cancel))
    where = f"on {gpu}" if gpu and not missing_here() else "2:4 needs a CUDA GPU: dense endpoints only"

    def follow() -> None:
        start.disabled, cancel.disabled = state.job.busy, not state.job.busy
        said.value = page.job_line(state.job, text.escape(where))

    desk.paint(("job",), follow)
    said.layout.flex = "1 1 0"
    return w.HBox([start, cancel, batches, said], layout=w.Layout(align_items="center", flex_flow="row wrap"))


def _bar(desk: Desk) -> w.Widget:
    state: Cells = desk.workbench
    which = w.Dropdown(tooltip="Network, machine and batch", layout=w.Layout(width="420px"))
    face = panels.choice([(name, name) for name in FACES], "60px", list(FACES.values()))

    def follow() -> None:
        options = [(_name(cell), number) for number, cell in enumerate(state.cells)]
        if which.options != tuple(options):
            which.options = options
        if options:
            which.value = state.place
        face.value = state.face

    which.observe(lambda change: desk.act(setattr, state, "place", change["new"]), "value")
    face.observe(lambda change: desk.act(setattr, state, "face", change["new"]), "value")
    desk.paint(("cells", "place", "face"), follow)
    return w.HBox([which, face], layout=w.Layout(flex_flow="row wrap", align_items="center"))


def _name(cell: Cell) -> str:
    return f"{cell.model}, {run_name(cell.batch, cell.tome)}: {hardware(cell)}, {cell.machine.get('date', '')}"


def _figure(desk: Desk) -> w.Widget:
    def draw(state: Cells, theme: str) -> Json:
        figure = _drawn(state, theme)
        name = "" if state.cell is None else f"{state.cell.model} {run_name(state.cell.batch, state.cell.tome)}"
        figure["layout"]["meta"] = file_stem("benchmark", name, state.face)
        figure["layout"]["uirevision"] = f"{state.place} {state.face} {len(state.cells)}"
        return figure

    return panels.while_seen(
        desk, ("face",), lambda: desk.workbench.face != "table",
        lambda: desk.figure(("cells", "place", "face"), draw, _HEIGHT),
    )  # fmt: skip


def _drawn(state: Cells, theme: str) -> Json:
    """The figure of the present face, or why there is none."""
    cell = state.cell
    if cell is None:
        return empty("Nothing was timed yet; mp.bench(model) makes a benchmark.", theme)
    try:
        if state.face == "steps":
            return steps_figure(route(cell), theme)
        if state.face == "layers":
            shapes = layers_of(cell)
            return layers_figure(shapes, theme) if len(shapes) else empty("No layer was timed by itself here.", theme)
        return throughput_figure(cells_table(state.group), theme)
    except MpvizError as error:
        return empty(text.escape(error), theme)


def _words(desk: Desk) -> w.Widget:
    """Ratios as sentences, each with its chip; in the table's place all endpoints."""
    said = w.HTML()
    box = w.Box([said], layout=w.Layout(max_height=f"{_HEIGHT}px", overflow="auto", display="block"))
    box.add_class("mpviz-scroll")

    def follow() -> None:
        state: Cells = desk.workbench
        if state.cell is None:
            said.value = ""
        elif state.face == "table":
            said.value = endpoints_table(state.group, desk.theme)
        else:
            said.value = steps_of(state.cell, desk.theme)[0] + f"<p>{limit_words(state.cell, desk.theme)}</p>"

    desk.paint(("cells", "place", "face", "theme"), follow)
    return box
