"""The runs of a sweep as a page of the dashboard that follows them: state, progress, what they measured."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from mpviz.errors import AccessError, MpvizError
from mpviz.sweep_folder import OPEN, RunState, SweepState, is_sweep
from mpviz.sweep_watch import sweep_status
from mpviz.ui import tables, text
from mpviz.ui.page import filled_page, named_folders, pages_nav
from mpviz.ui.theme import THEMES, palette

if TYPE_CHECKING:
    from mpviz.workbench.policy import Policy

MARKS = {"queued": "○", "running": "◐", "done": "●", "failed": "▲", "stopped": "■"}
_COLOURS = {"running": "measured", "done": "bound", "failed": "threshold"}
_REPORT = "report.html"


def accuracy_words(run: RunState) -> str:
    """What a run measured, in few words: its last accuracy, or the range over the cells of a grid.

    A grid's numbers are those of its last phase, "recovered" where it trains.
    """
    rows = [row for row in run.measured if isinstance(row.get("accuracy"), float)]
    if not rows:
        return text.NONE
    last = "recovered" if any(row.get("phase") == "recovered" for row in rows) else rows[-1].get("phase")
    values = [row["accuracy"] for row in rows if row.get("phase") == last]
    low, high = (text.percent(value, 4) for value in (min(values), max(values)))
    return high if len(values) == 1 else f"{low} – {high} in {len(values)} cells"


class Sweeps:
    """The sweeps that a server shows: those it was started with, and what its policy lets visitors open.

    Where the policy restricts visitors, that is what lies in a folder of data that it offers; else any folder.
    """

    def __init__(self, folders: Sequence[Path], policy: Policy) -> None:
        self.folders, self.policy = [folder.resolve() for folder in folders], policy

    def named(self) -> dict[str, Path]:
        """Sweeps by the last part of their path, numbered where it is not the only one."""
        return named_folders(self.folders)

    def open(self, asked: str) -> Path:
        """The folder of this name or path. Raises AccessError where it is not offered, whether or not it is there."""
        known = self.named()
        if not asked:
            raise AccessError("mpviz sweep RECIPE … begins one, and mpviz dashboard --sweep FOLDER shows it here")
        if asked in known:
            return known[asked]
        try:
            place = Path(asked).expanduser().resolve()
        except (OSError, ValueError, RuntimeError):
            place = None
        if place is not None and (place in self.folders or (self._allows(place) and is_sweep(place))):
            return place
        shown = "".join(letter if letter.isprintable() else "·" for letter in asked[:80])
        offered = f"it shows {', '.join(known)}" if known else "mpviz dashboard --sweep FOLDER shows one"
        raise AccessError(f"there is no sweep '{shown}' here; {offered}")

    def _allows(self, place: Path) -> bool:
        if not self.policy.restricted:
            return True
        return any(place.is_relative_to(offered) for offered in self.policy.data_folders())

    def grids(self) -> list[Path]:
        """Folders of their runs that hold cells of a grid, for the page that compares methods."""
        found = []
        for folder in self.folders:
            found += sorted(cells.parent for cells in folder.glob("*/cells"))
        return found


def sweep_page(sweeps: Sweeps, asked: Mapping[str, str], grids: Mapping[Path, str] | None = None) -> tuple[bool, str]:
    """The page of one sweep, and whether there is such a one; the first that the server was started with otherwise.

    asked: folder (a name or a path), report (a run, whose report is then the page) and theme. grids: folders that the
    page of methods shows, with their names there.
    """
    theme = asked.get("theme", "light")
    theme = theme if theme in THEMES else "light"
    name = asked.get("folder") or next(iter(sweeps.named()), "")
    here = {"folder": name} if name else {}
    nav = pages_nav("sweep", here, theme, _links(sweeps, name, theme))
    try:
        state = sweep_status(sweeps.open(name))
        if "report" in asked:
            return True, _report(state, asked["report"])
    except MpvizError as error:
        parts = {
            "nav": nav,
            "title": "No sweep here yet" if not name else "No such sweep",
            "message": text.escape(str(error)),
        }
        return False, filled_page("notice.html", parts, None, theme)
    return True, filled_page("sweep.html", _parts(state, name, nav, theme, grids or {}), None, theme, asks=True)


def _links(sweeps: Sweeps, shown: str, theme: str) -> str:
    made = []
    for name in sweeps.named():
        here = ' aria-current="page"' if name == shown else ""
        query = text.escape(urlencode({"folder": name, "theme": theme}))
        made.append(f'<a href="./sweep?{query}"{here}>{text.escape(name)}</a>')
    return "".join(made) if len(made) > 1 else ""


def _report(state: SweepState, name: str) -> str:
    if name not in {run.name for run in state.runs}:
        raise AccessError("the sweep has no such run")
    try:
        return (state.folder / name / _REPORT).read_text(encoding="utf-8")
    except OSError as error:
        raise AccessError(f"the run {name} has no report yet") from error


def _parts(
    state: SweepState, name: str, nav: str, theme: str, grids: Mapping[Path, str]
) -> dict[str, str]:  # fmt: skip
    counts = ", ".join(f"{count} {one}" for one, count in state.counts.items())
    engine = {"slurm": "on SLURM", "local": f"on one machine, {state.plan.parallel} at a time", "here": "one by one"}
    about = f"{len(state.runs)} runs {engine.get(state.plan.engine, state.plan.engine)}"
    rows = [_row(run, name, theme, grids) for run in state.runs]
    return {
        "nav": nav,
        "title": text.escape(f"{state.folder.name}: {counts}"),
        "about": text.escape(about),
        "measured": tables.chip("measured", theme),
        "table": tables.html_table(("run", "state", "progress", "time", "accuracy, %", "dense, %", ""), rows, theme),
        "moving": "true" if state.moving else "false",
        "said": text.escape(f"{counts}; as of {time.strftime('%H:%M:%S')}"),
    }


def _row(run: RunState, sweep: str, theme: str, grids: Mapping[Path, str]) -> list[str]:
    colours = palette(theme)
    meaning = getattr(colours, _COLOURS[run.state]) if run.state in _COLOURS else colours.neutral
    state = f'<span style="color:{meaning.text}">{MARKS.get(run.state, "")} {text.escape(run.state)}</span>'
    if run.message and run.state != "done":
        state += f'<br><span class="said">{text.escape(run.message)}</span>'
    dense = next((row["dense_accuracy"] for row in run.measured if isinstance(row.get("dense_accuracy"), float)), None)
    return [
        text.escape(run.name),
        state,
        text.NONE if run.state == "queued" else tables.bar(run.progress, colours.measured, colours),
        _duration(run),
        text.escape(accuracy_words(run)),
        text.NONE if dense is None else text.percent(dense, 4),
        " ".join(_ways(run, sweep, theme, grids)),
    ]


def _ways(run: RunState, sweep: str, theme: str, grids: Mapping[Path, str]) -> list[str]:
    """Links to a run's report and to its methods side by side, as far as they are there."""
    ways = []
    if (run.folder / _REPORT).is_file():
        query = text.escape(urlencode({"folder": sweep, "report": run.name}))
        ways.append(f'<a href="./sweep?{query}" aria-label="report of {text.escape(run.name)}">report</a>')
    if run.measured and run.folder.resolve() in grids:
        query = text.escape(urlencode({"grid": grids[run.folder.resolve()], "theme": theme}))
        ways.append(f'<a href="./compare?{query}" aria-label="methods of {text.escape(run.name)}">methods</a>')
    return ways


def _duration(run: RunState) -> str:
    if not run.started:
        return text.NONE
    end = run.ended or (time.time() if run.state in OPEN else run.started)
    minutes, seconds = divmod(max(0, round(end - run.started)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
