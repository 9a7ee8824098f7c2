"""The plan as data: what the notebook, the dashboard, the command line and Python all edit and run."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from mpviz.errors import RecipeError
from mpviz.recipe_values import built, toml_section

STEPPED = ("ser", "hybrid", "drop-threshold")  # prune in steps even where nothing is recovered


@dataclass(frozen=True)
class ModelPlan:
    """Which network: a name for `mp.load_model`, and a local safetensors file of weights where wanted."""

    name: str = "fashion-vit"
    weights: str = ""
    pretrained: bool = True
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DataPlan:
    """Which data: a name for `mp.load_data`, and its folder where it needs one."""

    name: str = "fashion-mnist"
    folder: str = ""


@dataclass(frozen=True)
class BudgetPlan:
    """How much is removed and where: the arguments of `mp.allocate`."""

    sparsity: float = 0.5
    signal: str = "sigma_plus"
    beta: float = 1.25
    decay_end: float = 0.7
    beta_by_role: dict[str, float] = field(default_factory=dict)
    locked: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class CertifyPlan:
    """Which samples are certified: the split, and how many of it (0 = all)."""

    tiers: list[str] = field(default_factory=lambda: ["measured"])
    split: str = "test"
    samples: int = 0
    seed: int = 0


@dataclass(frozen=True)
class GridPlan:
    """Methods to compare, at which sparsities and with which seeds; no methods: the run is the budget's alone.

    seeds: of calibration images and training; a run without methods trains with its one seed. calibration: images of
    the calibration split for methods that look at data. options: of single methods, by name; they mean the same with
    and without recovery.
    """

    methods: list[str] = field(default_factory=list)
    sparsities: list[float] = field(default_factory=lambda: [0.3, 0.5, 0.7])
    seeds: list[int] = field(default_factory=lambda: [0])
    calibration: int = 256
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RecoverPlan:
    """Training after pruning, with the dense network as teacher.

    epochs: 0 for none. In a grid, selection: epochs of the selection phase of prune–restore; methods without one train
    as many epochs longer. ratio: what a step of prune–restore removes over what it keeps removed. learning_rate,
    batch: 0 for the optimizer's own. augment: mirror and shift. whole: on all training images, those among them that
    are otherwise set aside for calibration. options: further ones of `mp.distill`.
    """

    epochs: float = 0.0
    selection: float = 1.0
    ratio: float = 1.6
    optimizer: str = "adamw"
    learning_rate: float = 0.0
    batch: int = 0
    augment: bool = True
    whole: bool = False
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ProjectPlan:
    """A k:n pattern in place of a budget: the arguments of `mp.project`. pattern: "" for none.

    source: "dense", a method of `mp.prune_model` that prunes to source_sparsity first ("ser", "hybrid", "magnitude"),
    with source_options, or a checkpoint of `mp.save`. layers: parameter names or roles; none for all prunable ones,
    "fitting" for those whose width n divides. tome: pairs of tokens merged a block. images: of the calibration split.
    restore_images: images of the calibration split on which a pruned source's prune–restore certificates are taken, 0
    for none; lambda2, lambda1: the penalties that they weigh, 0 for those that a bundled network was trained with.
    """

    pattern: str = ""
    criterion: str = "cast"
    damping: float = 0.0
    repair: bool = False
    renew: bool = False
    permute: str = "none"
    foldable: bool = False
    conv: str = "flattened"
    alpha_ser: float = 0.0
    prior: str = "text"
    free_restoration: bool = True
    tome: int = 0
    layers: list[str] = field(default_factory=list)
    images: int = 256
    source: str = "dense"
    source_sparsity: float = 0.35
    source_options: dict[str, Any] = field(default_factory=dict)
    restore_images: int = 0
    lambda2: float = 0.0
    lambda1: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """A whole plan. ``Recipe()`` prunes the bundled ViT by half."""

    model: ModelPlan = field(default_factory=ModelPlan)
    data: DataPlan = field(default_factory=DataPlan)
    budget: BudgetPlan = field(default_factory=BudgetPlan)
    certify: CertifyPlan = field(default_factory=CertifyPlan)
    grid: GridPlan = field(default_factory=GridPlan)
    recover: RecoverPlan = field(default_factory=RecoverPlan)
    project: ProjectPlan = field(default_factory=ProjectPlan)

    @property
    def kind(self) -> Literal["plan", "grid", "projection"]:
        """What runs it: `mp.run`, `mp.run_grid` or `mp.run_projection`."""
        return "grid" if self.grid.methods else "projection" if self.project.pattern else "plan"

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dictionaries, as in the TOML file."""
        return asdict(self)

    def to_toml(self) -> str:
        """The recipe as TOML text; `parse_recipe` reads it back."""
        return "\n".join(toml_section((name,), values) for name, values in self.to_dict().items())


def recipe_from_dict(values: Mapping[str, Any]) -> Recipe:
    """A recipe from nested dictionaries. Raises RecipeError for unknown keys (with the nearest) and wrong types."""
    return checked(built(Recipe, values, ""))


def checked(recipe: Recipe) -> Recipe:
    """The same recipe. Raises RecipeError for values that no run could use."""
    built(Recipe, recipe.to_dict(), "")  # one built in Python may hold values of any type
    if not 0 <= recipe.budget.sparsity < 1:
        raise RecipeError(f"recipe key 'budget.sparsity' must be in [0, 1); got {recipe.budget.sparsity}")
    if recipe.certify.split not in ("test", "calibration"):
        raise RecipeError(f"recipe key 'certify.split' must be 'test' or 'calibration'; got '{recipe.certify.split}'")
    if recipe.certify.samples < 0:
        raise RecipeError(f"recipe key 'certify.samples' counts samples, 0 = all; got {recipe.certify.samples}")
    if recipe.certify.seed < 0:
        raise RecipeError(f"recipe key 'certify.seed' must be at least 0; got {recipe.certify.seed}")
    for option in ("name", "weights", "pretrained"):
        if option in recipe.model.options:
            raise RecipeError(f"recipe key 'model.options.{option}' has a place of its own; set model.{option}")
    _check_grid(recipe.grid, recipe.recover)
    _check_project(recipe)
    if recipe.recover.whole:
        _check_whole(recipe)
    return recipe


def _check_whole(recipe: Recipe) -> None:
    """What is trained on must not measure."""
    if recipe.certify.split == "calibration":
        raise RecipeError(
            "recipe key 'recover.whole' trains on the calibration images, which certify.split = 'calibration' measures "
            "on; measure on 'test', or leave recover.whole out"
        )
    if "drop-threshold" in (*recipe.grid.methods, recipe.project.source):
        raise RecipeError(
            "recipe key 'recover.whole' trains on the calibration images, which the method 'drop-threshold' measures "
            "its drops on; leave recover.whole out"
        )


def _check_project(recipe: Recipe) -> None:
    plan = recipe.project
    if plan.pattern and recipe.grid.methods:
        raise RecipeError("recipe keys 'project.pattern' and 'grid.methods' exclude each other; make two recipes of it")
    wrong = {
        "alpha_ser": ("is a strength, at least 0", not plan.alpha_ser >= 0),
        "damping": ("is a share of the mean input power, at least 0", not plan.damping >= 0),
        "tome": ("counts pairs of tokens, 0 = none", plan.tome < 0),
        "images": ("counts images, at least 1", plan.images < 1),
        "source_sparsity": ("must be in (0, 1)", not 0 < plan.source_sparsity < 1),
        "restore_images": ("counts images, 0 = none", plan.restore_images < 0),
        "lambda2": ("is a strength, at least 0", not plan.lambda2 >= 0),
        "lambda1": ("is a strength, at least 0", not plan.lambda1 >= 0),
    }
    for key, (words, bad) in wrong.items():
        if bad:
            raise RecipeError(f"recipe key 'project.{key}' {words}; got {getattr(plan, key)}")


def _check_grid(grid: GridPlan, recover: RecoverPlan) -> None:
    wrong = {
        "grid.sparsities": ("must rise, each in (0, 1)", not _rising(grid.sparsities)),
        "grid.methods": ("names a method twice", len(set(grid.methods)) < len(grid.methods)),
        "grid.seeds": ("must be different numbers from 0 on", not grid.seeds or len(set(grid.seeds)) < len(grid.seeds)
                       or min(grid.seeds) < 0),
        "grid.calibration": ("counts images, at least 1", grid.calibration < 1),
        "recover.epochs": ("counts epochs, 0 = none", not recover.epochs >= 0),
        "recover.selection": ("must be above 0", not recover.selection > 0),
        "recover.ratio": ("must be at least 1", not recover.ratio >= 1),
        "recover.learning_rate": ("must be above 0, or 0 for the optimizer's own", not recover.learning_rate >= 0),
        "recover.batch": ("counts images, 0 for the optimizer's own", recover.batch < 0),
    }  # fmt: skip
    for key, (words, bad) in wrong.items():
        if bad:
            part, name = key.split(".")
            raise RecipeError(f"recipe key '{key}' {words}; got {getattr({'grid': grid}.get(part, recover), name)}")


def _rising(values: list[float]) -> bool:
    return bool(values) and values == sorted(set(values)) and 0 < values[0] and values[-1] < 1


def with_settings(recipe: Recipe, settings: Iterable[str]) -> Recipe:
    """The recipe with single values replaced, each given as "key=value" with the value in TOML; text needs no quotes.

    >>> with_settings(Recipe(), ["budget.sparsity=0.6", "model.name=fashion-mlp"]).budget.sparsity
    0.6

    Raises RecipeError for a setting without "=", an unknown key (with the nearest) or a wrong type.
    """
    values = recipe.to_dict()
    for setting in settings:
        key, equals, text = setting.partition("=")
        *tables, last = key.strip().split(".")
        if not equals or not last:
            raise RecipeError(f"a setting looks like budget.sparsity=0.6; got '{setting}'")
        place = values
        for table in tables:
            place = place.setdefault(table, {})
            if not isinstance(place, dict):
                raise RecipeError(
                    f"recipe key '{'.'.join(tables)}' is no table; a setting looks like budget.sparsity=0.6"
                )
        place[last] = _setting(text.strip(), place.get(last))
    return recipe_from_dict(values)


def _setting(text: str, before: Any) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    value = parsed["value"]
    if isinstance(before, str) and not isinstance(value, str):  # 2024 and true are names where a name was
        return text
    return value


def parse_recipe(text: str) -> Recipe:
    """A recipe from TOML text. Raises RecipeError naming the line or the key that is wrong."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"the recipe is not valid TOML: {error}") from error
    return recipe_from_dict(values)


def read_recipe(path: str | Path) -> Recipe:
    """A recipe from a TOML file. Raises RecipeError when it is missing or wrong."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read the recipe {path}: {error}") from error
    try:
        return parse_recipe(text)
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from error
