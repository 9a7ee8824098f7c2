"""The page of runs as it is served: to one's own browser, and to visitors who do not know each other."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ui.served import Answer, Served, token_of

PATIENCE = 90.0
QUICK = 'model.name = "fashion-mlp"\n[certify]\nsamples = 50\n'
LONG = f"{QUICK}[recover]\nepochs = 20.0\n"


class Visitor:
    """One browser on the page: its cookies, and what the page sends."""

    def __init__(self, server: Served) -> None:
        self.server = server
        page = server.ask("/run")
        assert page.code == 200
        self.cookies = page.cookies
        self.xsrf = str(re.search(r'data-xsrf="([^"]+)"', page.body)[1])  # type: ignore[index]

    def ask(self, path: str) -> Answer:
        return self.server.ask(path, cookies=self.cookies)

    def state(self, **asked: str) -> dict[str, Any]:
        query = "&".join(f"{key}={value}" for key, value in asked.items())
        return json.loads(self.ask(f"/run/state?{query}").body)  # type: ignore[no-any-return]

    def act(self, what: str, **body: str) -> tuple[int, dict[str, Any]]:
        headers = {"Content-Type": "application/json", "X-XSRFToken": self.xsrf}
        answer = self.server.ask(f"/run/{what}", "POST", json.dumps(body).encode(), headers, self.cookies)
        return answer.code, json.loads(answer.body)

    def until(self, run: str, *states: str) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE
        while (shown := self.state(run=run)["chosen"])["state"] not in states:
            assert time.monotonic() < end, shown
            time.sleep(0.2)
        return shown


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server for visitors without logins, whose runs are in `runs` beside its logs."""
    folder = tmp_path_factory.mktemp("public")
    server = Served(folder, "--public", "--log-json", "--max-jobs", "1", "--runs", str(folder / "runs"))
    yield server
    server.end()
    assert "Traceback" not in server.said


def runs_of(server: Served) -> Path:
    return server._out.parent / "runs"


def test_a_visitor_runs_what_is_offered_and_another_knows_nothing_of_it(public: Served) -> None:
    ada, eve = Visitor(public), Visitor(public)
    assert ada.state() == {"runs": [], "error": ""}
    code, found = ada.act("submit", recipe=LONG)
    assert (code, found) == (200, {"run": "run-001"})
    assert [run["name"] for run in ada.state()["runs"]] == ["run-001"]
    assert eve.state()["runs"] == []
    for path in ("/run?run=run-001", "/run/state?run=run-001", "/run/report?run=run-001"):
        assert eve.ask(path).code == 404 and public.ask(path).code == 404
    for what in ("cancel", "resume", "remove", "recipe"):
        code, found = eve.act(what, run="run-001")
        assert (code, found["message"]) == (400, "there is no run 'run-001' here")
        assert eve.act(what, run="run-002") == (400, {"message": "there is no run 'run-002' here"})
    shown = ada.until("run-001", "running")
    assert (shown["folder"], shown["traceback"]) == ("", "")
    assert json.loads(public.ask("/health").body)["jobs_running"] == 1
    second = eve.act("submit", recipe=LONG)[1]["run"]
    assert eve.state()["runs"][0]["words"] == "next"
    assert ada.act("cancel", run="run-001")[0] == 200
    ended = ada.until("run-001", "cancelled")
    assert str(runs_of(public)) not in json.dumps(ended)
    assert eve.act("cancel", run=second)[0] == 200 and eve.until(second, "cancelled")
    events = [one["event"] for one in public.events()]
    assert events.count("run-submit") == 2 and events.count("run-cancel") == 2


@pytest.mark.parametrize(
    ("recipe", "code", "words"),
    [
        ('model.name = "/etc/passwd"', 403, "this server does not open the network '…/passwd'; it offers fashion-"),
        ('model.name = "uploaded: a.safetensors"', 403, "belongs to its session"),
        ('data.folder = "/etc"', 403, "from its own folder alone"),
        ("recover.epochs = 500.0", 403, "this server up to 30"),
        ("recover.options.workers = 99", 403, "no recover.options.workers"),
        ("budget.sparsty = 1", 400, "did you mean 'sparsity'?"),
        (" \n", 400, "there is no recipe yet"),
        ("budget.sparsity = 0.5", 200, ""),
    ],
)
def test_a_visitors_recipe_passes_the_policy_or_is_refused_in_a_sentence(
    public: Served, recipe: str, code: int, words: str
) -> None:
    visitor = Visitor(public)
    before = len(list(runs_of(public).glob("run-*"))) if runs_of(public).exists() else 0
    answered, found = visitor.act("submit", recipe=recipe)
    assert answered == code, found
    if code == 200:
        visitor.act("cancel", run=found["run"])
        visitor.until(found["run"], "cancelled")
    else:
        assert words in found["message"] and len(list(runs_of(public).glob("run-*"))) == before


def test_a_visitor_has_so_many_runs_at_a_time(public: Served) -> None:
    visitor = Visitor(public)
    names = [visitor.act("submit", recipe=LONG)[1]["run"] for _ in range(3)]
    code, found = visitor.act("submit", recipe=LONG)
    assert code == 403 and "you have 3 runs in the queue" in found["message"]
    for name in reversed(names):
        visitor.act("cancel", run=name)
    for name in names:
        visitor.until(name, "cancelled")
    code, found = visitor.act("submit", recipe=LONG)
    assert code == 200
    visitor.act("cancel", run=found["run"])
    visitor.until(found["run"], "cancelled")


def test_what_is_no_request_of_the_page_changes_nothing(public: Served) -> None:
    visitor = Visitor(public)
    body = json.dumps({"recipe": LONG}).encode()
    headers = {"Content-Type": "application/json", "X-XSRFToken": visitor.xsrf}
    before = len(list(runs_of(public).glob("run-*"))) if runs_of(public).exists() else 0
    assert public.ask("/run/submit", "POST", body, {}, visitor.cookies).code == 403, "another site's page"
    other = {**visitor.cookies, "_xsrf": Visitor(public).cookies["_xsrf"]}
    assert public.ask("/run/submit", "POST", body, headers, other).code == 403
    for bad in (b"", b"{", b"[]", b'{"recipe": 3}', b"\xff"):
        answer = public.ask("/run/submit", "POST", bad, headers, visitor.cookies)
        assert answer.code == 400 and "reload it" in json.loads(answer.body)["message"]
    assert public.ask("/run/delete", "POST", body, headers, visitor.cookies).code == 404
    assert public.ask("/run/submit", cookies=visitor.cookies).code == 405
    huge = json.dumps({"recipe": "#" * 200_000}).encode()
    with contextlib.suppress(ConnectionError):  # closed before all of it was sent
        assert public.ask("/run/submit", "POST", huge, headers, visitor.cookies).code in (400, 413)
    forged = {**visitor.cookies, "mpviz-visitor": visitor.cookies["mpviz-visitor"][:-4] + "0000"}
    assert json.loads(public.ask("/run/state", cookies=forged).body)["runs"] == []
    assert (len(list(runs_of(public).glob("run-*"))) if runs_of(public).exists() else 0) == before


def test_the_plan_of_a_workbench_comes_by_its_key_alone(public: Served) -> None:
    visitor = Visitor(public)
    for key in ("", "0" * 64):
        code, found = visitor.act("plan", visit=key)
        assert code == 400 and "is gone" in found["message"]
    page = public.ask("/")
    key = re.search(r'href="run#(\w+)"', page.body)
    assert key, "the workbench's page leads here"
    public.websocket(token_of(page.body), f"http://localhost:{public.port}")
    code, found = visitor.act("plan", visit=key[1])
    assert code == 400 and "still being loaded" in found["message"]


# --- on one's own machine ---------------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Callable[[], Served]]:
    """Starts a dashboard on one's own machine, again and again on the same runs."""
    made: list[Served] = []

    def start() -> Served:
        made.append(Served(tmp_path, "--runs", str(tmp_path / "runs")))
        return made[-1]

    yield start
    for server in made:
        server.end()
        assert "Traceback" not in server.said


@pytest.mark.slow
def test_a_run_outlives_its_server_with_its_state_and_is_reported(own: Callable[[], Served], tmp_path: Path) -> None:
    server = own()
    visitor = Visitor(server)
    grid = f'{QUICK}[grid]\nmethods = ["magnitude"]\nsparsities = [0.5]\n'
    first = visitor.act("submit", recipe=f"{QUICK}[recover]\nepochs = 1.0\nbatch = 64\n")[1]["run"]
    second = visitor.act("submit", recipe=grid)[1]["run"]
    metrics = tmp_path / "runs" / first / "out" / "recovery" / "metrics.csv"
    end = time.monotonic() + PATIENCE
    while not (metrics.exists() and len(metrics.read_text().splitlines()) > 3):
        assert time.monotonic() < end
        time.sleep(0.1)
    assert "mpviz-visitor" not in visitor.cookies, "who is alone needs no name"
    code, _ = server.end()
    assert code == 0 and list(metrics.parent.glob("step-*.safetensors")), "it kept its last state"
    waiting = json.loads((tmp_path / "runs" / "queue.json").read_text())["runs"]
    assert [run["state"] for run in waiting] == ["queued", "queued"]
    kept = len(metrics.read_text().splitlines())
    again = Visitor(own())
    shown = again.until(first, "done", "failed")
    assert shown["state"] == "done" and "recovered" in shown["table"]
    steps = (tmp_path / "runs" / first / "out" / "recovery.csv").read_text().splitlines()
    assert len(steps) > kept, "it went on"
    assert "known as" in again.ask(f"/run/report?run={first}").body
    assert again.until(second, "done", "failed")["state"] == "done"
    comparison = again.ask(f"/run/report?run={second}&theme=dark").body
    assert "methods side by side" in comparison and f"../run?run={second}" in comparison
    assert again.act("recipe", run=first)[1]["recipe"].startswith("[model]")
    assert again.act("remove", run=first)[0] == 200 and again.ask(f"/run?run={first}").code == 404
