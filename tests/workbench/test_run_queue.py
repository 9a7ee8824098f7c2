"""The queue of runs: order, cancel, failure, kills, resume, and what other processes see of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mpviz.errors import CheckpointError, MpvizError, RecipeError
from mpviz.recipe import DataPlan, GridPlan, ProjectPlan, Recipe, RecoverPlan
from mpviz.workbench import run_worker
from mpviz.workbench.run_queue import RunQueue
from mpviz.workbench.run_store import LOG, QUEUE, Run, take_lock
from mpviz.workbench.run_worker import command_of
from tests.workbench import fake_run

PATIENCE = 30.0
FAKE = [sys.executable, str(Path(fake_run.__file__))]


def recipe(what: str = "quick") -> Recipe:
    return replace(Recipe(), data=DataPlan(name=what))


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., RunQueue]]:
    """Makes queues of one folder, whose runs are stand-ins."""
    monkeypatch.setattr(run_worker, "command_of", lambda path: [*FAKE, str(path)])
    made: list[RunQueue] = []

    def queue(**options: Any) -> RunQueue:
        made.append(RunQueue(tmp_path / "runs", **options))
        return made[-1]

    yield queue
    for one in made:
        for run in one.runs():
            if run.busy:
                one.cancel(run.name)
    for run in made[0].runs() if made else ():
        if run.state == "running":
            os.kill(process_of(made[0], run), signal.SIGKILL)
    for one in made:
        one.close()


def process_of(queue: RunQueue, run: Run) -> int:
    return int((queue.folder / run.name / "process.txt").read_text())


def until(check: Callable[[], Any]) -> Any:
    end = time.monotonic() + PATIENCE
    while not (found := check()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def steps(run: Run) -> int:
    path = run.folder / "steps.txt"
    return int(path.read_text() or 0) if path.exists() else 0


def at_work(queue: RunQueue, run: Run) -> None:
    """Wait until the run has done some steps."""
    until(lambda: queue.run(run.name).state == "running" and steps(run) > 3)


# --- what happens to runs -------------------------------------------------------------------------------------------


def test_runs_go_one_after_another_in_their_order(make: Callable[..., RunQueue]) -> None:
    queue = make()
    runs = [queue.submit(recipe()) for _ in range(3)]
    assert [run.name for run in runs] == ["run-001", "run-002", "run-003"]
    seen = set()
    while queue.run("run-003").state != "done":
        states = [run.state for run in queue.runs()]
        seen.add(tuple(states))
        assert states.count("running") <= 1
        time.sleep(0.02)
    assert ("done", "running", "queued") in seen
    assert (queue.folder / "order.txt").read_text().split() == ["run-001", "run-002", "run-003"]
    assert {(run.state, run.progress, run.message, run.place) for run in queue.runs()} == {("done", 1.0, "done", 0)}
    assert "runs quick" in (queue.folder / "run-001" / LOG).read_text()


def test_what_waits_knows_its_place_and_is_cancelled_without_a_trace(make: Callable[..., RunQueue]) -> None:
    queue = make()
    first = queue.submit(recipe("slow"))
    at_work(queue, first)
    second, third = queue.submit(recipe()), queue.submit(recipe())
    assert [run.place for run in queue.runs()] == [0, 1, 2] and third.message == "waits for its turn"
    gone = queue.cancel(second.name)
    assert (gone.state, gone.message) == ("cancelled", "cancelled before it began")
    assert queue.run(third.name).place == 1
    queue.remove(second.name)
    assert [run.name for run in queue.runs()] == [first.name, third.name]
    assert not (queue.folder / second.name).exists()


def test_cancelling_keeps_the_last_state_and_resuming_goes_on_from_there(make: Callable[..., RunQueue]) -> None:
    queue = make()
    run = queue.submit(recipe("once"))
    at_work(queue, run)
    asked = queue.cancel(run.name)
    assert asked.stopping and not asked.busy and asked.message.startswith("cancelling")
    ended = queue.wait(run.name, PATIENCE)
    kept = steps(run)
    assert (ended.state, ended.message) == ("cancelled", f"cancelled after step {kept}") and ended.resumable
    assert ended.error == "" and queue.resume(run.name).state in ("queued", "running")
    assert queue.wait(run.name, PATIENCE).state == "done" and steps(run) == kept + 5
    assert (queue.folder / run.name / LOG).read_text().count("runs once") == 2


def test_a_failed_run_keeps_its_sentence_and_its_traceback_and_the_next_one_runs(make: Callable[..., RunQueue]) -> None:
    queue = make()
    bad, good = queue.submit(recipe("fails")), queue.submit(recipe())
    assert queue.wait(good.name, PATIENCE).state == "done"
    failed = queue.run(bad.name)
    assert (failed.state, failed.error) == ("failed", "no such <luck>; try again")
    assert failed.traceback.startswith("Traceback (most recent call last)") and "fake_run.py" in failed.traceback
    assert failed.resumable and not failed.busy


def test_a_killed_process_is_told_and_can_be_resumed(make: Callable[..., RunQueue]) -> None:
    queue = make()
    run = queue.submit(recipe("once"))
    at_work(queue, run)
    os.kill(process_of(queue, run), signal.SIGKILL)
    failed = queue.wait(run.name, PATIENCE)
    assert failed.state == "failed" and "was ended by SIGKILL" in failed.error and "memory" in failed.error
    assert failed.error.endswith("resume goes on from its last checkpoint")
    kept = steps(run)
    queue.resume(run.name)
    assert queue.wait(run.name, PATIENCE).state == "done" and steps(run) == kept + 5


def test_one_that_does_not_listen_is_ended(make: Callable[..., RunQueue], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_worker, "PATIENCE", 0.5)
    queue = make()
    run = queue.submit(recipe("deaf"))
    at_work(queue, run)
    queue.cancel(run.name)
    ended = queue.wait(run.name, PATIENCE)
    assert (ended.state, ended.message, ended.error) == ("cancelled", "cancelled; its last checkpoint is kept", "")


def test_a_program_that_is_not_there_fails_its_run(
    make: Callable[..., RunQueue], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_worker, "command_of", lambda path: [str(path / "nothing")])
    queue = make()
    failed = queue.wait(queue.submit(recipe()).name, PATIENCE)
    assert failed.state == "failed" and failed.error.startswith("run-001 could not be started: ")


def test_nothing_starts_while_there_is_no_room(make: Callable[..., RunQueue]) -> None:
    room: list[int] = []
    queue = make(may_start=lambda: bool(room))
    run = queue.submit(recipe())
    time.sleep(0.6)
    assert queue.run(run.name).state == "queued" and not queue.running
    room.append(1)
    assert queue.wait(run.name, PATIENCE).state == "done"


# --- more than one process --------------------------------------------------------------------------------------------

READ = (
    "import json, sys; from mpviz.workbench.run_queue import RunQueue\n"
    "runs = RunQueue(sys.argv[1], works=False).runs()\n"
    "print(json.dumps([[run.name, run.state, run.message, run.progress] for run in runs]))\n"
    "print('torch' in sys.modules, file=sys.stderr)"
)


def test_another_process_sees_the_same(make: Callable[..., RunQueue]) -> None:
    queue = make()
    runs = [queue.submit(recipe("fails")), queue.submit(recipe())]
    queue.wait(runs[1].name, PATIENCE)
    done = subprocess.run(
        [sys.executable, "-c", READ, str(queue.folder)], capture_output=True, text=True, check=True, timeout=60
    )
    mine = [[run.name, run.state, run.message, run.progress] for run in queue.runs()]
    assert json.loads(done.stdout) == mine and [run[1] for run in mine] == ["failed", "done"]
    assert done.stderr.strip() == "False", "looking at a queue does not wait for torch"


WORK = (
    "import sys, time; from mpviz.recipe import *; from mpviz.workbench import run_worker\n"
    "from mpviz.workbench.run_queue import RunQueue\n"
    "run_worker.command_of = lambda path: [*sys.argv[2:], str(path)]\n"
    "queue = RunQueue(sys.argv[1])\n"
    "queue.submit(Recipe(data=DataPlan(name='slow'))); queue.submit(Recipe(data=DataPlan(name='quick')))\n"
    "time.sleep(600)"
)


def test_a_run_outlives_the_process_that_started_it_and_another_takes_over(make: Callable[..., RunQueue]) -> None:
    looking = make(works=False)
    other = subprocess.Popen([sys.executable, "-c", WORK, str(looking.folder), *FAKE])
    try:
        until(lambda: len(looking.runs()) == 2)
        at_work(looking, looking.run("run-001"))
        second = make()  # on the same folder: the other one is on duty
        time.sleep(0.5)
        assert take_lock(looking.folder / "worker.lock") is None
    finally:
        other.kill()
        other.wait()
    before = steps(looking.run("run-001"))
    until(lambda: steps(looking.run("run-001")) > before + 5)
    assert looking.run("run-001").state == "running"
    second.cancel("run-001")
    assert second.wait("run-001", PATIENCE).state == "cancelled"
    assert second.wait("run-002", PATIENCE).state == "done"


def test_a_run_goes_on_when_its_queue_is_closed(make: Callable[..., RunQueue]) -> None:
    first = make()
    run = first.submit(recipe("slow"))
    at_work(first, run)
    first.close()
    assert not first.alive
    before = steps(run)
    until(lambda: steps(run) > before + 5)
    make().cancel(run.name)
    assert first.wait(run.name, PATIENCE).state == "cancelled"


def test_a_servers_run_keeps_its_state_when_the_server_ends_and_goes_on_with_the_next(
    make: Callable[..., RunQueue],
) -> None:
    first = make(ends_runs=True)
    run = first.submit(recipe("once"))
    at_work(first, run)
    first.close()
    waiting = first.run(run.name)
    kept = steps(run)
    assert (waiting.state, waiting.place) == ("queued", 1) and "last good state" in waiting.message
    time.sleep(0.3)
    assert steps(run) == kept, "nothing runs any more"
    assert make().wait(run.name, PATIENCE).state == "done" and steps(run) == kept + 5


def test_many_writers_lose_nothing_and_no_reader_sees_half_a_file(make: Callable[..., RunQueue]) -> None:
    queues = [make(works=False) for _ in range(4)]
    stop, seen = threading.Event(), []

    def read() -> None:
        reader = RunQueue(queues[0].folder, works=False)
        while not stop.is_set():
            seen.append(len(reader.runs()))

    def write(queue: RunQueue) -> None:
        for _ in range(8):
            queue.submit(recipe())

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=write, args=(queue,)) for queue in queues]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    reader.join()
    names = [run.name for run in queues[0].runs()]
    assert len(names) == 32 == len(set(names)) and seen == sorted(seen)
    assert not list(queues[0].folder.glob("**/*.part"))
    for name in names:
        queues[0].remove(name)


# --- what is refused --------------------------------------------------------------------------------------------------


def test_recipes_come_as_objects_text_and_files(make: Callable[..., RunQueue], tmp_path: Path) -> None:
    queue = make(works=False)
    (tmp_path / "plan.toml").write_text('[model]\nname = "fashion-mlp"\n[budget]\nsparsity = 0.8\n')
    titles = [
        queue.submit(one).title
        for one in (
            tmp_path / "plan.toml", str(tmp_path / "plan.toml"), "recover.epochs = 1.5",
            replace(Recipe(), grid=GridPlan(["magnitude", "seb"])), replace(Recipe(), project=ProjectPlan("2:4")),
        )
    ]  # fmt: skip
    assert titles == [
        "fashion-mlp, 80 % removed", "fashion-mlp, 80 % removed", "fashion-vit, 50 % removed, 1.5 epochs",
        "fashion-vit, 2 methods × 3 sparsities", "fashion-vit, 2:4 pattern",
    ]  # fmt: skip
    assert [run.kind for run in queue.runs()] == ["plan", "plan", "plan", "grid", "projection"]
    assert "sparsity = 0.8" in queue.recipe_text("run-001")
    for bad, words in (
        ("budget.sparsty = 1", "unknown recipe key 'budget.sparsty'; did you mean 'sparsity'?"),
        ("a = [", "not valid TOML"),
        (str(tmp_path / "nothing.toml"), "give a TOML file or its text"),
        (replace(Recipe(), recover=RecoverPlan(epochs=-1)), "recover.epochs"),
    ):
        with pytest.raises(RecipeError, match=words.replace("?", r"\?").replace("[", r"\[")):
            queue.submit(bad)  # type: ignore[arg-type]
    assert len(queue.runs()) == 5, "what is refused leaves nothing"


def test_what_cannot_be_done_is_a_sentence(make: Callable[..., RunQueue]) -> None:
    queue = make()
    run = queue.submit(recipe("slow"))
    at_work(queue, run)
    for act, words in (
        (lambda: queue.run("run-01"), "there is no run 'run-01'; did you mean 'run-001'?"),
        (lambda: queue.cancel("../x"), "there is no run '../x'"),
        (lambda: queue.resume(run.name), "run-001 is running; only runs that were cancelled or have failed"),
        (lambda: queue.remove(run.name), "run-001 is running; cancel it before"),
    ):
        with pytest.raises(MpvizError) as refused:
            act()
        assert words in str(refused.value)
    queue.cancel(run.name)
    queue.wait(run.name, PATIENCE)
    with pytest.raises(MpvizError, match="is cancelled; only runs that wait or run"):
        queue.cancel(run.name)
    queue.remove(run.name)
    assert queue.runs() == [] and steps(run), "what it wrote stays"


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 2, "runs": []}', '{"format": 1, "runs": [{"name": "../x"}]}'])
def test_a_damaged_list_is_told_and_left_alone(make: Callable[..., RunQueue], text: str) -> None:
    queue = make(works=False)
    queue.submit(recipe())
    (queue.folder / QUEUE).write_text(text)
    for act in (queue.runs, lambda: queue.submit(recipe())):
        with pytest.raises(CheckpointError, match=r"is no list of runs .*move it away"):
            act()
    assert (queue.folder / QUEUE).read_text() == text
    (queue.folder / QUEUE).unlink()


def test_a_folder_that_is_no_queue_is_left_as_it_is(tmp_path: Path) -> None:
    queue = RunQueue(tmp_path)
    time.sleep(0.4)
    assert queue.runs() == [] and list(tmp_path.iterdir()) == []
    queue.close()
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot make the folder .*choose another"):
        RunQueue(tmp_path / "file", works=False).submit(recipe())


def test_a_full_disk_is_told_and_leaves_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    queue = RunQueue(tmp_path / "runs", works=False)
    monkeypatch.setattr("mpviz.workbench.run_queue.write_text", full)
    with pytest.raises(CheckpointError, match=r"cannot write into .*No space left.*make room"):
        queue.submit(recipe())
    assert queue.runs() == []


def test_a_run_is_a_command_that_people_can_give_themselves(tmp_path: Path) -> None:
    assert command_of(tmp_path)[1:] == [
        "-P", "-m", "mpviz", "run", str(tmp_path / "recipe.toml"), "--out", str(tmp_path / "out"), "--status",
        str(tmp_path / "status.json"),
    ]  # fmt: skip
