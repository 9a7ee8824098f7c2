"""A queue of runs: recipes that go one after another, each in a process of its own, and outlive who looks at them."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from mpviz.errors import CheckpointError, MpvizError
from mpviz.files import write_text
from mpviz.recipe import Recipe
from mpviz.workbench.jobs import background, sentence
from mpviz.workbench.run_store import RECIPE, Entry, Run, Store, found_in, recipe_of, title_of
from mpviz.workbench.run_worker import PATIENCE, RunWorker

logger = logging.getLogger(__name__)
_BEAT = 0.2  # seconds between two looks


class RunQueue:
    """Recipes that are run one after another by ``mpviz run``, each in a process and a folder of its own.

    >>> queue = RunQueue("runs")                                            # doctest: +SKIP
    >>> run = queue.submit("plan.toml"); queue.wait(run.name).state         # doctest: +SKIP
    'done'

    folder: holds queue.json, and for each run its recipe, status, log and what it writes. All of it is on disk: a page
    that is loaded again, another process and another day see the same. Any number of processes may open one folder; one
    of them starts the runs, another takes over when it ends. A run that has begun goes on without any of them.
    works: False only looks, and never starts a run. ends_runs: runs end with this process and its queue, after they
    have kept their last state, and go on when the queue is opened again; else they go on by themselves.
    may_start: asked before each start.

    Cancelling is safe at any time: the step at hand is finished and kept. A run that was cancelled, or has failed, can
    be resumed. All methods may be called from any thread; they raise MpvizError for names that are not there and for
    what cannot be done to a run in its state, CheckpointError where the folder cannot be written.
    """

    def __init__(
        self,
        folder: str | Path = "runs",
        works: bool = True,
        ends_runs: bool = False,
        may_start: Callable[[], bool] | None = None,
    ) -> None:
        self.store = Store(Path(folder).expanduser().absolute())
        self._ends_runs = ends_runs
        self._closing, self._beat = threading.Event(), threading.Event()
        self._worker = RunWorker(self.store, may_start or (lambda: True))
        self.error = ""
        self._thread = threading.Thread(target=self._work, name="mpviz-runs", daemon=True)
        if works:
            background(self)
            self._thread.start()

    @property
    def folder(self) -> Path:
        """Where all of it is kept."""
        return self.store.folder

    # --- what people do -------------------------------------------------------------------------------------------

    def submit(self, recipe: Recipe | str | Path, owner: str = "") -> Run:
        """Put a recipe at the end of the queue: a Recipe, TOML text, or the path of a TOML file.

        owner: whose it is, on a server. Raises RecipeError for what is no recipe.
        """
        plan = recipe_of(recipe)
        entry = Entry("", title_of(plan), plan.kind, plan.recover.epochs, owner, os.getcwd(), submitted=time.time())
        name = self._new(plan.to_toml())
        self.store.change(lambda entries: [*entries, replace(entry, name=name)])
        self._beat.set()
        return self.run(name)

    def cancel(self, name: str) -> Run:
        """Take a run that waits out of the queue, or ask one that runs to keep its state and stop."""

        def stopped(entry: Entry) -> Entry:
            if entry.state == "queued":
                return replace(entry, state="cancelled", ended=time.time())
            if entry.state == "running":
                return replace(entry, stop=True)
            raise MpvizError(f"{name} is {entry.state}; only runs that wait or run can be cancelled")

        return self._change(name, stopped)

    def resume(self, name: str) -> Run:
        """Put a run that was cancelled or has failed at the end of the queue; it goes on from its last good state."""

        def again(entry: Entry) -> Entry:
            if entry.state not in ("cancelled", "failed"):
                raise MpvizError(f"{name} is {entry.state}; only runs that were cancelled or have failed are resumed")
            return replace(entry, state="queued", stop=False, ended=0.0)

        self.store.change(lambda entries: _last(entries, again(found_in(entries, name))))
        self._beat.set()
        return self.run(name)

    def remove(self, name: str) -> None:
        """Take a run off the list. What it wrote stays on disk; one that never began leaves nothing."""

        def without(entries: list[Entry]) -> list[Entry]:
            entry = found_in(entries, name)
            if entry.state == "running":
                raise MpvizError(f"{name} is running; cancel it before it is taken off the list")
            begun.append(bool(entry.attempt))
            return [one for one in entries if one.name != name]

        begun: list[bool] = []
        self.store.change(without)
        if not begun[0]:
            shutil.rmtree(self.store.path(name), ignore_errors=True)

    def runs(self) -> list[Run]:
        """All runs of the folder as they are now: those that wait in the order in which they will start."""
        return self.store.runs()

    def run(self, name: str) -> Run:
        """One of them."""
        found_in(self.store.entries(), name)
        return next(one for one in self.store.runs() if one.name == name)

    def recipe_text(self, name: str) -> str:
        """The recipe of a run as TOML."""
        found_in(self.store.entries(), name)
        return self.store.path(name, RECIPE).read_text(encoding="utf-8")

    @property
    def running(self) -> bool:
        """Whether a run is at work."""
        return any(entry.state == "running" for entry in self.store.entries())

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        # the widgets live a floor above: asked for by name, and only when a notebook wants to show them
        return import_module("mpviz.ui.widgets").run_view(self)._repr_mimebundle_(**kwargs)

    def wait(self, name: str, timeout: float | None = None) -> Run:
        """Block until a run has ended, or the timeout in seconds is over."""
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            run = self.run(name)
            if run.state not in ("queued", "running") or (end is not None and time.monotonic() > end):
                return run
            time.sleep(_BEAT / 2)

    # --- the end --------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Start no more; what runs goes on, or keeps its state and ends, as `ends_runs` says."""
        self._closing.set()
        self._beat.set()

    def join(self, timeout: float) -> None:
        """Wait for it."""
        if self._thread.is_alive():
            self._thread.join(timeout)

    @property
    def alive(self) -> bool:
        """Whether this process still works on the queue."""
        return self._thread.is_alive()

    def close(self, timeout: float = PATIENCE) -> None:
        """`stop`, and wait; the queue can still be read."""
        self.stop()
        self.join(timeout)

    # --- the work, on a thread of its own ---------------------------------------------------------------------------

    def _new(self, recipe: str) -> str:
        """The name of a new folder with this recipe. Raises CheckpointError where there can be none."""
        self.store.make()
        number = 1 + len(self.store.entries())
        try:
            while True:
                with contextlib.suppress(FileExistsError):
                    (self.folder / f"run-{number:03d}").mkdir()
                    write_text(self.store.path(f"run-{number:03d}", RECIPE), recipe)
                    return f"run-{number:03d}"
                number += 1
        except OSError as error:
            raise CheckpointError(f"cannot write into {self.folder} ({error}); make room, or choose another") from error

    def _change(self, name: str, change: Callable[[Entry], Entry]) -> Run:
        self.store.change(lambda entries: _changed(entries, change(found_in(entries, name))))
        self._beat.set()
        return self.run(name)

    def _work(self) -> None:
        while not self._closing.is_set():
            self._look()
            self._beat.wait(_BEAT)
            self._beat.clear()
        while self._ends_runs and self._worker.end_running():
            time.sleep(_BEAT / 2)
        self._worker.off_duty()

    def _look(self) -> None:
        try:
            if self._worker.on_duty():
                self._worker.step()
            self.error = ""
        except Exception as error:  # a thread's last place: shown with the queue, and tried again
            if sentence(error) != self.error:
                logger.warning("the queue of runs: %s", sentence(error), exc_info=not isinstance(error, MpvizError))
            self.error = sentence(error)


def _changed(entries: list[Entry], new: Entry) -> list[Entry]:
    return [new if one.name == new.name else one for one in entries]


def _last(entries: list[Entry], new: Entry) -> list[Entry]:
    return [*(one for one in entries if one.name != new.name), new]
