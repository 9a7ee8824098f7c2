"""The page of a sweep: states as they are, nothing opened that is not offered, names that stay names."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mpviz.sweep_folder import Plan, Planned, RunState, status_path, write_plan
from mpviz.sweep_life import Life
from mpviz.ui.sweep_page import Sweeps, accuracy_words, sweep_page
from mpviz.workbench.policy import Policy
from tests.ui.pages import Reader, fetches_nothing
from tests.ui.served import Served

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from tests.conftest import PageLog

HEAD = "method,seed,sparsity,phase,accuracy,dense_accuracy,coverage"
EVIL = "<img src=x onerror=hacked=1>"
NOW = Life("running", 0.42, "epoch 2 of 5", time.time() - 75, 0.0, socket.gethostname(), os.getpid())


def say(folder: Path, name: str, life: Life) -> None:
    status_path(folder, name).parent.mkdir(parents=True, exist_ok=True)
    status_path(folder, name).write_text(json.dumps(asdict(life)))


def make_sweep(folder: Path) -> Path:
    """Five runs, one in each state."""
    write_plan(folder, Plan("local", tuple(Planned(name, "plan.toml", job="1") for name in "abcde")))
    say(folder, "a", replace(NOW, state="done", progress=1.0, ended=NOW.started + 75))
    say(folder, "b", NOW)
    say(folder, "c", replace(NOW, state="failed", message=f"no layer {EVIL}", ended=time.time()))
    say(folder, "d", replace(NOW, state="stopped", message="the run was cancelled", ended=time.time()))
    say(folder, ".driver", NOW)
    (folder / "a").mkdir()
    (folder / "a" / "metrics.csv").write_text(
        f"{HEAD}\nseb,0,0.5,pruned,0.8,0.9059,0.7\nseb,0,0.5,recovered,0.8912,0.9059,0.75\n"
    )
    (folder / "a" / "report.html").write_text("<title>report of a</title>")
    cells = folder / "b" / "cells" / "magnitude" / "seed-0"
    cells.mkdir(parents=True)
    for sparsity, accuracy in ((0.5, 0.9), (0.8, 0.85)):
        row = {"method": "magnitude", "sparsity": sparsity, "phase": "pruned", "accuracy": accuracy}
        (cells / f"cell-{sparsity}.json").write_text(json.dumps({"metrics": [row]}))
    return folder


def rows(page: str) -> list[str]:
    return page.split("<tbody>")[1].split("<tr")[1:]


def test_each_state_is_shown_with_progress_and_what_was_measured(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path / "mine")
    sweeps = Sweeps([folder], Policy())
    there, page = sweep_page(sweeps, {"theme": "dark"}, {(folder / "b").resolve(): "b"})
    assert (
        there and "color-scheme: dark" in page and "<h1>mine: 1 done, 1 running, 1 failed, 1 stopped, 1 queued" in page
    )
    for row, words in zip(
        rows(page),
        (("● done", "89.12\u202f%", "90.59\u202f%", "1 min 15 s", "report=a"),
         ("◐ running", "epoch 2 of 5", "42\u202f%", "85\u202f% – 90\u202f% in 2 cells", "compare?grid=b"),
         ("▲ failed", "no layer &lt;img"), ("■ stopped", "the run was cancelled"), ("○ queued",)),
        strict=True,
    ):  # fmt: skip
        assert [word for word in words if word not in row] == []
    assert 'data-moving="true"' in page and EVIL not in page and fetches_nothing(page.replace("fetch(location", "("))
    assert "connect-src 'self'" in page
    Reader(page)
    assert sweep_page(sweeps, {"folder": "mine", "report": "a"}) == (True, "<title>report of a</title>")
    for report, said in (("b", "has no report yet"), ("../a", "has no such run"), ("jobs", "has no such run")):
        there, page = sweep_page(sweeps, {"folder": "mine", "report": report})
        assert not there and said in page


def test_a_run_in_words() -> None:
    def words(*measured: Mapping[str, object]) -> str:
        return accuracy_words(RunState("x", "done", measured=measured))

    assert words() == "–" and words({"method": "seb"}) == "–"
    assert words({"accuracy": 0.5, "phase": "pruned"}, {"accuracy": 0.9123, "phase": "recovered"}) == "91.23\u202f%"


def test_visitors_see_what_is_offered_and_the_rest_is_refused_in_the_same_words(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    given, listed, other = (make_sweep(tmp_path / place) for place in ("given", "data/listed", "other"))
    (tmp_path / "data" / "link").symlink_to(other)
    public = Sweeps([given], Policy(restricted=True, data=(str(tmp_path / "data"), "digits")))
    for asked in ("given", str(given), str(listed), f"{listed}/../listed"):
        assert sweep_page(public, {"folder": asked})[0], asked
    places = (
        str(other),
        str(tmp_path / "nowhere"),
        f"{listed}/../../other",
        str(tmp_path / "data" / "link"),
        "\0",
        "~x",
    )
    for asked in places:
        there, page = sweep_page(public, {"folder": asked})
        assert not there and "there is no sweep" in page and "it shows given" in page, asked
    assert sweep_page(Sweeps([], Policy()), {"folder": str(other)})[0], "one's own machine"
    there, page = sweep_page(Sweeps([], Policy()), {})
    assert not there and "mpviz dashboard --sweep FOLDER shows it here" in page


@pytest.mark.browser
def test_the_page_follows_the_runs_by_itself(page: Page, page_log: PageLog, tmp_path: Path) -> None:
    folder = make_sweep(tmp_path / "mine")
    server = Served(tmp_path, "--sweep", str(folder), "--public")
    try:
        page.goto(f"http://localhost:{server.port}/sweep")
        running = page.get_by_role("row").filter(has_text="running")
        running.get_by_text("42\u202f%").wait_for()
        assert page.get_by_role("checkbox", name="follow").is_checked()
        say(folder, "b", replace(NOW, progress=0.77, message="epoch 4 of 5"))
        page.get_by_text("epoch 4 of 5").wait_for()
        assert running.get_by_text("77\u202f%").is_visible()
        page.get_by_role("link", name="methods of b").click()
        page.get_by_role("heading", name="Nothing to compare here yet").wait_for(timeout=60_000)  # cells without layers
        page.go_back()
        for name in "be":
            say(folder, name, replace(NOW, state="done", progress=1.0, ended=NOW.started + 75))
        page.get_by_role("heading", name="mine: 3 done").wait_for()
        page.get_by_role("checkbox", name="follow").wait_for(state="hidden")
        page.get_by_role("link", name="report of a").click()
        page.wait_for_function("document.title === 'report of a'")
        assert page_log.errors == [] and page_log.outside == []
        assert server.ask(f"/sweep?folder={tmp_path}").code == 404
    finally:
        assert server.end()[0] == 0
