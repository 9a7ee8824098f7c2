"""Doors of a served dashboard: who comes in, how many, and what is said to those who do not."""

from __future__ import annotations

import asyncio
import hmac
import logging
import sys
import time
from dataclasses import dataclass, field
from html import escape
from typing import Any
from urllib.parse import quote, urlsplit

from bokeh.server.views.auth_request_handler import AuthRequestHandler
from bokeh.util.token import check_token_signature, get_session_id, get_token_payload
from panel.auth import BasicAuthProvider, BasicLoginHandler
from panel.io.server import ComponentResourceHandler, DocHandler, WSHandler
from tornado.web import HTTPError, RequestHandler

from mpviz.ui.css import variables
from mpviz.ui.dashboard_words import read_page_file
from mpviz.ui.theme import THEMES
from mpviz.workbench.journal import note
from mpviz.workbench.visits import Visits

_WRONG_PASSWORD_SECONDS = 0.5  # that each further guess costs


@dataclass
class House:
    """What all doors of one server share; in the settings of its tornado application as `mpviz`.

    users: who may come in of those that a provider knows; everybody when empty.
    """

    visits: Visits = field(default_factory=Visits)
    passwords: dict[str, str] | None = None
    users: tuple[str, ...] = ()


def notice_page(message: str, form: str = "") -> str:
    """A page of one sentence, whole by itself. form: HTML that is safe."""
    return (
        read_page_file("_notice.html").replace("{{colours}}", variables(THEMES["light"]))
        .replace("{{dark}}", variables(THEMES["dark"])).replace("{{form}}", form)
        .replace("{{message}}", escape(message))
    )  # fmt: skip


class Door(AuthRequestHandler):
    """Lets in who has logged in, where that is asked for; others are led to the login."""

    @property
    def house(self) -> House:
        """That of the server."""
        return self.application.settings["mpviz"]

    def set_default_headers(self) -> None:
        """What browsers shall not do with a page of ours."""
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Referrer-Policy", "same-origin")
        self.set_header("X-Frame-Options", "SAMEORIGIN")

    async def prepare(self) -> None:
        """Finish the request here when who sent it may not come in."""
        await super().prepare()
        if self._finished:  # a websocket that panel refused
            return
        if not self.current_user:
            if self.request.method in ("GET", "HEAD") and not isinstance(self, WSHandler):
                up = "../" * (self.request.path.count("/") - 1)  # relative: it holds behind a proxy's prefix too
                self.redirect(f"./{up}login?next={quote(self.request.uri or '/', safe='/')}")
            else:
                self.refuse(403, "log in first")
        elif self.house.users and self.current_user_name() not in self.house.users:
            note("user-refused", "a user who is not listed was refused", logging.WARNING, user=self.current_user_name())
            self.refuse(403, "this account is not on the list of those who may use this server; ask its keeper")

    def current_user_name(self) -> str | None:
        """Who has logged in; None where no login is asked for."""
        user = self.current_user
        user = user.decode() if isinstance(user, bytes) else user
        return None if user in (None, "default_user") else str(user)

    def refuse(self, status: int, message: str) -> None:
        """End the request with one sentence."""
        self.set_status(status)
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.set_header("Cache-Control", "no-store")
        self.finish(notice_page(message))


def guarded(page: type[RequestHandler]) -> type[RequestHandler]:
    """The same page behind the door."""
    return type(page.__name__, (Door, page), {})


class PageDoor(Door, DocHandler):
    """The dashboard itself; a visitor for whom there is no place is told so, with status 503."""

    _place = False

    async def prepare(self) -> None:
        """Take a place, or say that there is none."""
        await super().prepare()
        if self._finished:
            return
        named = {"bokeh-session-id", "bokeh-token"} & self.request.arguments.keys()
        if named or "Bokeh-Session-Id" in self.request.headers:  # a link could lead into another's session
            self.refuse(400, "each visit has a session of its own; open the page without one")
            return
        if not all(_readable(value) for values in self.request.arguments.values() for value in values):
            self.refuse(400, "the address of this page cannot be read; open it without what follows the question mark")
            return
        why = self.house.visits.full()
        if why:
            note("session-refused", why, logging.WARNING, user=self.current_user_name())
            self.set_header("Retry-After", "60")
            self.refuse(503, why)
            return
        self._place = True  # from here until the session is there
        self.house.visits.coming += 1

    def on_finish(self) -> None:
        """The session has its place now, or there is none."""
        if self._place:
            self._place = False
            self.house.visits.coming -= 1
        super().on_finish()


def _readable(value: bytes) -> bool:
    try:
        return value.decode().isprintable()
    except UnicodeDecodeError:
        return False


class SocketDoor(Door, WSHandler):
    """The page's websocket. One whose session has ended needs a place again, like a new visitor."""

    async def prepare(self) -> None:
        """Refuse one that is too much."""
        await super().prepare()
        if self._finished:
            return
        try:
            token = self.request.headers["Sec-WebSocket-Protocol"].split(",")[1].strip()
            ours = check_token_signature(
                token, secret_key=self.application.secret_key, signed=self.application.sign_sessions
            )
            late = get_token_payload(token)["session_expiry"] <= time.time()
            known = get_session_id(token) in {one.id for one in self.application_context.sessions}
        except (KeyError, IndexError, ValueError, TypeError, AttributeError):
            self.refuse(400, "this is no page's websocket")
            return
        there = self.house.visits.find(self.house.visits.key_of(get_session_id(token))) if ours else None
        if there is not None and there.user != self.current_user_name():
            self.refuse(403, "this session is another user's; reload the page")
        elif not ours or late:  # said here in a sentence; bokeh would raise once the connection is open
            self.refuse(403, "this page's session has ended; reload the page")
        elif not known and self.house.visits.full():
            self.refuse(503, self.house.visits.full())


class ComponentDoor(Door, ComponentResourceHandler):
    """Files of panel's components. The original imports any module that is named in the address; this one none."""

    def parse_url_path(self, path: str) -> str:
        """The file; of modules that are loaded already."""
        if path.partition("/")[0] not in sys.modules:
            raise HTTPError(404)
        return super().parse_url_path(path)


class Gone(RequestHandler):
    """Nothing is here: ways to a session that this dashboard does not use."""

    def prepare(self) -> None:
        """Answer 404."""
        raise HTTPError(404)


class Health(RequestHandler):
    """``/health``: whether the server is up, for a monitor; open to all, and without names."""

    def get(self) -> None:
        """Answer with JSON."""
        self.set_header("Cache-Control", "no-store")
        self.finish(self.application.settings["mpviz"].visits.health())


class Login(BasicLoginHandler):
    """Asks for user and password. No part of the page comes from elsewhere; a wrong guess costs time."""

    def set_cookie(self, name: str, value: Any, *more: Any, **options: Any) -> None:
        """Cookies that other sites cannot send along."""
        options.setdefault("samesite", "Lax")
        options.setdefault("secure", self.request.protocol == "https")
        super().set_cookie(name, value, *more, **options)

    def get(self) -> None:
        """Show the form."""
        self._show("")

    async def post(self) -> None:
        """Let in who knows a password, and lead on to the page that was asked for."""
        user, password = self.get_body_argument("username", ""), self.get_body_argument("password", "", strip=False)
        known: dict[str, str] = self.application.settings["mpviz"].passwords or {}
        right = hmac.compare_digest(password.encode(), known.get(user, "").encode()) and user in known
        if not right:
            note("login-failed", "a login with a wrong name or password", logging.WARNING)  # the name may be a password
            await asyncio.sleep(_WRONG_PASSWORD_SECONDS)
            self.set_status(401)
            self._show("This name and this password do not belong together.")
            return
        note("login", "a user has logged in", user=user)
        self.set_current_user(user)
        self.redirect(_inside(self.get_query_argument("next", "/")))

    def _show(self, message: str) -> None:
        self.set_header("Cache-Control", "no-store")
        form = (
            f'<form method="post">{self.xsrf_form_html()}'
            '<label>Name <input name="username" autocomplete="username" required autofocus></label>'
            '<label>Password <input name="password" type="password" autocomplete="current-password" required></label>'
            "<button>Log in</button></form>"
        )
        self.finish(notice_page(message or "Log in to see the dashboard.", form))


def _inside(place: str) -> str:
    """A place of this server to go on to: never another server."""
    parts = urlsplit(place.replace("\\", "/"))
    inside = place.startswith("/") and not place.startswith("//") and not parts.scheme and not parts.netloc
    return place if inside and place.isprintable() else "/"


class Passwords(BasicAuthProvider):
    """Users and passwords of a file, read once at the start."""

    @property
    def login_handler(self) -> type[Login]:
        """The page with the form."""
        return Login
