"""The workbench in JupyterLab, in headless Chromium: painted, moved, pruned, cancelled, and errors as sentences.

One server and one notebook serve all tests of this file; each leaves the sliders where it found them.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser.lab import LabServer, Notebook, View, lab_server, write_notebook

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = [pytest.mark.browser, pytest.mark.slow]

STRIP, SPECTRUM, COVERAGE, BUDGETS = range(4)  # the figures of a view, from the top left
WORKBENCH = "import mpviz as mp\nwb = mp.Workbench('fashion-mlp', samples=100)\nwb"
CERTIFICATES = "from mpviz.ui.widgets import certificate_view\ncertificate_view(wb)"
# forty batches of a fifth of a second: time enough to cancel
SLOW = """
import time
model = mp.load_model("fashion-mlp")
model.register_forward_pre_hook(lambda *_: time.sleep(0.2))
slow = mp.Workbench(model)
slow
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Iterator[LabServer]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with lab_server(tmp_path_factory.mktemp("lab") / "served", port, root) as server:
        yield server


@pytest.fixture(scope="module")
def notebook(server: LabServer, browser: Browser) -> Iterator[Notebook]:
    write_notebook(server.folder / "workbench.ipynb", WORKBENCH, SLOW, CERTIFICATES)
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    context.set_default_timeout(30_000)
    opened = Notebook(context.new_page(), server)
    opened.listen()
    opened.open("workbench.ipynb")
    opened.run_all()
    opened.page.locator(".mpviz").first.wait_for(timeout=90_000)
    yield opened
    context.close()


@pytest.fixture
def view(notebook: Notebook) -> View:
    view = notebook.view(0)
    view.wait_painted()
    return view


def eventually(check: Callable[[], Any], page: Any, seconds: float = 20) -> Any:
    """The first true value of `check`, or its last false one."""
    for _ in range(int(10 * seconds)):
        if value := check():
            return value
        page.wait_for_timeout(100)
    return check()


def certified(view: View) -> list[float]:
    """Sparsities, in percent, at which the coverage is measured and drawn."""
    return next(trace for trace in view.data(COVERAGE) if trace["name"] == "certified")["x"]


def test_all_figures_show_the_network(view: View) -> None:
    assert [trace["name"] for trace in view.data(STRIP)][:2] == ["bulk", "spikes"]
    names = {trace["name"] for trace in view.data(SPECTRUM)}
    assert {"bulk", "spikes", "Marchenko–Pastur"} <= names
    assert len(view.data(BUDGETS)[0]["y"]) == 2
    assert eventually(lambda: len(certified(view)) == 21, view.page, 60)
    assert "dense accuracy" in view.root.inner_text()


def test_the_panels_fit_into_a_notebook(view: View) -> None:
    box = view.root.bounding_box()
    assert box and box["height"] <= 660 and box["width"] > 700
    overflow = view.root.evaluate("div => div.scrollWidth - div.clientWidth")
    assert overflow <= 0


def test_a_slider_moves_by_keyboard_and_the_figures_follow(view: View) -> None:
    handle = view.slider("sparsity, %")
    before, coverage = view.data(BUDGETS)[0]["y"], view.layout(COVERAGE)["shapes"]
    handle.focus()
    for _ in range(7):
        handle.press("ArrowRight")
    assert eventually(lambda: "57" in view.layout(BUDGETS)["title"]["text"], view.page)
    after = view.data(BUDGETS)[0]["y"]
    assert all(a > b for a, b in zip(after, before, strict=True))
    assert eventually(lambda: view.layout(COVERAGE)["shapes"] != coverage, view.page)
    # an estimate at first; then it is measured
    assert eventually(lambda: "measured" in view.layout(COVERAGE)["annotations"][-1]["text"], view.page)
    for _ in range(7):
        handle.press("ArrowLeft")
    assert eventually(lambda: view.data(BUDGETS)[0]["y"] == before, view.page)


def test_a_click_on_the_strip_selects_a_layer(view: View) -> None:
    plot = view.root.locator(".js-plotly-plot").nth(STRIP)
    for column, name in ((1, "fc2"), (0, "fc1")):
        x = plot.evaluate("(div, column) => div._fullLayout.xaxis.d2p(column)", column)
        place = {"x": x, "y": 15}
        plot.locator(".nsewdrag").first.hover(position=place)
        plot.locator(".nsewdrag").first.click(position=place)
        assert eventually(lambda name=name: name in view.layout(SPECTRUM)["title"]["text"], view.page)


def test_buttons_walk_through_the_layers_and_change_the_scales(view: View) -> None:
    view.button("Next layer").click()
    assert eventually(lambda: "fc2" in view.layout(SPECTRUM)["title"]["text"], view.page)
    view.button("Previous layer").press("Enter")  # each button has the keyboard too
    assert eventually(lambda: "fc1" in view.layout(SPECTRUM)["title"]["text"], view.page)
    view.button("log").click()
    assert eventually(lambda: view.layout(SPECTRUM)["yaxis"].get("type") == "log", view.page)
    view.button("λ").click()
    assert eventually(lambda: "eigenvalue" in view.layout(SPECTRUM)["xaxis"]["title"]["text"], view.page)
    view.button("linear").click()
    view.button("s").click()
    assert eventually(lambda: "singular" in view.layout(SPECTRUM)["xaxis"]["title"]["text"], view.page)


def test_a_double_click_returns_to_the_range_of_this_layer_and_scale(view: View) -> None:
    view.button("λ").click()
    assert eventually(lambda: "eigenvalue" in view.layout(SPECTRUM)["xaxis"]["title"]["text"], view.page)
    start = view.layout(SPECTRUM)["xaxis"]["range"]
    box = view.root.locator(".js-plotly-plot").nth(SPECTRUM).locator(".nsewdrag").first.bounding_box()
    assert box
    mouse = view.page.mouse
    mouse.move(box["x"] + 60, box["y"] + 50)
    mouse.down()
    mouse.move(box["x"] + 200, box["y"] + 60, steps=4)
    mouse.up()
    assert eventually(lambda: view.layout(SPECTRUM)["xaxis"]["range"] != start, view.page)
    view.page.wait_for_timeout(500)  # or the drag's own press counts as the first of three clicks
    mouse.dblclick(box["x"] + 60, box["y"] + 50)
    assert eventually(lambda: view.layout(SPECTRUM)["xaxis"]["range"] == start, view.page)
    view.button("s").click()
    assert eventually(lambda: "singular" in view.layout(SPECTRUM)["xaxis"]["title"]["text"], view.page)


def test_an_error_is_a_sentence(view: View) -> None:
    alert = view.root.get_by_role("alert")
    assert alert.count() == 0
    view.button("lock").click()  # fc1 holds more weights than may stay
    alert.wait_for()
    words = alert.inner_text()
    assert "unlock a layer or lower the sparsity" in words and words[0].isupper() and words.endswith(".")
    assert "Traceback" not in words and "Error" not in words
    assert view.button("lock").count() == 1  # the plan is the last possible one again
    handle = view.slider("sparsity, %")
    handle.press("ArrowRight")
    alert.wait_for(state="hidden")
    handle.press("ArrowLeft")
    assert eventually(lambda: "331" in view.layout(BUDGETS)["title"]["text"], view.page)


def test_prune_finishes_and_shows_before_and_after(view: View) -> None:
    view.button("Prune").click()
    table = view.root.locator("table.mpviz-table")
    table.wait_for(timeout=60_000)
    words = table.inner_text()
    assert "accuracy" in words and "measured" in words and "331\u202f776" in words
    view.root.get_by_text("prune is done").wait_for()
    assert view.button("Prune").is_enabled() and view.button("Cancel").is_disabled()
    box = view.root.bounding_box()
    assert box and box["height"] <= 660


def test_the_view_stays_below_640_pixels_after_pruning(view: View) -> None:
    box = view.root.bounding_box()
    assert box and box["height"] <= 640 and view.root.locator("table.mpviz-table").is_visible()


def test_no_button_is_cut_off_and_narrow_pages_wrap(view: View) -> None:
    cut = """div => [...div.querySelectorAll('button')].filter((b) => b.offsetParent)
        .filter((b) => b.scrollWidth > b.clientWidth).map((b) => b.textContent)"""
    assert view.root.evaluate(cut) == []
    view.page.set_viewport_size({"width": 1000, "height": 1000})
    assert eventually(lambda: view.root.bounding_box()["width"] < 600, view.page)  # type: ignore[index]
    view.page.wait_for_timeout(500)
    assert view.root.evaluate(cut) == []
    assert view.root.evaluate("div => div.scrollWidth - div.clientWidth") <= 0
    view.page.set_viewport_size({"width": 1280, "height": 1000})
    assert eventually(lambda: view.root.bounding_box()["width"] > 700, view.page)  # type: ignore[index]


def test_the_table_sorts_selects_and_gives_itself_away(view: View) -> None:
    view.button("layers").click()
    rows = view.root.locator(".mpviz-rows tbody tr:visible")
    rows.nth(2).wait_for()
    assert rows.locator("th").all_inner_texts() == ["features.fc1", "features.fc2", "head"]
    head = view.root.locator("thead th[data-column='layer']:visible")
    head.locator("button").first.click()
    head.locator("button").first.click()
    assert head.get_attribute("aria-sort") == "descending"
    assert rows.locator("th").all_inner_texts() == ["head", "features.fc2", "features.fc1"]
    rows.nth(1).locator("th").click()  # the middle of a row may be its lock
    assert eventually(lambda: "fc2" in view.layout(SPECTRUM)["title"]["text"], view.page)
    view.page.keyboard.press("ArrowDown")
    view.page.keyboard.press("Enter")
    assert eventually(lambda: "fc1" in view.layout(SPECTRUM)["title"]["text"], view.page)
    assert eventually(lambda: rows.nth(2).get_attribute("aria-selected") == "true", view.page)
    with view.page.expect_download() as started:
        view.root.locator(".mpviz-rows:visible .foot button", has_text="CSV").click()
    assert started.value.suggested_filename == "fashion-mlp-layers.csv"
    assert Path(started.value.path()).read_text().startswith("layer,role")
    view.button("spikes").click()
    assert eventually(lambda: rows.count() > 3, view.page)
    view.button("budgets").click()


def test_the_view_changes_and_the_null_appears(view: View) -> None:
    looks = view.root.locator(".mpviz-look select")
    looks.select_option("tail")
    assert eventually(lambda: view.layout(SPECTRUM)["xaxis"].get("type") == "log", view.page)
    assert view.button("log").is_disabled()
    looks.select_option("histogram")
    assert eventually(lambda: view.layout(SPECTRUM)["xaxis"].get("type") != "log", view.page)
    view.button("shuffled").click()

    def outline() -> int:
        return next(len(t["x"]) for t in view.data(SPECTRUM) if t["name"] == "shuffled entries")

    assert eventually(lambda: outline() > 10, view.page)
    view.button("shuffled").click()
    assert eventually(lambda: outline() == 0, view.page)


def test_a_figure_is_taken_away_as_picture_and_page(view: View) -> None:
    plot = view.plot(BUDGETS)
    for title, start in (
        ("Download as PNG", b"\x89PNG"),
        ("Download as SVG", b"<svg"),
        ("Download as HTML", b"<!doctype"),
    ):
        plot.hover()
        with view.page.expect_download() as started:
            plot.locator(f".modebar-btn[data-title^='{title}']").click()
        assert started.value.suggested_filename.startswith("fashion-mlp-budgets.")
        assert Path(started.value.path()).read_bytes()[:200].lstrip().startswith(start)


def test_what_was_scrolled_away_comes_back_up_to_date(notebook: Notebook, view: View) -> None:
    notebook.view(1).wait_painted()
    view = notebook.view(0)
    view.wait_painted()
    assert "331" in view.layout(BUDGETS)["title"]["text"]


def test_prove_turns_to_what_is_proved_and_lists_the_samples(view: View) -> None:
    view.button("Prove").click()
    assert eventually(lambda: "proved" in str(view.layout(COVERAGE)["title"]["text"]), view.page, 90)
    drawn = {trace["name"] for trace in view.data(COVERAGE)}
    assert {"slider", "path", "unchanged", "first order"} <= drawn
    view.button("samples").click()
    rows = view.root.locator(".mpviz-rows:visible tbody tr")
    assert eventually(lambda: rows.count() == 100, view.page)
    assert rows.first.locator("img").evaluate("image => image.naturalWidth") == 28
    assert "flipped" in rows.first.inner_text()
    view.button("budgets").click()
    view.button("measured").click()
    assert eventually(lambda: "certified" in str(view.layout(COVERAGE)["title"]["text"]), view.page)


def test_teachers_switch_tiers_on_one_by_one(notebook: Notebook) -> None:
    view = notebook.view(2)
    view.root.locator(".js-plotly-plot:visible").first.wait_for(timeout=60_000)
    names = lambda: {trace["name"] for trace in view.data(0)}  # noqa: E731
    assert eventually(lambda: "slider" in names(), view.page)
    assert "bracket" not in names()
    view.root.get_by_label("bracket", exact=True).check()
    assert eventually(lambda: "bracket" in names(), view.page)
    assert view.root.get_by_text("Every mask between two sparsities").is_visible()
    rows = view.root.locator(".mpviz-rows:visible tbody tr")
    number = rows.nth(2).locator("th").inner_text()
    rows.nth(2).click()
    assert eventually(lambda: view.root.get_by_text(f"sample {number}", exact=True).count() == 1, view.page)
    box = view.root.bounding_box()
    assert box and box["height"] <= 760
    assert view.root.evaluate("div => div.scrollWidth - div.clientWidth") <= 0


def test_cancel_cancels(notebook: Notebook) -> None:
    view = notebook.view(1)
    view.wait_painted()
    view.button("Prune").click()
    view.root.get_by_text(re.compile(r"\ds? .*left$")).wait_for()  # the time left is told
    assert view.button("Prune").is_disabled()
    view.button("Cancel").click()
    view.root.get_by_text("was cancelled").wait_for(timeout=5_000)
    assert view.root.locator("table.mpviz-table").count() == 0
    assert view.button("Prune").is_enabled() and view.button("Cancel").is_disabled()


def test_nothing_complained(notebook: Notebook) -> None:
    """Last in this file: neither page nor kernel said anything, and nothing was fetched from elsewhere."""
    assert notebook.errors == []
    assert notebook.kernel_errors == []
    assert notebook.outside == []
    assert notebook.server.complaints() == []
