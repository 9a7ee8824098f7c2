"""Every page and report, light and dark, under axe: nothing that it calls serious or critical."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mpviz.pipeline import run
from mpviz.projecting import run_projection
from mpviz.recipe import CertifyPlan, DataPlan, ModelPlan, ProjectPlan, Recipe
from mpviz.ui.export import figure_html
from mpviz.ui.projection_report import projection_html
from mpviz.ui.report import report_html
from mpviz.ui.theme import THEMES, empty
from tests.browser.axe import grave
from tests.ui.served import Served
from tests.ui.test_sweep_page import make_sweep

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser
START = 60_000  # milliseconds: the first page waits for torch


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a dashboard that asks for a login, takes uploads and shows a sweep."""
    folder = tmp_path_factory.mktemp("axe")
    (folder / "users.json").write_text('{"ada": "secret"}')
    sweep = make_sweep(folder / "mine")
    options = ["--basic-auth", str(folder / "users.json"), "--sweep", str(sweep), "--runs", str(folder / "runs")]
    server = Served(folder, "--uploads", *options)
    try:
        yield f"http://localhost:{server.port}"
    finally:
        server.end()


def enter(page: Page, served: str, place: str) -> None:
    """Log in on the way to a page."""
    page.goto(f"{served}{place}")
    page.get_by_label("Name").fill("ada")
    page.get_by_label("Password").fill("secret")
    page.get_by_role("button", name="Log in").click()


def press(page: Page, card: str, face: str) -> None:
    page.locator(f".{card} .tools").get_by_role("button", name=face, exact=True).click()
    page.wait_for_timeout(200)


def test_the_main_page_has_nothing_grave_on_any_card(page: Page, page_log: Any, served: str) -> None:
    enter(page, served, "/")
    page.locator(".budgets .bars").first.wait_for(timeout=START)
    page.get_by_role("button", name="Prune", exact=True).click()
    page.locator("aside table").wait_for(timeout=START)
    found = grave(page, "light")
    # the tiers, with the samples that were proved, are looked at where they are proved: test_dashboard
    for card, face in (("budgets", "spikes"), ("budgets", "recipe"), ("budgets", "layers"), ("coverage", "in words")):
        press(page, card, face)
        found += grave(page, f"light, {face}", f".{card}")
    page.get_by_role("textbox", name="timm name or checkpoint path").fill("fashion-mlq")
    page.keyboard.press("Enter")
    page.get_by_role("alert").wait_for()
    found += grave(page, "a sentence of refusal", ".alert")
    page.get_by_role("button", name="light or dark colours").click()
    page.locator(":root[data-theme=dark]").wait_for()
    page.wait_for_timeout(500)
    found += grave(page, "dark", colours=True)
    assert found == [] and page_log.errors == []


def test_login_notices_and_farewell_have_nothing_grave(page: Page, served: str) -> None:
    found = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.goto(f"{served}/bench")
        found += grave(page, f"login, {scheme}")
        enter(page, served, "/bench")
        page.goto(f"{served}/?bokeh-session-id=another")
        found += grave(page, f"notice, {scheme}")
        page.goto(f"{served}/logout")
        page.get_by_text("You are logged out").wait_for()
        found += grave(page, f"farewell, {scheme}")
    assert found == []


def test_the_other_pages_have_nothing_grave(page: Page, served: str) -> None:
    enter(page, served, "/compare?grid=none&theme=light")
    page.get_by_text("there is no grid").wait_for()
    found = grave(page, "no grid")
    for name in THEMES:
        page.goto(f"{served}/sweep?theme={name}")
        page.get_by_role("heading", name="mine: 1 done").wait_for()
        found += grave(page, f"sweep, {name}")
        page.goto(f"{served}/run?theme={name}")
        page.get_by_text("Submit a recipe", exact=True).click()
        found += grave(page, f"run, {name}")
        for place in ("compare?grid=recovery-grid/fashion-vit", "patterns", "bench"):
            page.goto(f"{served}/{place}{'&' if '?' in place else '?'}theme={name}")
            page.locator(".js-plotly-plot .main-svg").first.wait_for(timeout=START)
            found += grave(page, f"{place}, {name}", colours=name == "dark")
    assert found == []


def test_what_is_taken_away_has_nothing_grave(page: Page, tmp_path: Path) -> None:
    model, data, few = ModelPlan("fashion-mlp"), DataPlan(folder="bundled"), CertifyPlan(samples=40)
    plan = run(Recipe(model, data, certify=few), curve_samples=20)
    projected = run_projection(Recipe(model, data, certify=few, project=ProjectPlan("2:4", images=8)))
    found = []
    for name in THEMES:
        made = {
            "report": report_html(plan, theme=name),
            "projection": projection_html(projected, theme=name),
            "figure": figure_html(empty("nothing yet", name)),
        }
        for what, html in made.items():
            (tmp_path / "page.html").write_text(html, encoding="utf-8")
            page.goto((tmp_path / "page.html").as_uri())
            page.locator(".js-plotly-plot .main-svg").first.wait_for()
            found += grave(page, f"{what}, {name}", colours=name == "dark")
    assert found == []
