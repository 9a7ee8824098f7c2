"""What all tests share: single-threaded numerics in parallel runs, and a page in headless Chromium."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

if "PYTEST_XDIST_WORKER" in os.environ:  # workers that each take every core only slow each other down
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = "1"
    if "torch" in sys.modules:  # it reads the variables only once, when it is loaded
        sys.modules["torch"].set_num_threads(1)

_CACHE = "MPVIZ_CACHE"
_own_caches: list[str] = []


def pytest_configure() -> None:
    """Keep spectra in a folder of this run: tests neither read nor fill the cache of who runs them."""
    _own_caches.append(tempfile.mkdtemp(prefix="mpviz-tests-"))
    os.environ[_CACHE] = _own_caches[-1]


def pytest_unconfigure() -> None:
    """The folder goes with the run."""
    for folder in _own_caches:
        shutil.rmtree(folder, ignore_errors=True)


def pytest_collection_finish() -> None:
    """Nothing that is loaded by now is garbage: no collection, and training asks for one at each end, walks over it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def no_wait_for_workers() -> Iterator[None]:
    """Once a worker met an error torch waits five seconds for each of them, whenever the loader is collected."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)
        yield
        gc.collect()


CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    # The pages under test need nothing from elsewhere: a name that is not this machine's does not resolve.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1",
]
NO_CHROMIUM = "no Chromium: apt-get install chromium, or set MPVIZ_CHROMIUM to the program"


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return Path(__file__).resolve().parent.parent


def find_chromium() -> str | None:
    names = [os.environ.get("MPVIZ_CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome"]
    return next((path for name in names if name and (path := shutil.which(name))), None)


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of the browser. Without one the test is skipped, in CI it fails."""
    path = find_chromium()
    if path is None and os.environ.get("CI") == "true":
        pytest.fail(NO_CHROMIUM)
    if path is None:
        pytest.skip(NO_CHROMIUM)
    return path


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    # One browser a module, not one a session: while Playwright runs, its event loop is the thread's running loop,
    # and tests elsewhere that start their own (nbclient) would fail.
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, headless=True, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@dataclass
class PageLog:
    """What a page complained about, in order."""

    errors: list[str] = field(default_factory=list)  # console.error and uncaught exceptions
    outside: list[str] = field(default_factory=list)  # addresses asked for on other machines


@pytest.fixture
def page_log() -> PageLog:
    return PageLog()


@pytest.fixture
def page(browser: Browser, page_log: PageLog) -> Iterator[Page]:
    """An empty page of 1280 × 800 that reaches this machine only; `page_log` holds what went wrong in it."""
    with open_page(browser, page_log) as page:
        yield page


@contextlib.contextmanager
def open_page(browser: Browser, page_log: PageLog) -> Iterator[Page]:
    """The page of the fixture, for longer than one test."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(30_000)

    page = context.new_page()
    page.on("request", lambda asked: page_log.outside.append(asked.url) if _is_outside(asked.url) else None)
    page.on("pageerror", lambda error: page_log.errors.append(str(error)))
    page.on("console", lambda said: page_log.errors.append(said.text) if said.type == "error" else None)
    yield page
    context.close()


def _is_outside(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme in ("http", "https") and parts.hostname not in ("localhost", "127.0.0.1", "::1")


@pytest.fixture
def free_port() -> Callable[[], int]:
    """A function that names a port of this machine which nobody listens on."""

    def pick() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return probe.getsockname()[1]

    return pick


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say it loudly when the browser tests did not run."""
    skipped = [report for report in terminalreporter.getreports("skipped") if NO_CHROMIUM in str(report.longrepr)]
    if skipped:
        terminalreporter.section("BROWSER TESTS DID NOT RUN", red=True, bold=True)
        terminalreporter.line(f"{len(skipped)} tests skipped, {NO_CHROMIUM}")
