"""The queue's own file: which runs there are, in which order, and what became of them; safe for many processes."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from mpviz.errors import CheckpointError, MpvizError, RecipeError, nearest
from mpviz.files import write_text
from mpviz.recipe import Recipe, parse_recipe
from mpviz.run_status import RunStatus, read_status

try:
    import fcntl
except ImportError:  # no such locks on this system
    fcntl = None  # type: ignore[assignment]

State = Literal["queued", "running", "done", "failed", "cancelled"]
STATES = ("queued", "running", "done", "failed", "cancelled")
FORMAT = 1
QUEUE, RECIPE, STATUS, LOG, OUT = "queue.json", "recipe.toml", "status.json", "log.txt", "out"


@dataclass(frozen=True)
class Entry:
    """A run as the queue's file has it.

    owner: who submitted it, "" on one's own machine. stop: it shall end at its next step. attempt: how often it was
    started. place: the working directory that its recipe's paths start from. Times are seconds since 1970, 0 for not
    yet.
    """

    name: str
    title: str
    kind: str
    epochs: float = 0.0
    owner: str = ""
    place: str = ""
    state: State = "queued"
    stop: bool = False
    attempt: int = 0
    submitted: float = 0.0
    started: float = 0.0
    ended: float = 0.0


@dataclass(frozen=True)
class Run:
    """One run: what the queue knows of it, and what it says itself.

    kind: "plan", "grid" or "projection". epochs: of training. place: in the queue, from 1; 0 when it does not wait.
    message: what it does, or how it ended. error: of a failed run, a sentence; traceback: where it came from. folder:
    what it writes.
    """

    name: str
    title: str
    kind: str
    epochs: float
    owner: str
    state: State
    place: int
    progress: float
    message: str
    seconds_left: float | None
    error: str
    traceback: str
    submitted: float
    started: float
    ended: float
    folder: Path
    stopping: bool = False

    @property
    def busy(self) -> bool:
        """Whether it waits or runs: it can be cancelled."""
        return self.state in ("queued", "running") and not self.stopping

    @property
    def resumable(self) -> bool:
        """Whether it can go on from its last good state."""
        return self.state in ("failed", "cancelled")


def recipe_of(given: Recipe | str | Path) -> Recipe:
    """A recipe, its TOML text, or the path of its file. Raises RecipeError for what is none of them."""
    if isinstance(given, Recipe):
        return parse_recipe(given.to_toml())  # one built in Python may hold anything
    if isinstance(given, str) and ("\n" in given or "=" in given):
        return parse_recipe(given)
    path = Path(given)
    try:
        return parse_recipe(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        if isinstance(error, RecipeError):
            raise RecipeError(f"{path}: {error}") from error
        raise RecipeError(f"cannot read the recipe {path}: {error}; give a TOML file or its text") from error


def title_of(recipe: Recipe) -> str:
    """A run in a few words, such as "fashion-vit, 60 % removed, 3 epochs"."""
    grid = recipe.grid
    what = {
        "grid": f"{len(grid.methods)} methods × {len(grid.sparsities)} sparsities",
        "projection": f"{recipe.project.pattern} pattern",
        "plan": f"{100 * recipe.budget.sparsity:g} % removed",
    }[recipe.kind]
    epochs = recipe.recover.epochs
    trained = [] if not epochs else [f"{epochs:g} epoch{'' if epochs == 1 else 's'}"]
    name = recipe.model.name
    return ", ".join([Path(name).name if name.endswith(".safetensors") else name, what, *trained])


class Store:
    """The folder of a queue. Its file is read as it is and changed under a lock, so that no process overwrites another.

    Raises CheckpointError for a folder that cannot be used or a file that is damaged.
    """

    def __init__(self, folder: Path) -> None:
        if fcntl is None:
            raise MpvizError("a queue of runs needs the file locks of Linux or macOS; run recipes with mpviz run")
        self.folder = folder
        self._known: tuple[tuple[int, int, int], list[Entry]] = ((0, 0, 0), [])
        self._turn = threading.RLock()

    def path(self, name: str, *parts: str) -> Path:
        """A file of a run."""
        return self.folder.joinpath(name, *parts)

    def entries(self) -> list[Entry]:
        """All runs, oldest first; those that wait are started in this order."""
        path = self.folder / QUEUE
        with self._turn:
            try:
                found = path.stat()
                mark = (found.st_mtime_ns, found.st_ino, found.st_size)
                if mark != self._known[0]:
                    self._known = (mark, _parse(path.read_text(encoding="utf-8")))
            except FileNotFoundError:
                return []
            except (OSError, ValueError, TypeError, LookupError) as error:
                raise CheckpointError(
                    f"{path} is no list of runs ({error}); move it away, what the runs wrote beside it stays"
                ) from error
            return list(self._known[1])

    def change(self, change: Callable[[list[Entry]], list[Entry]]) -> list[Entry]:
        """Replace the list by what `change` makes of it, alone among all processes. Gives the new list."""
        with self._turn:
            self.make()
            try:
                with locked(self.folder / "queue.lock"):
                    entries = change(self.entries())
                    text = json.dumps({"format": FORMAT, "runs": [asdict(one) for one in entries]}, indent=1)
                    write_text(self.folder / QUEUE, text + "\n")
            except OSError as error:
                if isinstance(error, MpvizError):
                    raise
                raise CheckpointError(f"cannot write {self.folder / QUEUE} ({error}); make room there") from error
            return entries

    def make(self) -> None:
        """Make the folder. Raises CheckpointError."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"cannot make the folder {self.folder} ({error}); choose another") from error

    def find(self, name: str) -> Entry:
        """The run of this name. Raises MpvizError when there is none."""
        return found_in(self.entries(), name)

    def runs(self) -> list[Run]:
        """What a screen shows, in the order of the file."""
        made, waiting = [], 0
        for entry in self.entries():
            waiting += entry.state == "queued"
            made.append(self._run(entry, waiting if entry.state == "queued" else 0))
        return made

    def _run(self, entry: Entry, place: int) -> Run:
        said = read_status(self.path(entry.name, STATUS)) or RunStatus(message="")
        message, left = said.message, said.seconds_left
        if entry.state == "queued":
            message, left = "waits for its turn" if not entry.attempt else "goes on from its last good state", None
        elif entry.state == "running" and entry.stop:
            message, left = "cancelling; its last good state is being kept", None
        elif entry.state == "running" and said.state != "running":
            message = "ending"
        elif entry.state == "cancelled" and not entry.attempt:
            message = "cancelled before it began"
        failed = entry.state == "failed"
        return Run(
            entry.name, entry.title, entry.kind, entry.epochs, entry.owner, entry.state, place,
            1.0 if entry.state == "done" else min(max(said.progress, 0.0), 1.0), message,
            left if entry.state == "running" else None, said.error if failed else "", said.traceback if failed else "",
            entry.submitted, entry.started, entry.ended, self.path(entry.name, OUT), entry.stop,
        )  # fmt: skip


def found_in(entries: list[Entry], name: str) -> Entry:
    """The entry of this name. Raises MpvizError when there is none."""
    for entry in entries:
        if entry.name == name:
            return entry
    known = [entry.name for entry in entries]
    raise MpvizError(f"there is no run '{name}'; {nearest(name, known) if known else 'none was submitted yet'}")


def _parse(text: str) -> list[Entry]:
    found = json.loads(text)
    if found["format"] != FORMAT:
        raise ValueError(f"its format is {found['format']}, this version reads {FORMAT}")
    known = {field.name for field in fields(Entry)}
    entries = [Entry(**{key: value for key, value in one.items() if key in known}) for one in found["runs"]]
    for entry in entries:
        if entry.state not in STATES or Path(entry.name).name != entry.name or entry.name in (".", ".."):
            raise ValueError(f"'{entry.name}' is no run, or '{entry.state}' no state of one")
    return entries


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Alone among all processes that ask for this file."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def take_lock(path: Path) -> int | None:
    """A file's lock without waiting: an open handle, which holds it, or None while another process does.

    A lock ends with the last process that has the handle, however it ends.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def plain(run: Run) -> dict[str, Any]:
    """A run as JSON data, without its folder."""
    return {key: value for key, value in asdict(run).items() if key != "folder"}
