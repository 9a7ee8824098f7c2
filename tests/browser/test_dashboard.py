"""The served page in a real browser: it loads from this machine alone, follows its controls and never freezes."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mpviz.ui import theme

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

pytestmark = pytest.mark.browser
START = 60_000  # milliseconds: the first page waits for torch


def _serve(command: list[str], port: int, root: Path, log: Path) -> Iterator[str]:
    with log.open("w") as file:
        server = subprocess.Popen(command, cwd=root, stdout=file, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + START / 1000
        while True:
            try:
                socket.create_connection(("localhost", port), 1).close()
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < end, log.read_text()
                time.sleep(0.1)
        yield f"http://localhost:{port}"
    finally:
        server.terminate()
        server.wait(20)
    assert "Traceback" not in log.read_text(), log.read_text()


def _any_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def address(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A dashboard on the small network, in a process of its own."""
    port = _any_port()
    command = [sys.executable, "-m", "mpviz.ui.dashboard", "--model", "fashion-mlp", "--port", str(port)]
    yield from _serve(command, port, root, tmp_path_factory.mktemp("dashboard") / "log.txt")


@pytest.fixture
def dashboard(page: Page, page_log: Any, address: str) -> Iterator[Page]:
    """The page with its network loaded. Afterwards nobody may have complained or asked for anything from elsewhere."""
    page.goto(address)
    page.locator(".budgets .bars").first.wait_for(timeout=START)
    yield page
    assert page_log.errors == []
    assert page_log.outside == []


def figure(page: Page, card: str) -> dict[str, Any]:
    """Data and layout of a figure, as the browser has them."""
    plot = page.locator(f".{card} .js-plotly-plot")
    return plot.evaluate("(plot) => ({ data: plot.data, layout: plot.layout })")


def title(page: Page, card: str) -> str:
    return figure(page, card)["layout"]["title"]["text"]


def until(page: Page, true: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        page.wait_for_timeout(50)


def slider(page: Page, name: str = "sparsity") -> Locator:
    return page.get_by_role("slider", name=name, exact=True)


def press(page: Page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def test_the_page_shows_everything_without_scrolling(dashboard: Page) -> None:
    assert dashboard.title() == "mpviz"
    until(dashboard, lambda: len(figure(dashboard, "coverage")["data"][0]["x"]) == 21)
    assert "<b>features.fc1</b>" in title(dashboard, "spectrum")
    assert "3 layers" in title(dashboard, "strip")
    assert "50\u202f% removed" in title(dashboard, "budgets")
    assert "of predictions certified" in title(dashboard, "coverage")
    assert dashboard.get_by_text("dense accuracy").inner_text().endswith("on 1\u202f000 test images")
    assert dashboard.locator("footer").get_by_text("runs on cpu").is_visible()
    heights = "() => ['html', 'aside'].map((name) => document.querySelector(name)).map((e) => e.scrollHeight)"
    assert max(dashboard.evaluate(heights)) <= 800


def test_every_control_has_a_name_and_a_tooltip(dashboard: Page) -> None:
    for name in ("sparsity", "β", "decay end", "β of attention layers", "β of MLP layers"):
        handle = slider(dashboard, name)
        handle.focus()
        assert handle.get_attribute("aria-valuetext")
        assert handle.evaluate("(e) => e.matches(':focus') || e.closest('[disabled]') !== null")
    for name in ("network", "data set", "split", "layer"):
        assert dashboard.get_by_role("combobox", name=name, exact=True).count() == 1
    bare = "() => [...document.querySelectorAll('.field:not(.words):not([title])')].length"
    assert dashboard.evaluate(bare) == 0


def test_a_slider_moves_budgets_and_position(dashboard: Page) -> None:
    before = figure(dashboard, "budgets")["data"]
    slider(dashboard).focus()
    for _ in range(5):
        dashboard.keyboard.press("ArrowRight")
    until(dashboard, lambda: "55\u202f% removed" in title(dashboard, "budgets"))
    until(dashboard, lambda: "measured" in title(dashboard, "coverage") or _at(dashboard) == 55)
    after = figure(dashboard, "budgets")["data"]
    assert [bar["y"] for bar in after] != [bar["y"] for bar in before]
    assert _at(dashboard) == pytest.approx(55)
    assert slider(dashboard).get_attribute("aria-valuetext") == "0.55"


def _at(page: Page) -> float | None:
    shapes = figure(page, "coverage")["layout"]["shapes"]
    return shapes[0]["x0"] if shapes else None


def test_the_position_of_the_curve_can_be_dragged(dashboard: Page) -> None:
    until(dashboard, lambda: len(figure(dashboard, "coverage")["data"][0]["x"]) == 21)
    dashboard.wait_for_timeout(300)
    line = dashboard.locator(".coverage .shapelayer path").first.bounding_box()
    assert line is not None
    x, y = line["x"] + line["width"] / 2, line["y"] + line["height"] / 3
    dashboard.mouse.move(x, y)
    dashboard.mouse.down()
    dashboard.mouse.move(x + 50, y + 10, steps=5)
    dashboard.mouse.up()
    until(dashboard, lambda: "50\u202f% removed" not in title(dashboard, "budgets"))
    chosen = float(slider(dashboard).get_attribute("aria-valuetext") or "nan")
    assert 0.6 < chosen < 0.8
    until(dashboard, lambda: _at(dashboard) == pytest.approx(100 * chosen))
    shape = figure(dashboard, "coverage")["layout"]["shapes"][0]
    assert (shape["y0"], shape["y1"]) == (0, 1)


def test_a_click_and_the_arrow_keys_choose_the_layer(dashboard: Page) -> None:
    second = dashboard.locator(".strip .trace.bars").last.locator(".point path").nth(1).bounding_box()
    assert second is not None
    dashboard.mouse.click(second["x"] + second["width"] / 2, second["y"] + second["height"] / 2)
    until(dashboard, lambda: "<b>features.fc2</b>" in title(dashboard, "spectrum"))
    chosen = dashboard.get_by_role("combobox", name="layer", exact=True)
    until(dashboard, lambda: chosen.input_value() == "features.fc2")
    dashboard.keyboard.press("ArrowRight")
    until(dashboard, lambda: "<b>head</b>" in title(dashboard, "spectrum"))
    press(dashboard, "previous layer")
    until(dashboard, lambda: "<b>features.fc2</b>" in title(dashboard, "spectrum"))
    slider(dashboard).focus()
    dashboard.keyboard.press("ArrowLeft")
    until(dashboard, lambda: "49\u202f% removed" in title(dashboard, "budgets"))
    assert "<b>features.fc2</b>" in title(dashboard, "spectrum"), "on a slider the arrow keys are the slider's"


def test_the_spectrum_changes_its_scales(dashboard: Page) -> None:
    assert "singular value" in figure(dashboard, "spectrum")["layout"]["xaxis"]["title"]["text"]
    press(dashboard, "λ")
    until(dashboard, lambda: "eigenvalue" in figure(dashboard, "spectrum")["layout"]["xaxis"]["title"]["text"])
    press(dashboard, "log")
    until(dashboard, lambda: figure(dashboard, "spectrum")["layout"]["yaxis"].get("type") == "log")


def test_prune_finishes_and_its_files_can_be_taken_away(dashboard: Page, tmp_path: Path) -> None:
    press(dashboard, "Prune")
    table = dashboard.locator("table")
    table.wait_for(timeout=START)
    shown = table.inner_text()
    assert "10000 test images" in shown and "certified" in shown and "measured" in shown
    assert re.search(r"331\s776", shown), "kept of the prunable weights"
    files = {}
    for name in ("Recipe", "Checkpoint"):
        with dashboard.expect_download() as started:
            dashboard.get_by_text(name, exact=True).click()
        files[started.value.suggested_filename] = Path(started.value.path()).read_bytes()
    assert tomllib.loads(files["recipe.toml"].decode())["budget"]["sparsity"] == 0.5
    import mpviz as mp

    (tmp_path / "pruned.safetensors").write_bytes(files["pruned.safetensors"])
    assert sum(int((~mask).sum()) for mask in mp.load(tmp_path / "pruned.safetensors").masks.values()) == 331_776


def test_cancel_cancels_and_the_page_stays_awake(dashboard: Page) -> None:
    dashboard.get_by_role("combobox", name="network", exact=True).select_option("fashion-resnet")
    until(dashboard, lambda: "layer4" in title(dashboard, "spectrum"), 90)
    assert dashboard.get_by_role("button", name="Cancel").is_disabled()
    press(dashboard, "Prune")
    dashboard.locator("progress[value]").wait_for()
    slider(dashboard).focus()
    dashboard.keyboard.press("ArrowRight")
    until(dashboard, lambda: "51\u202f% removed" in title(dashboard, "budgets"))
    assert dashboard.locator("progress").count() == 1, "the job runs on"
    press(dashboard, "Cancel")
    dashboard.get_by_text("was cancelled").wait_for()
    assert dashboard.locator("table").count() == 0
    assert dashboard.get_by_role("button", name="Prune", exact=True).is_enabled()


def test_an_unknown_network_is_a_sentence_and_the_old_one_stays(dashboard: Page) -> None:
    field = dashboard.get_by_role("textbox", name="timm name or checkpoint path")
    field.fill("fashion-mlq<b>x</b>")
    field.press("Enter")
    alert = dashboard.get_by_role("alert")
    alert.wait_for(timeout=START)
    assert alert.inner_text().startswith("unknown model 'fashion-mlq<b>x</b>'; did you mean 'fashion-ml")
    assert alert.locator("b").count() == 0
    assert dashboard.get_by_role("combobox", name="network", exact=True).input_value() == "fashion-mlp"
    slider(dashboard).focus()
    dashboard.keyboard.press("ArrowRight")
    until(dashboard, lambda: "51\u202f% removed" in title(dashboard, "budgets"))
    if alert.count():
        press(dashboard, "dismiss this message")
    until(dashboard, lambda: alert.count() == 0)


@pytest.mark.parametrize("name", ["light", "dark"])
def test_the_page_and_its_figures_share_one_theme(dashboard: Page, tmp_path: Path, name: str) -> None:
    if name == "dark":
        press(dashboard, "light or dark colours")
    paper = theme.THEMES[name].paper
    for card in ("strip", "spectrum", "coverage", "budgets"):
        until(dashboard, lambda card=card: figure(dashboard, card)["layout"]["paper_bgcolor"] == paper)
    rgb = ", ".join(str(int(paper[i : i + 2], 16)) for i in (1, 3, 5))
    assert dashboard.evaluate("() => getComputedStyle(document.body).backgroundColor") == f"rgb({rgb})"
    picture = tmp_path / f"dashboard-{name}.png"
    dashboard.screenshot(path=picture)
    assert picture.stat().st_size > 40_000


def test_two_browsers_have_two_states(dashboard: Page, address: str) -> None:
    other = dashboard.context.new_page()
    other.goto(address)
    other.locator(".budgets .bars").first.wait_for(timeout=START)
    slider(other).focus()
    other.keyboard.press("ArrowRight")
    until(other, lambda: "51\u202f% removed" in title(other, "budgets"))
    assert "50\u202f% removed" in title(dashboard, "budgets")
    other.close()


def test_panel_serves_the_file_itself(page: Page, page_log: Any, root: Path, tmp_path: Path) -> None:
    port = _any_port()
    command = [sys.executable, "-m", "panel", "serve", "mpviz/ui/dashboard.py", "--port", str(port)]
    for address in _serve(command, port, root, tmp_path / "log.txt"):
        page.goto(f"{address}/dashboard")
        slider(page).wait_for(timeout=START)
        page.locator(".budgets .bars").or_(page.get_by_role("alert")).first.wait_for(timeout=START)
        assert page.get_by_role("combobox", name="network", exact=True).input_value() == "fashion-vit"
        assert page_log.errors == [] and page_log.outside == []
