"""The dashboard's page of runs: the queue, the training that is at work, its log, and what became of it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence

from mpviz.errors import MpvizError
from mpviz.ui import tables, text
from mpviz.ui.page import filled_page, pages_nav
from mpviz.ui.run_figures import figure_mark, run_figure
from mpviz.ui.run_words import (
    EMPTY_QUEUE,
    EXAMPLE,
    dates,
    in_order,
    left_words,
    results_table,
    state_words,
    without_places,
)
from mpviz.ui.theme import CONFIG, THEMES, Json
from mpviz.workbench.run_curve import RunCurve, grid_cells, last_lines
from mpviz.workbench.run_policy import seen_by
from mpviz.workbench.run_queue import RunQueue
from mpviz.workbench.run_store import LOG, Run

LINES = 200  # of a log that are shown
_KEPT = 32  # runs whose curves are kept between two looks


class Watch:
    """What the pages of all visitors show of one queue. Its methods may be called from any thread."""

    def __init__(self, queue: RunQueue) -> None:
        self.queue = queue
        self._curves: OrderedDict[str, RunCurve] = OrderedDict()
        self._lock = threading.Lock()

    def page(self, asked: Mapping[str, str], owner: str, restricted: bool, xsrf: str) -> tuple[bool, str]:
        """The page, and whether the run that was asked for exists. asked: run and theme of the URL.

        owner: who asks; restricted: whether others' runs are hidden from them. xsrf: what the page sends with each
        change.
        """
        theme = _theme(asked)
        try:
            state = self.state({**asked, "theme": theme}, owner, restricted)
        except MpvizError as error:
            parts = {
                "nav": pages_nav("run", {"theme": theme}, theme), "title": "No such run here",
                "message": text.escape(error),
            }  # fmt: skip
            return False, filled_page("notice.html", parts, None, theme)
        shown = {"run": asked["run"]} if "run" in asked else {}
        parts = {
            "nav": pages_nav("run", {**shown, "theme": theme}, theme),
            "title": "Runs",
            "empty": text.escape(EMPTY_QUEUE),
            "measured": tables.chip("measured", theme),
            "xsrf": text.escape(xsrf),
            "theme_name": theme,
        }
        drawn = {"config": CONFIG, "state": state, "example": EXAMPLE}
        return True, filled_page("run.html", parts, drawn, theme, asks=True)

    def state(self, asked: Mapping[str, str], owner: str, restricted: bool) -> Json:
        """All that the page shows, as JSON data. asked: run, theme, and as `seen` the marks of what the page has.

        Without `run` it is the first that runs, else the newest. Raises MpvizError for a run that this visitor has not.
        """
        runs = seen_by(self.queue.runs(), owner, restricted)
        chosen = _choose(runs, asked.get("run"))
        error = without_places(self.queue.error) if restricted else self.queue.error
        made: Json = {"runs": [_item(run, chosen, restricted) for run in in_order(runs)], "error": error}
        if chosen is not None:
            made["chosen"] = self._detail(chosen, _theme(asked), asked.get("seen", ""), restricted)
        return made

    def _detail(self, run: Run, theme: str, seen: str, restricted: bool) -> Json:
        inside = f"{run.folder}/"  # which is named beside it
        clean = without_places if restricted else lambda words: words.replace(inside, "")
        curve, cells = self._curve(run).look(), grid_cells(run.folder) if run.kind == "grid" else []
        mark = f"{theme}/{figure_mark(run, curve, cells)}"
        lines = [clean(line) for line in last_lines(self.queue.store.path(run.name, LOG), LINES)]
        table = results_table(run.folder, theme) if run.state == "done" else ""
        found: Json = {
            "name": run.name, "title": run.title, "state": run.state, "words": state_words(run),
            "message": clean(run.message), "dates": dates(run), "left": left_words(run),
            "percent": round(100 * run.progress, 1), "error": clean(run.error), "table": table,
            "traceback": "" if restricted else run.traceback, "mark": mark,
            "can": {"cancel": run.busy, "resume": run.resumable, "remove": run.state != "running"},
            "report": (run.folder / "report.html").is_file() or bool(cells),
            "report_words": "Comparison" if run.kind == "grid" else "Report",
            "folder": "" if restricted else str(run.folder),
        }  # fmt: skip
        drawn, _, log_mark = seen.partition("|")
        if mark != drawn:
            found["figure"] = run_figure(run, curve, cells, theme)
        found["log_mark"] = f"{len(lines)}:{hash(tuple(lines)) & 0xFFFFFFFF:x}"
        if found["log_mark"] != log_mark:
            found["log"] = lines
        return found

    def _curve(self, run: Run) -> RunCurve:
        with self._lock:
            found = self._curves.pop(run.name, None) or RunCurve(run.folder)
            self._curves[run.name] = found
            while len(self._curves) > _KEPT:
                self._curves.popitem(last=False)
            return found


def _theme(asked: Mapping[str, str]) -> str:
    return asked["theme"] if asked.get("theme") in THEMES else "light"


def _choose(runs: Sequence[Run], name: str | None) -> Run | None:
    if name is not None:
        for run in runs:
            if run.name == name:
                return run
        raise MpvizError(f"there is no run '{name}' here; open the page without it to see those that are")
    return next(iter(in_order(runs)), None)


def _item(run: Run, chosen: Run | None, restricted: bool) -> Json:
    return {
        "name": run.name, "title": run.title, "state": run.state, "words": state_words(run),
        "percent": round(100 * run.progress, 1), "left": left_words(run),
        "owner": "" if restricted else run.owner, "chosen": run is chosen,
    }  # fmt: skip
