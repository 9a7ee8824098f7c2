"""Running a recipe over a grid of methods, sparsities and seeds; each finished cell is kept, and a stop loses one."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mpviz.errors import BudgetError, Cancelled, CheckpointError, RecipeError, nearest
from mpviz.files import write_text, write_together
from mpviz.grid_results import GridResult, environment, measured_change, read_grid
from mpviz.nets.calibrate import Moments, second_moments
from mpviz.nets.data import ImageArrays, Split, Splits, load_data
from mpviz.nets.forward import logits
from mpviz.nets.spectra import analyze
from mpviz.nets.store import save
from mpviz.pipeline import Progress, Stop, check_folder, dense_model, text_writer
from mpviz.prune.methods import LOOK_AT_DATA, METHODS, method_of, prune_model
from mpviz.prune.restore import BELOW
from mpviz.recipe import Recipe, checked, read_recipe
from mpviz.train.augment import FlipShift, TimmTransform
from mpviz.train.distill import distill
from mpviz.train.ser import SCHEDULES, StepPlan, prune_in_steps

STEPPED = ("ser", "hybrid", "drop-threshold")  # prune in steps even where nothing is recovered
FREE = ("methods", "seeds", "sparsities")  # of the grid: a run may be taken up with more of them


@dataclass
class _Grid:
    recipe: Recipe
    folder: Path
    model: nn.Module
    data: Splits
    cancelled: Stop | None
    moments: dict[int, dict[str, Moments]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        plan = self.recipe.certify
        measured: Split = getattr(self.data, plan.split)
        self.images, self.labels = measured.sample(plan.samples or None, plan.seed)
        self.split = plan.split
        self.dense = logits(self.model, self.images, cancelled=self.cancelled)
        self.table = analyze(self.model, cancelled=self.cancelled)
        self.roles = self.table["role"].to_dict()

    def numbers(self, network: nn.Module) -> dict[str, Any]:
        """Of the pruned network on the recipe's samples, measured against the dense one."""
        after = logits(network, self.images, cancelled=self.cancelled)
        return measured_change(self.dense, after, self.labels, self.split)

    def keep(
        self, place: Path, method: str, seed: int, sparsity: float, masks: Mapping[str, Tensor],
        phases: Mapping[str, Mapping[str, Any]], restored: Mapping[str, int] | None = None,
    ) -> None:  # fmt: skip
        """Write the record of a finished cell."""
        head = {"method": method, "seed": seed, "sparsity": sparsity}
        back = dict(restored or {})
        gone = {name: int((~mask).sum()) for name, mask in masks.items()}
        counts = {"removed": sum(gone.values()), "restored": sum(back.values())}
        metrics = [head | {"phase": phase} | dict(values) | counts for phase, values in phases.items()]
        layers = [
            head | {"layer": name, "role": self.roles.get(name, ""), "params": masks[name].numel(),
                    "removed": gone[name], "restored": back.get(name, 0)}
            for name in masks
        ]  # fmt: skip
        write_text(place, json.dumps({"metrics": metrics, "layers": layers}, indent=1) + "\n")
        _tidy(place.parent, sparsity)

    def path(self, method: str, seed: int) -> Path:
        return self.folder / "cells" / method / f"seed-{seed}"

    def at_once(self, method: str, seed: int, tell: Progress) -> None:
        """Cells that each start from the dense network."""
        recover, place = self.recipe.recover, self.path(method, seed)
        for number, sparsity in enumerate(self.recipe.grid.sparsities):
            record = place / f"cell-{sparsity:.4f}.json"
            if record.exists():
                continue
            found = prune_model(
                self.model, method, sparsity, table=self.table, calibration=self._moments(method, seed), seed=seed,
                cancelled=self.cancelled or (lambda: False), **self.recipe.grid.options.get(method, {}),
            )  # fmt: skip
            network = found.of(self.model)
            phases = {"pruned": self.numbers(network)}
            if recover.epochs:
                part = _part(tell, number, len(self.recipe.grid.sparsities))
                network = distill(
                    network, self.model, self.data.train, found.masks, recover.epochs + recover.selection,
                    seed=seed, out=place / f"recovery-{sparsity:.4f}", progress=part, cancelled=self.cancelled,
                    **_recovery(self.recipe, self.data),
                ).model  # fmt: skip
                phases["recovered"] = self.numbers(network)
            save(
                place / f"stage-{sparsity:.4f}.safetensors", network, found.masks, recipe=self.recipe.to_dict(),
                results=phases,
            )  # fmt: skip
            self.keep(record, method, seed, sparsity, found.masks, phases)
            tell((number + 1) / len(self.recipe.grid.sparsities), f"{100 * sparsity:.0f} %")

    def in_steps(self, method: str, seed: int, tell: Progress) -> None:
        """One path: each cell starts where the one before it ended."""
        recover, place = self.recipe.recover, self.path(method, seed)
        sparsities = self.recipe.grid.sparsities

        def after(row: dict[str, Any], network: nn.Module, masks: Mapping[str, Tensor]) -> None:
            record = place / f"cell-{row['target']:.4f}.json"
            if row["target"] in sparsities and not record.exists():
                early = place / f"pruned-{row['target']:.4f}.json"
                phases = {"pruned": json.loads(early.read_text(encoding="utf-8"))} if early.exists() else {}
                phases["recovered" if row["recovery_epochs"] else "pruned"] = self.numbers(network)
                restored = {name: row.get(f"restored in {name}", 0) for name in masks}
                self.keep(record, method, seed, row["target"], masks, phases, restored)
            _tidy(place, row["target"])

        def before(target: float, network: nn.Module) -> None:
            write_text(place / f"pruned-{target:.4f}.json", json.dumps(self.numbers(network)))

        start = {BELOW} if BELOW < sparsities[-1] else set()  # of the hybrid: all stop there, so that none trains less
        plan = StepPlan(
            method, ratio=recover.ratio, selection=recover.selection, recovery=recover.epochs,
            targets=tuple(sorted({*sparsities} | start)), equal=recover.epochs > 0,
            **self.recipe.grid.options.get(method, {}),
        )  # fmt: skip
        prune_in_steps(
            self.model, self.data.train, sparsities[-1], plan, check=self.data.calibration, seed=seed, out=place,
            progress=tell, cancelled=self.cancelled, after_stage=after, before_recovery=before,
            **_recovery(self.recipe, self.data),
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
    """Run all methods of ``recipe.grid`` and write metrics.csv, layers.csv, environment.json and the recipe to `out`.

    Each cell's checkpoint (weights and masks; `mp.load` opens it) and record are kept in ``out/cells`` as soon as it is
    done, so a call on the same folder goes on where it stopped, and may ask for more methods, seeds or, for methods
    that do not go in steps, sparsities. Methods: those of `mp.prune_model`, and "ser", "hybrid", "drop-threshold" of
    `prune_in_steps`; with ``recover.epochs`` "magnitude" and "seb" too go in steps over the sparsities. A method in
    which nothing is random runs with the first seed only. All methods see the same number of training images. Test
    samples only measure. report: makes report.html of the result.

    Raises RecipeError for unknown methods, a grid without any or certificates other than "measured", CheckpointError
    when `out` holds another recipe's run, and the errors of pruning and training; Cancelled when asked to stop.
    """
    recipe = _checked_grid(recipe if isinstance(recipe, Recipe) else read_recipe(recipe))
    folder = check_folder(out)
    _claim(folder, recipe)
    model = dense_model(recipe)
    data = load_data(recipe.data.name, recipe.data.folder or None, model)
    grid = _Grid(recipe, folder, model, data, cancelled)
    started, paths = time.monotonic(), _paths(recipe)
    for number, (method, seed) in enumerate(paths):
        if cancelled is not None and cancelled():
            raise Cancelled(f"the grid was cancelled; what is finished is kept in {folder}")
        tell = _part(progress, number, len(paths), f"{method}, seed {seed}: ")
        (grid.in_steps if _steps(method, recipe) else grid.at_once)(method, seed, tell)
    seconds = _seconds(folder) + time.monotonic() - started
    result = read_grid(folder, recipe, environment() | {"seconds": round(seconds, 1)})
    texts = {
        "recipe.toml": recipe.to_toml(),
        "environment.json": json.dumps(result.environment, indent=1) + "\n",
        **({} if report is None else {"report.html": report(result)}),
    }
    tables = {"metrics.csv": result.metrics, "layers.csv": result.layers}
    writers = {name: text_writer(text) for name, text in texts.items()}
    write_together(folder, writers | {name: text_writer(t.to_csv(index=False)) for name, t in tables.items()})
    if progress is not None:
        progress(1.0, "done")
    return result


def _seconds(folder: Path) -> float:
    """What earlier finished calls on this folder took."""
    place = folder / "environment.json"
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        return float(json.loads(place.read_text(encoding="utf-8"))["seconds"])
    return 0.0


def _checked_grid(recipe: Recipe) -> Recipe:
    known = (*METHODS, *STEPPED)
    for method in recipe.grid.methods:
        if method not in known:
            raise RecipeError(f"recipe key 'grid.methods' names the unknown '{method}'; {nearest(method, known)}")
    for method, options in recipe.grid.options.items():
        if method not in recipe.grid.methods:
            raise RecipeError(f"recipe key 'grid.options.{method}' is of no method in grid.methods")
        _check_options(method, options, recipe)
    if not recipe.grid.methods:
        raise RecipeError("the recipe has no grid.methods; name some, such as methods = ['magnitude', 'hybrid']")
    if recipe.certify.tiers != ["measured"]:
        raise RecipeError("a grid measures; set certify.tiers = ['measured'], and prove bounds of one plan at a time")
    return checked(recipe)


def _check_options(method: str, options: Any, recipe: Recipe) -> None:
    try:
        if _steps(method, recipe):
            StepPlan(method, **options).checked()
        else:
            method_of(method, options)
    except (TypeError, BudgetError) as error:
        raise RecipeError(f"recipe key 'grid.options.{method}': {error}") from error


def _steps(method: str, recipe: Recipe) -> bool:
    return method in STEPPED or (method in SCHEDULES and recipe.recover.epochs > 0)


def _paths(recipe: Recipe) -> list[tuple[str, int]]:
    made = []
    for method in recipe.grid.methods:
        random = recipe.recover.epochs > 0 or method in (*STEPPED, *LOOK_AT_DATA)
        made += [(method, seed) for seed in (recipe.grid.seeds if random else recipe.grid.seeds[:1])]
    return made


def _recovery(recipe: Recipe, data: Splits) -> dict[str, Any]:
    plan = recipe.recover
    given: dict[str, Any] = {"optimizer": plan.optimizer, **plan.options}
    if plan.learning_rate:
        given["learning_rate"] = plan.learning_rate
    if plan.batch:
        given["batch"] = plan.batch
    if plan.augment:
        given["augment"] = FlipShift() if isinstance(data.train.dataset, ImageArrays) else TimmTransform()
    return given


def _claim(folder: Path, recipe: Recipe) -> None:
    """Note the recipe of a new folder. Raises CheckpointError when the folder belongs to another one."""
    note = folder / "grid.json"
    asked = json.loads(json.dumps(asdict(recipe)))
    if note.exists():
        there = json.loads(note.read_text(encoding="utf-8"))
        for one in (asked, there):
            one["grid"] = {key: value for key, value in one["grid"].items() if key not in FREE}
        other = sorted(key for key in asked if asked[key] != there.get(key))
        if other:
            raise CheckpointError(f"{folder} holds a grid with another [{'], ['.join(other)}]; choose another folder")
    else:
        write_text(note, json.dumps(asked, indent=1) + "\n")


def _tidy(place: Path, sparsity: float) -> None:
    """Take away what only an unfinished cell needs: checkpoints with the optimiser; the cell's own one stays."""
    for old in (*place.glob(f"recovery-{sparsity:.4f}/step-*.safetensors"), place / f"pruned-{sparsity:.4f}.json"):
        old.unlink(missing_ok=True)


def _part(progress: Progress | None, number: int, parts: int, head: str = "") -> Progress:
    def tell(share: float, words: str) -> None:
        if progress is not None:
            progress((number + share) / parts, head + words)

    return tell
