"""Which runs a visitor of a served dashboard may submit: networks and data that are offered, within bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mpviz.errors import AccessError
from mpviz.recipe import STEPPED, Recipe
from mpviz.workbench.policy import SUFFIX, Policy
from mpviz.workbench.run_store import Run

WAITING = 3  # runs of one visitor that wait or run
WAITING_OF_ALL = 50
MOST_CELLS = 60
MOST_EPOCHS = 30.0  # of one visitor's run, over all of its trainings
_SOURCE = 10.0  # epochs that a projection's source of these kinds takes, about
_TRAINING = ("temperature", "weight", "weight_decay", "momentum", "smoothing", "warmup", "clip", "mixup", "cutmix")


def admitted(recipe: Recipe, policy: Policy) -> Recipe:
    """The recipe as it may be run: its names as what is opened for them.

    Where the policy restricts visitors, a recipe names networks and data that are offered, and nothing else of this
    machine. Raises AccessError.
    """
    if not policy.restricted:
        return recipe
    model, source = recipe.model, recipe.project.source
    if model.options:
        raise AccessError("this server takes no model.options in a recipe; leave them out")
    for key in recipe.recover.options:
        if key not in _TRAINING:
            raise AccessError(f"this server takes no recover.options.{key} in a recipe; leave it out")
    if recipe.project.source_options:
        raise AccessError("this server takes no project.source_options in a recipe; leave them out")
    cells = cells_of(recipe)
    if cells > MOST_CELLS:
        raise AccessError(f"this grid has {cells} cells, and this server runs up to {MOST_CELLS}")
    epochs = trained(recipe)
    if epochs > MOST_EPOCHS:
        raise AccessError(f"this recipe trains {epochs:g} epochs in all, and this server up to {MOST_EPOCHS:g}")
    data, folder = policy.data_set(recipe.data.name, recipe.data.folder or None)
    return replace(
        recipe,
        model=replace(
            model, name=policy.model(model.name), weights=policy.model(model.weights) if model.weights else ""
        ),
        data=replace(recipe.data, name=data, folder=folder or ""),
        project=replace(recipe.project, source=policy.model(source) if source.endswith(SUFFIX) else source),
    )


def cells_of(recipe: Recipe) -> int:
    """Cells of a grid at most; 1 for a run without methods."""
    grid = recipe.grid
    return len(grid.methods) * len(grid.sparsities) * len(grid.seeds) if grid.methods else 1


def trained(recipe: Recipe) -> float:
    """Epochs that a recipe trains at most, over all cells and steps."""
    recover, stepped = recipe.recover, set(STEPPED) & {*recipe.grid.methods, recipe.project.source}
    if not recipe.grid.methods:
        return recover.epochs + (_SOURCE if stepped else 0.0)
    if not recover.epochs and not stepped:
        return 0.0
    extra = len(recipe.grid.methods) * len(recipe.grid.seeds)  # the step at which the hybrid begins to restore
    return (recover.epochs + recover.selection) * (cells_of(recipe) + extra)


def check_room(runs: Sequence[Run], owner: str) -> None:
    """Raises AccessError when a visitor, or all of them, have as many runs in the queue as it takes."""
    waiting = [run for run in runs if run.state in ("queued", "running")]
    if sum(run.owner == owner for run in waiting) >= WAITING:
        raise AccessError(f"you have {WAITING} runs in the queue; wait for one, or cancel one")
    if len(waiting) >= WAITING_OF_ALL:
        raise AccessError(f"the queue of this server is full, with {WAITING_OF_ALL} runs; try again later")


def seen_by(runs: Sequence[Run], owner: str, restricted: bool) -> list[Run]:
    """The runs that a visitor may see and change: all on one's own machine, else those of the same owner."""
    return [run for run in runs if not restricted or (owner and run.owner == owner)]
