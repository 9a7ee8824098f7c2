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

from mpviz.benchmark.ledger import write_cell
from mpviz.ui import theme
from tests.browser.axe import grave
from tests.conftest import PageLog, open_page
from tests.ui.bench_cells import committed

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

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
    said = _GONE.sub("", log.read_text())
    assert "Traceback" not in said, said


# a page that is closed while the server writes to it: tornado's own words, and nobody's fault
_GONE = re.compile(
    r"Task exception was never retrieved\n(?:(?!Task exception).)*?\n\S*WebSocketClosedError\n", re.DOTALL
)


def _any_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def address(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A dashboard on the small network, in a process of its own."""
    port = _any_port()
    command = [sys.executable, "-m", "mpviz", "dashboard", "fashion-mlp", "--port", str(port)]
    command += ["--runs", str(tmp_path_factory.mktemp("runs"))]
    yield from _serve(command, port, root, tmp_path_factory.mktemp("dashboard") / "log.txt")


@pytest.fixture
def dashboard(page: Page, page_log: Any, address: str) -> Iterator[Page]:
    """The page with its network loaded. Afterwards nobody may have complained or asked for anything from elsewhere."""
    page.goto(address)
    page.locator(".budgets .bars").first.wait_for(timeout=START)
    yield page
    assert page_log.errors == []
    assert page_log.outside == []


@pytest.fixture(scope="module")
def lender(browser: Browser, address: str) -> Iterator[tuple[Page, PageLog]]:
    log = PageLog()
    with open_page(browser, log) as page:
        yield page, log


_failed: list[int] = [-1]  # tests that had failed when the page was lent last


@pytest.fixture
def lent(lender: tuple[Page, PageLog], address: str, request: pytest.FixtureRequest) -> Iterator[Page]:
    """One page for all tests that leave it as they found it; loaded again after one that failed."""
    page, log = lender
    if request.session.testsfailed != _failed[0]:
        page.goto(address)
        page.locator(".budgets .bars").first.wait_for(timeout=START)
    _failed[0] = request.session.testsfailed
    yield page
    assert log.errors == [] and log.outside == []


def figure(page: Page, card: str) -> dict[str, Any]:
    """Data and layout of a figure, as the browser has them."""
    plot = page.locator(f".{card} .js-plotly-plot").first  # of a card with several faces, the first
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


def test_the_page_shows_everything_without_scrolling(lent: Page) -> None:
    assert lent.title() == "mpviz"
    until(lent, lambda: len(figure(lent, "coverage")["data"][0]["x"]) == 21)
    assert "<b>features.fc1</b>" in title(lent, "spectrum")
    assert "3 layers" in title(lent, "strip")
    assert "50\u202f% removed" in title(lent, "budgets")
    assert "of predictions certified" in title(lent, "coverage")
    assert lent.get_by_text("dense accuracy").inner_text().endswith("on 1\u202f000 test images")
    assert lent.locator("footer").get_by_text("runs on cpu").is_visible()
    heights = "() => ['html', 'aside'].map((name) => document.querySelector(name)).map((e) => e.scrollHeight)"
    assert max(lent.evaluate(heights)) <= 800


def test_every_control_has_a_name_and_a_tooltip(lent: Page) -> None:
    for name in ("sparsity", "β", "decay end", "β of attention layers", "β of MLP layers"):
        handle = slider(lent, name)
        handle.focus()
        assert handle.get_attribute("aria-valuetext")
        assert handle.evaluate("(e) => e.matches(':focus') || e.closest('[disabled]') !== null")
    for name in ("network", "data set", "split", "layer"):
        assert lent.get_by_role("combobox", name=name, exact=True).count() == 1
    bare = "() => [...document.querySelectorAll('.field:not(.words):not([title])')].length"
    assert lent.evaluate(bare) == 0


def test_a_slider_moves_budgets_and_position(lent: Page) -> None:
    before = figure(lent, "budgets")["data"]
    slider(lent).focus()
    for _ in range(5):
        lent.keyboard.press("ArrowRight")
    until(lent, lambda: "55\u202f% removed" in title(lent, "budgets"))
    until(lent, lambda: "measured" in title(lent, "coverage") or _at(lent) == 55)
    after = figure(lent, "budgets")["data"]
    assert [bar["y"] for bar in after] != [bar["y"] for bar in before]
    assert _at(lent) == pytest.approx(55)
    assert slider(lent).get_attribute("aria-valuetext") == "0.55"
    slider(lent).dblclick()
    until(lent, lambda: "50\u202f% removed" in title(lent, "budgets"))


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


def test_a_click_and_the_arrow_keys_choose_the_layer(lent: Page) -> None:
    second = lent.locator(".strip .trace.bars").last.locator(".point path").nth(1).bounding_box()
    assert second is not None
    lent.mouse.click(second["x"] + second["width"] / 2, second["y"] + second["height"] / 2)
    until(lent, lambda: "<b>features.fc2</b>" in title(lent, "spectrum"))
    chosen = lent.get_by_role("combobox", name="layer", exact=True)
    until(lent, lambda: chosen.input_value() == "features.fc2")
    lent.keyboard.press("ArrowRight")
    until(lent, lambda: "<b>head</b>" in title(lent, "spectrum"))
    press(lent, "previous layer")
    until(lent, lambda: "<b>features.fc2</b>" in title(lent, "spectrum"))
    slider(lent).focus()
    lent.keyboard.press("ArrowLeft")
    until(lent, lambda: "49\u202f% removed" in title(lent, "budgets"))
    assert "<b>features.fc2</b>" in title(lent, "spectrum"), "on a slider the arrow keys are the slider's"
    lent.keyboard.press("ArrowRight")
    press(lent, "previous layer")
    until(lent, lambda: "<b>features.fc1</b>" in title(lent, "spectrum"))
    until(lent, lambda: "50\u202f% removed" in title(lent, "budgets"))


def test_the_spectrum_changes_its_scales(lent: Page) -> None:
    assert "singular value" in figure(lent, "spectrum")["layout"]["xaxis"]["title"]["text"]
    press(lent, "λ")
    until(lent, lambda: "eigenvalue" in figure(lent, "spectrum")["layout"]["xaxis"]["title"]["text"])
    press(lent, "log")
    until(lent, lambda: figure(lent, "spectrum")["layout"]["yaxis"].get("type") == "log")
    press(lent, "linear")
    press(lent, "s")
    until(lent, lambda: "singular value" in figure(lent, "spectrum")["layout"]["xaxis"]["title"]["text"])


def test_a_newcomer_has_a_pruned_proved_and_reported_network_after_few_clicks(
    page: Page, page_log: Any, address: str, tmp_path: Path
) -> None:
    page.add_init_script("window.clicks = 0; addEventListener('click', (e) => (window.clicks += e.isTrusted), true)")
    page.goto(f"{address}/?samples=80")  # fewer images than the page proposes: the way is the same
    page.locator(".budgets .bars").first.wait_for(timeout=START)
    until(page, lambda: page.get_by_role("button", name="Checkpoint", exact=True).is_disabled())
    press(page, "Prune")
    table = page.locator("aside table")
    table.wait_for(timeout=START)
    shown = table.inner_text()
    assert "10\u202f000 images" in shown and "certified" in shown and "measured" in shown
    page.locator("aside").get_by_text("pruned at 50").wait_for()
    assert re.search(r"331\s776", shown), "kept of the prunable weights"
    press(page, "Prove")
    card = page.locator(".card.coverage")
    card.get_by_text("Proving …").wait_for()
    card.get_by_text("of predictions proved").wait_for(timeout=4 * START)
    files = {}
    for name in ("Checkpoint", "Report", "Recipe"):
        with page.expect_download() as started:
            press(page, name)
        files[started.value.suggested_filename] = Path(started.value.path()).read_bytes()
        page.locator("aside").get_by_text(f"{started.value.suggested_filename}, ").wait_for()
    assert page.evaluate("window.clicks") == 5
    import mpviz as mp

    assert tomllib.loads(files["fashion-mlp-recipe.toml"].decode())["budget"]["sparsity"] == 0.5
    (tmp_path / "pruned.safetensors").write_bytes(files["fashion-mlp-pruned-50.safetensors"])
    kept = mp.load(tmp_path / "pruned.safetensors")
    assert sum(int((~mask).sum()) for mask in kept.masks.values()) == 331_776
    assert kept.results["proofs"]["samples"] == 80 and kept.results["proofs"]["tiers"]["slider"]["share"] > 0.9
    assert "What is proved" in files["fashion-mlp-report.html"].decode()
    _read_the_proofs(page, card)
    assert page_log.errors == [] and page_log.outside == []


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
    assert dashboard.locator("aside table").count() == 0
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


def test_the_page_and_its_figures_share_one_theme(lent: Page, tmp_path: Path) -> None:
    for name in ("light", "dark", "light"):
        paper = theme.THEMES[name].paper
        for card in ("strip", "spectrum", "coverage", "budgets"):
            until(lent, lambda card=card, paper=paper: figure(lent, card)["layout"]["paper_bgcolor"] == paper)
        rgb = ", ".join(str(int(paper[i : i + 2], 16)) for i in (1, 3, 5))
        assert lent.evaluate("() => getComputedStyle(document.body).backgroundColor") == f"rgb({rgb})"
        picture = tmp_path / f"dashboard-{name}.png"
        lent.screenshot(path=picture)
        assert picture.stat().st_size > 40_000
        press(lent, "light or dark colours")
    press(lent, "light or dark colours")


def test_methods_are_compared_on_a_page_of_their_own(dashboard: Page) -> None:
    press(dashboard, "light or dark colours")
    dashboard.locator(":root[data-theme=dark]").wait_for()
    with dashboard.expect_popup() as opened:
        dashboard.get_by_role("link", name="Compare methods").click()
    page = opened.value
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.locator("#spectra.js-plotly-plot").wait_for(timeout=START)
    assert "theme=dark" in page.url
    before = page.locator("#spectra").evaluate("(div) => div.data.map((trace) => trace.y)")
    page.get_by_label("layer", exact=True).select_option(index=1)
    assert page.locator("#spectra").evaluate("(div) => div.data.map((trace) => trace.y)") != before
    removed = page.locator("#removed").evaluate("(div) => div.data.map((trace) => trace.y)")
    page.get_by_label("sparsity", exact=True).select_option("50 %")
    assert page.locator("#removed").evaluate("(div) => div.data.map((trace) => trace.y)") != removed
    axes = page.locator("#removed").evaluate("(div) => [div.layout.yaxis, div.layout.yaxis2].map((a) => a.title.text)")
    assert axes == ["removed at sparsity 50 %, % of the type", "% of the layer"]
    page.get_by_role("link", name="fashion-vit, without recovery").click()
    page.get_by_role("heading", name="fashion-vit: methods side by side").wait_for()
    page.locator("#curves.js-plotly-plot").wait_for(timeout=START)
    assert page.locator("#spectra").is_visible() and page.locator("#reservoir").is_hidden()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    gone = page.goto(page.url.split("?")[0] + "?grid=../../etc")
    assert gone is not None and gone.status == 404
    page.get_by_text("there is no grid '../../etc' here").wait_for()
    page.get_by_role("link", name="Workbench").click()
    page.locator(".budgets .bars").first.wait_for(timeout=START)
    assert errors == []


def test_patterns_are_explored_on_a_page_of_their_own(dashboard: Page, address: str) -> None:
    press(dashboard, "light or dark colours")
    dashboard.locator(":root[data-theme=dark]").wait_for()
    complaints: list[str] = []
    asked: list[str] = []
    dashboard.context.on("request", lambda request: asked.append(request.url))
    dashboard.context.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    dashboard.context.on("weberror", lambda error: complaints.append(str(error.error)))
    with dashboard.expect_popup() as opened:
        dashboard.get_by_role("link", name="Patterns").click()
    page = opened.value

    def shown() -> str:
        page.locator("#groups.js-plotly-plot").wait_for(timeout=START)
        return str(page.locator("#groups").evaluate("(plot) => plot.layout.title.text"))

    def choose(field: str, value: str) -> str:
        with page.expect_navigation(timeout=START):
            page.get_by_label(field, exact=True).select_option(value)
        return shown()

    assert "features.fc2 at 2:4" in shown() and "theme=dark" in page.url, "of the network of the workbench"
    middle = "blocks.3.attn.qkv"
    assert f"{middle} at 2:4" in choose("network", "fashion-vit")
    before = page.locator("#groups").evaluate("(plot) => plot.data[0].z")
    assert f"{middle} at 8:16" in choose("pattern", "8:16")
    assert page.locator("#groups").evaluate("(plot) => plot.data[0].z") != before
    assert "blocks.0.mlp.fc1 at 8:16" in choose("layer", "blocks.0.mlp.fc1.weight")
    # another network has other layers, and is shown with one of its own
    assert "features.fc2 at 8:16" in choose("network", "fashion-mlp")
    for field, value in (("pattern", "8:16"), ("order", "hungarian"), ("network", "fashion-mlp")):
        assert page.get_by_label(field, exact=True).input_value() == value
    for figure_of in ("groups", "macs", "cells"):
        assert page.locator(f"#{figure_of} .main-svg").first.is_visible()
    page.locator("#grid").select_option(index=1)
    page.wait_for_timeout(500)
    box = page.locator("#cells").bounding_box()
    assert box and box["height"] > 400, "the other grid is drawn in the same place"
    rgb = ", ".join(str(int(theme.THEMES["dark"].paper[i : i + 2], 16)) for i in (1, 3, 5))
    assert page.evaluate("() => getComputedStyle(document.body).backgroundColor") == f"rgb({rgb})"
    page.get_by_role("link", name="light colours").click()
    assert "features.fc2 at 8:16" in shown() and "theme=light" in page.url
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 800})
        page.wait_for_timeout(200)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert complaints == [] and all(url.startswith((address, "data:", "blob:")) for url in asked)
    gone = page.goto(f"{address}/patterns?network=../../etc")
    assert gone is not None and gone.status == 404
    page.get_by_text("no network '../../etc' here").wait_for()
    assert page.get_by_role("link", name="Workbench").evaluate("(link) => link.href") == f"{address}/"
    page.close()


@pytest.fixture
def benched(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A dashboard whose data hold the cells of a benchmark that were made by hand."""
    for part in (root / "data").iterdir():
        if part.name != "benchmarks":
            (tmp_path / part.name).symlink_to(part)
    for i, one in enumerate(committed()):
        write_cell(tmp_path / "benchmarks" / "two-four" / f"{i}.json", one)
    monkeypatch.setenv("MPVIZ_DATA", str(tmp_path))
    port = _any_port()
    command = [sys.executable, "-m", "mpviz.ui.dashboard", "--model", "fashion-mlp", "--port", str(port)]
    yield from _serve(command, port, root, tmp_path / "log.txt")


def test_the_benchmark_has_a_page_of_its_own(page: Page, page_log: Any, benched: str) -> None:
    page.goto(benched)
    page.locator(".budgets .bars").first.wait_for(timeout=START)
    with page.expect_popup() as opened:
        page.get_by_role("link", name="2:4 benchmark").click()
    bench = opened.value
    complaints: list[str] = []
    asked: list[str] = []
    bench.on("request", lambda request: asked.append(request.url))
    bench.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    bench.on("pageerror", lambda error: complaints.append(str(error)))

    def shown(figure_of: str) -> str:
        bench.locator(f"#{figure_of}.js-plotly-plot").wait_for(timeout=START)
        return str(bench.locator(f"#{figure_of}").evaluate("(plot) => plot.layout.title.text"))

    def choose(field: str, value: str) -> None:
        with bench.expect_navigation(timeout=START):
            bench.get_by_label(field, exact=True).select_option(value)

    assert shown("throughput").startswith("fashion-vit: bf16 reaches 400")
    assert bench.locator("#layers .main-svg").first.is_visible()
    choose("run", "batch 8, 4 merged")
    assert "batch 8, 4 merged" in shown("steps") and not bench.locator("#layers").is_visible()
    # another network has other runs, and is shown with its own
    choose("network", "vit_base_patch16_224")
    assert "batch 8<br>" in shown("throughput") and bench.get_by_label("run").input_value() == "batch 8"
    choose("hardware", "Example GPU")
    assert "2:4 compiled reaches" in shown("throughput") and "the largest step, 4.00 ×" in shown("steps")
    assert bench.get_by_label("run", exact=True).input_value() == "batch 64"
    bench.get_by_text("Altogether: 8.00 ×").wait_for()
    for colours in ("dark", "light"):
        bench.get_by_role("link", name=f"{colours} colours").click()
        bench.wait_for_url(f"**theme={colours}*")
        assert "vit_base" in shown("throughput") and "shape" in shown("layers")
        rgb = ", ".join(str(int(theme.THEMES[colours].paper[i : i + 2], 16)) for i in (1, 3, 5))
        assert bench.evaluate("() => getComputedStyle(document.body).backgroundColor") == f"rgb({rgb})"
    for width in (1280, 390):
        bench.set_viewport_size({"width": width, "height": 800})
        bench.wait_for_timeout(200)
        assert bench.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert complaints == [] and all(url.startswith((benched, "data:", "blob:")) for url in asked)
    gone = bench.goto(f"{benched}/bench?network=../../etc")
    assert gone is not None and gone.status == 404
    bench.get_by_text("no network '../../etc' here").wait_for()
    assert bench.get_by_role("link", name="Workbench").evaluate("(link) => link.href") == f"{benched}/"
    bench.close()
    assert page_log.errors == [] and page_log.outside == []


def test_two_browsers_have_two_states(lent: Page, address: str) -> None:
    other = lent.context.new_page()
    other.goto(address)
    other.locator(".budgets .bars").first.wait_for(timeout=START)
    slider(other).focus()
    other.keyboard.press("ArrowRight")
    until(other, lambda: "51\u202f% removed" in title(other, "budgets"))
    assert "50\u202f% removed" in title(lent, "budgets")
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


def table(page: Page, face: str = "layers") -> Locator:
    return page.locator(f".face[data-face='{face}']")


def first_column(page: Page, face: str = "layers") -> list[str]:
    return table(page, face).locator("tbody th").all_inner_texts()


def test_the_spectrum_is_looked_at_in_four_ways_and_beside_its_null(lent: Page) -> None:
    looks = lent.get_by_role("combobox", name="how the spectrum is drawn", exact=True)
    log = lent.get_by_role("button", name="log", exact=True)
    for label, traces in (("distribution", "residual"), ("Q–Q", "law"), ("tail", "power law")):
        looks.select_option(label)
        until(lent, lambda traces=traces: traces in {t["name"] for t in figure(lent, "spectrum")["data"]})
        assert log.is_disabled()
    looks.select_option("histogram")
    until(lent, lambda: "rug" in {t["name"] for t in figure(lent, "spectrum")["data"]})
    assert log.is_enabled()

    def outline() -> int:
        return next(len(t["x"]) for t in figure(lent, "spectrum")["data"] if t["name"] == "shuffled entries")

    assert outline() == 0
    press(lent, "shuffled")
    until(lent, lambda: outline() > 10)
    press(lent, "shuffled")
    until(lent, lambda: outline() == 0)


def test_the_table_sorts_selects_locks_and_follows_the_slider(dashboard: Page) -> None:
    press(dashboard, "layers")
    rows = table(dashboard).locator("tbody tr")
    rows.first.wait_for()
    assert first_column(dashboard) == ["features.fc1", "features.fc2", "head"]
    head = table(dashboard).locator("thead th[data-column='bulk']")
    shares = [float(words.split("\u202f")[0]) for words in table(dashboard).locator("td.bar").all_inner_texts()[::2]]
    names = first_column(dashboard)
    largest_first = [name for _, name in sorted(zip(shares, names, strict=True), reverse=True)]
    for order, expected in (("descending", largest_first), ("ascending", largest_first[::-1]), ("none", names)):
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == order and first_column(dashboard) == expected
    room = "(cell) => cell.clientWidth - parseFloat(getComputedStyle(cell).getPropertyValue('--text'))"
    bars = table(dashboard).locator("td.bar")
    assert min(bars.nth(i).evaluate(room) for i in range(bars.count())) >= 30, "a bar is 30 pixels long"
    rows.nth(1).click()
    until(dashboard, lambda: "<b>features.fc2</b>" in title(dashboard, "spectrum"))
    until(dashboard, lambda: rows.nth(1).get_attribute("aria-selected") == "true")
    dashboard.keyboard.press("ArrowUp")
    dashboard.keyboard.press("Enter")
    until(dashboard, lambda: "<b>features.fc1</b>" in title(dashboard, "spectrum"))
    removed = table(dashboard).locator("td[data-column='sparsity']").first
    before = removed.inner_text()
    slider(dashboard).focus()
    for _ in range(30):
        dashboard.keyboard.press("ArrowLeft")
    until(dashboard, lambda: removed.inner_text() not in (before, "–"))
    until(dashboard, lambda: slider(dashboard).get_attribute("aria-valuetext") == "0.20")
    lock = rows.first.locator("button.lock")
    lock.click()
    until(dashboard, lambda: lock.get_attribute("aria-pressed") == "true" and removed.inner_text() == "0\u202f%")
    rows.first.focus()
    dashboard.keyboard.press("l")
    until(dashboard, lambda: lock.get_attribute("aria-pressed") == "false")
    assert "<b>features.fc1</b>" in title(dashboard, "spectrum")


def test_the_spike_table_lists_the_spikes_of_the_layer(lent: Page) -> None:
    press(lent, "spikes")
    rows = table(lent, "spikes").locator("tbody tr")
    rows.first.wait_for()
    marks = next(t for t in figure(lent, "spectrum")["data"] if t["name"] == "spikes" and "customdata" in t)
    assert rows.count() == len(marks["customdata"]) and first_column(lent, "spikes")[:2] == ["1", "2"]
    assert "Benaych-Georges" in str(table(lent, "spikes").locator("[data-column='left'] button").get_attribute("title"))
    first = first_column(lent, "spikes")
    table(lent, "spikes").locator("th[data-column='strength'] button").click()
    table(lent, "spikes").locator("th[data-column='strength'] button").click()
    assert first_column(lent, "spikes") == first[::-1]
    lent.keyboard.press("Escape")
    press(lent, "next layer")
    until(lent, lambda: rows.count() != len(first))
    press(lent, "previous layer")
    press(lent, "budgets")
    until(lent, lambda: "<b>features.fc1</b>" in title(lent, "spectrum"))


def test_figures_and_tables_can_be_taken_away(lent: Page) -> None:
    import io

    import pandas as pd

    def taken(click: Callable[[], None]) -> tuple[str, bytes]:
        with lent.expect_download() as started:
            click()
        return started.value.suggested_filename, Path(started.value.path()).read_bytes()

    def menu(what: str, form: str) -> Callable[[], None]:
        def click() -> None:
            lent.locator(f"details:has([data-take='{what}']) summary").click()
            lent.locator(f"[data-take='{what}'][data-form='{form}']").click()

        return click

    name, data = taken(menu("spectrum", "png"))
    assert name == "fashion-mlp-features.fc1.weight-histogram.png" and data.startswith(b"\x89PNG")
    name, data = taken(menu("strip", "svg"))
    assert name == "fashion-mlp-strip.svg" and b"<svg" in data[:200] and b"3 layers" in data
    name, data = taken(menu("coverage", "html"))
    assert name == "fashion-mlp-coverage.html" and data.startswith(b"<!doctype html>") and len(data) > 1_000_000
    name, data = taken(menu("budgets", "csv"))
    assert name == "fashion-mlp-budgets.csv" and data.startswith(b"layer,role")
    assert lent.locator("details[open]").count() == 0
    press(lent, "layers")
    name, data = taken(lambda: table(lent).get_by_role("button", name="CSV").click())
    assert name == "fashion-mlp-layers.csv" and len(pd.read_csv(io.BytesIO(data))) == 3
    name, data = taken(lambda: table(lent).get_by_role("button", name="Parquet").click())
    assert name == "fashion-mlp-layers.parquet" and len(pd.read_parquet(io.BytesIO(data))) == 3
    press(lent, "budgets")


def test_a_figure_taken_away_draws_itself_without_network(lent: Page, tmp_path: Path) -> None:
    with lent.expect_download() as started:
        lent.locator("details:has([data-take='budgets']) summary").click()
        lent.locator("[data-take='budgets'][data-form='html']").click()
    started.value.save_as(tmp_path / "figure.html")
    alone = lent.context.new_page()
    asked: list[str] = []
    alone.on("request", lambda request: asked.append(request.url))
    alone.goto((tmp_path / "figure.html").as_uri())
    alone.locator(".bars").first.wait_for()
    assert len(asked) == 1
    alone.close()


def test_a_load_does_not_take_the_focus_away(dashboard: Page) -> None:
    network = dashboard.get_by_role("combobox", name="network", exact=True)
    network.focus()
    network.select_option("fashion-mlp-l1")
    until(dashboard, lambda: dashboard.get_by_role("button", name="Cancel").is_disabled(), 60)
    until(dashboard, lambda: network.is_enabled() and network.input_value() == "fashion-mlp-l1")
    until(dashboard, lambda: dashboard.evaluate("() => document.activeElement !== document.body"))
    layer = dashboard.get_by_role("combobox", name="layer", exact=True).input_value()
    dashboard.keyboard.press("Home")
    assert dashboard.get_by_role("combobox", name="layer", exact=True).input_value() == layer


def test_images_beyond_the_split_are_put_right_and_said(lent: Page) -> None:
    field = lent.locator(".number input")
    for typed, kept in (("99999999", "10000"), ("-5", "1"), ("0", "1")):
        field.fill(typed)
        field.press("Enter")
        until(lent, lambda kept=kept: re.sub(r"\\D", "", field.input_value()) == kept)
    assert "images asked for" in lent.get_by_role("alert").inner_text()
    press(lent, "dismiss this message")
    field.fill("1000")
    field.press("Enter")
    until(lent, lambda: lent.get_by_role("alert").count() == 0)


def test_a_double_click_sets_a_slider_back(lent: Page) -> None:
    slider(lent).focus()
    for _ in range(3):
        lent.keyboard.press("ArrowRight")
    until(lent, lambda: slider(lent).get_attribute("aria-valuetext") == "0.53")
    slider(lent).dblclick()
    until(lent, lambda: slider(lent).get_attribute("aria-valuetext") == "0.50")


def test_nothing_is_cut_off_or_covered(lent: Page) -> None:
    for width in (1000, 800, 1280):
        lent.set_viewport_size({"width": width, "height": 800})
        lent.wait_for_timeout(600)
        for shown in ("budgets", "layers", "spikes"):
            lent.get_by_role("group", name="table or figure").get_by_role("button", name=shown).click()
            lent.wait_for_timeout(200)
            assert lent.evaluate("() => document.documentElement.scrollWidth") <= width
            cut = lent.evaluate(
                "() => [...document.querySelectorAll('.tools')].filter((e) => e.scrollWidth > e.clientWidth + 1).length"
            )
            assert cut == 0
        boxes = lent.evaluate(
            "() => [...document.querySelectorAll('main > .card')].map((e) => e.getBoundingClientRect().toJSON())"
        )
        for i, a in enumerate(boxes):
            for b in boxes[:i]:
                apart = (
                    a["left"] >= b["right"]
                    or b["left"] >= a["right"]
                    or a["top"] >= b["bottom"]
                    or b["top"] >= a["bottom"]
                )
                assert apart
    press(lent, "budgets")


def _read_the_proofs(page: Page, card: Locator) -> None:
    """Tiers, samples and words of a proof, and why one sample is not certified."""
    card.locator("text", has_text="sub-masks").wait_for()
    tip = card.get_by_role("button", name="bracket", exact=True).get_attribute("title")
    assert tip is not None and tip.startswith("Every mask between two sparsities")
    _enlarge(page, card)
    press(page, "margins")
    card.get_by_text(" certified, ").wait_for()
    card.get_by_text("logits ahead of").wait_for()
    press(page, "by layer")
    card.get_by_text("moves it most").wait_for()
    press(page, "proved")
    press(page, "samples")
    row = page.locator(".card.budgets tbody tr").filter(has=page.locator("img"))
    row.first.wait_for()
    assert row.first.locator("img").evaluate("image => image.naturalWidth") == 28
    assert grave(page, "tiers and samples", "main") == []
    number = row.nth(1).locator("th").inner_text()
    row.nth(1).click()
    card.get_by_text(f"sample {number}", exact=True).wait_for()
    press(page, "in words")
    card.get_by_text("Every position of the slider in a stretch").wait_for()
    assert card.get_by_text("Every mask between two sparsities").count() == 0
    press(page, "bracket")
    card.get_by_text("Every mask between two sparsities").wait_for()
    assert card.get_by_text("logits ahead of").filter(visible=True).count() == 0
    press(page, "proved")
    card.get_by_text("bracket", exact=True).nth(1).wait_for()
    for form in ("PNG", "HTML"):
        card.locator("summary").click()
        with page.expect_download() as started:
            card.get_by_role("button", name=form, exact=True).click()
        assert started.value.suggested_filename == f"fashion-mlp-tiers.{form.lower()}"
    slider = page.get_by_role("slider", name="sparsity")
    slider.focus()
    slider.press("ArrowRight")
    card.get_by_text("of an older plan").wait_for()


def _enlarge(page: Page, card: Locator) -> None:
    """The card fills the page and goes back, by mouse and by key, its figure with it."""

    def width() -> float:
        box = card.locator(".face[data-face=proofs] .main-svg").first.bounding_box()
        return 0.0 if box is None else box["width"]

    small = width()
    page.get_by_role("button", name="enlarge predictions").click()
    until(page, lambda: width() > 900)
    page.keyboard.press("Escape")
    until(page, lambda: width() == small)


def test_what_is_set_is_in_the_address_and_can_be_undone_pasted_and_opened(dashboard: Page, tmp_path: Path) -> None:
    page = dashboard
    page.evaluate("window.kept = history.length")
    handle = page.locator(".plan .removed .noUi-handle")
    handle.focus()
    for _ in range(3):
        handle.press("ArrowRight")
    until(page, lambda: "sparsity=0.53" in page.url)
    assert page.evaluate("history.length === window.kept"), (
        "the way back leads to the page before, not through a slider"
    )
    page.locator("h1").click()  # the focus is nowhere
    page.keyboard.press("Control+z")
    until(page, lambda: "sparsity" not in page.url)
    page.keyboard.press("Control+Shift+Z")
    until(page, lambda: "sparsity=0.53" in page.url)
    page.get_by_role("button", name="undo", exact=True).click()
    until(page, lambda: "50" in title(page, "budgets"))

    page.locator(".budgets .tools").get_by_text("recipe", exact=True).click()
    text = page.get_by_label("recipe as text")
    until(page, lambda: "sparsity = 0.5\n" in text.input_value())
    text.fill("[budget]\nsparsity = 0.31\nlocked = ['features.fc2']\n")
    text.press("Control+z")
    assert "sparsity = 0.31" not in text.input_value(), "in a text the keys are the text's"
    text.fill("[budget]\nsparsity = 0.31\nlocked = ['features.fc2']\n")
    page.get_by_role("button", name="Apply").click()
    until(page, lambda: "sparsity=0.31" in page.url and "locked=features.fc2.weight" in page.url)
    until(page, lambda: 'locked = ["features.fc2.weight"]' in text.input_value())
    with page.expect_download() as taken:
        page.get_by_role("link", name="Save session").or_(page.get_by_text("Save session")).first.click()
    saved = tmp_path / "session.json"
    taken.value.save_as(saved)

    link = page.url
    page.goto(link)
    page.locator(".plan").wait_for()
    until(page, lambda: "sparsity = 0.31" in page.get_by_label("recipe as text").input_value(), START / 1000)
    page.get_by_label("recipe as text").fill("[budget]\nsparsity = 1.31\n")
    page.get_by_role("button", name="Apply").click()
    page.get_by_text("'budget.sparsity' must be in [0, 1)").wait_for()
    assert "sparsity=0.31" in page.url
    page.get_by_label("recipe as text").fill("[budget]\nsparsity = 0.7\nlocked = []\n")
    page.get_by_role("button", name="Apply").click()
    until(page, lambda: "sparsity=0.7" in page.url)
    page.locator("input[type=file]").set_input_files(saved)
    until(page, lambda: page.url == link)
