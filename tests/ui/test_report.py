"""The report: one file, whole by itself, whose numbers are those of the run, and in which names stay names."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import OrderedDict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import mpviz as mp
from mpviz.pipeline import run
from mpviz.recipe import BudgetPlan, CertifyPlan, DataPlan, ModelPlan, Recipe
from mpviz.ui import _report_page, figures, report, text
from mpviz.ui.report import comparison_rows, curve_view, report_html, workbench_html
from mpviz.workbench.sources import spectrum_view
from tests.ui.pages import Reader, without_library

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from tests.conftest import PageLog

WHEN = datetime(2026, 5, 4, 3, 2, tzinfo=UTC)
EVIL = "</script><img src=x onerror=hacked=1>"  # without a dot, which no module may have in its name


@pytest.fixture(scope="module")
def result():
    plan = Recipe(ModelPlan("fashion-mlp"), budget=BudgetPlan(0.55), certify=CertifyPlan(samples=300))
    return run(plan, curve_samples=60)


@pytest.fixture(scope="module")
def html(result):
    return report_html(result, when=WHEN)


@pytest.fixture(scope="module")
def page_of(html):
    return Reader(html)


# --- what stands in it ----------------------------------------------------------------------------------------------


def test_the_page_is_whole_by_itself(html, page_of):
    assert len(html.encode()) < 8_000_000
    own = without_library(html)
    assert not re.search(r"https?:|//cdn|@import|url\(", own)
    assert all("src" not in attributes and tag != "link" for tag, attributes in page_of.tags)
    assert html.count("plotly.js v") == 1 and "{{" not in own
    policy = next(a["content"] for _, a in page_of.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_the_headline_and_the_table_say_what_was_measured(result, html, page_of):
    cert = result.certificate
    headline = page_of.all("h1") + page_of.all("span")
    assert "With 55\u202f% of its prunable weights removed" in page_of.all("h1") and "fashion-mlp" in headline
    assert text.percent(cert.coverage) in page_of.all("h1")
    words = page_of.all("td") + page_of.all("p")
    for value in (cert.unchanged, cert.dense_accuracy, cert.accuracy):
        assert text.percent(value) in page_of.all("p") and f"{100 * value:.1f}\u202f%" in page_of.all("td")
    assert text.count(result.budgets["removed"].sum()) in words and "300 test images" in words
    assert html.count("known as") == 1 and page_of.all("span").count("measured") >= 5


def test_comparison_rows_tell_shares_from_counts():
    frame = pd.DataFrame(
        [("accuracy", 0.9059, 0.9029, "measured"), ("same", 0.5, 0.5, "estimate"), ("weights", 1000, 451, "measured"),
         ("none", 0, 0, "measured")],
        columns=["quantity", "dense", "pruned", "tier"], dtype=object,
    )  # fmt: skip
    assert comparison_rows(frame) == [
        ("accuracy", "90.6\u202f%", "90.3\u202f%", "−0.30 points", "measured"),
        ("same", "50.0\u202f%", "50.0\u202f%", "±0 points", "estimate"),
        ("weights", "1\u202f000", "451", "−54.9\u202f%", "measured"),
        ("none", "0", "0", "±0", "measured"),
    ]


def test_the_figures_are_those_of_the_run(result, page_of):
    drawn = json.loads(page_of.ids["figures"])
    assert list(drawn["spectra"]) == list(result.table.index) == list(drawn["frames"])
    assert drawn["first"] == result.table.query("prunable")["n_spikes"].idxmax()
    for name, layer in result.spectra.items():
        for scale in ("singular", "eigenvalue"):
            expected = figures.spectrum(spectrum_view(layer), scale)
            shown = drawn["spectra"][name][scale]
            assert [trace["name"] for trace in shown["data"]] == [trace["name"] for trace in expected["data"]]
            assert shown["data"][0]["y"] == pytest.approx(expected["data"][0]["y"], rel=1e-4)
    curve = curve_view(result)
    marks = {trace["name"]: trace for trace in drawn["coverage"]["data"]}
    assert marks["certified"]["y"] == pytest.approx(100 * curve.coverage, rel=1e-4)
    assert curve.current["sparsity"] == 0.55 and curve.current["tier"] == "measured" and curve.n_samples == 60
    removed = next(trace for trace in drawn["budgets"]["data"] if trace["name"] == "removed")
    assert removed["y"] == pytest.approx(100 * result.budgets["sparsity"].to_numpy(), rel=1e-4)


def test_the_recipe_and_the_versions_are_there(result, html, page_of):
    assert page_of.all("pre") == result.recipe.to_toml()
    footer = page_of.all("footer")
    assert "2026-05-04 03:02 UTC" in footer and f"mpviz {mp.__version__}" in footer
    assert f"torch {torch.__version__}" in footer and f"numpy {np.__version__}" in footer
    assert report_html(result, when=WHEN) == html  # equal runs give equal pages


def test_without_a_curve_its_section_is_left_out(result, html):
    assert "How much can go" in html and 'id="coverage"' in html
    assert "measured on 60 of the 300 images, which leaves up to about ±10 points" in html  # 100 / √60 = 12.9
    bare = report_html(dataclasses.replace(result, curve=None))
    assert "How much can go" not in bare and 'id="coverage"' not in bare
    given = report_html(dataclasses.replace(result, curve=None), curve=curve_view(result), when=WHEN)
    assert given == html


def test_the_themes(result, html):
    dark = report_html(result, theme="dark", when=WHEN)
    assert "color-scheme: dark" in dark and "color-scheme: light" in html
    with pytest.raises(mp.MpvizError, match="unknown theme 'drak'; did you mean 'dark'"):
        report_html(result, theme="drak")


def test_a_large_network_keeps_the_layers_with_most_to_tell(result, monkeypatch):
    views = [spectrum_view(layer) for layer in result.spectra.values()]
    views = [dataclasses.replace(view, layer=f"{view.layer}.{i}") for i in range(5) for view in views]
    size = len(json.dumps(_report_page.spectrum_figures(views)[0]))
    monkeypatch.setattr(_report_page, "SPECTRA_LIMIT", size // 2)
    drawn, words = _report_page.spectrum_figures(views)
    assert len(json.dumps(drawn)) <= size // 2 and f"The {len(drawn)} of 15 layers" in words
    fewest = min(view.n_spikes for view in views if view.layer in drawn)
    assert len(drawn) > 2 and fewest >= max(view.n_spikes for view in views if view.layer not in drawn)
    assert list(drawn) == [view.layer for view in views if view.layer in drawn]


def test_numbers_that_are_not_there_do_not_break_the_page(result):
    name = result.table.index[0]
    layer = result.spectra[name]
    fit = dataclasses.replace(
        layer.fit, variance=np.nan, edges=(np.nan, np.nan), threshold=np.nan, sigma_plus=np.nan, bulk_fraction=np.nan
    )
    table = result.table.copy()
    table.loc[name, ["variance", "sigma_plus", "bulk_fraction", "threshold", "alpha"]] = np.nan
    broken = dataclasses.replace(
        result, spectra={**result.spectra, name: dataclasses.replace(layer, fit=fit)}, table=table
    )
    drawn = json.loads(Reader(report_html(broken)).ids["figures"])
    assert name in drawn["spectra"]


# --- names stay names -----------------------------------------------------------------------------------------------


class Net(nn.Module):
    """Layers with names that would like to be more than names."""

    def __init__(self) -> None:
        super().__init__()
        names = (f"a{EVIL}", "b'\"&$x$ {{plotly}} <b>", "c")
        sizes = (64, 96, 80, 10)
        layers = [(name, nn.Linear(n, m)) for name, n, m in zip(names, sizes, sizes[1:], strict=False)]
        self.layers = nn.Sequential(OrderedDict(layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x.flatten(1))


@pytest.fixture(scope="module")
def hostile():
    torch.manual_seed(0)
    bench = mp.Workbench(Net().eval(), data="digits", samples=40)
    yield bench
    bench.close()


def test_a_workbench_has_a_report_before_and_after_pruning(hostile):
    before = Reader(workbench_html(hostile, when=WHEN))
    assert "Prune to see the network before and after." in before.all("p")
    assert "Net" in before.all("h1") + before.all("span") and "of its prunable weights chosen to go" in before.all("h1")
    assert hostile.preview.tier == "measured"
    hostile.prune().wait(60)
    page = workbench_html(hostile, when=WHEN)
    after = Reader(page)
    # of all 500 images, as the table beside it; the preview of 40 says another number
    assert f"{text.percent(hostile.certificate.coverage)} of the predictions" in after.all("h1")
    assert hostile.preview.coverage != hostile.certificate.coverage
    assert "The curve is measured on 40 of the 500 images" in after.all("p")
    assert "test accuracy, 500 images" in after.all("td") and "other settings" not in page
    hostile.sparsity = 0.7
    assert "Pruned with other settings than those of this report." in workbench_html(hostile)
    hostile.sparsity = 0.5


def test_what_was_proved_for_this_plan_is_in_the_report_and_in_the_checkpoint(hostile, tmp_path):
    hostile.prune().wait(60)
    assert "What is proved" not in workbench_html(hostile)
    hostile.save(tmp_path / "measured.safetensors")
    assert "proofs" not in mp.load(tmp_path / "measured.safetensors", model=Net()).results
    hostile.certify(20).wait(120)
    page = workbench_html(hostile)
    drawn = json.loads(re.search(r'id="figures">(.*?)</script>', page, re.DOTALL)[1])
    assert len(drawn["proofs"]["data"]) > 3
    view, cells = hostile.proofs, Reader(page).all("td")
    for name, share in view.here.items():
        if np.isfinite(share):
            assert _report_page.share(share) in cells, name
    assert all(text.escape(why) in text.escape(cells) for why in view.why.values())
    path = hostile.save(tmp_path / "proved.safetensors")
    told = mp.load(path, model=Net()).results["proofs"]
    assert told == view.summary() and told["samples"] == 20 and told["sparsity"] == 0.5
    assert told["tiers"]["slider"] == {
        "tier": "bound", "about": view.about["slider"], "share": view.here["slider"],
    }  # fmt: skip
    hostile.sparsity = 0.7  # of another plan: neither has it
    assert "What is proved" not in workbench_html(hostile)
    hostile.prune().wait(60)
    assert "proofs" not in mp.load(hostile.save(tmp_path / "other.safetensors"), model=Net()).results
    hostile.sparsity = 0.5


def test_names_are_never_markup(hostile, result):
    evil = Recipe(ModelPlan(EVIL), DataPlan(EVIL, EVIL), BudgetPlan(0.55, locked=[EVIL]))
    for html in (workbench_html(hostile), report_html(dataclasses.replace(result, recipe=evil))):
        page = Reader(html)
        assert not [tag for tag, _ in page.tags if tag == "img"]
        assert [tag for tag, _ in page.tags].count("script") == 3
        assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
        assert EVIL not in html and "&lt;/script&gt;" in html
    assert EVIL in Reader(report_html(dataclasses.replace(result, recipe=evil))).all("pre")


# --- in a browser ---------------------------------------------------------------------------------------------------


@pytest.fixture
def opened(page: Page, page_log: PageLog, html: str, tmp_path: Path):
    (tmp_path / "report.html").write_text(html, encoding="utf-8")
    page.goto((tmp_path / "report.html").as_uri())
    page.wait_for_selector("#budgets .main-svg")
    yield page
    assert page_log.errors == [] and page_log.outside == []


def title(page: Page, figure: str = "spectrum") -> str:
    return page.text_content(f"#{figure} .gtitle") or ""


def until(page: Page, script: str) -> None:
    """Wait until a script gives true; `wait_for_function` needs an eval, which the page's policy forbids."""
    for _ in range(100):
        if page.evaluate(script):
            return
        page.wait_for_timeout(50)
    raise AssertionError(script)


@pytest.mark.browser
def test_the_page_draws_its_figures_and_walks_through_the_layers(opened: Page, result):
    for figure in ("strip", "spectrum", "coverage", "budgets"):
        assert opened.locator(f"#{figure} .trace, #{figure} .point").count() > 0
    order = [name.removesuffix(".weight") for name in result.table.index]
    assert title(opened).startswith(order[0])
    opened.keyboard.press("ArrowRight")
    assert title(opened).startswith(order[1]) and opened.input_value("#layer") == f"{order[1]}.weight"
    opened.click("#previous")
    opened.click("#previous")
    assert title(opened).startswith(order[-1])
    opened.select_option("#layer", f"{order[0]}.weight")
    assert title(opened).startswith(order[0])
    before = opened.text_content("#spectrum .xtitle")
    opened.select_option("#scale", "eigenvalue")
    assert "singular" in before and "eigenvalue" in opened.text_content("#spectrum .xtitle")


@pytest.mark.browser
def test_a_click_into_the_strip_chooses_a_layer(opened: Page, result):
    box = opened.locator("#strip .nsewdrag").first.bounding_box()
    axes = "(({xaxis, yaxis}) => [xaxis.l2p(1), yaxis.l2p(1.4)])(document.getElementById('strip')._fullLayout)"
    right, down = opened.evaluate(axes)  # the second layer, in the upper of two rows
    opened.mouse.click(box["x"] + right, box["y"] + down)
    until(opened, "document.getElementById('layer').value == 'features.fc2.weight'")
    assert title(opened).startswith("features.fc2")
    frame = opened.evaluate("document.getElementById('strip').layout.shapes[0]")
    assert (frame["x0"], frame["x1"]) == (0.5, 1.5)


@pytest.mark.browser
def test_it_fits_narrow_screens_and_paper(opened: Page):
    for width in (1280, 800, 390):
        opened.set_viewport_size({"width": width, "height": 800})
        opened.wait_for_timeout(200)
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
    widths = "[...document.querySelectorAll('.figure .main-svg')].map(svg => svg.getBoundingClientRect().width)"
    opened.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert set(opened.evaluate(widths)) == {680}
    opened.set_viewport_size({"width": 1280, "height": 800})
    opened.evaluate("dispatchEvent(new Event('afterprint'))")
    until(opened, f"{widths}.every(width => width > 1000)")
    assert opened.pdf(format="A4").startswith(b"%PDF")


@pytest.mark.browser
def test_hostile_names_run_nothing(page: Page, page_log: PageLog, hostile, tmp_path: Path):
    (tmp_path / "report.html").write_text(workbench_html(hostile), encoding="utf-8")
    page.goto((tmp_path / "report.html").as_uri())
    page.wait_for_selector("#budgets .main-svg")
    for _ in hostile.layers:
        page.keyboard.press("ArrowRight")
        page.mouse.move(400, 350)
    assert page.evaluate("window.hacked") is None
    assert page_log.errors == [] and page_log.outside == []
    assert hostile.layers[0] in page.inner_text("#layer")


def test_all_names_are_public():
    assert all(getattr(report, name).__doc__ for name in report.__all__)
