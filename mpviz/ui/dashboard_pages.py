"""Pages of the dashboard that are made anew for each visit and need no session."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tornado.ioloop import IOLoop
from tornado.web import RequestHandler


def _page(folders: Sequence[Path], asked: str | None, theme: str) -> tuple[bool, str]:
    from mpviz.ui.grid_page import compare_page  # torch comes with it, and the first page must not wait for that

    return compare_page(folders, asked, theme)


def _patterns(asked: dict[str, str]) -> tuple[bool, str]:
    from mpviz.ui.patterns_page import patterns_page

    return patterns_page(asked)


def _bench(asked: dict[str, str]) -> tuple[bool, str]:
    from mpviz.ui.bench_page import bench_page

    return bench_page(asked)


class BenchPage(RequestHandler):
    """``/bench?network=…&hardware=…&run=…&theme=…``: the 2:4 benchmark that comes with mpviz."""

    async def get(self) -> None:
        """Answer with the page; it is made in a thread, for the sessions must not wait."""
        names = ("network", "hardware", "run", "theme")
        asked = {name: value for name in names if (value := self.get_query_argument(name, None)) is not None}
        known, page = await IOLoop.current().run_in_executor(None, _bench, asked)
        self.set_status(200 if known else 404)
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.set_header("Cache-Control", "no-store")
        await self.finish(page)


class PatternsPage(RequestHandler):
    """``/patterns?network=…&pattern=…&order=…&layer=…&theme=…``: k:n patterns of the bundled networks."""

    async def get(self) -> None:
        """Answer with the page; it is made in a thread, for the sessions must not wait."""
        names = ("network", "pattern", "order", "layer", "theme")
        asked = {name: value for name in names if (value := self.get_query_argument(name, None)) is not None}
        known, page = await IOLoop.current().run_in_executor(None, _patterns, asked)
        self.set_status(200 if known else 404)
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.set_header("Cache-Control", "no-store")
        await self.finish(page)


class ComparePage(RequestHandler):
    """``/compare?grid=…&theme=…``: methods side by side, of the given folders and of the grids that come with mpviz."""

    def initialize(self, folders: Sequence[Path]) -> None:
        """Take what the server was started with."""
        self.folders = folders

    async def get(self) -> None:
        """Answer with the page; it is made in a thread, for the sessions must not wait."""
        asked, theme = self.get_query_argument("grid", None), self.get_query_argument("theme", "light")
        known, page = await IOLoop.current().run_in_executor(None, _page, self.folders, asked, theme)
        self.set_status(200 if known else 404)
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.set_header("Cache-Control", "no-store")
        await self.finish(page)
