"""Who starts the runs of a queue, stops them, and sees what became of them; one process at a time."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from mpviz.errors import MpvizError
from mpviz.files import write_text
from mpviz.run_status import RunStatus, read_status, write_status
from mpviz.workbench.run_store import LOG, OUT, QUEUE, RECIPE, STATUS, Entry, Store, take_lock

PATIENCE = 60.0  # seconds that a run has to keep its last state, before it is ended without
_NICE = 5  # how much a run steps back behind those who look at it
_REMEDY = "resume goes on from its last checkpoint"


class RunWorker:
    """Starts what is next and ends what shall end, a look at a time, while this process is the one on duty.

    may_start: asked before each start.
    """

    def __init__(self, store: Store, may_start: Callable[[], bool]) -> None:
        self.store, self._may_start = store, may_start
        self._duty: int | None = None  # the lock of the one process that starts runs
        self._process: subprocess.Popen[bytes] | None = None
        self._asked: float | None = None  # since when the run at hand has been asked to stop

    def on_duty(self) -> bool:
        """Whether it is this process that starts runs, which it takes over where nobody does."""
        if self._duty is None and (self.store.folder / QUEUE).is_file():  # another folder is left as it is
            self._duty = take_lock(self.store.folder / "worker.lock")
        return self._duty is not None

    def off_duty(self) -> None:
        """Let another process take over."""
        if self._duty is not None:
            os.close(self._duty)
            self._duty = None

    def step(self) -> None:
        """One look: end what has ended, stop what shall stop, start what is next."""
        entries = self.store.entries()
        now = next((entry for entry in entries if entry.state == "running"), None)
        if now is not None:
            if self._ended(now):
                self._settle(now)
            elif now.stop:
                self._stop(now)
            return
        first = next((entry for entry in entries if entry.state == "queued"), None)
        if first is not None and self._may_start():
            self._start(first)

    def end_running(self) -> bool:
        """When this process ends, on duty: let what runs keep its state and wait for next time. False once it has."""
        with contextlib.suppress(MpvizError, OSError):
            for entry in self.store.entries() if self._duty is not None else ():
                if entry.state != "running":
                    continue
                if not self._ended(entry):
                    self._stop(entry)
                    return True
                self._settle(entry, waits="cancelled" if entry.stop else "queued")
        return False

    def _start(self, entry: Entry) -> None:
        path = self.store.path(entry.name)
        alive = take_lock(path / "alive.lock")
        if alive is None:  # its last process is not gone yet
            return
        try:
            # first on the list, then on the machine: a run that is there is never started twice
            if not self._claimed(entry.name):
                return
            write_status(path / STATUS, RunStatus(told=time.time()))
            self._process = self._popen(entry, alive)
            write_text(path / "process.txt", f"{self._process.pid}\n")
        except OSError as error:
            status = RunStatus("failed", 0.0, "could not be started", told=time.time())
            write_status(path / STATUS, replace(status, error=f"{entry.name} could not be started: {error}; {_REMEDY}"))
        finally:
            os.close(alive)  # the run's own handle holds the lock from here on

    def _claimed(self, name: str) -> bool:
        """Whether the run still waited, and is now the one that runs."""
        mine: list[str] = []

        def claimed(entry: Entry) -> Entry:
            if entry.name != name or entry.state != "queued":
                return entry
            mine.append(name)
            return replace(entry, state="running", attempt=entry.attempt + 1, started=time.time(), stop=False)

        self.store.change(lambda entries: [claimed(entry) for entry in entries])
        return bool(mine)

    def _popen(self, entry: Entry, alive: int) -> subprocess.Popen[bytes]:
        path = self.store.path(entry.name)
        place = entry.place if Path(entry.place).is_dir() else None
        with (path / LOG).open("ab") as log:
            log.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')}, start {entry.attempt + 1}\n".encode())
            log.flush()
            made = subprocess.Popen(
                command_of(path), cwd=place, env=_environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                pass_fds=(alive,), start_new_session=True,
            )  # fmt: skip
        with contextlib.suppress(AttributeError, OSError):  # sliders come first
            os.setpriority(os.PRIO_PROCESS, made.pid, _NICE)
        return made

    def _ended(self, entry: Entry) -> bool:
        if self._process is not None and self._process.poll() is not None:
            return True
        handle = take_lock(self.store.path(entry.name, "alive.lock"))
        if handle is None:
            return False
        os.close(handle)
        if self._process is not None:  # it has let go of everything, and will be gone in a moment
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(1.0)
        return True

    def _stop(self, entry: Entry) -> None:
        """Ask the process to stop; one that does not within `PATIENCE` is ended."""
        now = time.monotonic()
        if self._asked is not None and now - self._asked < PATIENCE:
            return
        how = signal.SIGTERM if self._asked is None else signal.SIGKILL
        self._asked = now if self._asked is None else self._asked
        with contextlib.suppress(OSError, ValueError):  # gone meanwhile
            os.kill(int(self.store.path(entry.name, "process.txt").read_text()), how)

    def _settle(self, entry: Entry, waits: str = "") -> None:
        """What became of a run whose process is gone. waits: the state of one that ended because it was asked to."""
        code = None if self._process is None else self._process.returncode
        said = read_status(self.store.path(entry.name, STATUS)) or RunStatus()
        if said.state == "running":  # it had no time to say how it ended
            said = _killed(entry, said, code, entry.stop or self._asked is not None)
            write_status(self.store.path(entry.name, STATUS), said)
        state = waits if waits and said.state == "cancelled" else said.state
        self._process = self._asked = None
        self._update(entry.name, state=state, stop=False, ended=time.time())

    def _update(self, name: str, **values: Any) -> None:
        self.store.change(
            lambda entries: [replace(one, **values) if one.name == name else one for one in entries]
        )  # fmt: skip


def command_of(path: Path) -> list[str]:
    """What runs the recipe in a run's folder, whatever the working directory holds."""
    files = {"--out": OUT, "--status": STATUS}
    options = [word for option, name in files.items() for word in (option, str(path / name))]
    return [sys.executable, "-P", "-m", "mpviz", "run", str(path / RECIPE), *options]


def _killed(entry: Entry, said: RunStatus, code: int | None, asked: bool) -> RunStatus:
    """How a run ended that could not say it. code: of its process, None where another process started it."""
    if asked:
        words = "cancelled; its last checkpoint is kept"
        return RunStatus("cancelled", said.progress, words, told=time.time())
    how = "ended without a word"
    if code is not None:
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended without a word, with code {code}"
    hint = "; often the memory was full: make the batch smaller, or close other programs" if code in (-9, None) else ""
    error = f"the process of {entry.name} {how}{hint}; {_REMEDY}"
    return RunStatus("failed", said.progress, f"ended at {100 * said.progress:.0f} %", None, time.time(), error)


def _environment() -> dict[str, str]:
    """That of this process; the run imports the same mpviz, wherever it was started from."""
    root = str(Path(__file__).resolve().parents[2])
    known = os.environ.get("PYTHONPATH", "")
    paths = [root, *([known] if known else [])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
