"""Values that mean nothing are refused in a sentence, before any work."""

import math

import pytest

import mpviz as mp
from mpviz.errors import BudgetError, RecipeError, TrainingError
from mpviz.grid import run_grid
from mpviz.prune.restore import stages
from mpviz.recipe import recipe_from_dict
from mpviz.train.step_plan import StepPlan


@pytest.fixture(scope="module")
def mlp():
    return mp.load_model("fashion-mlp")


@pytest.mark.parametrize("method", ["magnitude", "seb", "sub-edge"])
def test_a_sparsity_is_a_number(mlp, method):
    with pytest.raises(BudgetError, match=r"got 0\.5"):
        mp.prune_model(mlp, method, "0.5", table=mp.analyze(mlp))


def test_tables_and_calibrations_of_another_kind_are_told(mlp):
    with pytest.raises(BudgetError, match=r"give table=mp\.analyze"):
        mp.prune_model(mlp, "seb", 0.5, table="x")
    with pytest.raises(BudgetError, match=r"calibration is a Split; give mp\.second_moments"):
        mp.prune_model(mlp, "wanda", 0.5, calibration=mp.load_data("fashion-mnist").calibration)


def test_moments_that_cannot_be_inverted_are_told(mlp):
    few = mp.second_moments(mlp, mp.load_data("fashion-mnist").calibration, n=8)
    with pytest.raises(BudgetError, match=r"cannot be inverted with a damping of 1e-300; take 0\.01"):
        mp.prune_model(mlp, "sparsegpt", 0.5, calibration=few, damping=1e-300)


def test_a_beta_of_layers_that_are_not_there_is_told():
    recipe = recipe_from_dict({"model": {"name": "fashion-mlp"}, "budget": {"beta_by_role": {"attention": 2.0}}})
    with pytest.raises(BudgetError, match=r"no prunable attention layers for a β of their own; it has: mlp"):
        mp.run(recipe)


def test_a_workbench_leaves_out_the_beta_of_layers_that_are_not_there():
    wb = mp.Workbench("fashion-vit", samples=20)
    try:
        wb.beta_attention = 2.0
        assert wb.plan.beta_by_role == {"attention": 2.0}
        wb.open("fashion-mlp").wait(60)
        assert wb.model == "fashion-mlp" and not wb.error and wb.plan.beta_by_role == {}
        wb.sparsity = 0.7
        assert not wb.error and wb.budgets["removed"].sum() == round(0.7 * wb.budgets["params"].sum())
    finally:
        wb.close()


@pytest.mark.parametrize("options", [
    {"until": math.nan}, {"until": -1.0}, {"until": 5.0}, {"ratio": math.nan}, {"ratio": math.inf}, {"drop": math.nan},
    {"selection": math.inf}, {"recovery": math.nan},
])  # fmt: skip
def test_steps_that_mean_nothing_are_refused(options):
    with pytest.raises(TrainingError):
        StepPlan(**options).checked()


@pytest.mark.parametrize("options", [{"ratio": math.nan}, {"magnitude_until": math.nan}, {"magnitude_until": 2.0}])
def test_stages_that_mean_nothing_are_refused(options):
    with pytest.raises(BudgetError):
        stages(0.5, **options)


def test_two_factors_are_no_option_of_a_grid(tmp_path):
    grid = {"methods": ["sub-edge"], "sparsities": [0.5], "options": {"sub-edge": {"factors": True}}}
    recipe = recipe_from_dict({"model": {"name": "fashion-mlp"}, "grid": grid, "certify": {"samples": 20}})
    with pytest.raises(RecipeError, match=r"grid.options.sub-edge.factors.*mp\.prune_model"):
        run_grid(recipe, tmp_path / "grid")
