"""`mpviz dashboard`: the interactive page, on one's own machine or for visitors."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import Any


def add_dashboard(commands: Any) -> None:
    """The command and its options."""
    parser = commands.add_parser("dashboard", help="serve the interactive page, on this machine or to visitors")
    parser.add_argument("model", nargs="?", default="fashion-vit", metavar="MODEL", help="default fashion-vit")
    parser.add_argument("--data", default="fashion-mnist", metavar="NAME", help="default fashion-mnist")
    parser.add_argument("--folder", metavar="DIR", help="folder of the data, where they need one")
    parser.add_argument(
        "--grid", action="append", type=Path, default=[], metavar="DIR", help="folder of a grid to compare; repeatable"
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), metavar="DIR", help="folder of the queue of runs; default runs"
    )
    parser.add_argument(
        "--sweep", action="append", type=Path, default=[], metavar="DIR", help="folder of a sweep to follow; repeatable"
    )
    parser.add_argument("--port", type=int, default=5006, help="default 5006; 0 takes any free one")
    parser.add_argument("--show", action="store_true", help="open a browser")
    parser.add_argument("--address", default="localhost", help="default localhost; 0.0.0.0 lets other machines in")
    parser.add_argument(
        "--websocket-origin", action="append", default=[], metavar="HOST:PORT",
        help="as browsers name this server where that is another name, as behind a proxy; repeatable",
    )  # fmt: skip
    parser.add_argument("--log-json", action="store_true", help="write events to stderr, a JSON object a line")
    _add_visitors(parser)
    _add_limits(parser)
    parser.set_defaults(command=dashboard)


def _add_visitors(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "visitors",
        "With --public, with --allow-…, or on another address than localhost, visitors open what comes with mpviz, "
        "MODEL, --data, and what is listed here; nothing else.",
    )
    choice = group.add_mutually_exclusive_group()
    choice.add_argument("--public", action="store_true", help="restrict visitors on localhost too")
    choice.add_argument("--any-file", action="store_true", help="let visitors open any name and any file of this user")
    group.add_argument(
        "--allow-model", action="append", default=[], metavar="NAME_OR_FOLDER",
        help="a timm name, a .safetensors file, or a folder whose .safetensors files are offered; repeatable",
    )  # fmt: skip
    group.add_argument(
        "--allow-data", action="append", default=[], metavar="NAME_OR_FOLDER",
        help="a data set's name, or a folder of images; repeatable",
    )  # fmt: skip
    group.add_argument(
        "--basic-auth", type=Path, metavar="FILE", help='ask for a login; FILE is JSON, {"user": "password"}'
    )
    group.add_argument(
        "--oauth", metavar="PROVIDER",
        help="ask for a login at github, google, okta, azure, auth0, gitlab, bitbucket or generic; set in the "
        "environment PANEL_OAUTH_KEY, PANEL_OAUTH_SECRET (generic: PANEL_OAUTH_AUTHORIZE_URL, …_TOKEN_URL, …_USER_URL)",
    )  # fmt: skip
    group.add_argument(
        "--allow-user", action="append", default=[], metavar="NAME",
        help="who may come in of those that the login knows; repeatable, everybody otherwise",
    )  # fmt: skip


def _add_limits(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("limits")
    group.add_argument("--max-sessions", type=_positive, metavar="N", help="visitors at a time; others are told so")
    group.add_argument(
        "--max-jobs", type=_positive, metavar="N", help="prunings, proofs and previews at a time, of all"
    )
    group.add_argument("--max-samples", type=_positive, metavar="N", help="images of a session's preview")
    group.add_argument("--uploads", action="store_true", help="let visitors upload checkpoints for their own session")
    group.add_argument(
        "--max-upload", type=_positive, default=200, metavar="MB", help="of one uploaded checkpoint; default 200"
    )


def _positive(words: str) -> int:
    number = int(words)
    if number < 1:
        raise argparse.ArgumentTypeError("a number, 1 or more")
    return number


def dashboard(arguments: argparse.Namespace) -> None:
    """Serve the dashboard until Ctrl-C or SIGTERM."""
    from mpviz.ui.dashboard import serve
    from mpviz.ui.report import workbench_html
    from mpviz.workbench.serving import Serving
    from mpviz.workbench.visits import Limits

    upload = arguments.max_upload if arguments.uploads else None
    serving = Serving(
        public=True if arguments.public else False if arguments.any_file else None,
        models=tuple(arguments.allow_model),
        data=tuple(arguments.allow_data),
        limits=Limits(arguments.max_sessions, arguments.max_jobs, arguments.max_samples, upload),
        basic_auth=arguments.basic_auth,
        oauth=arguments.oauth,
        users=tuple(arguments.allow_user),
        log_json=arguments.log_json,
    )
    over = serve(
        model=arguments.model,
        data=arguments.data,
        folder=arguments.folder,
        port=arguments.port,
        show=arguments.show,
        address=arguments.address,
        websocket_origin=arguments.websocket_origin,
        report=workbench_html,
        grids=arguments.grid,
        runs=arguments.runs,
        serving=serving,
        sweeps=arguments.sweep,
    )
    if over is False:  # a thread that is inside torch when the interpreter goes would abort the process
        logging.shutdown()
        sys.stdout.flush()
        os._exit(0)
