"""The server behind the dashboard: its doors, its pages, its bounds, and how it ends."""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from secrets import token_bytes
from typing import Any

import panel as pn
from tornado.web import RequestHandler

from mpviz.errors import AccessError
from mpviz.ui import dashboard_doors as doors
from mpviz.ui.dashboard_pages import BenchPage, ComparePage, PatternsPage, SweepPage
from mpviz.ui.dashboard_run import run_handlers
from mpviz.ui.dashboard_upload import Upload
from mpviz.ui.sweep_page import Sweeps
from mpviz.workbench.jobs import stop_all
from mpviz.workbench.journal import note, write_json
from mpviz.workbench.serving import Serving, cookie_secret
from mpviz.workbench.visits import Visits

TITLE = "mpviz"
UNUSED_SECONDS = 20  # without a browser, before a session and its background work end
LARGEST_MESSAGE = 4_000_000  # bytes that a browser may send over its websocket; sliders send hundreds
LARGEST_BODY = 100_000  # bytes of a request that is no upload: a login
PATIENCE = 8.0  # seconds for jobs to notice that the server ends
_FAREWELL = Path(__file__).with_name("dashboard_farewell.html")


def make_server(
    page: Callable[[], Any],
    grids: Sequence[Path],
    port: int,
    address: str,
    origins: Sequence[str],
    serving: Serving,
    visits: Visits,
    sweeps: Sequence[Path] = (),
) -> Any:
    """A panel server with all pages behind its doors; not yet started. origins: host:port, beside its own address.

    Raises AccessError for an origin that is everybody, and for logins that are not set up.
    """
    if any(origin.strip() in ("*", "*:*") or origin.startswith("*:") for origin in origins):
        raise AccessError("a websocket origin of * lets every web site use this dashboard; name the hosts you mean")
    house = doors.House(visits, serving.passwords(), serving.users)
    serving.check_oauth()
    if serving.log_json:
        write_json()
    own = [f"{name}:{port}" for name in dict.fromkeys((address, "localhost", "127.0.0.1"))]
    server = pn.serve(
        {"/": page},
        port=port,
        address=address,
        start=False,
        show=False,
        title=TITLE,
        websocket_origin=[*origins, *own],
        unused_session_lifetime_milliseconds=1000 * UNUSED_SECONDS,
        check_unused_sessions_milliseconds=5000,
        verbose=False,
        websocket_max_message_size=LARGEST_MESSAGE,
        http_server_kwargs={"max_body_size": LARGEST_BODY, "body_timeout": 600},
        sign_sessions=True,  # or anybody could join a session by its name
        secret_key=token_bytes(32),
        xsrf_cookies=True,
        log_function=_log_request,
        mpviz=house,
        **_logins(serving),
    )
    _open_doors(server, list(grids), Sweeps(sweeps, visits.policy), visits)
    return server


def _logins(serving: Serving) -> dict[str, Any]:
    if serving.basic_auth is not None:
        provider = doors.Passwords(logout_template=str(_FAREWELL))
        return {"auth_provider": provider, "cookie_secret": cookie_secret()}
    if serving.oauth is not None:
        both = {"oauth_error_template": str(_FAREWELL), "logout_template": str(_FAREWELL)}
        return {"oauth_provider": serving.oauth, "cookie_secret": cookie_secret(), **both}
    return {"cookie_secret": cookie_secret()}


def _open_doors(server: Any, grids: Sequence[Path], sweeps: Sweeps, visits: Visits) -> None:
    """Put our handlers before those of panel: tornado asks what was added later first."""
    tornado = server._tornado  # bokeh names no other way to its application
    context = {"application_context": tornado.applications["/"], "bokeh_websocket_path": "/ws"}
    handlers: list[tuple[str, type[RequestHandler], dict[str, Any]]] = [
        (r"/?", doors.PageDoor, context),
        (r"/ws", doors.SocketDoor, context),
        (r"/autoload\.js", doors.Gone, {}),
        (r"/metadata", doors.Gone, {}),
        (r"/components/(.*)", doors.ComponentDoor, {}),
        (r"/compare", doors.guarded(ComparePage), {"folders": grids, "sweeps": sweeps}),
        (r"/sweep", doors.guarded(SweepPage), {"folders": grids, "sweeps": sweeps}),
        (r"/patterns", doors.guarded(PatternsPage), {}),
        (r"/bench", doors.guarded(BenchPage), {}),
        (r"/upload", Upload, {}),
        (r"/health", doors.Health, {}),
    ]
    if visits.runs is not None:
        handlers += run_handlers(visits.runs)
    tornado.add_handlers(r".*", handlers)


def _log_request(handler: RequestHandler) -> None:
    """Write down requests that were refused or failed; without their arguments, which may hold a login's code."""
    status = handler.get_status()
    if status >= 400:
        level = logging.ERROR if status >= 500 and status != 503 else logging.INFO
        note("request", f"{status} {handler.request.method} {handler.request.path}", level)


def run_server(server: Any, visits: Visits, patience: float = PATIENCE) -> bool:
    """Serve until Ctrl-C or SIGTERM, then end all sessions and their jobs.

    patience: seconds that jobs have to notice. Gives whether all have ended.
    """
    loop = server.io_loop
    note("server-start", "the server takes visitors")
    with _ended_by_signals(lambda: loop.asyncio_loop.call_soon_threadsafe(loop.stop)):
        try:
            server.start()
            loop.start()
        finally:
            for visit in visits.all():
                if visit.end is not None:
                    visit.end()
            if visits.runs is not None:
                visits.runs.stop()
            with contextlib.suppress(RuntimeError):
                server.stop(wait=False)
            over = stop_all(patience)
            note("server-stop", "all jobs have ended" if over else "some jobs did not end in time")
    return over


@contextlib.contextmanager
def _ended_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """SIGINT and SIGTERM call `stop`; only the main thread can have it so."""
    before: dict[signal.Signals, Any] = {}
    with contextlib.suppress(ValueError):
        for one in (signal.SIGINT, signal.SIGTERM):
            before[one] = signal.signal(one, lambda *_: stop())
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
