"""Signs of life of a process that others watch over the disk: where it lives, how far it is, how it ended."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from mpviz.errors import Cancelled, MpvizError
from mpviz.files import write_text

BEAT = 5.0  # seconds between signs of life
QUIET = 60.0  # seconds without one after which a run of another machine counts as gone


@dataclass(frozen=True)
class Life:
    """state: running, done, failed or stopped. progress: 0 … 1. message: what it does, or a sentence on how it ended.

    started, ended: Unix seconds; ended is 0 while it runs. host, pid: of the process.
    """

    state: str
    progress: float = 0.0
    message: str = ""
    started: float = 0.0
    ended: float = 0.0
    host: str = ""
    pid: int = 0


def read_life(path: Path) -> Life | None:
    """What the file says, None where there is none. A process that is gone without a word is told as stopped."""
    try:
        found = Life(**json.loads(path.read_text(encoding="utf-8")))
        quiet = time.time() - path.stat().st_mtime
    except (OSError, ValueError, TypeError):
        return None
    if found.state != "running":
        return found
    here = found.host == socket.gethostname()
    if (here and not _lives(found.pid)) or quiet > QUIET:
        return replace(found, state="stopped", message=f"was killed at {100 * found.progress:.0f} %")
    return found


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return True


def _write(path: Path, life: Life) -> None:
    with contextlib.suppress(OSError):  # a disk that is full must not end the run
        write_text(path, json.dumps(asdict(life), indent=1) + "\n")


class LifeFile:
    """Keeps the file while its block runs: running at first, and in the end done, failed or stopped, with the sentence.

    A thread gives signs of life, so that a kill shows; nothing here ever raises on a disk that cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._end = path, threading.Event()
        self._now = Life("running", started=time.time(), host=socket.gethostname(), pid=os.getpid())
        self._changed, self._lock = False, threading.Lock()

    def show(self, progress: float, message: str) -> None:
        """Say how far the run is, 0 … 1, and what it does; written with the next sign of life."""
        self._now, self._changed = replace(self._now, progress=progress, message=message), True

    def __enter__(self) -> LifeFile:
        _write(self.path, self._now)
        threading.Thread(target=self._beat, name="mpviz-life", daemon=True).start()
        return self

    def _beat(self) -> None:
        beats = 0
        while not self._end.wait(1.0):
            beats += 1
            with self._lock:
                if self._end.is_set():
                    return
                if self._changed:
                    self._changed = False
                    _write(self.path, self._now)
                elif beats % int(BEAT) == 0:
                    with contextlib.suppress(OSError):
                        os.utime(self.path)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        with self._lock:
            _write(self.path, replace(self._now, ended=time.time(), **_end_of(error)))


def _end_of(error: BaseException | None) -> dict[str, Any]:
    if error is None:
        return {"state": "done", "progress": 1.0, "message": ""}
    if isinstance(error, SystemExit):
        return {"state": "stopped", "message": "was taken away, and goes on when it is begun again"}
    if isinstance(error, (Cancelled, KeyboardInterrupt)):
        return {"state": "stopped", "message": str(error) or "interrupted from the keyboard"}
    said = " ".join(str(error).splitlines())
    return {"state": "failed", "message": said if isinstance(error, MpvizError) else f"{type(error).__name__}: {said}"}
