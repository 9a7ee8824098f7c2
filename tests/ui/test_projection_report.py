"""The page of a projection: its numbers are those of the run, names stay names, and it fetches nothing."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest

import mpviz as mp
from mpviz.projecting import ProjectionResult, run_projection
from mpviz.recipe import CertifyPlan, DataPlan, ModelPlan, ProjectPlan, Recipe, RecoverPlan
from mpviz.ui import text
from mpviz.ui.pattern_figures import layer_costs_figure
from mpviz.ui.projection_report import _stages, phases_table, projection_html
from tests.ui.pages import Reader, fetches_nothing, without_library

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from tests.conftest import PageLog

WHEN = datetime(2026, 5, 4, 3, 2, tzinfo=UTC)
EVIL = "</script><img src=x onerror=hacked=1>"
PLAN = Recipe(
    ModelPlan("fashion-mlp"), DataPlan(folder="bundled"), certify=CertifyPlan(samples=60),
    recover=RecoverPlan(0.05, optimizer="sgd", learning_rate=0.01, batch=100),
    project=ProjectPlan("2:4", permute="hungarian", repair=True, images=16, source="magnitude", source_sparsity=0.6,
                        restore_images=4),
)  # fmt: skip


@pytest.fixture(scope="module")
def result() -> ProjectionResult:
    return run_projection(PLAN)


@pytest.fixture(scope="module")
def merged() -> ProjectionResult:
    project = ProjectPlan("2:4", images=8, tome=8, layers=["mlp"])
    return run_projection(Recipe(ModelPlan("fashion-vit"), PLAN.data, certify=CertifyPlan(samples=8), project=project))


@pytest.fixture(scope="module")
def html(result: ProjectionResult) -> str:
    return projection_html(result, when=WHEN)


def rows(html: str) -> list[list[str]]:
    """The cells of all tables, row by row."""
    found = []
    for row in without_library(html).split("<tr")[1:]:
        cells = Reader(f"<p>{row.split('>', 1)[1].split('</tr>')[0]}</p>").texts
        found.append([words for tag in ("th", "td", "span") for words in cells.get(tag, [])])
    return found


# --- what stands in it ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_is_whole_by_itself_in_both_themes(result: ProjectionResult, theme: str) -> None:
    page = projection_html(result, theme, WHEN)
    assert fetches_nothing(page) and "{{" not in without_library(page) and f"color-scheme: {theme}" in page
    reader = Reader(page)
    assert reader.all("h1") == reader.all("title") == "fashion-mlp at 2:4"
    assert "2026-05-04 03:02 UTC" in reader.all("footer") and f"mpviz {mp.__version__}" in reader.all("footer")
    assert projection_html(result, theme, WHEN) == page, "equal runs give equal pages"


def test_an_unknown_theme_is_a_sentence(result: ProjectionResult) -> None:
    with pytest.raises(mp.MpvizError, match="unknown theme 'drak'; did you mean 'dark'"):
        projection_html(result, "drak")


def test_both_phases_are_told_with_their_samples(result: ProjectionResult, html: str) -> None:
    shown = {row[0]: row[1:] for row in rows(html) if row and row[0] in ("projected", "after training")}
    for phase, word in (("projected", "projected"), ("recovered", "after training")):
        cert = result.certificates[phase]
        assert shown[word][:4] == [
            text.percent(cert.accuracy, 4), text.percent(cert.dense_accuracy, 4), text.percent(cert.coverage),
            text.percent(cert.unchanged),
        ]  # fmt: skip
        assert shown[word][4] == text.significant(2 * float(np.mean(cert.eta))) and shown[word][-1] == "60"
    assert shown["projected"] != shown["after training"]
    alone = phases_table(result.metrics.iloc[:1], "light")
    assert "after training" not in alone and "projected" in alone


def test_the_layers_pay_what_the_table_says(result: ProjectionResult, html: str) -> None:
    cost = result.projected.cost
    for name, row in cost.iterrows():
        short = text.short_name(str(name))
        shown = next(cells for cells in rows(html) if cells[:2] == [short, row["role"]])
        assert shown[2:5] == [f"{row['rows']} × {row['cols']}", "hungarian", text.percent(row["share"])]
        assert shown[5] == text.significant(row["left"] / row["cost"]) and row["left"] < row["cost"]
        assert shown[6:8] == [f"{row['restored']} / {row['dropped']}", "proved"] and row["restored"] > 0
    figure = Reader(html).drawn["costs"]
    left, back = figure["data"]
    assert left["y"] == pytest.approx(100 * cost["left"] / cost["power"])
    assert back["y"] == pytest.approx(100 * (cost["cost"] - cost["left"]) / cost["power"]) and back["y"][0] > 0


def test_a_layer_that_stays_dense_says_why(result: ProjectionResult) -> None:
    cost = pd.concat([result.projected.cost, pd.DataFrame(
        {"role": "mlp", "rows": 3, "cols": 15, "why": f"15 inputs {EVIL}"}, index=pd.Index([f"a.{EVIL}.weight"])
    )])  # fmt: skip
    page = projection_html(replace(result, projected=replace(result.projected, cost=cost)))
    assert fetches_nothing(page)
    shown = next(cells for cells in rows(page) if cells and cells[-1] == f"15 inputs {EVIL}")
    assert shown[1:8] == ["mlp", "3 × 15", *["–"] * 5] and EVIL in shown[0]
    assert len(Reader(page).drawn["costs"]["data"][0]["x"]) == 2, "it has no bar"


def test_what_was_worth_to_restore_is_told_where_it_was_asked_for(result: ProjectionResult, html: str) -> None:
    restore = result.restore
    assert restore is not None and "<section hidden>" not in html
    worth = {None: "–", True: "yes", False: "no"}
    for name, row in restore.iterrows():
        shown = next(cells for cells in rows(html) if len(cells) == 9 and cells[0] == text.short_name(str(name)) and
                     cells[-1] in ("bound", "measured") )  # fmt: skip
        numbers = [text.significant(row[column]) for column in ("budget_with", "budget_without", "drop", "price")]
        assert shown[1:6] == [text.count(row["restored"]), *numbers]
        assert shown[6:] == [worth[row["restore"]], row["why"], row["tier"]]
        assert "holds for the dense values" in row["why"], "what is kept was repaired"
    for value, word in worth.items():
        given = restore.assign(restore=pd.Series([value] * len(restore), dtype=object, index=restore.index))
        page = projection_html(replace(result, restore=given))
        assert [cells[6] for cells in rows(page) if len(cells) == 9 and cells[-1] == "bound"] == [word] * len(restore)
    without = projection_html(replace(result, restore=None))
    assert "<section hidden>" in without and "B_T(Q + P)" not in without


def test_what_was_run_is_told_and_hostile_names_stay_names(result: ProjectionResult, html: str) -> None:
    about = {cells[0]: cells[1] for cells in rows(html) if len(cells) == 2}
    assert about["data"] == "fashion-mnist" and about["criterion"] == "cast" and about["repair"] == "True"
    assert about["permute"] == "hungarian" and about["images"] == "16" and about["source"] == "pruned"
    assert about["torch"] == result.environment["torch"] and "None" not in about.values()
    recipe = replace(PLAN, model=ModelPlan(EVIL), data=DataPlan(f"data {EVIL}"))
    page = projection_html(replace(result, recipe=recipe, environment={EVIL: EVIL, "none": None}))
    reader = Reader(page)
    assert fetches_nothing(page) and "img" not in {tag for tag, _ in reader.tags}
    assert (
        reader.all("h1") == f"{EVIL} at 2:4" and [EVIL, EVIL] in rows(page) and ["data", f"data {EVIL}"] in rows(page)
    )


# --- what runs ------------------------------------------------------------------------------------------------------


def test_savings_of_merging_are_parted_from_those_of_the_pattern(merged: ProjectionResult) -> None:
    model = mp.load_model("fashion-vit")
    names, tables = zip(*_stages(merged), strict=True)
    assert names == ("dense", "merging", "2:4")
    alone, both = mp.count_macs(model, tome=8), mp.count_macs(model, tome=8, pattern="2:4", layers=list(
        merged.projected.masks
    ))  # fmt: skip
    assert tables[1]["sparse"].to_dict() == pytest.approx(alone.by_role()["sparse"].to_dict())
    assert tables[2]["sparse"].to_dict() == both.by_role()["sparse"].to_dict()
    bars = Reader(projection_html(merged)).drawn["macs"]["data"][0]
    assert bars["y"][0] == pytest.approx(alone.dense / 1e6) and bars["y"][-1] == pytest.approx(both.sparse / 1e6)
    assert sum(bars["y"][:-1]) == pytest.approx(bars["y"][-1])
    steps = dict(zip(bars["x"], bars["y"], strict=True))
    by_role = alone.by_role()["sparse"] - both.by_role()["sparse"]
    assert steps["2:4:<br>mlp"] == pytest.approx(-by_role["mlp"] / 1e6) and "2:4:<br>attention" not in steps


def test_both_conventions_are_told_where_they_differ(merged: ProjectionResult, html: str) -> None:
    page = Reader(projection_html(merged))
    assert page.all("h1") == "fashion-vit at 2:4, 8 pairs of tokens merged a block"
    words = page.all("p")
    macs, theirs = merged.macs, merged.macs_paper
    assert theirs.sparse > macs.sparse
    for part in (
        f"{macs.dense / 1e6:.4g} M multiply–adds",
        f"{macs.sparse / 1e6:.4g} M as executed",
        text.percent(macs.reduction, 4),
        f"{theirs.sparse / 1e6:.4g} M",
        text.percent(theirs.reduction, 4),
    ):
        assert part in words, part  # fmt: skip
    assert "paper's convention" in words and "paper's convention" not in Reader(html).all("p")
    assert "no speed" in words


# --- the bars -------------------------------------------------------------------------------------------------------


def costs(**columns: Any) -> pd.DataFrame:
    names = ["blocks.0.attn.qkv.weight", f"blocks.0.mlp.{EVIL}.weight", "blocks.1.mlp.fc1.weight"]
    base = {"role": ["attention", "mlp", "mlp"], "cost": [2.0, 1.0, 0.0], "left": [2.0, 1.0, 0.0],
            "power": [10.0, 4.0, 0.0], "why": ["", "", ""]}  # fmt: skip
    return pd.DataFrame(base | columns, index=pd.Index(names, name="layer"))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_layer_has_one_bar_or_two_where_a_repair_took_some_back(theme: str) -> None:
    figure = layer_costs_figure(costs(), theme)
    assert [trace["name"] for trace in figure["data"]] == ["cost"] and not figure["layout"]["showlegend"]
    bar = figure["data"][0]
    assert bar["y"] == pytest.approx([20.0, 25.0, 0.0]), "a layer without power costs nothing"
    assert bar["text"][1] == text.escape(text.short_name(f"blocks.0.mlp.{EVIL}.weight")) and "<img" not in str(figure)
    repaired = layer_costs_figure(costs(left=[0.5, 1.0, 0.0]), theme)
    assert [trace["name"] for trace in repaired["data"]] == ["after the repair", "taken back"]
    assert repaired["data"][0]["y"] == pytest.approx([5.0, 25.0, 0.0])
    assert repaired["data"][1]["y"] == pytest.approx([15.0, 0.0, 0.0])
    assert repaired["layout"]["barmode"] == "stack" and repaired["layout"]["showlegend"]


def test_layers_that_stayed_dense_have_no_bar() -> None:
    figure = layer_costs_figure(costs(why=["", "15 inputs", ""]))
    assert len(figure["data"][0]["x"]) == 2 and figure["data"][0]["y"] == pytest.approx([20.0, 0.0])
    with pytest.raises(mp.MpvizError, match="no layer was projected"):
        layer_costs_figure(costs(why=["a", "b", "c"]))


# --- in a browser ---------------------------------------------------------------------------------------------------


@pytest.mark.browser
def test_the_page_draws_its_figures_and_runs_nothing_hostile(
    page: Page, page_log: PageLog, result: ProjectionResult, tmp_path: Path
) -> None:
    cost = result.projected.cost.rename(index={"features.fc1.weight": f"a.{EVIL}.weight"})
    hostile = replace(
        result, recipe=replace(PLAN, model=ModelPlan(EVIL)), projected=replace(result.projected, cost=cost)
    )
    (tmp_path / "report.html").write_text(projection_html(hostile, "dark"), encoding="utf-8")
    page.goto((tmp_path / "report.html").as_uri())
    for figure in ("macs", "costs"):
        page.wait_for_selector(f"#{figure} .main-svg")
        assert page.locator(f"#{figure} .point").count() > 1
        page.hover(f"#{figure} .point >> nth=0", force=True)
    assert page.evaluate("window.hacked") is None and page.locator("img").count() == 0
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 800})
        page.wait_for_timeout(200)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page_log.errors == [] and page_log.outside == []
