"""The page of a grid on the dashboard: committed grids and named folders, and nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

import mpviz as mp
from mpviz.errors import DataError
from mpviz.grid_results import committed_grid, committed_grids, spectra_after
from mpviz.nets.paths import data_root
from mpviz.prune.methods import METHODS
from mpviz.recipe import STEPPED, CertifyPlan, DataPlan, GridPlan, ModelPlan, Recipe
from mpviz.ui.grid_page import compare_page, grid_html
from mpviz.ui.method_words import glossary_html, method_words

PLAN = Recipe(
    ModelPlan("fashion-mlp"), DataPlan(folder="bundled"), certify=CertifyPlan(samples=100),
    grid=GridPlan(["magnitude", "seb"], [0.5, 0.9], [0]),
)  # fmt: skip


def test_every_committed_grid_is_what_its_record_says() -> None:
    assert len(committed_grids()) == 4
    for name in committed_grids():
        record, network = name.split("/")
        cells = json.loads((data_root() / "benchmarks" / f"{record}.json").read_text())["cells"]
        own, grid = [cell for cell in cells if cell["network"] == network], committed_grid(name)
        assert grid.metrics["accuracy"].tolist() == [cell["accuracy"] for cell in own]
        assert grid.metrics["coverage"].tolist() == [cell["coverage"] for cell in own]
        assert grid.layers["removed"].sum() == sum(sum(cell.get("layers", {}).values()) for cell in own)
        if record == "recovery-grid":
            came_back = grid.layers.groupby(["method", "seed", "sparsity"])["restored"].sum()
            assert came_back.to_dict() == {(c["method"], c["seed"], c["sparsity"]): c["restored"] for c in own}
            held = grid.layers.groupby(["method", "seed", "sparsity"])["reservoir"].sum(min_count=1)
            stops = (0.0, *sorted(grid.layers["sparsity"].unique()))
            total = grid.layers.drop_duplicates("layer")["params"].sum()
            for cell in own:  # over-pruning removes a multiple of what stays removed
                step = cell["sparsity"] - stops[stops.index(cell["sparsity"]) - 1]
                ratio = (1.2 if "mended" in cell["method"] else 1.6) if cell["restored"] else 0.0
                found = held[cell["method"], cell["seed"], cell["sparsity"]]
                assert found == pytest.approx(ratio * step * total, abs=2), cell
            assert (grid.layers["reservoir"] >= grid.layers["restored"]).all()
        elif network == "fashion-resnet":  # how much came back is recorded in all, not by layer
            unknown = {cell["method"] for cell in own if cell.get("restored")}
            assert set(grid.layers.loc[grid.layers["reservoir"].isna(), "method"]) == unknown
        assert (grid.layers["removed"] <= grid.layers["params"]).all()
    with pytest.raises(DataError, match="no grid 'methods/x'"):
        committed_grid("methods/x")


@pytest.mark.parametrize("name", sorted(committed_grids()))
def test_a_committed_grid_has_its_page(name: str) -> None:
    there, page = compare_page([], name, "dark")
    assert there and "color-scheme: dark" in page
    assert page.count('aria-current="page"') == 1 and page.count("?grid=") == len(committed_grids()) + 1


def test_every_method_of_a_committed_grid_is_explained_and_others_are_not_made_up() -> None:
    for name in committed_grids():
        for method in committed_grid(name).metrics["method"].unique():
            assert method_words(method), method
    assert all(method_words(name) for name in (*METHODS, *STEPPED))
    said = glossary_html(["magnitude", "<b>mine"])
    assert said.count("<dt>") == 1 and "mine" not in said and glossary_html(["mine"]) == ""


def test_the_page_of_a_network_opens_where_one_comes_from_it() -> None:
    assert "<h1>fashion-vit" in compare_page([], seen="fashion-vit")[1]
    for other in ("", "mine", "../../etc"):
        assert compare_page([], seen=other)[0] and "<h1>fashion-resnet" in compare_page([], seen=other)[1]


def test_the_page_follows_a_running_grid_and_opens_nothing_that_was_not_named(tmp_path: Path) -> None:
    folder = tmp_path / "run<1>"
    there, page = compare_page([folder, tmp_path / "b" / "run<1>"], "run<1>")
    assert there and "holds no finished cells" in page and "run<1>" not in page
    assert "run&lt;1&gt; (2)" in page
    mp.run_grid(PLAN, folder, report=grid_html)
    there, page = compare_page([folder])
    assert there and "fashion-mlp: methods side by side" in page and "Spectra before and after are left out" not in page
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert report.count("<section hidden>") == 1 and "<section hidden>\n<h2>The reservoir" in report
    for other in ("../..", str(tmp_path), "methods/../x", ""):
        there, page = compare_page([folder], other)
        assert not there and "methods side by side" not in page
    for kept in folder.glob("cells/*/*/*.safetensors"):
        kept.unlink()
    assert "Spectra before and after are left out" in compare_page([folder])[1]


def test_a_grid_without_checkpoints_has_the_spectra_of_its_record_or_none() -> None:
    bare = replace(committed_grid("methods/fashion-vit"), spectra=None)
    with pytest.raises(DataError, match="without its checkpoints"):
        spectra_after(bare)
    for name in committed_grids():
        spectra = spectra_after(committed_grid(name))
        assert isinstance(spectra, pd.DataFrame) and spectra["method"].iloc[0] == "dense"
