"""The served dashboard against its visitors: logins, uploads, places, origins, and how it ends."""

from __future__ import annotations

import asyncio
import json
import signal
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

import mpviz as mp
from mpviz.errors import MpvizError
from mpviz.ui import dashboard
from mpviz.ui.dashboard_doors import _inside, notice_page
from mpviz.ui.dashboard_session import Session
from mpviz.workbench.policy import Policy
from mpviz.workbench.serving import Serving
from mpviz.workbench.visits import Limits, Visits
from tests.ui.served import Answer, Served, any_port, token_of, upload_key

PAGES = ("/", "/compare", "/patterns", "/bench", "/?theme=dark", "/components/panel/x/_css/x")
PASSWORD = "correct horse <battery>"
HOSTILE = "<img src=x onerror=alert(1)>"


# --- behind a login, with uploads -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "users.json").write_text(json.dumps({"ada": PASSWORD, "eve": "x"}))
    (folder / "models").mkdir()
    server = Served(
        folder, "--basic-auth", str(folder / "users.json"), "--allow-model", str(folder / "models"), "--uploads",
        "--max-upload", "3", "--allow-user", "ada", "--log-json",
    )  # fmt: skip
    yield server
    server.end()
    assert "Traceback" not in server.said and "correct horse" not in server.said


def log_in(server: Served, user: str = "ada", password: str = PASSWORD, place: str = "/login?next=%2Fbench") -> Answer:
    xsrf = server.ask("/login").cookies["_xsrf"]
    form = {"username": user, "password": password, "_xsrf": xsrf}
    return server.ask(place, "POST", form, cookies={"_xsrf": xsrf})


@pytest.fixture(scope="module")
def cookies(guarded: Served) -> dict[str, str]:
    return log_in(guarded).cookies


@pytest.fixture(scope="module")
def page(guarded: Served, cookies: dict[str, str]) -> str:
    answer = guarded.ask("/", cookies=cookies)
    assert answer.code == 200
    return answer.body


@pytest.mark.parametrize("path", PAGES)
def test_without_a_login_every_page_leads_to_it(guarded: Served, path: str) -> None:
    for cookies in ({}, {"user": "ada"}, {"user": "2|1:0|10:1|4:user|4:YWRh|00"}):
        answer = guarded.ask(path, cookies=cookies)
        there = urlsplit(answer.headers["Location"])
        assert answer.code == 302 and there.path.endswith("login") and parse_qs(there.query) == {"next": [path]}
        assert answer.body == ""


def test_what_is_no_page_is_refused_without_a_login(guarded: Served) -> None:
    assert guarded.ask("/upload", "POST", b"x").code == 403
    assert guarded.websocket("a.b", f"http://127.0.0.1:{guarded.port}") == "403"
    assert [guarded.ask(path).code for path in ("/autoload.js", "/metadata", "/static/../../etc/passwd")] == [
        404,
        404,
        403,
    ]


def test_the_login_page_is_whole_by_itself_and_escaped(guarded: Served) -> None:
    answer = guarded.ask(f"/login?error={HOSTILE.replace(' ', '%20')}")
    assert answer.code == 200 and "http" not in answer.body and "<img" not in answer.body
    assert answer.headers["Cache-Control"] == "no-store"
    assert "&lt;img" in notice_page(HOSTILE)


def test_a_right_password_opens_all_pages(guarded: Served, cookies: dict[str, str]) -> None:
    answer = log_in(guarded)
    assert (answer.code, answer.headers["Location"]) == (302, "/bench")
    cookie = next(value for name, value in answer.headers.items() if name == "Set-Cookie")
    assert "HttpOnly" in cookie and "SameSite=Lax" in cookie
    assert [guarded.ask(path, cookies=cookies).code for path in ("/patterns", "/bench")] == [200, 200]


@pytest.mark.parametrize(
    ("user", "password"), [("ada", "wrong"), ("ada", ""), ("nobody", PASSWORD), ("", ""), ("ada", PASSWORD + "x")]
)
def test_a_wrong_password_opens_nothing(guarded: Served, user: str, password: str) -> None:
    answer = log_in(guarded, user, password)
    assert answer.code == 401 and "user" not in answer.cookies and "do not belong together" in answer.body


def test_a_login_from_another_site_is_refused(guarded: Served) -> None:
    assert guarded.ask("/login", "POST", {"username": "ada", "password": PASSWORD}).code == 403


def test_who_is_not_listed_does_not_come_in(guarded: Served) -> None:
    eve = log_in(guarded, "eve", "x").cookies
    answers = [guarded.ask(path, cookies=eve) for path in ("/", "/bench")]
    assert [answer.code for answer in answers] == [403, 403] and "not on the list" in answers[0].body


@pytest.mark.parametrize(
    "place", ["//evil.example", "https://evil.example", "/\\evil.example", "\\\\evil.example", "evil", "/a\r\nX: y", ""]
)
def test_a_login_leads_to_no_other_server(place: str) -> None:
    assert _inside(place) == "/"
    assert _inside("/bench?run=a") == "/bench?run=a"


def sending(page: str, cookies: dict[str, str], name: str = "net.safetensors", **more: str) -> dict[str, Any]:
    headers = {"X-Mpviz-Visit": upload_key(page), "X-Mpviz-Name": name, **more}
    return {"headers": headers, "cookies": cookies}


def test_a_checkpoint_is_uploaded_and_opened(
    guarded: Served, page: str, cookies: dict[str, str], tmp_path: Path
) -> None:
    file = mp.save(tmp_path / "net", mp.load_model("fashion-mlp"))
    name = "..%2F..%2Fetc%2F%3Cb%3Enet.safetensors"
    answer = guarded.ask("/upload", "POST", file.read_bytes(), **sending(page, cookies, name))
    assert answer.code == 200 and json.loads(answer.body)["name"] == "uploaded: <b>net.safetensors", answer
    done = guarded.wait_for("load-end")
    assert done["user"] == "ada" and guarded.wait_for("upload")["session"] == done["session"]
    other = guarded.ask("/", cookies=cookies).body
    assert upload_key(other) != upload_key(page), "each session has a key of its own"


@pytest.mark.parametrize(
    ("body", "name", "code", "words"),
    [
        (b"\x80\x04\x95" + bytes(100), "net.safetensors", 415, "a pickle or an archive of torch.save"),
        (b"PK\x03\x04" + bytes(100), "net.safetensors", 415, "a pickle or an archive of torch.save"),
        (b"PK\x03\x04" + bytes(100), "net.pt", 415, "only .safetensors files"),
        (b"x", "net.safetensors", 415, "only safetensors files"),
        (b"", "net.safetensors", 415, "only safetensors files"),
        (struct.pack("<Q", 2**40) + b"{}", "net.safetensors", 415, "only safetensors files"),
        (struct.pack("<Q", 2) + b"{}", "net.safetensors", 415, "net.safetensors was not written by mp.save"),
        (bytes(3_000_001), "net.safetensors", 413, "and up to 3 are taken"),
    ],
)  # fmt: skip
def test_other_bodies_are_refused(
    guarded: Served, page: str, cookies: dict[str, str], body: bytes, name: str, code: int, words: str
) -> None:
    answer = guarded.ask("/upload", "POST", body, **sending(page, cookies, name))
    assert answer.code == code and words in json.loads(answer.body)["message"], answer


def test_ten_gigabytes_are_refused_before_they_come(guarded: Served, page: str, cookies: dict[str, str]) -> None:
    headers = {**sending(page, cookies)["headers"], "Cookie": f"user={cookies['user']}"}
    started = time.monotonic()
    answer = guarded.begin("/upload", 10_000_000_000, bytes(10_000), headers)
    assert answer.code == 413 and "10,000 MB" in answer.body and time.monotonic() - started < 5
    broken = guarded.begin("/login", 10_000_000_000, bytes(10_000), headers)
    assert broken.code in (400, 413)
    assert guarded.ask("/bench", cookies=cookies).code == 200, "the others notice nothing"


def test_an_upload_that_is_broken_off_leaves_nothing(guarded: Served, page: str, cookies: dict[str, str]) -> None:
    headers = {**sending(page, cookies)["headers"], "Cookie": f"user={cookies['user']}"}
    guarded.break_off("/upload", 2_000_000, struct.pack("<Q", 1000) + b"{" * 90_000, headers)
    until(lambda: guarded.ask("/upload", "POST", b"PK" + bytes(9), **sending(page, cookies)).code == 415)


def test_an_upload_needs_its_sessions_key_and_a_length(guarded: Served, page: str, cookies: dict[str, str]) -> None:
    right = sending(page, cookies)
    for key in ("", "x", "0" * 64):
        headers = {**right["headers"], "X-Mpviz-Visit": key}
        assert guarded.ask("/upload", "POST", b"x", headers, cookies).code == 403
    chunked = guarded.ask("/upload", "POST", iter([b"x" * 9]), **right)  # type: ignore[arg-type]
    assert chunked.code == 411
    assert guarded.ask("/upload", **right).code in (404, 405, 411)


def test_a_foreign_origin_or_a_forged_session_gets_no_websocket(
    guarded: Served, page: str, cookies: dict[str, str]
) -> None:
    token, own = token_of(page), f"http://localhost:{guarded.port}"
    assert '"msgtype":"ACK"' in guarded.websocket(token, own, cookies).replace(" ", "")
    for origin in ("http://evil.example", "null", f"http://evil.example:{guarded.port}", "http://localhost:1"):
        assert guarded.websocket(token, origin, cookies) == "403", origin
    assert guarded.websocket(token, own) == "403", "a token is no login"
    head, _, tail = token.partition(".")
    for forged in ("x", head, f"{head}.", f"{head}.{tail[:-4]}AAAA"):
        assert "ACK" not in guarded.websocket(forged, own, cookies)
    for given in ("bokeh-session-id=mine", f"bokeh-token={token}", "bokeh-token=%00"):
        assert guarded.ask(f"/?{given}", cookies=cookies).code == 400, "a link leads into nobody's session"
    assert guarded.ask("/", headers={"Bokeh-Session-Id": "mine"}, cookies=cookies).code == 400


def test_a_message_too_large_closes_its_own_websocket_alone(
    guarded: Served, page: str, cookies: dict[str, str]
) -> None:
    own = f"http://localhost:{guarded.port}"
    assert guarded.websocket(token_of(page), own, cookies, "x" * 5_000_000) == "closed"
    assert guarded.ask("/bench", cookies=cookies).code == 200


def test_health_tells_numbers_to_everybody_and_no_names(guarded: Served, page: str) -> None:
    answer = guarded.ask("/health")
    found = json.loads(answer.body)
    assert set(found) == {"status", "version", "sessions", "jobs_running", "uptime_s"}
    assert found["status"] == "ok" and found["sessions"] >= 1 and found["uptime_s"] > 0
    assert "ada" not in answer.body


# --- open to all, with one place ------------------------------------------------------------------------------------


def test_a_full_server_says_so_and_a_signal_ends_it(tmp_path: Path) -> None:
    server = Served(tmp_path, "--public", "--max-sessions", "1", "--uploads", "--log-json")
    try:
        first = server.ask("/")
        own = f"http://localhost:{server.port}"
        assert first.code == 200
        assert server.ask("/?theme=%ff").code == 400, "panel would fail at it, half-way through a session"
        second = server.ask("/")
        assert second.code == 503 and "all 1 places" in second.body and second.headers["Retry-After"] == "60"
        assert "ACK" in server.websocket(token_of(first.body), own), "who is in stays in"
        # the original handler imports what is named: this one would end the process
        assert server.ask("/components/mpviz.__main__/x/_css/x").code == 404
        assert server.ask("/components/this/x/_css/x").code == 404
        file = mp.save(tmp_path / "net", mp.load_model("fashion-mlp")).read_bytes()
        assert server.ask("/upload", "POST", file, **sending(first.body, {})).code == 200
        server.wait_for("load-start")  # what was uploaded is being loaded
        code, seconds = server.end(signal.SIGTERM)
        assert code == 0 and seconds < 10, server.said
        events = [one["event"] for one in server.events()]
        assert events[0] == "server-start" and events[-1] == "server-stop"
        assert {"session-open", "session-refused", "session-close", "load-cancelled"} <= set(events)
        assert "Traceback" not in server.said
    finally:
        server.end()


def test_what_cannot_be_served_is_a_sentence(tmp_path: Path) -> None:
    for given, words in (
        ({"websocket_origin": "*"}, "every web site"),
        ({"serving": Serving(basic_auth=tmp_path / "none")}, "cannot read the passwords"),
        ({"serving": Serving(oauth="github")}, "PANEL_OAUTH_KEY"),
        ({"serving": Serving(models=("/no/such/folder",))}, "to offer"),
    ):
        with pytest.raises(MpvizError, match=words):
            dashboard.serve(port=any_port(), **given)  # type: ignore[arg-type]


# --- OAuth ----------------------------------------------------------------------------------------------------------


class Authorize(RequestHandler):
    """Everybody who comes here is logged in there."""

    def get(self) -> None:
        state, back = self.get_argument("state"), self.get_argument("redirect_uri")
        assert self.get_argument("client_id") == "mpviz-test"
        self.redirect(f"{back}?code=a-code&state={state}")


class Token(RequestHandler):
    def check_xsrf_cookie(self) -> None: ...

    def post(self) -> None:
        right = self.get_argument("client_secret") == "hush" and self.get_argument("code") == "a-code"
        self.set_status(200 if right else 401)
        self.finish({"access_token": "a-token"} if right else {"error": "denied"})


class User(RequestHandler):
    def get(self) -> None:
        assert self.request.headers["Authorization"] == "Bearer a-token"
        self.finish({"email": "ada@example.org"})


@pytest.fixture(scope="module")
def provider() -> Iterator[str]:
    """A provider of logins on this machine."""
    ready, loop = threading.Event(), asyncio.new_event_loop()
    ports: list[int] = []

    async def start() -> None:
        sockets = bind_sockets(0, "127.0.0.1")
        HTTPServer(Application([("/authorize", Authorize), ("/token", Token), ("/user", User)])).add_sockets(sockets)
        ports.append(sockets[0].getsockname()[1])
        ready.set()

    def run() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(start())
        loop.run_forever()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(10)
    yield f"http://127.0.0.1:{ports[0]}"
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)


@pytest.fixture(scope="module")
def by_oauth(provider: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    environment = {
        "PANEL_OAUTH_KEY": "mpviz-test", "PANEL_OAUTH_SECRET": "hush",
        "PANEL_OAUTH_AUTHORIZE_URL": f"{provider}/authorize", "PANEL_OAUTH_TOKEN_URL": f"{provider}/token",
        "PANEL_OAUTH_USER_URL": f"{provider}/user", "PANEL_COOKIE_SECRET": "of the test",
    }  # fmt: skip
    server = Served(
        tmp_path_factory.mktemp("oauth"), "--oauth", "generic", "--allow-user", "ada@example.org", "--log-json",
        environment=environment,
    )  # fmt: skip
    yield server
    assert server.end(signal.SIGINT)[0] == 0, server.said
    assert "hush" not in server.said and "a-token" not in server.said


def walk(server: Served, path: str, provider: str) -> tuple[Answer, dict[str, str]]:
    """Follow redirects as a browser does, with its cookies, to the provider and back."""
    cookies: dict[str, str] = {}
    for _ in range(8):
        answer = server.ask(path, cookies=cookies)
        cookies |= answer.cookies
        if answer.code != 302:
            return answer, cookies
        place = answer.headers["Location"]
        if place.startswith(provider):
            place = asyncio.run(_location(place))
        path = "/" + place.removeprefix(f"http://127.0.0.1:{server.port}").lstrip("./")
    raise AssertionError("round and round")


async def _location(address: str) -> str:
    from tornado.httpclient import AsyncHTTPClient

    answer = await AsyncHTTPClient(force_instance=True).fetch(address, follow_redirects=False, raise_error=False)
    assert answer.code == 302
    return answer.headers["Location"]


def test_oauth_leads_through_the_provider_to_the_page(by_oauth: Served, provider: str) -> None:
    assert by_oauth.ask("/bench").code == 302 and by_oauth.ask("/health").code == 200
    answer, cookies = walk(by_oauth, "/", provider)
    assert answer.code == 200 and "What is random in a trained network" in answer.body
    assert by_oauth.ask("/bench", cookies=cookies).code == 200
    assert by_oauth.wait_for("session-open")["user"] == "ada@example.org"


def test_oauth_refuses_a_state_that_is_not_its_own(by_oauth: Served) -> None:
    answer = by_oauth.ask("/login?code=a-code&state=mine")
    assert answer.code == 401 and "user" not in answer.cookies
    answer = by_oauth.ask("/login?error=%3Cscript%3Ealert(1)%3C/script%3E")
    assert answer.code in (400, 401, 500) and "<script>" not in answer.body and "http" not in answer.body


# --- two sessions in one process ------------------------------------------------------------------------------------


def until(true: Any, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def alert(session: Session) -> str:
    return session.roots["alert"].object


def type_in(session: Session, name: str) -> None:
    session.roots["other"].value_input = name
    session.roots["other"].param.trigger("enter_pressed")


def test_a_session_refuses_in_a_sentence_and_goes_on(tmp_path: Path) -> None:
    evil = tmp_path / f"{HOSTILE}.safetensors"
    evil.write_bytes(b"\x80\x04.")
    visits = Visits(Policy(True, (str(tmp_path),)), Limits(samples=300, jobs=1))
    one, two = (Session("fashion-mlp", visit=visits.enter()) for _ in range(2))
    assert not one.roots["other"].visible and not one.roots["open"].visible
    label = f"{tmp_path.name}/{HOSTILE}.safetensors"
    assert label in one.roots["model"].options
    for session in (one, two):
        session.open()
    until(lambda: one.wb is not None and two.wb is not None)
    for name in ("../../../../etc/passwd", str(evil.with_name("none.safetensors")), f"{HOSTILE}", "resnet18"):
        type_in(one, name)
        assert "this server does not open the network" in alert(one) and "<img" not in alert(one), name
        assert one.wb is not None and one.wb.model == "fashion-mlp" and not one.job.busy
    one.roots["model"].value = label  # offered, and a pickle all the same
    until(lambda: "is no whole safetensors file" in alert(one) and not one.job.busy)
    assert "<img" not in alert(one) and str(tmp_path) not in alert(one)
    assert alert(two) == "" and two.wb is not None and two.wb.error == "", "the other one noticed nothing"
    one.roots["sparsity"].value = 0.77
    one.roots["layer"].value = "head.weight"
    assert two.wb.sparsity == 0.5 and two.wb.layer != "head.weight" and two.roots["sparsity"].value == 0.5
    one.roots["samples"].value = 5000
    assert one.wb is not None and one.wb.samples == 300 and "this server measures up to 300 images" in alert(one)
    one.roots["prune"].clicks += 1
    two.roots["prune"].clicks += 1
    assert "one job at a time" in alert(two) or not one.job.busy
    one.close()
    until(lambda: not one.job.busy)
    assert two.wb.budgets is not None and visits.health()["sessions"] == 1
    two.close()


def test_an_upload_is_opened_by_its_session(tmp_path: Path) -> None:
    visits = Visits(Policy(True), Limits(upload=3))
    session = Session("fashion-mlp", visit=visits.enter())
    visit = visits.all()[0]
    path = mp.save(visit.folder() / "x", mp.load_model("fashion-mlp-l1"))
    assert visit.receive is not None
    visit.receive(visit.keep("mine.safetensors", path, ""))
    until(lambda: session.wb is not None)
    assert session.wb is not None and session.wb.model == "uploaded: mine.safetensors"
    session.roots["data"].value = "fashion-mnist"
    assert str(path.parent) not in session.wb.export_recipe()
    session.close()
    assert not path.exists()


def test_a_page_that_fails_keeps_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no page")

    visits = Visits(limits=Limits(sessions=1))
    monkeypatch.setattr(dashboard, "Session", broken)
    with pytest.raises(RuntimeError):
        dashboard.app(visits=visits)
    assert visits.all() == [] and visits.full() == ""
