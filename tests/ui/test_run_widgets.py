"""The queue of runs in a notebook, without a notebook."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import ipywidgets as w
import pytest

from mpviz.recipe import ModelPlan, Recipe, RecoverPlan
from mpviz.run_status import RunStatus, write_status
from mpviz.ui.run_figures import NO_CURVE
from mpviz.ui.widgets import run_view
from mpviz.ui.widgets import runs as run_widgets
from mpviz.ui.widgets.desk import View
from mpviz.ui.widgets.figure import Figure
from mpviz.ui.widgets.table import Rows
from mpviz.workbench.run_queue import RunQueue
from mpviz.workbench.run_store import LOG, STATUS, Run
from tests.ui.views import eventually, parts

TRAINS = replace(Recipe(), model=ModelPlan("fashion-mlp"), recover=RecoverPlan(epochs=2))


@pytest.fixture
def queue(tmp_path: Any) -> RunQueue:
    """One that starts nothing: what its runs do is written by hand."""
    return RunQueue(tmp_path / "runs", works=False)


@pytest.fixture
def show(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., View]]:
    monkeypatch.setattr(run_widgets, "_BEAT", 0.05)
    made: list[View] = []

    def shown(*given: Any, **more: Any) -> View:
        made.append(run_view(*given, **more))
        return made[-1]

    yield shown
    for view in made:
        view.close()


def words(view: w.Widget) -> str:
    return " ".join(part.value for part in parts(view, w.HTML) if part.layout.display != "none")


def button(view: w.Widget, name: str) -> w.Button:
    return next(one for one in parts(view, w.Button) if one.description == name)


def become(queue: RunQueue, run: Run, state: str, status: RunStatus, steps: int = 0) -> None:
    queue.store.change(
        lambda entries: [replace(one, state=state, attempt=1) if one.name == run.name else one for one in entries]
    )  # fmt: skip
    write_status(queue.store.path(run.name, STATUS), status)
    if steps:
        place = run.folder / "recovery"
        place.mkdir(parents=True, exist_ok=True)
        lines = [f"{i},1,0.1,{1 / i},0.5" for i in range(1, steps + 1)]
        (place / "metrics.csv").write_text("\n".join(["step,epoch,learning_rate,loss,accuracy", *lines, ""]))


def test_the_view_follows_what_runs_write(queue: RunQueue, show: Callable[..., View]) -> None:
    view = show(queue)
    table, figure = parts(view, Rows)[0], parts(view, Figure)[0]
    assert table.ids == [] and "Nothing has run yet" in words(view)
    run = queue.submit(TRAINS)
    eventually(lambda: table.ids == [run.name])
    assert table.cells["run"]["text"] == ["fashion-mlp, 50 % removed, 2 epochs"]
    assert figure.picture["layout"]["annotations"][0]["text"] == NO_CURVE
    become(queue, run, "running", RunStatus("running", 0.25, "epoch 1 of 2", 42.0), 2)
    queue.store.path(run.name, LOG).write_text("one <line>\nand another")
    eventually(lambda: "epoch 1 of 2: loss 0.750" in figure.picture["layout"]["title"]["text"])
    eventually(lambda: "one &lt;line&gt;\nand another" in words(view))
    assert table.live["state"]["text"] == ["running"] and "about 42 s left" in words(view)
    assert parts(view, w.FloatProgress)[0].value == 0.25
    become(queue, run, "running", RunStatus("running", 0.5, "epoch 1 of 2"), 4)
    eventually(lambda: figure.picture["data"][0]["x"] == [1, 2, 3, 4])


def test_a_view_that_is_shown_anew_is_as_it_was(queue: RunQueue, show: Callable[..., View]) -> None:
    run = queue.submit(TRAINS)
    become(queue, run, "running", RunStatus("running", 0.25, "epoch 1 of 2"), 3)
    first = show(queue)
    first.close()
    again = show(str(queue.folder))  # as another kernel would open it
    assert parts(again, Figure)[0].picture["data"][0]["x"] == [1, 2, 3] and "epoch 1 of 2" in words(again)


def test_buttons_do_what_can_be_done(queue: RunQueue, show: Callable[..., View]) -> None:
    first, second = queue.submit(TRAINS), queue.submit(TRAINS)
    view = show(queue)
    table = parts(view, Rows)[0]
    assert not button(view, "Cancel").disabled and button(view, "Resume").disabled
    table.said = {"what": "pick", "row": second.name, "times": "1"}
    assert eventually(lambda: table.selected == second.name)
    button(view, "Cancel").click()
    assert queue.run(second.name).state == "cancelled" and queue.run(first.name).state == "queued"
    eventually(lambda: button(view, "Cancel").disabled and not button(view, "Resume").disabled)
    button(view, "Resume").click()
    assert queue.run(second.name).state == "queued"
    button(view, "Remove").click()
    assert [run.name for run in queue.runs()] == [first.name]


def test_the_list_can_be_taken_away(
    queue: RunQueue, show: Callable[..., View], monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.submit(TRAINS)
    table = parts(show(queue), Rows)[0]
    sent: list[dict[str, str]] = []
    monkeypatch.setattr(table, "send", sent.append)
    table.said = {"what": "csv", "row": "", "times": "1"}
    lines = base64.b64decode(sent[0]["base64"]).decode().splitlines()
    assert sent[0]["name"] == "runs.csv" and "title" in lines[0] and "50 % removed" in lines[1] and len(lines) == 2


def test_a_failure_has_its_sentence_and_a_fold(queue: RunQueue, show: Callable[..., View]) -> None:
    run = queue.submit(TRAINS)
    status = RunStatus("failed", 0.1, "failed at 10 %", error="no <luck>; try again", traceback="Traceback\n  <x>")
    become(queue, run, "failed", status)
    shown = words(show(queue))
    assert "no &lt;luck&gt;; try again" in shown and "<details><summary>Traceback</summary>" in shown
    assert "Traceback\n  &lt;x&gt;" in shown and "<luck>" not in shown


def test_a_damaged_queue_is_a_sentence(queue: RunQueue, show: Callable[..., View]) -> None:
    queue.submit(TRAINS)
    view = show(queue)
    (queue.folder / "queue.json").write_text("{")
    eventually(lambda: "is no list of runs" in words(view))


def test_the_plan_of_a_workbench_is_submitted_with_its_training(queue: RunQueue, show: Callable[..., View]) -> None:
    class Bench:
        recipe = replace(TRAINS, recover=RecoverPlan())

    view = show(queue, workbench=Bench())
    parts(view, w.BoundedFloatText)[0].value = 3.0
    button(view, "Run this plan").click()
    run = queue.runs()[0]
    assert run.epochs == 3 and "fashion-mlp" in queue.recipe_text(run.name)
    assert parts(view, Rows)[0].ids == [run.name]


def test_a_queue_shows_itself(queue: RunQueue) -> None:
    bundle = queue._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    assert "application/vnd.jupyter.widget-view+json" in json.dumps(data)
