"""The page of runs in a browser: a recipe of seconds is submitted, watched, cancelled, resumed, and ends."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mpviz.ui import theme
from tests.browser.axe import grave
from tests.ui.served import Served

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

pytestmark = pytest.mark.browser
START = 90_000  # milliseconds: a run imports torch, on a machine that others may use as well
RECIPE = """
[model]
name = "fashion-mlp"
[budget]
sparsity = 0.8
[certify]
samples = 200
[recover]
epochs = 2.0
batch = 64
"""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    server = Served(tmp_path, "--runs", str(tmp_path / "runs"))
    yield server
    server.end()
    assert "Traceback" not in server.said


def state(page: Page, name: str) -> Locator:
    """The chip of the chosen run, once it says this."""
    return page.locator(f"#state[data-state={name}]")


def steps(page: Page) -> int:
    """The last step that the curve shows."""
    script = "(plot) => Math.max(0, ...(plot.data ?? []).flatMap((trace) => trace.x ?? []))"
    return int(page.locator("#curve").evaluate(script))


def grown(page: Page, beyond: int) -> int:
    for _ in range(900):
        if (now := steps(page)) > beyond:
            return now
        page.wait_for_timeout(100)
    raise AssertionError(f"the curve stands at step {steps(page)}")


def submit(page: Page, recipe: str, taken: bool = True) -> None:
    if not page.locator("#submit").evaluate("(part) => part.open"):
        page.get_by_text("Submit a recipe", exact=True).click()
    page.get_by_role("textbox", name="recipe as TOML").fill(recipe)
    page.get_by_role("button", name="Submit", exact=True).click()
    if taken:
        page.locator("#submit:not([open])").wait_for()


def test_a_run_is_submitted_watched_reloaded_cancelled_resumed_and_done(
    page: Page, page_log: Any, served: Served, tmp_path: Path
) -> None:
    page.goto(f"http://localhost:{served.port}/run")
    page.get_by_role("heading", name="Nothing has run yet").wait_for()
    submit(page, RECIPE)
    state(page, "running").wait_for(timeout=START)
    first = grown(page, 0)
    grown(page, first)
    title = page.locator("#curve .gtitle").text_content() or ""
    assert re.match(r"epoch 1 of 2: loss [\d.]+, accuracy [\d.]+\s% \(measured\)", title)
    bar = page.get_by_role("progressbar", name="progress of the chosen run")
    assert 0 < float(bar.get_attribute("aria-valuenow") or "0") < 100

    page.reload()
    state(page, "running").wait_for(timeout=START)
    assert grown(page, 0) >= first, "all of the curve is there again"
    page.locator("#log").get_by_text("epoch 1 of 2").wait_for()

    page.get_by_role("button", name="Cancel", exact=True).click()
    state(page, "cancelled").wait_for(timeout=START)
    page.get_by_text("the recovery was cancelled after step").first.wait_for()
    kept = grown(page, 0)
    assert list((tmp_path / "runs" / "run-001" / "out" / "recovery").glob("*.safetensors"))
    page.get_by_role("button", name="Resume", exact=True).click()
    state(page, "running").wait_for(timeout=START)
    grown(page, kept)
    state(page, "done").wait_for(timeout=START)
    table = page.get_by_role("region", name="What it came to")
    table.get_by_text("recovered").wait_for()
    assert bar.get_attribute("aria-valuenow") == "100" and page.get_by_text("start 2").count() == 1
    assert grave(page, "a run that is done") == []
    page.get_by_role("link", name="Report", exact=True).click()
    page.get_by_role("heading", level=1).wait_for(timeout=START)
    assert "/run/report?run=run-001" in page.url and "known as" in page.content()
    assert page_log.errors == [] and page_log.outside == []


def test_a_failure_is_a_sentence_and_the_keyboard_walks_through_the_runs(
    page: Page, page_log: Any, served: Served
) -> None:
    page.goto(f"http://localhost:{served.port}/run")
    submit(page, 'model.name = "fashion-mpl"\n')
    submit(page, 'model.name = "no <b>such</b> network"\n')
    chosen = page.get_by_role("heading", level=2).first
    page.locator("#name").get_by_text("no <b>such</b> network").wait_for()
    state(page, "failed").wait_for(timeout=START)
    page.locator("#error").get_by_text("unknown model 'no <b>such</b> network'").wait_for()
    assert not page.locator("#trace").is_visible()
    page.locator("#fold summary").focus()
    page.keyboard.press("Enter")
    assert (page.locator("#trace").inner_text()).startswith("Traceback (most recent call last)")
    assert grave(page, "a run that failed") == []
    page.locator("#list a").first.focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.locator("#name").get_by_text("fashion-mpl").wait_for()
    page.locator("#error").get_by_text("did you mean 'fashion-mlp'?").wait_for()
    assert page.url.endswith("run=run-001&theme=light") and chosen.count() == 1
    assert page.locator("#list a[aria-current]").count() == 1

    page.get_by_role("button", name="Edit as new").click()
    assert 'name = "fashion-mpl"' in page.get_by_role("textbox", name="recipe as TOML").input_value()
    submit(page, "[budget", taken=False)
    page.get_by_role("alert").get_by_text("not valid TOML").wait_for()
    page.get_by_role("button", name="Remove", exact=True).click()
    page.wait_for_timeout(300)
    page.locator("#name").get_by_text("no <b>such</b> network").wait_for()
    assert page.locator("#list li").count() == 1
    complaints = [one for one in page_log.errors if "400" not in one]  # the browser notes a refusal by itself
    assert complaints == [] and page_log.outside == []


def test_both_themes_fit_and_the_plan_of_the_workbench_comes_along(page: Page, page_log: Any, served: Served) -> None:
    page.goto(f"http://localhost:{served.port}")
    page.locator(".budgets .bars").first.wait_for(timeout=START)
    page.get_by_role("button", name="light or dark colours").click()
    with page.expect_popup() as opened:
        page.get_by_role("link", name="Runs", exact=True).click()
    runs = opened.value
    assert "theme=dark" in runs.url
    runs.get_by_role("button", name="your plan + training").click()
    recipe = runs.get_by_role("textbox", name="recipe as TOML")
    recipe.wait_for()
    runs.wait_for_timeout(500)
    assert "sparsity = 0.5" in recipe.input_value() and "epochs = 1.0" in recipe.input_value()
    for colours in ("light", "dark"):
        runs.get_by_role("link", name=f"{colours} colours").click()
        runs.wait_for_url(f"**theme={colours}*")
        rgb = ", ".join(str(int(theme.THEMES[colours].paper[i : i + 2], 16)) for i in (1, 3, 5))
        assert runs.evaluate("() => getComputedStyle(document.body).backgroundColor") == f"rgb({rgb})"
    assert runs.get_by_role("button", name="your plan", exact=True).is_visible(), "the key went along"
    for width in (1280, 390):
        runs.set_viewport_size({"width": width, "height": 800})
        runs.wait_for_timeout(200)
        assert runs.evaluate("document.documentElement.scrollWidth <= innerWidth")
    runs.close()
    assert page_log.errors == [] and page_log.outside == []
