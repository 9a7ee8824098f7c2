"""A dashboard served as people serve it: the command in a process of its own, asked over HTTP and websockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.websocket import WebSocketClosedError, websocket_connect

PATIENCE = 60.0  # seconds


class Answer(NamedTuple):
    code: int
    headers: dict[str, str]
    body: str
    cookies: dict[str, str]


def any_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Served:
    """`mpviz dashboard` with these options, from the moment when it answers."""

    def __init__(
        self, folder: Path, *options: str, environment: Mapping[str, str] | None = None, port: int = 0
    ) -> None:
        self.port, self._err = port or any_port(), folder / "err.txt"
        self._out = folder / "out.txt"
        command = [sys.executable, "-m", "mpviz", "dashboard", "fashion-mlp", "--port", str(self.port), *options]
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(
                command, stdout=out, stderr=err, env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
            )
        end = time.monotonic() + PATIENCE
        while True:
            try:
                if self.ask("/health").code == 200:
                    return
            except OSError:
                pass
            assert self.process.poll() is None and time.monotonic() < end, self.said
            time.sleep(0.1)

    @property
    def said(self) -> str:
        return self._out.read_text() + self._err.read_text()

    def events(self) -> list[dict[str, Any]]:
        """What it has written down with --log-json: every line of stderr must be an object."""
        lines = self._err.read_text().splitlines()
        return [json.loads(line) for line in lines]

    def wait_for(self, event: str) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE
        while True:
            found = [one for one in self.events() if one["event"] == event]
            if found:
                return found[-1]
            assert time.monotonic() < end, self.said
            time.sleep(0.1)

    def ask(
        self, path: str, method: str = "GET", body: bytes | Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None, cookies: Mapping[str, str] | None = None,
    ) -> Answer:  # fmt: skip
        """One request; nothing is followed."""
        sent = dict(headers or {})
        if cookies:
            sent["Cookie"] = "; ".join(f"{name}={value}" for name, value in cookies.items())
        if isinstance(body, Mapping):
            body, sent["Content-Type"] = urlencode(body).encode(), "application/x-www-form-urlencoded"
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before all of it was sent
                connection.request(method, path, body, sent)
            return _answer(connection)
        finally:
            connection.close()

    def begin(self, path: str, length: int, first: bytes, headers: Mapping[str, str]) -> Answer:
        """A POST that says it has `length` bytes and sends only the first of them."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.putrequest("POST", path)
            for name, value in {**headers, "Content-Length": str(length)}.items():
                connection.putheader(name, value)
            connection.endheaders(first)
            return _answer(connection)
        finally:
            connection.close()

    def break_off(self, path: str, length: int, first: bytes, headers: Mapping[str, str]) -> None:
        """The same, but who sends it goes away."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.putrequest("POST", path)
        for name, value in {**headers, "Content-Length": str(length)}.items():
            connection.putheader(name, value)
        connection.endheaders(first)
        time.sleep(0.2)
        connection.close()

    def websocket(
        self, token: str, origin: str | None, cookies: Mapping[str, str] | None = None, message: str = ""
    ) -> str:
        """The first message of a page's websocket, or the code with which it was refused.

        message: sent after it; "closed" says that this closed the connection.
        """

        async def connect() -> str:
            headers = {} if origin is None else {"Origin": origin}
            if cookies:
                headers["Cookie"] = "; ".join(f"{name}={value}" for name, value in cookies.items())
            request = HTTPRequest(f"ws://127.0.0.1:{self.port}/ws", headers=headers)
            try:
                socket = await websocket_connect(request, subprotocols=["bokeh", token])
            except HTTPClientError as error:
                return str(error.code)
            first = await asyncio.wait_for(socket.read_message(), 30)
            if message:
                try:
                    await socket.write_message(message)
                except WebSocketClosedError:
                    return "closed"
                while await asyncio.wait_for(socket.read_message(), 30) is not None:
                    pass
                return "closed"
            socket.close()
            return str(first)

        return asyncio.run(connect())

    def end(self, how: signal.Signals = signal.SIGTERM) -> tuple[int, float]:
        """(exit code, seconds it took)."""
        started = time.monotonic()
        if self.process.poll() is None:
            self.process.send_signal(how)
        try:
            return self.process.wait(30), time.monotonic() - started
        finally:
            self.process.kill()


def _answer(connection: HTTPConnection) -> Answer:
    response = connection.getresponse()
    cookies = {}
    for name, value in response.getheaders():
        if name.lower() == "set-cookie":
            key, _, rest = value.partition("=")
            cookies[key] = rest.split(";")[0]
    return Answer(response.status, dict(response.getheaders()), response.read().decode(errors="replace"), cookies)


def token_of(page: str) -> str:
    """What the page's websocket shows."""
    found = re.search(r'"token":\s*"([^"]+)"', page)
    assert found, page[:500]
    return found.group(1)


def upload_key(page: str) -> str:
    """What the page shows with an upload."""
    found = re.search(r'data-upload="(\w+)"', page)
    assert found
    return found.group(1)
