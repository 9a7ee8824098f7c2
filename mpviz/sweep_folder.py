"""The folder of a sweep, as any process that sees the disk reads it: its runs, how each stands, what it measured.

Nothing here loads torch, and nothing is unpickled.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mpviz.errors import CheckpointError
from mpviz.files import write_text
from mpviz.sweep_life import Life, read_life

NOTE = "sweep.json"
JOBS = "jobs"  # in the sweep's folder: recipes, states and what the engine writes; no run may be called so
ENGINES = ("local", "here", "slurm")
OPEN = ("queued", "running")  # states that may still change by themselves


@dataclass(frozen=True)
class Planned:
    """One run of a sweep. name: of its folder too. source: the recipe it was made from. settings: what it replaces."""

    name: str
    source: str
    settings: tuple[str, ...] = ()
    job: str = ""  # the engine's id, "" before it was submitted


@dataclass(frozen=True)
class Plan:
    """What `sweep.json` holds. parallel: runs at a time. processes: of each run. slurm: options of sbatch by name."""

    engine: str
    runs: tuple[Planned, ...]
    parallel: int = 2
    processes: int = 1
    slurm: Mapping[str, str] = field(default_factory=dict)
    command: Sequence[str] = ()


@dataclass(frozen=True)
class RunState:
    """How a run stands. state: queued, running, done, failed or stopped; message: what it does, or a sentence.

    progress: 0 … 1. seconds: since it began, or that it took. measured: {what: numbers 0 … 1}, each row with method,
    sparsity, phase, accuracy, dense_accuracy and coverage as far as it has them; empty before there are any.
    """

    name: str
    state: str
    progress: float = 0.0
    message: str = ""
    started: float = 0.0
    ended: float = 0.0
    job: str = ""
    folder: Path = Path()
    measured: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class SweepState:
    """A sweep as it stands. driven: whether a process is there that submits what is queued."""

    folder: Path
    plan: Plan
    runs: tuple[RunState, ...]
    driven: bool

    @property
    def counts(self) -> dict[str, int]:
        """How many runs are in each state that one is in."""
        return {
            state: sum(run.state == state for run in self.runs) for state in dict.fromkeys(r.state for r in self.runs)
        }

    @property
    def moving(self) -> bool:
        """Whether anything may still change by itself."""
        return any(run.state in OPEN for run in self.runs)


def is_sweep(folder: Path) -> bool:
    """Whether this is the folder of a sweep."""
    return (folder / NOTE).is_file()


def recipe_path(folder: Path, name: str) -> Path:
    """Where the recipe of a run lies."""
    return folder / JOBS / f"{name}.toml"


def status_path(folder: Path, name: str) -> Path:
    """Where the job of a run gives signs of life, and says how it stands."""
    return folder / JOBS / f"{name}.json"


def progress_path(folder: Path, name: str) -> Path:
    """Where `mpviz run` itself tells what it does."""
    return folder / JOBS / f"{name}.run.json"


def driver_path(folder: Path) -> Path:
    """Where the process that submits says that it lives."""
    return folder / JOBS / ".driver.json"


def stop_path(folder: Path) -> Path:
    """The file that asks all runs of a sweep to stop; each looks for it every second."""
    return folder / JOBS / ".stop"


def write_plan(folder: Path, plan: Plan) -> None:
    """Write `sweep.json`. Raises CheckpointError."""
    try:
        write_text(folder / NOTE, json.dumps({"version": 1, **asdict(plan)}, indent=1) + "\n")
    except OSError as error:
        raise CheckpointError(f"cannot write {folder / NOTE}: {error}; what was there is unchanged") from error


def read_plan(folder: Path) -> Plan:
    """What `sweep.json` says. Raises CheckpointError for a folder that is no sweep's, or a damaged file."""
    path = folder / NOTE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        values.pop("version")
        runs = tuple(Planned(**{**run, "settings": tuple(run["settings"])}) for run in values.pop("runs"))
        return Plan(runs=runs, **values)
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is no sweep; mpviz sweep RECIPE … --out {folder} makes one") from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); give its recipes to a new folder") from error


def read_sweep(folder: str | Path, jobs: Mapping[str, str] | None = None) -> SweepState:
    """How a sweep stands, read from its folder; the same from any process or machine that sees it.

    jobs: {engine's id: what the engine says of it, in SLURM's words}, for runs that have not said anything themselves.
    Raises CheckpointError for a folder that is no sweep's.
    """
    folder = Path(folder)
    plan, driver = read_plan(folder), read_life(driver_path(folder))
    driven = driver is not None and driver.state == "running"
    runs = tuple(_state_of(folder, run, plan.engine, driven, (jobs or {}).get(run.job, "")) for run in plan.runs)
    return SweepState(folder, plan, runs, driven)


def _state_of(folder: Path, run: Planned, engine: str, driven: bool, said: str) -> RunState:
    known, place = read_life(status_path(folder, run.name)), folder / run.name
    found = RunState(run.name, "queued", job=run.job, folder=place, measured=measured(place))
    if known is not None:
        found = replace(found, **{name: getattr(known, name) for name in ("state", "progress", "message", "started")})
        found = replace(found, ended=known.ended)
    if found.state in ("done", "failed"):
        return found
    if engine == "slurm" and run.job:
        return _by_slurm(found, known, said.split(" ")[0].upper())
    if found.state == "queued" and not driven:
        return replace(found, state="stopped", message=f"not begun; mpviz sweep {folder} goes on")
    return found


_WAITING = ("PENDING", "REQUEUED", "CONFIGURING", "PREEMPTED", "READY")
_RUNNING = ("RUNNING", "COMPLETING")


def _by_slurm(found: RunState, known: Life | None, said: str) -> RunState:
    """What SLURM knows better: a run that waits again after it was stopped, and one that ended without a word."""
    if (said in _WAITING and found.state != "running") or (said in ("", "UNKNOWN") and known is None):
        return replace(found, state="queued", message=f"job {found.job} waits in SLURM's queue")
    if said in _RUNNING and known is None:
        return replace(found, state="running", message="starts")
    if said in ("", "UNKNOWN", *_WAITING, *_RUNNING):
        return found
    if found.state != "stopped" or known is None:
        return replace(found, state="failed", message=f"SLURM says {said}; see {JOBS}/{found.job}_0_log.err")
    return found


_COLUMNS = ("method", "sparsity", "phase", "accuracy", "dense_accuracy", "coverage")


def measured(place: Path) -> tuple[dict[str, Any], ...]:
    """The rows that a run has measured so far: of its metrics.csv, else of the cells of a grid under way."""
    try:
        with (place / "metrics.csv").open(newline="", encoding="utf-8") as file:
            rows: list[Mapping[str, Any]] = list(csv.DictReader(file))
    except (OSError, ValueError):
        rows = []
        for cell in sorted(place.glob("cells/*/*/cell-*.json")):
            try:
                rows += json.loads(cell.read_text(encoding="utf-8"))["metrics"]
            except (OSError, ValueError, LookupError, TypeError):
                continue  # a cell that is being written again
    return tuple({name: _number(row[name]) for name in _COLUMNS if row.get(name) not in (None, "")} for row in rows)


def _number(value: Any) -> Any:
    try:
        return float(value)
    except ValueError:
        return str(value)
