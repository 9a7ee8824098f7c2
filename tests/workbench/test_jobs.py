"""Background jobs: what Cancel does at every moment."""

from __future__ import annotations

import threading
import time

import pytest

import mpviz as mp
from mpviz.errors import Cancelled
from mpviz.nets import zoo
from mpviz.workbench.jobs import Job
from mpviz.workbench.views import JobStatus


class Told(list):
    """The statuses of a job, in the order in which they were told."""

    @property
    def states(self) -> list[str]:
        return [status.state for status in self]


def stuck(entered: threading.Event, release: threading.Event) -> None:
    entered.set()
    release.wait(30)


def test_cancel_is_said_at_once_and_then_done() -> None:
    told, entered, release = Told(), threading.Event(), threading.Event()

    def work(job: Job) -> None:
        stuck(entered, release)
        job.tell(0.5, "half")

    job = Job("work", work, told.append).start()
    entered.wait(10)
    job.cancel()
    assert told[-1].state == "running" and told[-1].message == "cancelling …"
    release.set()
    assert job.wait(10).state == "cancelled"
    assert told.states == ["running", "running", "cancelled"]


def test_a_job_that_changes_nothing_is_over_when_cancelled_though_its_thread_is_stuck() -> None:
    told, entered, release = Told(), threading.Event(), threading.Event()

    def work(job: Job) -> str:
        stuck(entered, release)
        job.claim()
        raise AssertionError("an abandoned job must not claim its result")

    job = Job("load", work, told.append, abandonable=True).start()
    entered.wait(10)
    start = time.monotonic()
    job.cancel()
    assert job.wait(10).state == "cancelled" and time.monotonic() - start < 1
    release.set()
    job.join(10)
    assert told.states == ["running", "cancelled"] and job.result is None, "nothing is told after the end"


def test_what_fails_after_cancel_counts_as_cancelled() -> None:
    entered, release = threading.Event(), threading.Event()

    def work(job: Job) -> None:
        stuck(entered, release)
        raise OSError("connection closed")

    job = Job("load", work, lambda status: None).start()
    entered.wait(10)
    job.cancel()
    release.set()
    assert job.wait(10).state == "cancelled" and job.error is None


def test_a_claimed_job_is_not_cancelled_any_more() -> None:
    entered, release = threading.Event(), threading.Event()

    def work(job: Job) -> str:
        job.claim()
        stuck(entered, release)
        job.tell(0.9, "putting it in place")
        return "result"

    job = Job("load", work, lambda status: None, abandonable=True).start()
    entered.wait(10)
    job.cancel()
    release.set()
    assert job.wait(10).state == "done" and job.result == "result"


def test_claim_after_cancel_raises() -> None:
    seen: list[JobStatus] = []
    job = Job("work", lambda job: None, seen.append)
    job.cancel()
    with pytest.raises(Cancelled):
        job.claim()


def test_a_load_that_waits_for_a_network_lets_go(monkeypatch: pytest.MonkeyPatch) -> None:
    entered, release = threading.Event(), threading.Event()

    def hub(source: object) -> None:
        stuck(entered, release)
        raise OSError("no route to host")

    monkeypatch.setattr(zoo, "_pretrained_timm", hub)
    bench = mp.Workbench("fashion-mlp", samples=50)
    job = bench.open("resnet18")
    assert entered.wait(30)
    bench.cancel()
    assert bench.job.state == "cancelled" and bench.error == ""
    assert bench.open("fashion-mlp-l1").wait(60).state == "done", "the place is free for the next job"
    release.set()
    job.join(10)
    assert bench.model == "fashion-mlp-l1" and bench.job.state == "done"
    bench.close()
