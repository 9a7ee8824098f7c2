"""The dashboard: the Workbench in a browser, served by panel.

`serve()` and ``python -m mpviz.ui.dashboard`` serve it; ``panel serve mpviz/ui/dashboard.py`` works as well, with
panel's own logins; there visitors open what comes with mpviz, and anything only where MPVIZ_ANY_FILE is set. Nothing on
the page comes from another machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import threading
from collections.abc import Sequence
from html import escape
from importlib import import_module
from pathlib import Path
from typing import Any

import panel as pn
from bokeh.settings import settings

from mpviz.errors import MpvizError
from mpviz.ui.cards import tier_tips
from mpviz.ui.dashboard_paint import RESETS
from mpviz.ui.dashboard_server import TITLE, make_server, run_server
from mpviz.ui.dashboard_session import Report, Session
from mpviz.ui.dashboard_words import page_css, read_page_file
from mpviz.ui.layer_figure import LOOKS, SHUFFLED_TIP
from mpviz.workbench.policy import Policy
from mpviz.workbench.run_queue import RunQueue
from mpviz.workbench.serving import Serving
from mpviz.workbench.visits import Visits

LOCAL_FILES = "static/extensions/panel/"


class _Page(pn.Template):
    """A template that is made in a fourth of the time: panel describes all parts in words each time one is added."""

    def __repr__(self) -> str:
        return "mpviz"

    def _init_doc(self, doc: Any = None, *args: Any, **more: Any) -> Any:
        with (doc or pn.state.curdoc).models.freeze():  # and bokeh walks through all models as often
            return super()._init_doc(doc, *args, **more)


def app(
    model: str = "fashion-vit", data: str = "fashion-mnist", folder: str | None = None, report: Report | None = None,
    compare: bool = False, visits: Visits | None = None,
) -> pn.Template:  # fmt: skip
    """The page of one browser session; `.servable()` puts it on a server. The network is loaded in the background.

    report: makes the HTML of a report from the Workbench, behind a button; without it there is no such button.
    compare: link to the page that compares methods, which `serve` adds. visits: of the server, which knows what this
    session may do; anything without it.
    """
    pn.extension("plotly")
    document = pn.state.curdoc
    context = None if document is None else document.session_context
    visits = visits or Visits()
    visit = visits.enter("" if context is None else context.id, pn.state.user)
    try:
        session = Session(model, data, folder, report, document, visit, _asked())
    except BaseException:  # a page that fails must not keep its place
        visit.close()
        raise
    page = _Page(read_page_file(".html"))
    page.add_variable("mpviz_css", page_css())
    page.add_variable("mpviz_js", read_page_file(".js"))
    page.add_variable("looks_tip", escape("\n\n".join(f"{look.label}: {look.tip}" for look in LOOKS)))
    page.add_variable("shuffled_tip", escape(SHUFFLED_TIP))
    page.add_variable("tier_tips", escape(json.dumps(tier_tips()), quote=True))
    page.add_variable("resets", RESETS)
    page.add_variable("with_report", report is not None)
    page.add_variable("with_compare", compare)
    page.add_variable("run_key", visit.key if visits.runs is not None else "")
    page.add_variable("restricted", visits.policy.restricted)
    page.add_variable("upload_key", "" if visits.limits.upload is None else visit.key)
    page.add_variable("upload_js", read_page_file("_upload.js"))
    for name, part in session.roots.items():
        page.add_panel(name, part)
    if document is not None:
        # a session that is made for a websocket alone would ask a content network for its style sheets
        document.template_variables["dist_url"] = LOCAL_FILES
        document.title = TITLE
        pn.state.on_session_destroyed(lambda _: session.close())
    # only once the page is there: importing torch would hold it up
    pn.state.onload(session.open)
    return page


def _asked() -> dict[str, list[str]]:
    """The query of the page's address; bokeh's own arguments are none of ours."""
    arguments = pn.state.session_args or {}
    return {
        name: [value.decode("utf-8", "replace") for value in values]
        for name, values in arguments.items()
        if not name.startswith("bokeh-")
    }


def serve(
    model: str = "fashion-vit",
    data: str = "fashion-mnist",
    folder: str | None = None,
    port: int = 5006,
    show: bool = False,
    address: str = "localhost",
    websocket_origin: str | Sequence[str] | None = None,
    report: Report | None = None,
    grids: Sequence[str | Path] = (),
    serving: Serving | None = None,
    runs: str | Path = "runs",
    sweeps: Sequence[str | Path] = (),
) -> bool:
    """Serve the dashboard until interrupted or terminated; then jobs are cancelled, and True says that all have ended.

    port: 0 takes any free one. show: open a browser.
    address: the network interface; "localhost" keeps others out. websocket_origin: host:port under which browsers may
    reach the page, when that is another than address and port, as behind a proxy.
    grids: folders of `mpviz run` for the page that compares methods, beside the grids that come with mpviz.
    runs: the folder of the queue of runs; what it holds goes on when the dashboard is served again.
    sweeps: folders of `mpviz sweep` for the page that follows them.
    serving: who may come in, open what, and how much; where the address is reached from elsewhere, visitors open what
    comes with mpviz and what the server was started with, unless it says otherwise.
    Raises MpvizError when the port is taken, or for what `serving` names and is not there.
    """
    settings.resources = "server"
    serving = serving or Serving()
    visits = Visits(serving.policy(address, model, data, folder), serving.limits)
    given = [websocket_origin] if isinstance(websocket_origin, str) else list(websocket_origin or ())
    port = _free_port(address, port)
    visits.runs = RunQueue(runs, ends_runs=True, may_start=visits.room)

    def page() -> pn.Template:  # panel takes functions, a partial it would print
        return app(model, data, folder, report, compare=True, visits=visits)

    own, followed = [Path(grid) for grid in grids], [Path(folder) for folder in sweeps]
    server = make_server(page, own, port, address, given, serving, visits, followed)
    threading.Thread(target=_warm_up, name="mpviz-warm-up", daemon=True).start()
    print(f"mpviz dashboard: http://{address}:{port} (Ctrl+C ends it)", flush=True)
    if show:
        server.show("/")
    return run_server(server, visits)


def _free_port(address: str, port: int) -> int:
    """The port, or a free one for 0. Raises MpvizError when it is taken: with a sentence, not deep inside a server."""
    with contextlib.closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            raise MpvizError(f"cannot serve on {address}:{port} ({error.strerror}); choose another port") from error
        return probe.getsockname()[1]


def _warm_up() -> None:
    """Import what the first session needs while the browser is still starting."""
    import_module("mpviz.workbench.state")


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve from the command line."""
    parser = argparse.ArgumentParser(prog="python -m mpviz.ui.dashboard", description="Serve the mpviz dashboard.")
    parser.add_argument("--model", default="fashion-vit", help="bundled network, timm name or checkpoint path")
    parser.add_argument("--data", default="fashion-mnist", help="data set or folder of images")
    parser.add_argument("--folder", help="where the data set lies, when it is not bundled")
    parser.add_argument("--port", type=int, default=5006)
    parser.add_argument("--address", default="localhost")
    parser.add_argument("--show", action="store_true", help="open a browser")
    parser.add_argument("--grid", action="append", dest="grids", default=[], help="folder of a grid; may be repeated")
    parser.add_argument("--runs", default="runs", help="folder of the queue of runs")
    parser.add_argument("--websocket-origin", action="append", help="host:port of a proxy; may be repeated")
    given: dict[str, Any] = vars(parser.parse_args(arguments))
    try:
        serve(**given)
    except MpvizError as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
elif __name__.startswith("bokeh_app"):  # whom panel lets in is not known here
    app(visits=Visits(Policy(restricted="MPVIZ_ANY_FILE" not in os.environ))).servable()
