"""Background work: one job at a time with progress, cancel and errors as sentences; and the preview's loop."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol
from weakref import WeakSet

from mpviz.errors import Cancelled, MpvizError
from mpviz.workbench.views import JobState, JobStatus

logger = logging.getLogger(__name__)
OnStatus = Callable[[JobStatus], None]
_PATIENCE = 10.0  # seconds that the end of the process waits for background work to notice


class Worker(Protocol):
    """Something that works in the background, and can be asked to stop."""

    def stop(self) -> None:
        """Stop at the next chance."""

    def join(self, timeout: float) -> None:
        """Wait for it, so many seconds."""

    @property
    def alive(self) -> bool:
        """Whether it still works."""


_working: WeakSet[Worker] = WeakSet()


def background(worker: Worker) -> None:
    """Have it stopped and waited for when the process ends."""
    _working.add(worker)


@atexit.register
def stop_all(patience: float = _PATIENCE) -> bool:
    """Ask all background work to stop and wait for it, for `patience` seconds in all; False when some still runs."""
    # a daemon thread that is inside torch when the interpreter goes aborts the process
    workers, end = list(_working), time.monotonic() + patience
    for worker in workers:
        worker.stop()
    for worker in workers:
        worker.join(max(end - time.monotonic(), 0.0))
    return not any(worker.alive for worker in workers)


def sentence(error: BaseException) -> str:
    """What a person reads of an error: our own messages as they are, others with their type."""
    return str(error) if isinstance(error, MpvizError) else f"{type(error).__name__}: {error}"


class Job:
    """One function on a thread of its own. Its `tell(progress, message)` raises Cancelled when asked to stop.

    abandonable: the function changes nothing before it calls `claim`. Such a job is over as soon as it is cancelled,
    even where its thread waits for a network that does not answer; what that thread still finds is dropped.
    """

    def __init__(
        self, name: str, function: Callable[[Job], Any], on_status: OnStatus, abandonable: bool = False
    ) -> None:
        self.name, self._function, self._on_status = name, function, on_status
        self._abandonable, self._claimed = abandonable, False
        self._turn, self._over = threading.RLock(), threading.Event()
        self._stop, self._started = threading.Event(), time.monotonic()
        self.result: Any = None
        self.error: BaseException | None = None
        self.status = JobStatus(name, "running", 0.0, "starting")
        self._thread = threading.Thread(target=self._run, name=f"mpviz-{name}", daemon=True)

    def start(self) -> Job:
        """Show the job as running, then start it."""
        self._on_status(self.status)
        _working.add(self)
        self._thread.start()
        return self

    def stop(self) -> None:
        """End at the next step, as when cancelled."""
        self.cancel()

    def join(self, timeout: float) -> None:
        """Wait for the thread, which may live on after a job that was abandoned."""
        if self._thread is not threading.current_thread():
            self._thread.join(timeout)

    @property
    def alive(self) -> bool:
        """True while the thread is there."""
        return self._thread.is_alive()

    def cancelled(self) -> bool:
        """True once somebody asked the job to stop."""
        return self._stop.is_set()

    def cancel(self) -> None:
        """Ask the job to stop at its next step; one that has claimed its result, or has ended, goes on."""
        with self._turn:
            if self._claimed or self._over.is_set() or self._stop.is_set():
                return
            if self._abandonable:
                self._end("cancelled", self._unchanged)
            else:  # said before the flag is up: the thread's own word must be the last
                self._set(replace(self.status, message="cancelling …", seconds_left=None))
            self._stop.set()

    def claim(self) -> None:
        """From here on nothing can cancel the job: it puts its result in place. Raises Cancelled when it was before."""
        with self._turn:
            if self._stop.is_set():
                raise Cancelled(f"{self.name} was cancelled")
            self._claimed = True

    def wait(self, timeout: float | None = None) -> JobStatus:
        """Block until the job has ended, or the timeout in seconds is over."""
        if self._thread is not threading.current_thread():
            self._over.wait(timeout)
        return self.status

    def tell(self, progress: float, message: str) -> None:
        """Report progress in 0 … 1. Raises Cancelled when the job was asked to stop."""
        if self._stop.is_set() and not self._claimed:
            raise Cancelled(f"{self.name} was cancelled")
        elapsed = time.monotonic() - self._started
        left = elapsed * (1 - progress) / progress if progress > 0.02 else None
        self._set(JobStatus(self.name, "running", progress, message, left))

    @property
    def _unchanged(self) -> str:
        return f"{self.name} was cancelled; nothing was changed"

    def _set(self, status: JobStatus) -> None:
        with self._turn:
            if self._over.is_set():
                return
            self.status = status
            self._on_status(status)

    def _end(self, state: JobState, message: str, progress: float | None = None) -> None:
        with self._turn:
            self._set(JobStatus(self.name, state, self.status.progress if progress is None else progress, message))
            self._over.set()

    def _run(self) -> None:
        try:
            result = self._function(self)
            with self._turn:
                if not self._over.is_set():
                    self.result = result
                    self._end("done", f"{self.name} finished", 1.0)
        except Cancelled:
            self._end("cancelled", self._unchanged)
        except Exception as error:  # a job's thread is the last place where its error can be shown
            logger.debug("job %s failed", self.name, exc_info=True)
            if self._stop.is_set() and not self._claimed:  # what stops half-way may fail in its own way
                self._end("cancelled", self._unchanged)
            else:
                self.error = error
                self._end("failed", sentence(error))


class Loop:
    """Calls `step` again and again on one daemon thread until it returns False, then sleeps until woken."""

    def __init__(self, step: Callable[[], bool], on_error: Callable[[BaseException], None]) -> None:
        self._step, self._on_error = step, on_error
        self._wake, self._closed = threading.Event(), threading.Event()
        self._idle, self._turn = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._run, name="mpviz-preview", daemon=True)

    def start(self) -> None:
        """Start the thread; a second call only wakes it."""
        self.wake()
        if not self._thread.is_alive() and not self._closed.is_set():
            _working.add(self)
            self._thread.start()

    def wake(self) -> None:
        """There is something to do."""
        with self._turn:
            self._idle.clear()
            self._wake.set()

    @property
    def alive(self) -> bool:
        """True while the thread is there."""
        return self._thread.is_alive()

    @property
    def stopped(self) -> bool:
        """True once the thread is to end."""
        return self._closed.is_set()

    def join(self, timeout: float) -> None:
        """Wait for the thread."""
        if self._thread.is_alive():
            self._thread.join(timeout)

    def stop(self) -> None:
        """End the thread after its current step."""
        self._closed.set()
        self._wake.set()

    def wait_idle(self, timeout: float) -> bool:
        """Block until there is nothing left to do; False after `timeout` seconds, or when it never started."""
        return self._idle.wait(timeout)

    def _run(self) -> None:
        # sliders come first; other systems have no priority of a single thread
        with contextlib.suppress(AttributeError, OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 15)
        while not self._closed.is_set():
            self._wake.wait()
            self._wake.clear()
            try:
                while not self._closed.is_set() and self._step():
                    pass
            except Exception as error:  # noqa: BLE001 - shown on the page; the loop lives on for the next setting
                self._on_error(error)
            with self._turn:
                if not self._wake.is_set():
                    self._idle.set()
