"""The paper's rows as recipes: each can be read back, names a network that timm has, and says what the paper says."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from mpviz.errors import RecipeError
from mpviz.nets.layers import list_layers
from mpviz.nets.paths import data_root
from mpviz.nets.timm_import import import_timm
from mpviz.paper import PaperRow, paper_recipe, paper_rows
from mpviz.projecting import checked_projection
from mpviz.prune.cast_source import chosen_layers
from mpviz.prune.pattern import KN
from mpviz.recipe import CertifyPlan, GridPlan, Recipe, parse_recipe

ROWS = paper_rows()
# (learning rate, weight decay, batch) of the three trainings that the paper describes
VIT, WIDE, RESNET = (1e-5, 0.01, 32), (1e-4, 0.05, 256), (1e-3, 1e-4, 256)
TRAININGS = {row: RESNET if 9 <= row <= 18 else WIDE if row == 3 else VIT for row in range(1, 23)}


def test_there_are_22_rows_and_none_is_unknown() -> None:
    assert [row.row for row in ROWS] == list(range(1, 23))
    with (data_root() / "paper" / "paper_rows.csv").open(newline="", encoding="utf-8") as file:
        printed = list(csv.DictReader(file))
    assert len(printed) == 22
    for row, line in zip(ROWS, printed, strict=True):
        assert (row.architecture, row.checkpoint, row.pattern) == (
            line["architecture"], line["timm_checkpoint"], line["pattern"]
        )  # fmt: skip
        numbers = {"alpha_ser": row.alpha_ser, "dense_gmacs": row.dense_gmacs, "mac_reduction_pct": row.mac_reduction,
                   "dense_top1": row.dense_top1, "top1": row.top1, "measured_speedup": row.speedup}  # fmt: skip
        for name, value in numbers.items():
            assert (value is None) == (line[name] == "") and (value is None or value == float(line[name])), name
        assert row.tome == int(line["tome_r"] or 0) and row.permute == line["permute"]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.row}-{row.checkpoint}")
def test_a_row_is_a_recipe_that_runs_and_reads_back(row: PaperRow) -> None:
    recipe = paper_recipe(row, "somewhere/else")
    assert recipe == paper_recipe(row.row, "somewhere/else")
    text = recipe.to_toml()
    assert parse_recipe(text) == recipe and checked_projection(parse_recipe(text)) == recipe
    assert recipe.data.name == "somewhere/else" and paper_recipe(row).data.name == "imagenet"
    timm = import_timm()
    name = recipe.model.name
    assert timm.is_model(name) and name in timm.models.get_arch_pretrained_cfgs(name.partition(".")[0])
    # what the recipe does not name is as it is by default
    assert (recipe.certify, recipe.grid, recipe.model.pretrained) == (CertifyPlan(), GridPlan(), True)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.row}-{row.architecture}")
def test_a_row_is_trained_and_projected_as_the_paper_says(row: PaperRow) -> None:
    recipe = paper_recipe(row)
    plan, recover = recipe.project, recipe.recover
    rate, decay, batch = TRAININGS[row.row]
    assert (recover.learning_rate, recover.options["weight_decay"], recover.batch) == (rate, decay, batch)
    assert recover.optimizer == ("sgd" if row.architecture.startswith("ResNet") else "adamw")
    assert recover.epochs == (0.0 if row.row == 22 else 3.0), "the endpoint row trains nothing"
    assert recover.options["smoothing"] == 0.1
    assert plan.pattern == row.pattern and plan.tome == row.tome == (8 if row.row in (1, 2, 4, 6, 7, 8) else 0)
    assert plan.criterion == ("magnitude" if row.row == 1 else "cast")
    assert plan.permute == ("interleave" if row.permute == "yes" else "none")
    assert plan.alpha_ser == {2: 0.1, 3: 0.5, 4: 0.1, 6: 0.1, 7: 0.1, 8: 0.1}.get(row.row, 0.0)
    assert plan.images == (64 if row.row in (11, 14, 17) else 256), "64 for the 8:16 ResNets"
    assert plan.layers == (["mlp"] if row.row in (19, 20, 21) else [])
    if row.source == "dense":
        assert plan.source == "dense"
    else:
        assert (row.source, plan.source, plan.source_sparsity) == ("ser@0.35", "ser", 0.35)


def test_the_kinds_of_row_are_those_of_the_table() -> None:
    plans = [paper_recipe(row).project for row in ROWS]
    assert {plan.pattern for plan in plans} == {"2:4", "6:12", "8:16", "12:16"}
    assert [row.row for row, plan in zip(ROWS, plans, strict=True) if plan.source == "dense"] == [
        5, 11, 14, 17, 20, 21, 22
    ]  # fmt: skip
    assert sum(plan.permute == "interleave" for plan in plans) == 11
    assert [row.row for row in ROWS if row.top1 is None] == [22]


def test_a_convnext_projects_its_linear_layers() -> None:
    name = ROWS[18].checkpoint.partition(".")[0]
    net = import_timm().create_model(name, pretrained=False, depths=(1, 1, 2, 1), dims=(8, 16, 24, 32))
    chosen, left = chosen_layers(net, KN(2, 4), "flattened", paper_recipe(19).project.layers)
    linear = [info.name for info in list_layers(net) if info.kind == "Linear" and info.role != "head"]
    assert list(chosen) == linear and len(linear) == 10 and left == []


@pytest.mark.parametrize("row", [0, 23, -1])
def test_a_row_that_is_not_there_is_a_sentence(row: int) -> None:
    with pytest.raises(RecipeError, match=f"the paper's tables have no row {row}; give 1 to 22"):
        paper_recipe(row)


def test_a_row_of_ones_own_needs_no_place_in_the_table() -> None:
    own = replace(ROWS[1], row=99, pattern="4:8", tome=2)
    recipe: Recipe = paper_recipe(own, str(Path("my") / "photos"))
    assert (recipe.project.pattern, recipe.project.tome, recipe.data.name) == ("4:8", 2, str(Path("my") / "photos"))
