"""The plan as data: TOML there and back for whatever a recipe can hold, and a sentence for what it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpviz.errors import RecipeError
from mpviz.recipe import (
    BudgetPlan,
    CertifyPlan,
    DataPlan,
    GridPlan,
    ModelPlan,
    ProjectPlan,
    Recipe,
    parse_recipe,
    read_recipe,
    recipe_from_dict,
    with_settings,
)

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
NUMBERS = st.floats(allow_nan=False)
VALUES = st.recursive(
    st.booleans() | st.integers() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
OPTIONS = TEXT.filter(lambda name: name not in ("name", "weights", "pretrained"))  # these have places of their own
RECIPES = st.builds(
    Recipe,
    st.builds(ModelPlan, TEXT, TEXT, st.booleans(), st.dictionaries(OPTIONS, VALUES, max_size=4)),
    st.builds(DataPlan, TEXT, TEXT),
    st.builds(
        BudgetPlan,
        st.floats(0, 1, exclude_max=True),
        TEXT,
        NUMBERS,
        NUMBERS,
        st.dictionaries(TEXT, NUMBERS, max_size=4),
        st.lists(TEXT, max_size=4),
    ),
    st.builds(
        CertifyPlan,
        st.lists(TEXT, max_size=2),
        st.sampled_from(["test", "calibration"]),
        st.integers(0, 2**70),
        st.integers(0, 2**70),
    ),
)


STRENGTHS = st.floats(min_value=0, allow_nan=False)
OF_TYPE = {
    str: TEXT, bool: st.booleans(), float: STRENGTHS, int: st.integers(1, 2**70), list[str]: st.lists(TEXT, max_size=3),
    dict[str, Any]: st.dictionaries(TEXT, VALUES, max_size=4),
}  # fmt: skip
SHARE = {"source_sparsity": st.floats(0, 1, exclude_min=True, exclude_max=True)}
PROJECTIONS = st.builds(
    ProjectPlan, **{name: OF_TYPE[hint] for name, hint in get_type_hints(ProjectPlan).items()} | SHARE
)


# --- there and back -------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(RECIPES)
def test_toml_gives_the_same_recipe(recipe):
    assert parse_recipe(recipe.to_toml()) == recipe


@settings(max_examples=50, deadline=None)
@given(RECIPES)
def test_dictionaries_give_the_same_recipe(recipe):
    assert recipe_from_dict(recipe.to_dict()) == recipe


@settings(max_examples=60, deadline=None)
@given(PROJECTIONS)
def test_a_projection_comes_back_from_toml_and_dictionaries(plan):
    recipe = Recipe(project=plan)
    assert parse_recipe(recipe.to_toml()) == recipe == recipe_from_dict(recipe.to_dict())


HOSTILE = [
    "C:\\data\\new",
    'a "quoted" name',
    "line\nbreak\r\n\ttab",
    "\x00\x1f\x7f\x85\u2028",
    "'''",
    '"""',
    "[budget]\nsparsity = 0.9",
    "# no comment",
    "σ₊ 🜁 é",
    "a.b.c",
    "",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_text_that_looks_like_toml_stays_text(tmp_path, text):
    recipe = Recipe(
        ModelPlan(name=text, weights=text, options={text: [text, {text: text}], "deep": {text: {text: {}}}}),
        DataPlan(text, text),
        BudgetPlan(locked=[text], beta_by_role={text: 1.5}),
    )
    assert parse_recipe(recipe.to_toml()) == recipe
    (tmp_path / "recipe.toml").write_bytes(recipe.to_toml().encode())
    assert read_recipe(tmp_path / "recipe.toml") == recipe


@pytest.mark.parametrize("number", [0.1 + 0.2, 1e-310, 5e-324, 1e300, float("inf"), -0.0, 1 / 3])
def test_numbers_come_back_bit_by_bit(number):
    recipe = parse_recipe(Recipe(budget=BudgetPlan(beta=number)).to_toml())
    assert np.float64(recipe.budget.beta).tobytes() == np.float64(number).tobytes()


def test_numbers_and_paths_of_other_libraries_are_written_as_plain_ones():
    recipe = Recipe(
        ModelPlan(weights=Path("a") / "b"),
        budget=BudgetPlan(np.float64(0.25), beta=np.float32(0.5), beta_by_role={"mlp": np.int64(2)}),
        certify=CertifyPlan(samples=np.int32(7)),
    )
    back = parse_recipe(recipe.to_toml())
    assert back.model.weights == str(Path("a") / "b") and back.certify.samples == 7
    assert (back.budget.sparsity, back.budget.beta, back.budget.beta_by_role) == (0.25, 0.5, {"mlp": 2.0})


@pytest.mark.parametrize("value", [None, b"bytes", object(), 1j, "\ud800"])
def test_what_toml_cannot_hold_is_refused(value):
    with pytest.raises(RecipeError, match="a recipe"):
        Recipe(ModelPlan(options={"x": [value]})).to_toml()


def test_an_empty_recipe_is_the_default_one():
    assert parse_recipe("") == Recipe() == parse_recipe(Recipe().to_toml())
    assert parse_recipe("[budget]\nbeta = 2\n").budget == BudgetPlan(beta=2.0)


# --- what is wrong with a recipe ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "key", "near"),
    [
        ("[budget]\nsparsty = 0.5", "budget.sparsty", "sparsity"),
        ("[budgets]\nsparsity = 0.5", "budgets", "budget"),
        ("sparsity = 0.5", "sparsity", "known: model, data, budget, certify"),
        ("[model]\npre_trained = true", "model.pre_trained", "pretrained"),
        ("[certify]\nsample = 9", "certify.sample", "samples"),
        ("[project]\npatern = '2:4'", "project.patern", "pattern"),
        ("[budget]\nbeta_by_rolle = {mlp = 2}", "budget.beta_by_rolle", "beta_by_role"),
    ],
)
def test_an_unknown_key_suggests_the_nearest(text, key, near):
    with pytest.raises(RecipeError, match=f"unknown recipe key '{key}'; .*{near}"):
        parse_recipe(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[budget]\nsparsity = 'half'", "'budget.sparsity' must be float; got 'half'"),
        ("[budget]\nsparsity = true", "'budget.sparsity' must be float; got True"),
        ("[budget]\nsparsity = 1", r"'budget.sparsity' must be in \[0, 1\); got 1.0"),
        ("[budget]\nsparsity = -0.1", r"must be in \[0, 1\); got -0.1"),
        ("[budget]\nsparsity = nan", r"must be in \[0, 1\); got nan"),
        (f"[budget]\nbeta = 1{'0' * 400}", "'budget.beta' is too large"),
        ("[budget]\nlocked = 'fc1'", "'budget.locked' must be list; got 'fc1'"),
        ("[budget]\nlocked = ['a', 3]", r"'budget.locked\[1\]' must be str; got 3"),
        ("[budget.beta_by_role]\nmlp = 'strong'", "'budget.beta_by_role.mlp' must be float; got 'strong'"),
        ("[model]\nname = 3", "'model.name' must be str; got 3"),
        ("[model]\npretrained = 1", "'model.pretrained' must be bool; got 1"),
        ("[certify]\nsamples = 1.5", "'certify.samples' must be int; got 1.5"),
        ("[certify]\nsamples = true", "'certify.samples' must be int; got True"),
        ("[certify]\nsamples = -1", "'certify.samples' counts samples, 0 = all; got -1"),
        ("[certify]\nseed = -1", "'certify.seed' must be at least 0; got -1"),
        ("[certify]\nsplit = 'train'", "'certify.split' must be 'test' or 'calibration'; got 'train'"),
        ("budget = 0.5", r"\[budget\] must be a table of keys; got float"),
        ("[project]\npattern = 24", "'project.pattern' must be str; got 24"),
        ("[project]\nlayers = 'mlp'", "'project.layers' must be list; got 'mlp'"),
        ("[project]\ntome = 1.5", "'project.tome' must be int; got 1.5"),
        ("[project]\nrepair = 1", "'project.repair' must be bool; got 1"),
        ("[project]\nsource_options = 'step'", "'project.source_options' must be dict; got 'step'"),
        ("[project]\ntome = -1", "'project.tome' counts pairs of tokens, 0 = none; got -1"),
        ("[project]\nimages = 0", "'project.images' counts images, at least 1; got 0"),
        ("[project]\nalpha_ser = nan", "'project.alpha_ser' is a strength, at least 0; got nan"),
        ("[project]\nlambda1 = -1", "'project.lambda1' is a strength, at least 0; got -1.0"),
        ("[project]\nlambda2 = -1", "'project.lambda2' is a strength, at least 0; got -1.0"),
        ("[project]\nsource_sparsity = 0", r"'project.source_sparsity' must be in \(0, 1\); got 0.0"),
        ("[project]\nsource_sparsity = 1", r"'project.source_sparsity' must be in \(0, 1\); got 1.0"),
        ("[project]\nrestore_images = -3", "'project.restore_images' counts images, 0 = none; got -3"),
        ("[project]\npattern='2:4'\n[grid]\nmethods=['seb']", "'project.pattern' and 'grid.methods' exclude each"),
        ("[budget\nsparsity = 0.5", "not valid TOML: .*line 1"),
        ("[budget]\nsparsity = 0.5\nsparsity = 0.6", "not valid TOML"),
    ],
)
def test_a_wrong_value_is_named(text, words):
    with pytest.raises(RecipeError, match=words):
        parse_recipe(text)


def test_a_file_is_named_with_what_is_wrong_in_it(tmp_path):
    path = tmp_path / "recipe.toml"
    for write, words in (
        (lambda: None, "cannot read the recipe .*recipe.toml"),
        (lambda: path.write_text("[budget]\nsparsty = 1"), "recipe.toml: unknown recipe key"),
        (lambda: path.write_bytes(b"\xff\xfe[\x00"), "cannot read the recipe"),
    ):
        write()
        with pytest.raises(RecipeError, match=words):
            read_recipe(path)
    with pytest.raises(RecipeError, match="cannot read the recipe"):
        read_recipe(tmp_path)


# --- single settings ------------------------------------------------------------------------------------------------


def test_settings_replace_single_values():
    recipe = with_settings(
        Recipe(),
        [
            "budget.sparsity=0.6",
            "budget.beta = 2",
            "model.name=fashion-mlp",
            'model.weights="a=b.safetensors"',
            "model.pretrained=false",
            "model.options.num_classes=7",
            'budget.locked=["features.fc1.weight"]',
            "budget.beta_by_role.mlp=0.5",
            "data.folder=2024",
            "certify.samples=100",
        ],
    )
    assert recipe == Recipe(
        ModelPlan("fashion-mlp", "a=b.safetensors", False, {"num_classes": 7}),
        DataPlan(folder="2024"),
        BudgetPlan(0.6, beta=2.0, beta_by_role={"mlp": 0.5}, locked=["features.fc1.weight"]),
        CertifyPlan(samples=100),
    )
    assert with_settings(recipe, []) == recipe


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("budget.sparsity", "a setting looks like budget.sparsity=0.6; got 'budget.sparsity'"),
        ("=0.6", "a setting looks like"),
        ("budget.sparsty=0.6", "unknown recipe key 'budget.sparsty'; did you mean 'sparsity'"),
        ("bugdet.sparsity=0.6", "unknown recipe key 'bugdet'; did you mean 'budget'"),
        ("budget.sparsity=much", "'budget.sparsity' must be float; got 'much'"),
        ("budget.sparsity=1.5", "must be in"),
        ("budget.sparsity.more=1", "'budget.sparsity' is no table"),
        ("budget=0.5", "must be a table of keys"),
    ],
)
def test_a_wrong_setting_is_named(setting, words):
    with pytest.raises(RecipeError, match=words):
        with_settings(Recipe(), [setting])


def test_a_pattern_is_set_by_a_setting_and_goes_with_a_grid_in_no_recipe():
    settings = ["project.pattern=2:4", "project.layers=['mlp']", "project.source_options.step=0.1", "project.tome=4"]
    recipe = with_settings(Recipe(), settings)
    assert recipe.project == ProjectPlan("2:4", layers=["mlp"], source_options={"step": 0.1}, tome=4)
    assert not Recipe().project.pattern, "by default there is none"
    with pytest.raises(RecipeError, match="exclude each other; make two recipes of it"):
        with_settings(recipe, ["grid.methods=['seb']"])
    assert with_settings(Recipe(grid=GridPlan(["seb"])), ["project.tome=4"]).project.tome == 4
