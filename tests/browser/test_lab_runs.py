"""The queue of runs in JupyterLab: a training is watched, the page is loaded again, and it is still there."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser.lab import LabServer, Notebook, View, lab_server, write_notebook

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = [pytest.mark.browser, pytest.mark.slow]
CELL = """
import mpviz as mp
queue = mp.RunQueue("queue")
queue.submit('''
model.name = "fashion-mlp"
certify.samples = 200
recover.epochs = 4.0
recover.batch = 64
''')
mp.RunPanel(queue)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Iterator[LabServer]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with lab_server(tmp_path_factory.mktemp("lab-runs") / "served", port, root) as server:
        yield server


def eventually(check: Callable[[], Any], page: Any, seconds: float = 90) -> Any:
    for _ in range(int(10 * seconds)):
        if value := check():
            return value
        page.wait_for_timeout(100)
    raise AssertionError("it did not happen in time")


def steps(view: View) -> int:
    shown = view.root.locator(".js-plotly-plot:visible")
    if not shown.count():
        return 0
    return max((max(trace.get("x") or [0]) for trace in view.data(0)), default=0)


def test_a_run_is_watched_and_is_there_after_a_reload(server: LabServer, browser: Browser) -> None:
    write_notebook(server.folder / "runs.ipynb", CELL)
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(30_000)
    notebook = Notebook(context.new_page(), server)
    notebook.listen()
    notebook.open("runs.ipynb")
    notebook.run_all()
    notebook.page.locator(".mpviz").first.wait_for(timeout=90_000)
    view = notebook.view(0)
    first = eventually(lambda: steps(view), notebook.page)
    eventually(lambda: steps(view) > first, notebook.page)
    box = view.root.bounding_box()
    assert box and box["height"] <= 640
    assert view.root.evaluate("div => div.scrollWidth - div.clientWidth") <= 0
    notebook.page.keyboard.press("Control+s")
    notebook.page.wait_for_timeout(1000)

    notebook.page.reload()
    notebook.page.locator(".mpviz").first.wait_for(timeout=90_000)
    view = notebook.view(0)
    again = eventually(lambda: steps(view), notebook.page)
    assert again >= first, "all of the curve is there"
    eventually(lambda: steps(view) > again, notebook.page)
    view.root.get_by_text("4 epochs").first.wait_for()
    view.button("Cancel").click()
    view.root.get_by_text("the recovery was cancelled after step").first.wait_for(timeout=90_000)
    eventually(lambda: view.button("Resume").is_enabled(), notebook.page)
    view.button("Remove").click()
    view.root.get_by_text("Nothing has run yet").wait_for()
    assert notebook.errors == [] and notebook.kernel_errors == [] and notebook.outside == []
    assert notebook.server.complaints() == []
    context.close()
