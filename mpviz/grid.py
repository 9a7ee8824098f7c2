"""Running a recipe over a grid of methods, sparsities and seeds; each finished cell is kept, and a stop loses one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mpviz.errors import Cancelled, RecipeError, TrainingError, nearest
from mpviz.grid_folder import GridFolder, by_layer, log_rows
from mpviz.grid_results import GridResult
from mpviz.nets.calibrate import Moments, second_moments
from mpviz.nets.data import Splits, load_data
from mpviz.nets.spectra import analyze
from mpviz.nets.store import save
from mpviz.pipeline import Progress, Samples, Stop
from mpviz.prune.allocate import allocate
from mpviz.prune.magnitude import SEB, roles_of
from mpviz.prune.methods import LOOK_AT_DATA, METHODS, prune_once
from mpviz.recipe import STEPPED, Recipe, checked, read_recipe
from mpviz.recipe_parts import (
    dense_model,
    in_steps,
    method_options,
    recovery_options,
    step_plan,
    training_split,
)
from mpviz.train.distill import distill
from mpviz.train.processes import choose_device
from mpviz.train.ser import prune_in_steps


class _Grid:
    """The dense network, what is known of it, and the samples that all cells are measured on."""

    def __init__(self, recipe: Recipe, folder: GridFolder, model: nn.Module, data: Splits, cancelled: Stop | None):
        self.recipe, self.folder, self.model, self.data, self.cancelled = recipe, folder, model, data, cancelled
        plan = recipe.certify
        split = getattr(data, plan.split)
        self.samples = Samples(model, split, plan.samples or None, plan.seed, cancelled=cancelled)
        self.table = analyze(model, cancelled=cancelled)
        self.train = training_split(recipe, data)
        self.recovery = recovery_options(recipe, self.train)
        self.moments: dict[int, dict[str, Moments]] = {}
        folder.roles = roles_of(self.table)
        for method in recipe.grid.methods:
            if recipe.grid.options.get(method, {}).get("factors"):
                raise RecipeError(
                    f"recipe key 'grid.options.{method}.factors': a grid keeps masks of whole matrices; leave it out, "
                    "and make two factors with mp.prune_model"
                )
            seb = _budgets(method, recipe)
            if seb is not None:  # its options name layers and roles, which are known only now
                allocate(self.table, 0.0, **vars(seb))

    def numbers(self, network: nn.Module) -> dict[str, Any]:
        """Of the pruned network on the recipe's samples, measured against the dense one."""
        return dict(self.samples.measure(network).numbers)

    def at_once(self, method: str, seed: int, tell: Progress) -> None:
        """Cells that each start from the dense network."""
        recover, place = self.recipe.recover, self.folder.path(method, seed)
        sparsities = self.recipe.grid.sparsities
        for number, sparsity in enumerate(sparsities):
            if (place / f"cell-{sparsity:.4f}.json").exists():
                self.folder.tidy(place, sparsity)  # a kill may have come between the record and that
                continue
            found = prune_once(
                self.model, method, sparsity, table=self.table, calibration=self._moments(method, seed), seed=seed,
                cancelled=self.cancelled or (lambda: False), **method_options(method, self.recipe),
            )  # fmt: skip
            network = found.of(self.model)
            phases = {"pruned": self.numbers(network)}
            if recover.epochs:
                network = distill(
                    network, self.model, self.train, found.masks, recover.epochs + recover.selection,
                    seed=seed, out=place / f"recovery-{sparsity:.4f}", progress=_part(tell, number, len(sparsities)),
                    cancelled=self.cancelled, **self.recovery,
                ).model  # fmt: skip
                phases["recovered"] = self.numbers(network)
            if self.folder.writes:
                save(
                    place / f"stage-{sparsity:.4f}.safetensors", network, found.masks, recipe=self.recipe.to_dict(),
                    results=phases,
                )  # fmt: skip
            self.folder.keep(method, seed, sparsity, found.masks, phases, log_rows(found.log))
            tell((number + 1) / len(sparsities), f"{100 * sparsity:.0f} %")

    def in_steps(self, method: str, seed: int, tell: Progress) -> None:
        """One path: each cell starts where the one before it ended."""
        place, sparsities = self.folder.path(method, seed), self.recipe.grid.sparsities
        log: list[dict[str, Any]] = []

        def after(row: dict[str, Any], network: nn.Module, masks: Mapping[str, Tensor]) -> None:
            target = row["target"]
            log.extend(by_layer(row, masks, self.folder.roles))
            if target in sparsities:
                if not (place / f"cell-{target:.4f}.json").exists():
                    early = place / f"pruned-{target:.4f}.json"
                    phases = {"pruned": json.loads(early.read_text(encoding="utf-8"))} if early.exists() else {}
                    phases["recovered" if row["recovery_epochs"] else "pruned"] = self.numbers(network)
                    back = [
                        {name: row.get(f"{what} in {name}", 0) for name in masks} for what in ("restored", "reservoir")
                    ]
                    self.folder.keep(method, seed, target, masks, phases, log, *back)
                log.clear()
            self.folder.tidy(place, target)

        def before(target: float, network: nn.Module) -> None:
            self.folder.note(place / f"pruned-{target:.4f}.json", self.numbers(network))

        prune_in_steps(
            self.model, self.train, sparsities[-1], step_plan(method, self.recipe), check=self.data.calibration,
            seed=seed, out=place, progress=tell, cancelled=self.cancelled, after_stage=after, before_recovery=before,
            **self.recovery,
        )  # fmt: skip

    def _moments(self, method: str, seed: int) -> dict[str, Moments] | None:
        if method not in LOOK_AT_DATA:
            return None
        if seed not in self.moments:
            self.moments[seed] = second_moments(
                self.model, self.data.calibration, n=self.recipe.grid.calibration, seed=seed
            )
        return self.moments[seed]


def run_grid(
    recipe: Recipe | str | Path,
    out: str | Path,
    progress: Progress | None = None,
    cancelled: Stop | None = None,
    report: Callable[[GridResult], str] | None = None,
) -> GridResult:
    """Run all methods of ``recipe.grid`` and write metrics.csv, layers.csv, log.csv, environment.json and the recipe.

    Each cell's checkpoint (weights and masks; `mp.load` opens it) and record are kept in ``out/cells`` as soon as it is
    done, so a call on the same folder goes on where it stopped, and may ask for more methods, seeds or, for methods
    that do not go in steps, sparsities; what is there can be looked at meanwhile (`read_grid`). Methods: those of
    `mp.prune_model`, and "ser", "hybrid", "drop-threshold" of `prune_in_steps`; with ``recover.epochs`` "magnitude",
    "seb" and "regimes" too go in steps over the sparsities. A method in which nothing is random runs with the first
    seed only. All methods see the same number of training images. Test samples only measure. The network is pruned,
    trained and measured on the device of ``recover.options.device``, on a GPU by itself where there is one. report:
    makes report.html of the result.

    Raises RecipeError for unknown methods, options that mean nothing, a grid without methods or certificates other than
    "measured", CheckpointError when `out` holds another recipe's cells, and the errors of pruning and training;
    Cancelled when asked to stop.
    """
    recipe = checked_grid(recipe if isinstance(recipe, Recipe) else read_recipe(recipe))
    folder = GridFolder(Path(out))
    folder.check(recipe)
    model = dense_model(recipe)
    data = load_data(recipe.data.name, recipe.data.folder or None, model)
    device, _ = choose_device(recovery_options(recipe).get("device"))
    grid = _Grid(recipe, folder, model.to(device), data, cancelled)
    folder.claim(recipe)
    paths = _paths(recipe)
    for number, (method, seed) in enumerate(paths):
        if cancelled is not None and cancelled():
            raise Cancelled(f"the grid was cancelled; what is finished is kept in {out}")
        tell = _part(progress, number, len(paths), f"{method}, seed {seed}: ")
        try:
            (grid.in_steps if in_steps(method, recipe) else grid.at_once)(method, seed, tell)
        except TrainingError as error:
            folder.failed(method, seed, error)
            raise
    result = folder.finish(recipe, report)
    if progress is not None:
        progress(1.0, "done")
    return result


def checked_grid(recipe: Recipe) -> Recipe:
    """The recipe of a grid. Raises RecipeError for what `run_grid` refuses before it loads anything."""
    known = (*METHODS, *STEPPED)
    for method in recipe.grid.methods:
        if method not in known:
            raise RecipeError(f"recipe key 'grid.methods' names the unknown '{method}'; {nearest(method, known)}")
    for method in recipe.grid.options:
        if method not in recipe.grid.methods:
            raise RecipeError(f"recipe key 'grid.options.{method}' is of no method in grid.methods")
    if recipe.project.pattern and not recipe.grid.methods:
        raise RecipeError("this recipe has a k:n pattern (project.pattern); give it to mp.run_projection")
    if not recipe.grid.methods:
        raise RecipeError("the recipe has no grid.methods; name some, such as methods = ['magnitude', 'hybrid']")
    if recipe.certify.tiers != ["measured"]:
        raise RecipeError("a grid measures; set certify.tiers = ['measured'], and prove bounds of one plan at a time")
    recipe = checked(recipe)
    recovery_options(recipe)
    for method in recipe.grid.methods:
        (step_plan if in_steps(method, recipe) else method_options)(method, recipe)
    return recipe


def _budgets(method: str, recipe: Recipe) -> SEB | None:
    """The strengths that a method's options ask for."""
    if in_steps(method, recipe):
        return step_plan(method, recipe).seb
    return SEB(**method_options(method, recipe)) if method == "seb" else None


def _paths(recipe: Recipe) -> list[tuple[str, int]]:
    made = []
    for method in recipe.grid.methods:
        random = recipe.recover.epochs > 0 or method in (*STEPPED, *LOOK_AT_DATA)
        made += [(method, seed) for seed in (recipe.grid.seeds if random else recipe.grid.seeds[:1])]
    return made


def _part(progress: Progress | None, number: int, parts: int, head: str = "") -> Progress:
    def tell(share: float, words: str) -> None:
        if progress is not None:
            progress((number + share) / parts, head + words)

    return tell
