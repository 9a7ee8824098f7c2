"""Pages of the dashboard that are made anew for each visit and need no session."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tornado.ioloop import IOLoop
from tornado.web import RequestHandler

from mpviz.ui.page import named_folders
from mpviz.ui.sweep_page import Sweeps, sweep_page


def _page(folders: Sequence[Path], asked: str | None, theme: str, seen: str) -> tuple[bool, str]:
    from mpviz.ui.grid_page import compare_page  # torch comes with it, and the first page must not wait for that

    return compare_page(folders, asked, theme, seen)


def _patterns(asked: dict[str, str]) -> tuple[bool, str]:
    from mpviz.ui.patterns_page import patterns_page

    return patterns_page(asked)


def _bench(asked: dict[str, str]) -> tuple[bool, str]:
    from mpviz.ui.bench_page import bench_page

    return bench_page(asked)


def _sweep(folders: Sequence[Path], sweeps: Sweeps, asked: dict[str, str]) -> tuple[bool, str]:
    grids = named_folders([*folders, *sweeps.grids()])
    return sweep_page(sweeps, asked, {folder.resolve(): name for name, folder in grids.items()})


class _Page(RequestHandler):
    """A page that is made in a thread, for the sessions must not wait."""

    async def answer(self, make: Callable[..., tuple[bool, str]], *asked: Any) -> None:
        """Answer with what `make` gives: whether all that was asked for exists, and the page."""
        known, page = await IOLoop.current().run_in_executor(None, make, *asked)
        self.set_status(200 if known else 404)
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.set_header("Cache-Control", "no-store")
        await self.finish(page)

    def asked(self, *names: str) -> dict[str, str]:
        """Those of the query's arguments that are there."""
        return {name: value for name in names if (value := self.get_query_argument(name, None)) is not None}


class BenchPage(_Page):
    """``/bench?network=…&hardware=…&run=…&seen=…&theme=…``: the 2:4 benchmark that comes with mpviz."""

    async def get(self) -> None:
        """Answer with the page."""
        await self.answer(_bench, self.asked("network", "hardware", "run", "theme", "seen"))


class PatternsPage(_Page):
    """``/patterns?network=…&pattern=…&order=…&layer=…&seen=…&theme=…``: k:n patterns of the bundled networks."""

    async def get(self) -> None:
        """Answer with the page."""
        await self.answer(_patterns, self.asked("network", "pattern", "order", "layer", "theme", "seen"))


class ComparePage(_Page):
    """``/compare?grid=…&seen=…&theme=…``: methods side by side, of folders and of the grids of mpviz."""

    def initialize(self, folders: Sequence[Path], sweeps: Sweeps) -> None:
        """Take what the server was started with."""
        self.folders, self.sweeps = folders, sweeps

    async def get(self) -> None:
        """Answer with the page."""
        get = self.get_query_argument
        asked = get("grid", None), get("theme", "light"), get("seen", "")
        await self.answer(_page, [*self.folders, *self.sweeps.grids()], *asked)


class SweepPage(_Page):
    """``/sweep?folder=…&report=…&theme=…``: how the runs of a sweep stand, and their reports."""

    def initialize(self, folders: Sequence[Path], sweeps: Sweeps) -> None:
        """Take what the server was started with."""
        self.folders, self.sweeps = folders, sweeps

    async def get(self) -> None:
        """Answer with the page."""
        await self.answer(_sweep, self.folders, self.sweeps, self.asked("folder", "report", "theme"))
