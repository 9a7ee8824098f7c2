"""Twenty users of one dashboard at once: one browser, the others websocket clients that keep pulling their sliders.

    python tests/benchmarks/many_users.py [--users 20] [--steps 40] [--pause 1.0]

writes data/benchmarks/many-users.json: how long a step of a slider takes each user (clients: from the patch that they
send to the budgets' figure that comes back; browser: from the key to the pixels of both figures), what the server's
memory grew by a user, whether anybody saw another one's plan, and the same steps while one client breaks off and
somebody begins an upload of 10 GB.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import Page, sync_playwright
from record import write
from tornado.httpclient import HTTPRequest
from tornado.websocket import websocket_connect

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from slider_pixels import FLAGS, measure, open_page  # noqa: E402

from tests.ui.served import Served, token_of, upload_key  # noqa: E402

UPLOAD = 10 * 1024**3
PATIENCE = 60.0  # seconds
CLASSES = 10  # clients next to each other never set the same percentages
TITLE = re.compile(r"(\d+(?:\.\d+)?)\s%")  # the first share that a title names


class Client:
    """A page's websocket without a page: it speaks bokeh's protocol and reads what the figures' titles say."""

    def __init__(self, server: Served, number: int) -> None:
        self.server, self.number, self.sent = server, number, 0
        self.inbox: asyncio.Queue[tuple[dict[str, Any], dict[str, Any]]] = asyncio.Queue()
        self.ids: dict[str, str] = {}
        self.times: list[float] = []
        self.strange: list[str] = []  # titles of plans that this client never set
        self.set: set[str] = {"50"}  # where every page begins

    async def open(self) -> None:
        """Open the page as a browser does, and wait until its network is loaded."""
        page = await asyncio.to_thread(self.server.ask, "/")
        self.upload = upload_key(page.body)
        request = HTTPRequest(
            f"ws://127.0.0.1:{self.server.port}/ws", headers={"Origin": f"http://localhost:{self.server.port}"}
        )
        self.socket = await websocket_connect(
            request, subprotocols=["bokeh", token_of(page.body)], max_message_size=2**28
        )
        self.reader = asyncio.create_task(self.read())
        await asyncio.wait_for(self.inbox.get(), PATIENCE)  # the server greets first, and understands nothing before
        document = await self.answer("PULL-DOC-REQ", {})
        self.ids = {root["attributes"]["name"]: root["id"] for root in document["doc"]["roots"]}
        seen = {"type": "event", "name": "document_ready", "values": {"type": "map"}}
        event = {"kind": "MessageSent", "msg_type": "bokeh_event", "msg_data": seen}
        await self.send("PATCH-DOC", {"events": [event]})
        await self.wait_for(lambda one: self.is_of(one, "sparsity", "disabled") and one["new"] is False)

    async def read(self) -> None:
        """Take in what the server says, for as long as it speaks."""
        parts: list[Any] = []
        while (part := await self.socket.read_message()) is not None:
            parts.append(part)
            if len(parts) >= 3 and len(parts) == 3 + 2 * int(json.loads(parts[0]).get("num_buffers", 0)):
                await self.inbox.put((json.loads(parts[0]), json.loads(parts[2])))
                parts = []

    async def send(self, kind: str, content: dict[str, Any]) -> str:
        """Send a message; its number."""
        self.sent += 1
        name = f"{self.number}-{self.sent}"
        for part in ({"msgid": name, "msgtype": kind}, {}, content):
            await self.socket.write_message(json.dumps(part))
        return name

    async def answer(self, kind: str, content: dict[str, Any]) -> dict[str, Any]:
        """Send a message and wait for what answers it."""
        name = await self.send(kind, content)
        while True:
            head, found = await asyncio.wait_for(self.inbox.get(), PATIENCE)
            if head.get("reqid") == name:
                return found

    def is_of(self, event: dict[str, Any], part: str, what: str) -> bool:
        """Whether an event of the document changes this of a part of the page."""
        return event.get("attr") == what and event.get("model", {}).get("id") == self.ids[part]

    async def wait_for(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Wait until a change of the page comes by."""
        while True:
            _, content = await asyncio.wait_for(self.inbox.get(), PATIENCE)
            for event in content.get("events", []):
                if self.is_of(event, "budgets", "layout"):
                    said = TITLE.search(json.dumps(event["new"], ensure_ascii=False))
                    if said and said[1] not in self.set:
                        self.strange.append(said[1])
                if wanted(event):
                    return

    async def step(self, percent: int) -> None:
        """Pull the slider to a place and wait until the budgets' figure says so."""
        change = {"kind": "ModelChanged", "model": {"id": self.ids["sparsity"]}, "attr": "value", "new": percent / 100}
        words = str(percent)
        self.set.add(words)
        start = time.perf_counter()
        await self.send("PATCH-DOC", {"events": [change]})

        def shown(event: dict[str, Any]) -> bool:
            if not self.is_of(event, "budgets", "layout"):
                return False
            said = TITLE.search(json.dumps(event["new"], ensure_ascii=False))
            return said is not None and said[1] == words

        await self.wait_for(shown)
        self.times.append(1e3 * (time.perf_counter() - start))

    async def pull(self, until: threading.Event, pause: float) -> None:
        """Pull the slider every now and then. Every client has percentages of its own."""
        own, at = random.Random(self.number), 50
        while not until.is_set():
            await asyncio.sleep(own.uniform(0.5, 1.5) * pause)
            at = own.choice([one for one in range(3, 96) if one % CLASSES == self.number % CLASSES and one != at])
            await self.step(at)


class Crowd:
    """All clients on a thread of their own, beside the browser."""

    def __init__(self, server: Served, number: int, pause: float) -> None:
        self.clients = [Client(server, one) for one in range(number)]
        self.pause, self.ready, self.over = pause, threading.Event(), threading.Event()
        self.failed: list[str] = []
        self.thread = threading.Thread(target=lambda: asyncio.run(self.run()), daemon=True)

    async def run(self) -> None:
        """Everybody comes in, then everybody pulls."""
        for client in self.clients:
            await client.open()
        self.ready.set()
        found = await asyncio.gather(
            *(client.pull(self.over, self.pause) for client in self.clients), return_exceptions=True
        )
        self.failed = [f"{type(one).__name__}: {one}" for one in found if one is not None]

    def taken(self) -> list[float]:
        """The steps since the last call, in milliseconds."""
        found = [one for client in self.clients for one in client.times]
        for client in self.clients:
            client.times = []
        return found


def memory(process: int) -> float:
    """MB that a process holds for itself."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * 4096 / 1e6


def summary(times: list[float]) -> dict[str, float]:
    """Median, 95th percentile and number of steps."""
    return {
        "median_ms": round(float(np.median(times))), "p95_ms": round(float(np.percentile(times, 95))),
        "steps": len(times),
    }  # fmt: skip


def in_browser(page: Page, steps: int) -> dict[str, float]:
    """Steps of the browser's own slider, from the key to the pixels."""
    plots = [page.locator(f"{cell} .js-plotly-plot:visible").element_handle() for cell in (".coverage", ".budgets")]
    handle = page.locator(".removed .noUi-handle").element_handle()
    keys = [("ArrowRight", "ArrowLeft")[i // 10 % 2] for i in range(steps + 1)]
    return summary(measure(page, handle, plots, keys)["steps"])


def trouble(server: Served, crowd: Crowd) -> dict[str, Any]:
    """One client goes away in the middle of a pull, and somebody begins an upload of 10 GB."""
    victim = crowd.clients[-1]
    victim.socket.stream.close()  # no farewell
    headers = {
        "Origin": f"http://localhost:{server.port}", "X-Mpviz-Visit": crowd.clients[0].upload,
        "X-Mpviz-Name": "huge.safetensors",
    }  # fmt: skip
    answer = server.begin("/upload", UPLOAD, b"x" * 1024, headers)
    return {"client_broken_off": victim.number, "upload_bytes": UPLOAD, "upload_answer": answer.code}


def run(users: int, steps: int, pause: float) -> dict[str, Any]:
    """Measure everything on one server."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        server = Served(Path(folder), "--uploads", "--max-sessions", str(users + 2))
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        try:
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            open_page(page, f"http://localhost:{server.port}")
            page.wait_for_timeout(20_000)
            alone, start = in_browser(page, steps), memory(server.process.pid)
            crowd = Crowd(server, users - 1, pause)
            crowd.thread.start()
            if not crowd.ready.wait(300):
                raise RuntimeError("not everybody came in")
            time.sleep(20)
            crowd.taken()
            rows: dict[str, Any] = {"alone": {"browser": alone}}
            rows["all"] = {"browser": in_browser(page, steps), "clients": summary(crowd.taken())}
            grown = (memory(server.process.pid) - start) / (users - 1)
            about = trouble(server, crowd)
            rows["with trouble"] = {"browser": in_browser(page, steps), "clients": summary(crowd.taken())}
            rows["with trouble"] |= about
            crowd.over.set()
            crowd.thread.join(60)
        finally:
            browser.close()
            ended = server.end()
    return {
        "rows": rows, "users": users, "seconds_between_steps": pause, "server_mb_alone": round(start),
        "server_mb_a_further_user": round(grown, 1), "plans_of_others_seen": sum(len(c.strange) for c in crowd.clients),
        "clients_that_failed": crowd.failed, "server_ended_with": ended[0],
    }  # fmt: skip


def main() -> None:
    """Measure, print, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=20)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--pause", type=float, default=1.0, help="seconds between two steps of a client")
    given = parser.parse_args()
    found = run(given.users, given.steps, given.pause)
    print(json.dumps(found, indent=1))
    command = f"python tests/benchmarks/many_users.py --users {given.users} --steps {given.steps} --pause {given.pause}"
    write("many-users", command, {"model": "fashion-mlp", **found})


if __name__ == "__main__":
    main()
