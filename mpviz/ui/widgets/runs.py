"""The queue of runs in a notebook: the same list, curves and log as on the dashboard's page, and the same buttons."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets as w
import pandas as pd
import param

from mpviz.errors import MpvizError
from mpviz.recipe import with_settings
from mpviz.ui import text
from mpviz.ui.export import table_file
from mpviz.ui.run_figures import NO_CURVE, figure_mark, run_figure
from mpviz.ui.run_words import (  # fmt: skip
    EMPTY_QUEUE,
    RUN_COLUMNS,
    dates,
    in_order,
    left_words,
    results_table,
    run_cells,
    state_words,
)
from mpviz.ui.theme import Json, empty
from mpviz.ui.widgets import panels
from mpviz.ui.widgets.desk import Desk, View
from mpviz.ui.widgets.table import Rows
from mpviz.workbench.jobs import sentence
from mpviz.workbench.run_curve import Curve, RunCurve, grid_cells, last_lines
from mpviz.workbench.run_queue import RunQueue
from mpviz.workbench.run_store import LOG, Run, plain

if TYPE_CHECKING:
    from mpviz.workbench.state import Workbench

_BEAT = 1.0  # seconds between two looks at the folder
_LINES = 200
_ROWS, _FIGURE, _LOG = 340, 250, 120  # pixels


class Watched(param.Parameterized):
    """What is seen of a queue: its runs, the one that was chosen, that one's training and log.

    All of it is read again and again from the files that the runs write: a view that is shown anew is as it was.
    """

    runs = param.List([])
    chosen = param.String("", doc="name of the run in view; empty for the first of the list")
    picture = param.Tuple(("", Curve(), []), doc="mark, curve and cells of the run in view")
    log = param.String("")
    error = param.String("")

    def __init__(self, queue: RunQueue) -> None:
        super().__init__()
        self.queue = queue
        self._curve: RunCurve | None = None
        self._ended, self._beat, self._turn = threading.Event(), threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._follow, name="mpviz-watch", daemon=True)

    @property
    def run(self) -> Run | None:
        """The run in view."""
        return next((run for run in self.runs if run.name == self.chosen), next(iter(self.runs), None))

    def look(self) -> None:
        """Read what is new."""
        with self._turn:
            try:
                found: dict[str, Any] = {"runs": in_order(self.queue.runs())}
            except MpvizError as error:
                self.error = sentence(error)
                return
            if found["runs"] == self.runs:
                del found["runs"]
            runs = found.get("runs", self.runs)
            run = next((one for one in runs if one.name == self.chosen), next(iter(runs), None))
            if run is not None:
                if self._curve is None or self._curve.folder != run.folder:
                    self._curve = RunCurve(run.folder)
                curve, cells = self._curve.look(), grid_cells(run.folder) if run.kind == "grid" else []
                mark = figure_mark(run, curve, cells)
                if mark != self.picture[0]:
                    found["picture"] = (mark, curve, cells)
                found["log"] = "\n".join(last_lines(self.queue.store.path(run.name, LOG), _LINES))
            self.param.update(**found)

    def start(self) -> None:
        """Look from now on, until `end`."""
        self._thread.start()

    def end(self) -> None:
        """Look no more; the runs go on."""
        self._ended.set()
        self._beat.set()

    def choose(self, name: str) -> None:
        """Look at another run."""
        self.chosen = name
        self.look()

    def act(self, what: str) -> None:
        """Cancel, resume or remove the run in view. Raises MpvizError."""
        if self.run is not None:
            getattr(self.queue, what)(self.run.name)
            self.look()

    def _follow(self) -> None:
        while not self._ended.is_set():
            self.look()
            self._beat.wait(_BEAT)


def run_view(
    queue: RunQueue | str | Path = "runs", workbench: Workbench | None = None, theme: str | None = None
) -> View:
    """The runs of a queue, or of the folder of one: progress, time left, curves, log, and buttons to act on them.

    workbench: adds a button that submits its plan, with as many epochs of training as stand beside it. All is read from
    the folder, so a reload of the page, another notebook and the dashboard show the same. `.close()` ends the view
    alone; the runs go on.
    """
    watched = Watched(queue if isinstance(queue, RunQueue) else RunQueue(queue))
    watched.look()
    desk = Desk(watched, theme)
    desk.closing.append(watched.end)
    below = [] if workbench is None else [_submitting(desk, workbench)]
    left = w.VBox([_rows(desk), *below])
    right = w.VBox([_head(desk), _buttons(desk), _failure(desk), _figure(desk), _table(desk), _log(desk)])
    sides = panels.row([panels.share(44, left, 360), panels.share(56, right, 400)])
    made = panels.view(desk, [sides], f"the runs in {watched.queue.folder}")
    watched.start()
    return made


def _rows(desk: Desk) -> Rows:
    watched = desk.workbench
    table = Rows(columns=[column.plain for column in RUN_COLUMNS], label="all runs", unit="run", empty=EMPTY_QUEUE,
                 tall=_ROWS)  # fmt: skip

    def follow() -> None:
        cells = run_cells(watched.runs)
        names = cells.pop("name")["text"]
        with table.hold_sync():
            if names != table.ids:
                table.cells, table.live, table.ids = {"run": cells["run"]}, cells, names
            else:
                table.live = cells
            table.selected = "" if watched.run is None else watched.run.name

    def react(said: dict[str, Any]) -> None:
        if said.get("what") == "pick":
            watched.choose(str(said.get("row", "")))
        else:
            frame = pd.DataFrame([plain(run) for run in watched.runs])
            table.send(table_file(frame, "runs", str(said.get("what"))).message)

    desk.paint(("runs", "chosen"), follow)
    table.observe(lambda change: desk.act(react, change["new"]), "said")
    return table


def _head(desk: Desk) -> w.Widget:
    watched = desk.workbench
    words, bar = w.HTML(), w.FloatProgress(min=0.0, max=1.0, layout=w.Layout(width="auto", height="10px"))

    def follow() -> None:
        run = watched.run
        bar.layout.visibility = "hidden" if run is None else "visible"
        if run is None:
            words.value = "<div class='mpviz-quiet'>Nothing has run yet: <code>queue.submit(recipe)</code></div>"
            return
        bar.value, said = run.progress, " · ".join(filter(None, (left_words(run), run.message)))
        bar.tooltip = f"{text.percent(run.progress, 2)} of {run.name}"
        e = text.escape
        words.value = (
            f"<div class='mpviz-line' title='{e(run.name)}: {e(dates(run))}'><b>{e(run.title)}</b> · "
            f"<span aria-live='polite'>{e(state_words(run))}</span></div>"
            f"<div class='mpviz-line mpviz-quiet' title='{e(said)}'>{e(said) or '&nbsp;'}</div>"
        )

    desk.paint(("runs", "chosen"), follow)
    return w.VBox([words, bar])


def _buttons(desk: Desk) -> w.Widget:
    watched, made = desk.workbench, {}
    tips = {
        "cancel": "Finish the step at hand, keep its state, and stop",
        "resume": "Put it at the end of the queue; it goes on from its last good state",
        "remove": "Take it off this list; what it wrote stays on disk",
    }
    for what, tip in tips.items():
        button = w.Button(description=what.capitalize(), tooltip=tip, layout=w.Layout(width="76px"))
        button.on_click(lambda _, what=what: desk.act(watched.act, what))
        made[what] = button

    def follow() -> None:
        run = watched.run
        can = {
            "cancel": run is not None and run.busy,
            "resume": run is not None and run.resumable,
            "remove": run is not None and run.state != "running",
        }
        for what, button in made.items():
            button.disabled = not can[what]

    desk.paint(("runs", "chosen"), follow)
    return w.HBox([*made.values()])


def _failure(desk: Desk) -> w.Widget:
    """The sentence of a failed run, its traceback behind a fold."""
    watched, line = desk.workbench, w.HTML()
    line.add_class("mpviz-scroll")

    def follow() -> None:
        run = watched.run
        shown = run is not None and bool(run.error)
        line.layout.display = None if shown else "none"
        if shown and run is not None:
            trace = f"<pre class='mpviz-log'>{text.escape_lines(run.traceback)}</pre>"
            fold = f"<details><summary>Traceback</summary>{trace}</details>" if run.traceback else ""
            line.value = f"<div class='mpviz-error' role='alert'>{text.escape(run.error)}</div>{fold}"

    desk.paint(("runs", "chosen"), follow)
    return line


def _figure(desk: Desk) -> w.Widget:
    def draw(watched: Watched, theme: str) -> Json:
        run = watched.run
        _, curve, cells = watched.picture
        return empty(NO_CURVE, theme) if run is None else run_figure(run, curve, cells, theme)

    return desk.figure(("picture",), draw, _FIGURE)


def _table(desk: Desk) -> w.Widget:
    """What a run that is over came to."""
    watched, table = desk.workbench, w.HTML()

    def follow() -> None:
        run = watched.run
        words = results_table(run.folder, desk.theme) if run is not None and run.state == "done" else ""
        table.layout.display = None if words else "none"
        table.value = words

    desk.paint(("picture", "chosen", "theme"), follow)
    return table


def _log(desk: Desk) -> w.Widget:
    """The end of the log; the newest line is in sight."""
    watched, words = desk.workbench, w.HTML()

    def follow() -> None:
        # laid out from the bottom, a box of this kind shows its end without a script
        inside = f"<pre class='mpviz-log'>{text.escape_lines(watched.log)}</pre>"
        words.value = (
            f"<div class='mpviz-follow' role='log' aria-label='Log' tabindex='0' style='height:{_LOG}px'>{inside}</div>"
        )

    desk.paint(("log",), follow)
    return words


def _submitting(desk: Desk, workbench: Workbench) -> w.Widget:
    """A button that submits the plan of a workbench."""
    watched = desk.workbench
    epochs = w.BoundedFloatText(
        value=1.0, min=0.0, max=1000.0, step=1.0, layout=w.Layout(width="70px"),
        tooltip="Epochs of training after pruning",
    )  # fmt: skip
    button = w.Button(
        description="Run this plan", button_style="primary", layout=w.Layout(width="110px"),
        tooltip="Put the plan of the sliders at the end of the queue",
    )  # fmt: skip

    def submit() -> None:
        recipe = with_settings(workbench.recipe, [f"recover.epochs={epochs.value}"])
        watched.choose(watched.queue.submit(recipe).name)

    button.on_click(lambda _: desk.act(submit))
    return w.HBox([button, epochs, w.HTML("<span class='mpviz-quiet'>epochs of training</span>")])
