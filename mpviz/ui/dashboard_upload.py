"""``POST /upload``: one checkpoint for one session, written to disk as it comes and looked at before it is opened.

The way is not the websocket's: a message there stands in memory as a whole, and would hold up the other sessions.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote

from tornado.web import stream_request_body

from mpviz.errors import MpvizError
from mpviz.nets.header import check_header
from mpviz.ui.dashboard_doors import Door
from mpviz.workbench.policy import SUFFIX
from mpviz.workbench.visits import Visit

KEY, NAME = "X-Mpviz-Visit", "X-Mpviz-Name"
MEGABYTE = 1_000_000
ENDED = "this page's session has ended; reload the page and upload again"
BUSY = "something is at work in this session; wait for it or cancel it, then upload again"


def file_name(said: str) -> str:
    """The last part of a file's name as a browser told it, without what cannot be read; "" when it is no safetensors.

    >>> file_name("..%2F..%2Fetc%2Fa.safetensors"), file_name("net.pt")
    ('a.safetensors', '')
    """
    last = unquote(said).replace("\\", "/").rpartition("/")[2]
    name = "".join(letter for letter in last if letter.isprintable())[-80:]
    return name if name.endswith(SUFFIX) and name != SUFFIX else ""


@stream_request_body
class Upload(Door):
    """Takes a file for the session whose key stands in the header X-Mpviz-Visit. What it refuses it says as JSON."""

    visit: Visit | None = None
    _path: Path | None = None
    _file: BinaryIO | None = None
    _first, _size, _held = b"", 0, False

    def check_xsrf_cookie(self) -> None:
        """Not needed: another site's page knows no key of a session, and may not send headers of its own."""

    async def prepare(self) -> None:
        """Refuse by what the request says of itself, before anything of its body is read."""
        await super().prepare()
        if self._finished:
            return None
        visit, most = self.house.visits.find(self.request.headers.get(KEY, "")), self.house.visits.limits.upload
        if most is None:
            return self._say(404, "this server takes no uploads")
        if visit is None or visit.user != self.current_user_name():
            return self._say(403, ENDED)
        self.visit, self._name = visit, file_name(self.request.headers.get(NAME, ""))
        length = self.request.headers.get("Content-Length", "")
        if not self._name:
            return self._say(415, f"only {SUFFIX} files are taken; write one with mp.save(path, model)")
        if not length.isdigit():
            return self._say(411, "the size of the file must be said beforehand; upload it from the page")
        if int(length) > most * MEGABYTE:
            return self._say(413, f"this file has {int(length) / MEGABYTE:,.0f} MB, and up to {most} are taken")
        if visit.status.busy or not visit.busy_upload.acquire(blocking=False):
            return self._say(409, BUSY)
        self._held, self._wanted = True, int(length)
        self._path = visit.folder() / f"{secrets.token_hex(8)}{SUFFIX}"
        self._file = open(self._path, "xb")  # noqa: SIM115 - closed when the request ends
        self.request.connection.set_max_body_size(most * MEGABYTE)
        return None

    def data_received(self, chunk: bytes) -> None:
        """Write a piece of the file; the first 8 bytes decide whether there will be any."""
        if self._finished or self._file is None:
            return
        if len(self._first) < 8:
            self._first += chunk[: 8 - len(self._first)]
            if len(self._first) == 8 and not self._passes(lambda: check_header(self._first, self._wanted)):
                return
        try:
            self._file.write(chunk)
        except OSError as error:
            self._say(507, f"the server cannot keep this file ({error.strerror}); try again later")

    async def post(self) -> None:
        """Look at the file as a whole, and open it in the session."""
        visit, path = self.visit, self._path
        if visit is None or path is None or self._file is None:
            return
        self._file.close()
        if not self._passes(lambda: check_header(self._first, self._wanted)):
            return
        try:
            await asyncio.to_thread(_check, path)
        except MpvizError as error:
            self._refuse_file(error)
            return
        except OSError:  # the session ended meanwhile, and its folder with it
            self._say(403, ENDED)
            return
        if visit.receive is None or self.house.visits.find(visit.key) is not visit:
            self._say(403, ENDED)
            return
        if visit.status.busy:  # something was started while the file came
            self._say(409, BUSY)
            return
        name = visit.keep(self._name, path, visit.status_model)
        self._path = None  # the session's now
        visit.note("upload", f"took {self._name}, {self._wanted} bytes")
        visit.receive(name)
        await self.finish({"message": f"took {self._name}", "name": name})

    def on_finish(self) -> None:
        """The request is over, one way or another."""
        self._end()

    def on_connection_close(self) -> None:
        """Who uploaded went away."""
        self._end()
        super().on_connection_close()

    def _end(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
            self._path = None
        if self._held and self.visit is not None:
            self._held = False
            self.visit.busy_upload.release()

    def _passes(self, check: Callable[[], None]) -> bool:
        try:
            check()
        except MpvizError as error:
            self._refuse_file(error)
            return False
        return True

    def _refuse_file(self, error: MpvizError) -> None:
        words = str(error)
        if self._path is not None:  # where the server keeps it is nobody's business
            words = words.replace(str(self._path), self._name).replace(self._path.name, self._name)
        self._say(415, words)

    def _say(self, status: int, message: str) -> None:
        if self.visit is not None:
            self.visit.note("upload-refused", message, logging.WARNING)
            if self.visit.show_error is not None:
                self.visit.show_error(message)
        self.set_status(status)
        self.set_header("Connection", "close")
        self.finish({"message": message})


def _check(path: Path) -> None:
    from mpviz.nets.untrusted import check_checkpoint  # torch comes with it

    check_checkpoint(path)
