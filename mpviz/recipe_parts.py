"""What a recipe names, as objects of the floors below: its network and how it trains; checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import nn

from mpviz.errors import BudgetError, RecipeError, TrainingError
from mpviz.nets.data import Split, Splits
from mpviz.nets.zoo import load_model
from mpviz.prune.magnitude import SEB, Magnitude, Regimes
from mpviz.prune.methods import METHODS, method_of
from mpviz.prune.restore import BELOW
from mpviz.recipe import STEPPED, Recipe
from mpviz.recipe_values import built
from mpviz.train.any_method import split_options
from mpviz.train.augment import FlipShift, TimmTransform, in_memory
from mpviz.train.plan import RecoveryPlan, make_plan
from mpviz.train.processes import choose_device
from mpviz.train.ser import checked_recovery
from mpviz.train.step_plan import StepPlan

GRADUAL = ("magnitude", "seb", "regimes")  # prune in steps where something is
# options of `distill` and StepPlan that other keys of a recipe decide
_ELSEWHERE = {
    "epochs": "recover.epochs", "optimizer": "recover.optimizer", "learning_rate": "recover.learning_rate",
    "batch": "recover.batch", "augment": "recover.augment", "seed": "grid.seeds",
}  # fmt: skip
_DECIDED = {
    "schedule": "grid.methods", "step": "grid.sparsities", "targets": "grid.sparsities", "ratio": "recover.ratio",
    "selection": "recover.selection", "recovery": "recover.epochs", "last": "recover.epochs",
    "equal": "recover.selection",
}  # fmt: skip


@dataclass(frozen=True)
class _Options(RecoveryPlan):
    """All that [recover.options] may hold, beside what other keys decide."""

    every: int = 200
    workers: int = 0
    device: str | None = None


def dense_model(recipe: Recipe) -> nn.Module:
    """The network of a recipe, before pruning."""
    plan = recipe.model
    return load_model(plan.name, pretrained=plan.pretrained, weights=plan.weights or None, **plan.options)


def training_split(recipe: Recipe, data: Splits) -> Split:
    """The images that a recipe trains on."""
    return data.whole_train if recipe.recover.whole else data.train


def recovery_options(recipe: Recipe, train: Split | None = None) -> dict[str, Any]:
    """The arguments of `mp.distill` that a recipe decides, but for epochs and seed.

    train: the training data; None leaves the augmentation out. Raises RecipeError for options that `distill` does not
    have, that other keys decide, or whose values it would refuse.
    """
    plan = recipe.recover
    _refuse(plan.options, "recover.options", _ELSEWHERE)
    options = _given(_Options, plan.options, "recover.options")
    given: dict[str, Any] = {"optimizer": plan.optimizer, **options}
    if plan.learning_rate:
        given["learning_rate"] = plan.learning_rate
    if plan.batch:
        given["batch"] = plan.batch
    known = {field.name for field in fields(RecoveryPlan)}
    try:
        make_plan(epochs=plan.epochs or 1.0, **{name: value for name, value in given.items() if name in known})
        choose_device(options.get("device"))
    except TrainingError as error:
        raise RecipeError(f"recipe table [recover]: {error}") from error
    for name, least in (("every", 1), ("workers", 0)):
        if options.get(name, least) < least:
            raise RecipeError(f"recipe key 'recover.options.{name}' is at least {least}; got {options[name]}")
    if plan.augment and train is not None:
        given["augment"] = FlipShift() if in_memory(train.dataset) else TimmTransform()
    return given


def source_options(recipe: Recipe, train: Split | None = None) -> dict[str, Any]:
    """The options of `mp.prune_model` that prune the source of a projection. train: as in `recovery_options`.

    Raises RecipeError for options that the source does not have, or whose values it would refuse.
    """
    plan, options = recipe.project, dict(recipe.project.source_options)
    try:
        if plan.source in METHODS:
            method_of(plan.source, options)
        elif plan.source in STEPPED:
            options = recovery_options(recipe, train) | options
            steps, training = split_options(plan.source, options)
            steps.stages(plan.source_sparsity)
            checked_recovery(training)
        elif options:
            raise BudgetError(f"the source '{plan.source}' is not pruned here; leave its options out")
    except (BudgetError, TrainingError) as error:
        raise RecipeError(f"recipe key 'project.source_options': {error}") from error
    return options


def in_steps(method: str, recipe: Recipe) -> bool:
    """Whether a method of a grid goes from sparsity to sparsity; otherwise each cell starts from the dense network."""
    return method in STEPPED or (method in GRADUAL and recipe.recover.epochs > 0)


def method_options(method: str, recipe: Recipe) -> dict[str, Any]:
    """The options of a method that prunes at once. Raises RecipeError for unknown ones and wrong types."""
    return _given(METHODS[method], recipe.grid.options.get(method, {}), f"grid.options.{method}")


def step_plan(method: str, recipe: Recipe) -> StepPlan:
    """How a method of a grid prunes in steps. The options of "seb" are those it has at once (`SEB`).

    Raises RecipeError for options that it does not have, that other keys decide, or that mean nothing.
    """
    where, options, grid, recover = f"grid.options.{method}", _options(method, recipe), recipe.grid, recipe.recover
    if method == "seb":
        plan = StepPlan("seb", seb=built(SEB, options, where))
    elif method == "regimes":
        built(Regimes, options, where)
        plan = StepPlan("seb")
    elif method == "magnitude":
        if built(Magnitude, options, where).scope != "global":
            raise RecipeError(f"recipe key '{where}.scope': steps with recovery are global; leave the option out")
        plan = StepPlan("magnitude")
    else:
        _refuse(options, where, _DECIDED)
        plan = replace(built(StepPlan, options, where), schedule=method)
    # the hybrid restores from `BELOW` on: all stop there, so that none trains less
    stops = {*grid.sparsities} | ({BELOW} if BELOW < grid.sparsities[-1] else set())
    plan = replace(
        plan, ratio=recover.ratio, selection=recover.selection, recovery=recover.epochs, targets=tuple(sorted(stops)),
        equal=recover.epochs > 0,
    )  # fmt: skip
    try:
        plan.checked().stages(grid.sparsities[-1])
    except (TrainingError, BudgetError) as error:
        raise RecipeError(f"recipe key '{where}': {error}") from error
    return plan


def _options(method: str, recipe: Recipe) -> Any:
    return recipe.grid.options.get(method, {})


def _given(cls: type[Any], options: Any, where: str) -> dict[str, Any]:
    """The options that are given, each of the type of its field."""
    made = built(cls, options, where)
    return {name: getattr(made, name) for name in options}


def _refuse(options: Any, where: str, elsewhere: Mapping[str, str]) -> None:
    for name in options if isinstance(options, Mapping) else ():
        if name in elsewhere:
            raise RecipeError(f"recipe key '{where}.{name}' follows from {elsewhere[name]}; set that instead")
