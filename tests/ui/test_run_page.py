"""The dashboard's page of runs: what it shows of a queue, to whom, and what it sends when it is asked again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mpviz.errors import MpvizError
from mpviz.recipe import GridPlan, ModelPlan, Recipe, RecoverPlan, parse_recipe
from mpviz.run_status import RunStatus, write_status
from mpviz.ui import run_page, theme
from mpviz.ui.run_figures import NO_CELLS, NO_CURVE, NO_TRAINING, cells_figure, curve_figure
from mpviz.ui.run_page import LINES, Watch
from mpviz.ui.run_words import EMPTY_QUEUE, EXAMPLE, left_words, results_table, state_words, without_places
from mpviz.workbench.run_curve import Curve, Epoch
from mpviz.workbench.run_queue import RunQueue
from mpviz.workbench.run_store import LOG, STATUS, Run
from tests.ui.pages import Reader, without_library

EVIL = "</script><img src=x onerror=hacked=1>\"'&$x$"
TRAINS = replace(Recipe(), model=ModelPlan("fashion-mlp"), recover=RecoverPlan(epochs=3))
GRID = replace(Recipe(), grid=GridPlan(["seb", "magnitude"]))


@pytest.fixture
def queue(tmp_path: Path) -> RunQueue:
    """One that starts nothing: what its runs do is written by hand."""
    return RunQueue(tmp_path / "runs", works=False)


@pytest.fixture
def watch(queue: RunQueue) -> Watch:
    return Watch(queue)


def become(queue: RunQueue, run: Run, state: str, status: RunStatus | None = None, **more: Any) -> None:
    """Let a run be in this state."""
    queue.store.change(
        lambda entries: [replace(one, state=state, **more) if one.name == run.name else one for one in entries]
    )  # fmt: skip
    if status is not None:
        write_status(queue.store.path(run.name, STATUS), status)


def trains(run: Run, steps: int = 4, per_epoch: int = 3) -> None:
    folder = run.folder / "recovery"
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{i},{1 + (i - 1) // per_epoch},0.1,{1 / i},{0.8 + i / 100}" for i in range(1, steps + 1)]
    (folder / "metrics.csv").write_text("step,epoch,learning_rate,loss,accuracy\n" + "\n".join(lines) + "\n")


def cell(run: Run, method: str, sparsity: float, accuracy: float) -> None:
    path = run.folder / "cells" / method / "seed-0" / f"cell-{sparsity:.4f}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    row = {"method": method, "seed": 0, "sparsity": sparsity, "phase": "pruned", "accuracy": accuracy,
           "dense_accuracy": 0.91}  # fmt: skip
    path.write_text(json.dumps({"metrics": [row]}))


def state_of(watch: Watch, owner: str = "", restricted: bool = False, **asked: str) -> dict[str, Any]:
    found = watch.state(asked, owner, restricted)
    json.dumps(found, allow_nan=False)
    return found


def title(figure: dict[str, Any]) -> str:
    return str(figure["layout"]["title"]["text"])


def invitation(figure: dict[str, Any]) -> str:
    return str(figure["layout"]["annotations"][0]["text"])


# --- the page -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["light", "dark"])
def test_the_page_invites_and_asks_nobody_but_its_own_server(watch: Watch, name: str) -> None:
    known, page = watch.page({"theme": name}, "", False, "key")
    reader, own = Reader(page), without_library(page)
    assert known and "{{" not in own and f"color-scheme: {name}" in page
    policy = next(str(a["content"]) for _, a in reader.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'") and policy.endswith("; connect-src 'self'")
    assert not [tag for tag, a in reader.tags if "src" in a or tag in ("link", "iframe", "object", "base")]
    assert "https:" not in own and "//cdn" not in own
    assert EMPTY_QUEUE in reader.all("p") and reader.drawn["state"] == {"runs": [], "error": ""}
    assert parse_recipe(reader.drawn["example"]) == parse_recipe(EXAMPLE)
    links = [str(a["href"]) for tag, a in reader.tags if tag == "a" and a.get("href")]
    assert links[:4] == ["./", *(f"./{page}?theme={name}" for page in ("compare", "patterns", "bench"))]


def test_what_can_be_touched_has_a_name(watch: Watch) -> None:
    reader = Reader(watch.page({}, "", False, "key")[1])
    roles = {a["role"]: a for _, a in reader.tags if a.get("role")}
    assert {"progressbar", "log", "alert", "status", "figure", "region"} <= set(roles)
    assert (roles["progressbar"]["aria-valuemin"], roles["progressbar"]["aria-valuemax"]) == ("0", "100")
    live = [a for _, a in reader.tags if a.get("aria-live") == "polite"]
    assert [a["id"] for a in live] == ["state"]
    buttons = [a for tag, a in reader.tags if tag == "button"]
    assert all(a.get("type") == "button" for a in buttons) and len(buttons) >= 7
    named = [a for tag, a in reader.tags if tag in ("textarea", "input")]
    assert all(a.get("aria-label") for a in named)


def test_nothing_that_comes_from_outside_is_markup(watch: Watch, queue: RunQueue) -> None:
    run = queue.submit(replace(Recipe(), model=ModelPlan(EVIL)), owner=EVIL)
    become(queue, run, "failed", RunStatus("failed", 0.1, EVIL, error=EVIL, traceback=EVIL))
    queue.store.path(run.name, LOG).write_text(EVIL)
    known, page = watch.page({"run": run.name}, "", False, EVIL)
    reader = Reader(page)
    assert known and "img" not in {tag for tag, _ in reader.tags} and "<img" not in page
    main = next(a for tag, a in reader.tags if tag == "main")
    assert main["data-xsrf"] == EVIL
    shown = reader.drawn["state"]["chosen"]
    assert (shown["error"], shown["traceback"], shown["log"]) == (EVIL, EVIL, [EVIL])


def test_a_run_that_is_not_there_is_a_sentence(watch: Watch) -> None:
    known, page = watch.page({"run": EVIL, "theme": "pink"}, "", False, "key")
    assert not known and f"there is no run '{EVIL}' here" in Reader(page).all("p") and "plotly" not in page


# --- what it shows --------------------------------------------------------------------------------------------------


def test_runs_stand_in_the_order_in_which_they_will_run_and_those_that_ended_below(
    watch: Watch, queue: RunQueue
) -> None:
    runs = [queue.submit(TRAINS) for _ in range(6)]
    become(queue, runs[0], "done", RunStatus("done", 1.0, "done"), started=10.0, ended=30.0)
    become(queue, runs[1], "failed", RunStatus("failed", 0.25, "failed at 25 %"), ended=40.0)
    become(queue, runs[2], "cancelled", ended=20.0)
    become(queue, runs[4], "running", RunStatus("running", 0.5, "epoch 2", 61.0), attempt=1)
    found = state_of(watch)["runs"]
    shown = [(run["name"][-1], run["words"], run["percent"], run["left"]) for run in found]
    assert shown == [
        ("5", "running", 50.0, "about 1 min 1 s left"), ("4", "next", 0.0, ""), ("6", "2nd in the queue", 0.0, ""),
        ("2", "failed", 25.0, ""), ("1", "done", 100.0, "took 20 s"), ("3", "cancelled", 0.0, ""),
    ]  # fmt: skip
    assert [run["name"] for run in found if run["chosen"]] == ["run-005"], "what is at work is shown first"
    queue.cancel("run-005")
    assert state_of(watch)["runs"][0]["words"] == "cancelling"


@pytest.mark.parametrize(
    ("state", "can"),
    [("queued", "cancel remove"), ("running", "cancel"), ("done", "remove"), ("failed", "resume remove"),
     ("cancelled", "resume remove")],
)  # fmt: skip
def test_what_can_be_done_follows_the_state(watch: Watch, queue: RunQueue, state: str, can: str) -> None:
    become(queue, queue.submit(TRAINS), state)
    chosen = state_of(watch)["chosen"]
    assert [what for what, on in chosen["can"].items() if on] == can.split()


def test_the_curve_grows_and_only_news_are_sent(watch: Watch, queue: RunQueue) -> None:
    run = queue.submit(TRAINS)
    become(queue, run, "running", RunStatus("running", 0.4, "epoch 2 of 3"))
    first = state_of(watch)["chosen"]
    assert invitation(first["figure"]) == NO_CURVE and first["log"] == []
    trains(run, 4)
    queue.store.path(run.name, LOG).write_text("\n".join(f"line {i}" for i in range(300)))
    seen = f"{first['mark']}|{first['log_mark']}"
    second = state_of(watch, seen=seen)["chosen"]
    assert title(second["figure"]).startswith("epoch 2 of 3: loss 0.250, accuracy 84\u202f% (measured)")
    assert len(second["log"]) == LINES and second["log"][-1] == "line 299"
    again = state_of(watch, seen=f"{second['mark']}|{second['log_mark']}")["chosen"]
    assert "figure" not in again and "log" not in again
    trains(run, 5)
    third = state_of(watch, seen=f"{second['mark']}|{second['log_mark']}")["chosen"]
    assert third["figure"]["data"][0]["x"] == [1, 2, 3, 4, 5] and "log" not in third
    other = state_of(watch, seen=f"{third['mark']}|", theme="dark")["chosen"]
    assert other["figure"]["layout"]["paper_bgcolor"] == theme.DARK.paper
    assert first["figure"]["layout"]["uirevision"] == third["figure"]["layout"]["uirevision"] == "run-001 "


def test_a_grid_shows_its_cells_so_far_and_leads_to_their_comparison(watch: Watch, queue: RunQueue) -> None:
    run = queue.submit(GRID)
    become(queue, run, "running")
    first = state_of(watch)["chosen"]
    assert invitation(first["figure"]) == NO_CELLS and not first["report"]
    cell(run, "seb", 0.5, 0.9)
    cell(run, "magnitude", 0.5, 0.89)
    second = state_of(watch, seen=f"{first['mark']}|")["chosen"]
    assert title(second["figure"]).startswith("2 cells so far; at 50\u202f% seb has 90\u202f% (measured)")
    assert second["report"] and second["report_words"] == "Comparison"
    become(queue, run, "done")
    assert title(state_of(watch, seen=f"{second['mark']}|")["chosen"]["figure"]).startswith("2 cells; at")


def test_a_run_without_training_says_so_and_ends_with_its_table(watch: Watch, queue: RunQueue) -> None:
    run = queue.submit(Recipe())
    assert invitation(state_of(watch)["chosen"]["figure"]) == NO_TRAINING
    become(queue, run, "done", RunStatus("done", 1.0, "done"))
    run.folder.mkdir(parents=True)
    (run.folder / "report.html").write_text("<html>")
    (run.folder / "comparison.csv").write_text(
        'quantity,dense,pruned,change,tier\n"test accuracy, 10000 images",0.9,0.8,,measured\nweights <b>,1000,500,,\n'
    )
    chosen = state_of(watch)["chosen"]
    assert chosen["report"] and chosen["report_words"] == "Report" and chosen["folder"] == str(run.folder)
    cells = Reader(chosen["table"]).texts["td"]
    assert cells == ["test accuracy, 10\u202f000 images", "90\u202f%", "80\u202f%", "weights <b>", "1\u202f000", "500"]
    assert "measured" in chosen["table"] and "<b>" not in chosen["table"]


def test_a_projection_ends_with_its_phases(tmp_path: Path) -> None:
    assert results_table(tmp_path) == ""
    (tmp_path / "metrics.csv").write_text(
        "phase,accuracy,dense_accuracy,coverage,unchanged\nprojected,0.5,0.9,0.1,0.6\nrecovered,0.8,0.9,0.4,0.85\n"
    )
    cells = list(Reader(results_table(tmp_path)).texts["td"])
    assert cells == [
        "projected", "90\u202f%", "50\u202f%", "10\u202f%", "60\u202f%",
        "recovered", "90\u202f%", "80\u202f%", "40\u202f%", "85\u202f%",
    ]  # fmt: skip


def test_an_error_of_the_queue_itself_is_shown(watch: Watch, queue: RunQueue) -> None:
    queue.error = "cannot write queue.json; make room there"
    assert state_of(watch)["error"] == queue.error


# --- to whom --------------------------------------------------------------------------------------------------------


def test_visitors_see_their_own_runs_without_the_servers_folders(watch: Watch, queue: RunQueue) -> None:
    mine, theirs = queue.submit(TRAINS, owner="ada"), queue.submit(TRAINS, owner="eve")
    place = f"kept in {mine.folder}/recovery/step-7.safetensors"
    become(queue, mine, "failed", RunStatus("failed", 0.1, place, error=place, traceback="File x"))
    queue.store.path(mine.name, LOG).write_text(f"mpviz: {place}\n")
    found = state_of(watch, "ada", True)
    assert [run["name"] for run in found["runs"]] == [mine.name]
    chosen = found["chosen"]
    assert chosen["error"] == chosen["message"] == "kept in …/step-7.safetensors"
    assert (chosen["traceback"], chosen["folder"], chosen["log"]) == ("", "", ["mpviz: kept in …/step-7.safetensors"])
    assert str(queue.folder) not in json.dumps(found)
    for run in (theirs.name, "run-999"):
        with pytest.raises(MpvizError, match=f"there is no run '{run}' here"):
            state_of(watch, "ada", True, run=run)
    known, page = watch.page({"run": theirs.name}, "ada", True, "key")
    assert not known and "eve" not in page


def test_on_ones_own_machine_all_is_told_and_paths_are_short(watch: Watch, queue: RunQueue) -> None:
    run = queue.submit(TRAINS, owner="ada")
    status = RunStatus("failed", 0.1, "", error=f"see {run.folder}/recovery", traceback="Traceback …")
    become(queue, run, "failed", status)
    found = state_of(watch)
    assert found["runs"][0]["owner"] == "ada" and found["chosen"]["traceback"] == "Traceback …"
    assert found["chosen"]["error"] == "see recovery" and found["chosen"]["folder"] == str(run.folder)


def test_curves_of_many_runs_do_not_pile_up(watch: Watch, queue: RunQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_page, "_KEPT", 2)
    for _ in range(4):
        state_of(watch, run=queue.submit(TRAINS).name)
    assert len(watch._curves) == 2


# --- words and pictures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["light", "dark"])
def test_a_long_curve_has_a_faint_line_and_its_mean(name: str) -> None:
    steps = list(range(1, 401))
    curve = Curve(
        steps, [1 / i for i in steps], [0.5] * 400, 3, Epoch(2, 5, 0.41, 0.896), {1: 200}, 1200, "seb, seed 0"
    )
    figure = curve_figure(curve, 2.5, name)
    assert [trace.get("name") for trace in figure["data"]] == [None, "loss", None, "accuracy"]
    assert figure["data"][1]["y"][399] == pytest.approx(sum(1 / i for i in range(391, 401)) / 10)
    assert title(figure).startswith("seb, seed 0, epoch 2 of 2.50: loss 0.410, accuracy 89.6\u202f% (measured)")
    assert "a point is the mean of 3 steps" in title(figure) and figure["data"][3]["y"][0] == 50
    assert [shape["x0"] for shape in figure["layout"]["shapes"]] == [200]
    assert figure["layout"]["paper_bgcolor"] == theme.THEMES[name].paper


def test_one_step_is_a_mark_for_a_line_needs_two() -> None:
    figure = curve_figure(Curve([1], [1.0], [0.5], last=Epoch(1, 1, 1.0, 0.5), rows=1), 1)
    assert {trace["mode"] for trace in figure["data"]} == {"markers"}


def test_cells_before_a_recovery_are_hollow_and_the_best_after_it_is_named() -> None:
    row = {"method": "a<b>", "seed": 0, "sparsity": 0.5, "dense_accuracy": 0.9}
    rows = [row | {"phase": "pruned", "accuracy": 0.3}, row | {"phase": "recovered", "accuracy": 0.8},
            row | {"method": "c", "phase": "pruned", "accuracy": 0.89}, {"method": "x", "phase": "pruned"}]  # fmt: skip
    figure = cells_figure(rows)
    assert title(figure).startswith("2 cells so far; at 50\u202f% a&lt;b&gt; has 80\u202f%")
    marks = [(trace["name"], trace["marker"]["symbol"], trace["showlegend"]) for trace in figure["data"]]
    assert marks == [("a&lt;b&gt;", "circle-open", False), ("a&lt;b&gt;", "circle", True), ("c", "square-open", False)]


def test_words_of_a_run(queue: RunQueue) -> None:
    run: Callable[..., Run] = lambda **more: replace(queue.submit(Recipe()), **more)  # noqa: E731
    assert state_words(run(state="queued", place=3)) == "3rd in the queue"
    assert left_words(run(state="cancelled", seconds_left=3.0)) == ""
    assert left_words(run(state="running", seconds_left=None)) == ""
    assert without_places("/a/b /x and /srv/l/m.csv, http://host/a/b") == "…/b /x and …/m.csv, http://host/a/b"
