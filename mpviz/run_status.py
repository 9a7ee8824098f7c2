"""How a run tells what it does while it runs: one small JSON file, whole at any moment, for any process to read."""

from __future__ import annotations

import contextlib
import json
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from mpviz.errors import CheckpointError
from mpviz.files import write_text

Outcome = Literal["running", "done", "failed", "cancelled"]
OUTCOMES = ("running", "done", "failed", "cancelled")
PAUSE = 0.5  # seconds between two writings of the file
_LOOK_BACK = 60.0  # seconds of progress that the time left is worked out from
_LEAP = 0.1  # of the whole at once: work that was done before, and says nothing of the speed
_LONGEST = 20_000  # letters of a traceback that are kept, its end


@dataclass(frozen=True)
class RunStatus:
    """What a run says of itself.

    progress: 0 … 1. message: what it does, or how it ended. seconds_left: None while it cannot be told; at the time
    `told`, seconds since 1970. error: of a failed run, a sentence with its remedy; traceback: where it came from.
    """

    state: Outcome = "running"
    progress: float = 0.0
    message: str = "starting"
    seconds_left: float | None = None
    told: float = 0.0
    error: str = ""
    traceback: str = ""


def read_status(path: Path) -> RunStatus | None:
    """What stands in the file; None when there is none, or it is no status."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        known = {field.name: found[field.name] for field in fields(RunStatus)}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    left = known["seconds_left"]
    numbers = (known["progress"], known["told"], 0.0 if left is None else left)
    words = (known["message"], known["error"], known["traceback"])
    right = all(isinstance(one, (int, float)) for one in numbers) and all(isinstance(one, str) for one in words)
    return RunStatus(**known) if right and known["state"] in OUTCOMES else None


def write_status(path: Path, status: RunStatus) -> None:
    """Write it atomically. Raises CheckpointError."""
    try:
        write_text(path, json.dumps(asdict(status), indent=1) + "\n")
    except OSError as error:
        raise CheckpointError(f"cannot write {path} ({error}); make room, or name another file") from error


class Pace:
    """Time left, from how fast the work went in the last minute: its parts differ, and what was done before is free."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._marks: deque[tuple[float, float]] = deque()

    def left(self, progress: float) -> float | None:
        """Seconds until 1 at the present pace; None while it cannot be told."""
        now, marks = self._clock(), self._marks
        if marks and not 0 <= progress - marks[-1][1] <= _LEAP:
            marks.clear()
        marks.append((now, progress))
        while now - marks[0][0] > _LOOK_BACK:
            marks.popleft()
        since, before = marks[0]
        if now - since < 1 or progress <= before:
            return None
        return (1 - progress) * (now - since) / (progress - before)


class StatusFile:
    """Writes what a run tells into a file, not more often than every `PAUSE` seconds; its end at once.

    Raises CheckpointError when the file cannot be begun; later a full disk stops nothing here, it has its own words.
    """

    def __init__(self, path: str | Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.path, self._clock, self._pace = Path(path), clock, Pace(clock)
        self.status = RunStatus(told=time.time())
        self._written = clock()
        write_status(self.path, self.status)

    def tell(self, progress: float, message: str) -> None:
        """How far the run is, 0 … 1, and what it does."""
        left = self._pace.left(progress)
        self.status = RunStatus("running", float(progress), message, left, time.time())
        if self._clock() - self._written >= PAUSE:
            self._written = self._clock()
            self._write()

    def end(self, state: Outcome, message: str, **more: Any) -> None:
        """How it ended. more: error and traceback of a failed run."""
        progress = 1.0 if state == "done" else self.status.progress
        if "traceback" in more:
            more["traceback"] = str(more["traceback"])[-_LONGEST:]
        self.status = replace(RunStatus(state, progress, message, None, time.time()), **more)
        self._write()

    def _write(self) -> None:
        with contextlib.suppress(CheckpointError):
            write_status(self.path, self.status)
