"""JupyterLab for the tests: a server on a free port, and one notebook opened in a page, its complaints noted."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

TOKEN = "for-the-tests"
# What Lab itself says in its console, whatever the notebook does. Nothing else is allowed.
KNOWN_NOISE: tuple[str, ...] = ()


def write_notebook(path: Path, *cells: str) -> None:
    """A notebook of code cells for the python3 kernel."""
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells], metadata=kernel)
    nbformat.write(notebook, path)


@dataclass
class LabServer:
    """A running JupyterLab that shows one folder."""

    url: str
    folder: Path
    log: Path

    def complaints(self) -> list[str]:
        """Tracebacks of server and kernels: what fails in a widget's callback is said only there."""
        return [line for line in self.log.read_text().splitlines() if "Traceback" in line or "ERROR" in line]


@contextmanager
def lab_server(folder: Path, port: int, root: Path, settings: dict[str, Any] | None = None) -> Iterator[LabServer]:
    """Serve a new folder. Configuration, settings and workspaces of whoever runs the tests are left alone.

    settings: {"package/plugin": {…}} of Lab, such as its theme. root: where mpviz is imported from.
    """
    home, shown = folder / "home", folder / "notebooks"
    shown.mkdir(parents=True)
    pages = home / "config" / "labconfig"
    pages.mkdir(parents=True)
    disabled = {"@jupyterlab/apputils-extension:announcements": True}
    (pages / "page_config.json").write_text(json.dumps({"disabledExtensions": disabled}))
    for plugin, values in (settings or {}).items():
        package, _, name = plugin.rpartition("/")
        (home / "settings" / package).mkdir(parents=True, exist_ok=True)
        (home / "settings" / package / f"{name}.jupyterlab-settings").write_text(json.dumps(values))
    paths = {"CONFIG_DIR": "config", "DATA_DIR": "data", "RUNTIME_DIR": "runtime"}
    environment = {
        **os.environ,
        **{f"JUPYTER_{name}": str(home / place) for name, place in paths.items()},
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "IPYTHONDIR": str(home / "ipython"),
        "PYTHONPATH": str(root),
    }
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root",
        f"--port={port}", "--ServerApp.port_retries=0",
        f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={shown}",
    ]  # fmt: skip
    log = folder / "server.log"
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_for(lambda: _answers(f"{url}/api/status?token={TOKEN}"), process, log)
        yield LabServer(url, shown, log)
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()


def _answers(url: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(url, timeout=2):
        return True
    return False


def _wait_for(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 60
    while not ready():
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")
        time.sleep(0.2)


@dataclass
class Notebook:
    """An opened notebook. errors: of the page; kernel_errors: messages of type "error"; outside: foreign addresses."""

    page: Page
    server: LabServer
    errors: list[str] = field(default_factory=list)
    kernel_errors: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)

    def listen(self) -> None:
        """Note what goes wrong from now on."""
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._on_console)
        self.page.on("request", lambda asked: self.outside.append(asked.url) if self._is_outside(asked.url) else None)
        self.page.on("websocket", lambda socket: socket.on("framereceived", self._on_frame))

    def _on_console(self, said: Any) -> None:
        if said.type == "error" and not any(noise in said.text for noise in KNOWN_NOISE):
            self.errors.append(said.text)

    def _on_frame(self, frame: str | bytes) -> None:
        words = frame if isinstance(frame, str) else frame.decode(errors="replace")
        if '"msg_type": "error"' in words[:2000] or '"msg_type":"error"' in words[:2000]:
            self.kernel_errors.append(words[-2000:])

    def _is_outside(self, url: str) -> bool:
        return url.startswith("http") and not url.startswith(self.server.url)

    def open(self, name: str) -> None:
        """Open a file of the server's folder and wait for its kernel."""
        self.page.goto(f"{self.server.url}/lab/tree/{name}?token={TOKEN}&reset")
        self.page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
        self.page.get_by_text("| Idle").wait_for(timeout=90_000)

    def run_all(self) -> None:
        """Run every cell."""
        self.page.get_by_role("menuitem", name="Run", exact=True).click()
        self.page.get_by_role("menuitem", name="Run All Cells", exact=True).click()

    def view(self, cell: int = 0) -> View:
        """The panels that a cell shows, scrolled into sight: Lab takes what is far away out of the page."""
        root = self.page.locator(f".jp-Cell[data-windowed-list-index='{cell}'] .mpviz")
        scroller = self.page.locator(".jp-WindowedPanel-outer").first
        for top in range(0, 10_000, 300):
            scroller.evaluate("(div, top) => { div.scrollTop = top; }", top)
            self.page.wait_for_timeout(100)
            if root.count() and root.is_visible():
                break
        root.evaluate("div => div.scrollIntoView()")
        return View(self.page, root)


@dataclass
class View:
    """The panels of one workbench."""

    page: Page
    root: Locator

    def wait_painted(self, figures: int = 4) -> None:
        """Wait until all figures show something."""
        self.root.locator(".js-plotly-plot:visible .gtitle").nth(figures - 1).wait_for(timeout=90_000)

    def plot(self, number: int) -> Locator:
        """A figure; those seen are counted from the top left."""
        return self.root.locator(".js-plotly-plot:visible").nth(number)

    def data(self, number: int) -> Any:
        """The traces of a figure as the page has them."""
        return self.plot(number).evaluate("div => JSON.parse(JSON.stringify(div.data))")

    def layout(self, number: int) -> Any:
        """The layout of a figure as the page has it."""
        return self.plot(number).evaluate("div => JSON.parse(JSON.stringify(div.layout))")

    def button(self, name: str) -> Locator:
        """A button by its words or its tooltip; those inside tables are the tables' own."""
        words = self.root.locator("button.jupyter-button").filter(has_text=re.compile(rf"^\s*{re.escape(name)}\s*$"))
        return words.or_(self.root.locator(f"button.jupyter-button[title='{name}']"))

    def slider(self, label: str) -> Locator:
        """The handle of a slider, which has the keyboard."""
        row = self.root.locator(".widget-slider").filter(has=self.page.get_by_text(label, exact=True))
        return row.locator(".noUi-handle")
