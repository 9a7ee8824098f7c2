"""Who is on a served dashboard: how many, what runs for them, and what each may do."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import logging
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpviz import __version__
from mpviz.errors import AccessError, MpvizError
from mpviz.workbench.jobs import Job
from mpviz.workbench.journal import note, short_id
from mpviz.workbench.policy import Gate, Policy
from mpviz.workbench.views import JobStatus

if TYPE_CHECKING:
    from mpviz.workbench.run_queue import RunQueue
    from mpviz.workbench.state import Workbench


@dataclass(frozen=True)
class Limits:
    """How much a server takes on; None is no limit.

    sessions: visitors at a time. jobs: prunings, proofs and previews that run at a time, of all sessions together.
    samples: images of one session's preview. upload: megabytes (10⁶ bytes) of one uploaded checkpoint; None takes none.
    """

    sessions: int | None = None
    jobs: int | None = None
    samples: int | None = None
    upload: int | None = None


class Visits:
    """All sessions of one server. Its methods may be called from any thread. runs: the queue of all of them."""

    def __init__(self, policy: Policy | None = None, limits: Limits | None = None) -> None:
        self.policy, self.limits = policy or Policy(), limits or Limits()
        self._secret, self._started = secrets.token_bytes(32), time.monotonic()
        self._open: dict[str, Visit] = {}
        self.runs: RunQueue | None = None
        self.coming = 0  # visitors whose session is being made; counted on the server's own thread
        self._lock = threading.Lock()

    def enter(self, session: str = "", user: str | None = None) -> Visit:
        """A visit of this session. session: its id; a new one where there is none."""
        visit = Visit(self, session or secrets.token_hex(16), user)
        with self._lock:
            self._open[visit.key] = visit
        visit.note("session-open", "a session was opened")
        return visit

    def leave(self, visit: Visit) -> None:
        """The visit has ended."""
        with self._lock:
            known = self._open.get(visit.key) is visit
            if known:
                del self._open[visit.key]
        if known:
            visit.note("session-close", "a session was closed")

    def find(self, key: str) -> Visit | None:
        """The open visit of this key, None for any other string."""
        with self._lock:
            return self._open.get(key)

    def key_of(self, session: str) -> str:
        """What a page of this session shows when it uploads. Nobody can make it from what is written in logs."""
        return hmac.new(self._secret, session.encode(), hashlib.sha256).hexdigest()

    def all(self) -> list[Visit]:
        """The visits that are open now."""
        with self._lock:
            return list(self._open.values())

    def jobs(self) -> int:
        """How many background jobs run, a run of the queue among them."""
        busy = sum(visit.status.busy for visit in self.all())
        with contextlib.suppress(MpvizError):  # a damaged queue says so on its own page
            busy += self.runs is not None and self.runs.running
        return busy

    def room(self) -> bool:
        """Whether one more job may start."""
        return self.limits.jobs is None or self.jobs() < self.limits.jobs

    def full(self) -> str:
        """Why no further session is taken, "" while there is room."""
        most = self.limits.sessions
        if most is None or len(self.all()) + self.coming < most:
            return ""
        return f"all {most} places of this server are taken; try again in a few minutes"

    def health(self) -> dict[str, Any]:
        """What a monitor may know, without names: status, version, sessions, jobs_running, uptime_s (seconds)."""
        return {
            "status": "ok",
            "version": __version__,
            "sessions": len(self.all()),
            "jobs_running": self.jobs(),
            "uptime_s": round(time.monotonic() - self._started, 1),
        }


@dataclass(eq=False)
class Visit:
    """One session on a server.

    gate: what it may open. status: its last job's. receive: opens what was uploaded. plan: gives its recipe as TOML.
    """

    visits: Visits
    session: str
    user: str | None = None
    status: JobStatus = field(default_factory=JobStatus)
    receive: Callable[[str], None] | None = None
    show_error: Callable[[str], None] | None = None
    end: Callable[[], None] | None = None
    plan: Callable[[], str] | None = None

    def __post_init__(self) -> None:
        self.gate = Gate(self.visits.policy)
        self.key = self.visits.key_of(self.session)
        self.busy_upload = threading.Lock()
        self._folder: Path | None = None
        self._model = self._asked = ""

    @property
    def limits(self) -> Limits:
        """Those of the server."""
        return self.visits.limits

    def note(self, event: str, message: str, level: int = logging.INFO) -> None:
        """Write down what happened in this session."""
        note(event, message, level, session=short_id(self.session), user=self.user, model=self._model or None)

    @property
    def status_model(self) -> str:
        """The network that is open, as far as its jobs have told."""
        return self._model

    def admit(self, name: str, model: str, data: tuple[str, str | None]) -> None:
        """Raises AccessError when the session may not open this network or this data set; refusals are noted."""
        try:
            self._asked = model
            self.gate.model(model)
            self.gate.data_set(*data)
        except AccessError as error:
            self.note(f"{name}-refused", str(error), logging.WARNING)
            raise

    def start(self, job: Callable[[], Any]) -> Any:
        """Start a job. Raises AccessError when the server has as many jobs as it takes."""
        most = self.limits.jobs
        if not self.visits.room():
            jobs = "one job" if most == 1 else f"{most} jobs"
            raise AccessError(f"this server runs {jobs} at a time, and others are at work; try again in a minute")
        return job()

    def follow(self, status: JobStatus, model: str = "") -> None:
        """The session has a job with a new status; start and end are noted. model: that is open; "" before one is."""
        before, self.status, self._model = self.status, status, model or self._asked
        if (before.name, before.state) == (status.name, status.state) or status.state == "idle":
            return
        word = {"running": "start", "done": "end"}.get(status.state, status.state)
        level = logging.WARNING if status.state == "failed" else logging.INFO
        self.note(f"{status.name}-{word}", status.message, level)

    def load(self, job: Job, model: str, data: str, folder: str | None) -> Workbench:
        """The session's Workbench, of what the gate lets through. Its import takes seconds the first time."""
        job.tell(0.0, f"loading {model}")
        from mpviz.workbench.state import Workbench

        wb = Workbench(model, data, folder, self.gate)
        if job.cancelled():  # nobody waits for it any more
            wb.close()
            job.tell(1.0, "")
        return wb

    def folder(self) -> Path:
        """Where this session's uploads are kept; gone when it ends. Only this process's user can read it."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="mpviz-upload-"))
        return self._folder

    def keep(self, name: str, path: Path, now: str) -> str:
        """Offer an uploaded file to this session under a name like the one it had there; gives that name.

        now: the network that is open, whose file stays. Other uploads of the session are deleted.
        """
        for other in [one for one in self.gate.uploads if one != now]:
            Path(self.gate.uploads.pop(other)).unlink(missing_ok=True)
        shown, count = f"uploaded: {name}", 2
        while shown in self.gate.uploads:
            shown, count = f"uploaded: {name} ({count})", count + 1
        self.gate.uploads[shown] = str(path)
        return shown

    def close(self) -> None:
        """The session has ended: its uploads go."""
        self.visits.leave(self)
        self.gate.uploads.clear()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
