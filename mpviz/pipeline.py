"""Running a plan from end to end: analyse → allocate → prune → certify → recover → save."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor, nn

from mpviz.certificates.bounds import Options
from mpviz.certificates.certify import TIERS, Slider, tier_results
from mpviz.certificates.margins import Certificate, TierResult, compare_logits
from mpviz.certificates.preview import POSITIONS, coverage_curve
from mpviz.certificates.summary import compare_models, with_recovered
from mpviz.errors import BudgetError, Cancelled, ModelError, RecipeError, nearest
from mpviz.grid_results import environment, measured_change
from mpviz.nets.data import Split, load_data
from mpviz.nets.forward import logits, pruned_copy
from mpviz.nets.spectra import layer_spectra, table_of
from mpviz.prune.allocate import allocate
from mpviz.prune.masks import Ranking
from mpviz.recipe import BudgetPlan, Recipe, checked, read_recipe
from mpviz.recipe_parts import dense_model, recovery_options, training_split
from mpviz.run_results import Recovered, RunResult, run_folder, write_run
from mpviz.train.distill import distill
from mpviz.train.processes import launched

Progress = Callable[[float, str], None]
Stop = Callable[[], bool]
WIDTH = 0.01  # of the stretch of the slider that a run asks bounds for
LAST = 0.999
AFTER_TRAINING = ("population", "path", "ball")  # tiers that do not speak of masks on the dense weights


def plan_weights(table: pd.DataFrame, plan: BudgetPlan) -> pd.Series:
    """SEB weights of a budget plan. Raises BudgetError for what `allocate` refuses, and for a β of absent roles."""
    roles = table["role"][table["prunable"].to_numpy(dtype=bool)].unique()
    for role in plan.beta_by_role:
        if role not in roles:
            raise BudgetError(
                f"the network has no prunable {role} layers for a β of their own; it has: {', '.join(roles)}"
            )
    return allocate(
        table, plan.sparsity, plan.signal, plan.beta, plan.decay_end, plan.beta_by_role or None, tuple(plan.locked)
    )


def budget_table(table: pd.DataFrame, weights: pd.Series, counts: Mapping[str, int]) -> pd.DataFrame:
    """One row a prunable layer: role, params, SEB weight, removed entries, sparsity of the layer, locked."""
    names = list(counts)
    places = table.index.get_indexer(pd.Index(names))
    params = table["params"].to_numpy()[places]
    removed = np.array([counts[name] for name in names])
    shares = weights.loc[names].to_numpy()
    return pd.DataFrame(
        {
            "role": table["role"].to_numpy()[places],
            "params": params,
            "weight": shares,
            "removed": removed,
            "sparsity": removed / params,
            "locked": shares == 0.0,
        },
        index=pd.Index(names, name="layer"),
    )


def slider_of(ranking: Ranking, table: pd.DataFrame, plan: BudgetPlan, width: float = WIDTH) -> Slider:
    """The slider from the plan's sparsity on, `width` further, with the layer weights frozen at the plan's sparsity.

    Frozen weights make the family nested: one order of all entries, and each position removes a first part of it.
    """
    weights = plan_weights(table, plan)
    unlocked = float(ranking.sizes[[weights.get(name, 1.0) > 0 for name in ranking.names]].sum()) / ranking.total
    stop = min(plan.sparsity + width, unlocked, LAST)
    return Slider(lambda s: ranking.masks(ranking.counts(s, weights)), min(plan.sparsity, stop), stop)


@dataclass(frozen=True, eq=False)
class Measured:
    """What the samples say of a network. numbers: those of `measured_change`."""

    certificate: Certificate
    numbers: Mapping[str, Any]


class Samples:
    """Samples of a split and the dense network's answers, to measure other networks against."""

    def __init__(
        self, dense: nn.Module, split: Split, count: int | None = None, seed: int = 0,
        progress: Callable[[float], None] | None = None, cancelled: Stop | None = None,
    ) -> None:  # fmt: skip
        self.images, self.labels = split.sample(count, seed)
        self.indices, self.split, self.cancelled = split.indices(count, seed), split.name, cancelled
        self.dense = logits(dense, self.images, progress=progress, cancelled=cancelled)

    def measure(self, network: nn.Module, progress: Callable[[float], None] | None = None) -> Measured:
        """The measured certificate of a network and its numbers. Raises DataError for logits that are not finite."""
        after = logits(network, self.images, progress=progress, cancelled=self.cancelled)
        cert = compare_logits(self.dense, after, self.labels, self.split, self.indices)
        return Measured(cert, measured_change(self.dense, after, self.labels, self.split))


def prune_and_certify(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    split: Split,
    progress: Progress | None = None,
    cancelled: Stop | None = None,
) -> tuple[nn.Module, Certificate]:
    """The pruned copy and its measured certificate on all of `split`."""
    pruned = pruned_copy(model, masks)
    samples = Samples(model, split, progress=_named(progress, 0.0, 0.5, "dense network"), cancelled=cancelled)
    return pruned, samples.measure(pruned, _named(progress, 0.5, 1.0, "pruned network")).certificate


def _between(progress: Progress | None, start: float, end: float) -> Progress:
    """The part of a progress from `start` to `end`, told as 0 … 1."""

    def tell(fraction: float, words: str) -> None:
        if progress is not None:
            progress(start + (end - start) * fraction, words)

    return tell


def _named(progress: Progress | None, start: float, end: float, words: str) -> Callable[[float], None]:
    part = _between(progress, start, end)
    return lambda fraction: part(fraction, words)


def measure_curve(
    model: nn.Module,
    ranking: Ranking,
    table: pd.DataFrame,
    plan: BudgetPlan,
    samples: tuple[Tensor, Tensor],
    progress: Progress | None = None,
    cancelled: Stop | None = None,
) -> pd.DataFrame:
    """Coverage, unchanged predictions and accuracy at the slider's positions and the plan's own, all measured.

    samples: images and labels. Sparsities that locked layers make impossible have no row.
    """

    def counts(sparsity: float) -> dict[str, int]:
        return ranking.counts(sparsity, plan_weights(table, replace(plan, sparsity=sparsity)))

    def possible(sparsity: float) -> bool:
        with contextlib.suppress(BudgetError):
            return bool(counts(sparsity))
        return False

    positions = tuple(s for s in sorted({*POSITIONS, round(plan.sparsity, 6)}) if possible(s))

    def tell(fraction: float, position: str) -> None:
        if progress is not None:
            progress(fraction, f"coverage at {position}")

    points = coverage_curve(model, *samples, lambda s: ranking.masks(counts(s)), positions, tell, cancelled)
    return pd.DataFrame([vars(point) for point in points]).assign(samples=len(samples[1]))


def run(
    recipe: Recipe | str | Path,
    out: str | Path | None = None,
    progress: Progress | None = None,
    cancelled: Stop | None = None,
    curve_samples: int = 0,
    report: Callable[[RunResult], str] | None = None,
) -> RunResult:
    """Run a recipe headless; with `out`, write recipe.toml, the CSV tables, pruned.safetensors and results.json there.

    Masks come from the weights alone; the chosen split is read only afterwards, to measure. With ``recover.epochs`` the
    pruned network is then trained on the training split, the dense one its teacher, and measured again; the checkpoint
    holds the last network. The files appear together when the run is complete; before that `out` holds the checkpoints
    of an unfinished training alone, from which a call with the same recipe goes on. A finished run makes way for the
    same recipe only. Of processes that were launched together the first one writes. curve_samples: measure the coverage
    curve too, on so many images of the split. report: makes report.html of the result.
    Raises RecipeError, ModelError, DataError, BudgetError, TrainingError or CheckpointError (such as for a folder that
    holds the run of another recipe), each naming what is wrong, and Cancelled when asked to stop.
    """
    recipe = checked_plan(recipe if isinstance(recipe, Recipe) else read_recipe(recipe))
    folder = run_folder(out, "pruned.safetensors", recipe)
    training = None if folder is None else folder / "recovery"  # until the run is complete

    def tell(fraction: float, message: str) -> None:
        if cancelled is not None and cancelled():
            kept = training is not None and training.exists()
            raise Cancelled(f"the run was cancelled; nothing was written{f' but {training}' if kept else ''}")
        if progress is not None:
            progress(fraction, message)

    started = time.monotonic()
    result, model, samples, train = _prune(recipe, tell, cancelled, curve_samples)
    if recipe.recover.epochs:  # distill itself looks whether to stop, and keeps a checkpoint first
        result = _recover(result, model, samples, train, training, _between(progress, 0.2, 0.95), cancelled)
    result = replace(result, environment=environment() | {"seconds": round(time.monotonic() - started, 1)})
    if folder is not None and training is not None and launched()[0] == 0:
        tell(0.95, f"writing {folder}")
        result = write_run(result, folder, None if report is None else {"report.html": report(result)})
        if recipe.recover.epochs:
            shutil.rmtree(training, ignore_errors=True)
    tell(1.0, "done")
    return result


def _prune(
    recipe: Recipe, tell: Progress, cancelled: Stop | None, curve_samples: int
) -> tuple[RunResult, nn.Module, Samples, Split]:
    """The run without training; the dense network, the samples and the training split, for what may follow."""
    part = _between(tell, 0.0, 0.2 if recipe.recover.epochs else 0.95)
    part(0.0, "loading the model")
    model = dense_model(recipe)
    part(0.05, "analysing its layers")
    spectra = layer_spectra(model, progress=lambda f, name: part(0.05 + 0.25 * f, name), cancelled=cancelled)
    table = table_of(spectra)
    part(0.3, "ranking the weights")
    ranking = Ranking(model)
    weights = plan_weights(table, recipe.budget)
    counts = ranking.counts(recipe.budget.sparsity, weights)
    masks, budgets = ranking.masks(counts), budget_table(table, weights, counts)
    part(0.35, "reading the data")
    data = load_data(recipe.data.name, recipe.data.folder or None, model)
    plan, split = recipe.certify, getattr(data, recipe.certify.split)
    end = 0.6 if curve_samples else 1.0
    middle, pruned = (0.35 + end) / 2, pruned_copy(model, masks)
    dense_part, pruned_part = _named(part, 0.35, middle, "dense network"), _named(part, middle, end, "pruned network")
    samples = Samples(model, split, plan.samples or None, plan.seed, dense_part, cancelled)
    found = samples.measure(pruned, pruned_part)
    cert = found.certificate
    if plan.tiers != ["measured"]:
        part(end, "proving bounds")
        slider, options = slider_of(ranking, table, recipe.budget), Options(cancelled=cancelled)
        proved = tier_results(cert, model, pruned, samples.images, plan.tiers, slider=slider, options=options)
        cert = replace(cert, tiers=proved)
    curve = None
    if curve_samples:
        drawn, curve_part = split.sample(curve_samples, plan.seed), _between(part, end, 1.0)
        curve = measure_curve(model, ranking, table, recipe.budget, drawn, curve_part, cancelled)
    comparison = compare_models(model, pruned, budgets, cert)
    metrics = pd.DataFrame([_row(recipe, "pruned", found, budgets)])
    result = RunResult(recipe, spectra, table, budgets, masks, pruned, cert, comparison, metrics, {}, curve)
    return result, model, samples, training_split(recipe, data)


def _recover(
    result: RunResult, model: nn.Module, samples: Samples, train: Split, out: Path | None, tell: Progress,
    cancelled: Stop | None,
) -> RunResult:  # fmt: skip
    """Train the pruned network of a run with the dense one as its teacher, and measure it on the same samples."""
    recipe = result.recipe
    found = distill(
        result.pruned, model, train, result.masks, recipe.recover.epochs, seed=recipe.grid.seeds[0], out=out,
        progress=lambda share, words: tell(0.97 * share, words), cancelled=cancelled, **recovery_options(recipe, train),
    )  # fmt: skip
    tell(0.97, "measuring the recovered network")
    measured = samples.measure(found.model)
    tiers: dict[str, TierResult] = {}
    for tier in recipe.certify.tiers:
        if tier in AFTER_TRAINING:
            try:
                options = Options(cancelled=cancelled)
                tiers |= tier_results(
                    measured.certificate, model, found.model, samples.images, [tier], options=options
                )  # fmt: skip
            except ModelError as error:  # training has moved what pruning leaves alone, such as batch norms' statistics
                tiers[tier] = TierResult(tier, "bound", "", why=f"no proved bound: {error}")
    cert = replace(measured.certificate, tiers=tiers)
    after = compare_models(model, found.model, result.budgets, cert)
    rows = pd.DataFrame([_row(recipe, "recovered", measured, result.budgets)])
    return replace(
        result,
        recovered=Recovered(found.model, cert, found.curve),
        comparison=with_recovered(result.comparison, after),
        metrics=pd.concat([result.metrics, rows], ignore_index=True),
    )


def _row(recipe: Recipe, phase: str, found: Measured, budgets: pd.DataFrame) -> dict[str, Any]:
    """A phase's row of the metrics, as a grid's cell has it."""
    head = {"method": "seb", "seed": recipe.grid.seeds[0], "sparsity": recipe.budget.sparsity, "phase": phase}
    return head | dict(found.numbers) | {"removed": int(budgets["removed"].sum()), "restored": 0}


def checked_plan(recipe: Recipe) -> Recipe:
    """The recipe of one plan. Raises RecipeError for what `run` refuses before it loads anything."""
    for tier in recipe.certify.tiers:
        if tier not in TIERS:
            raise RecipeError(f"recipe key 'certify.tiers' names the unknown tier '{tier}'; {nearest(tier, TIERS)}")
    if recipe.grid.methods:
        raise RecipeError("this recipe compares methods (grid.methods); give it to mp.run_grid")
    if recipe.project.pattern:
        raise RecipeError("this recipe has a k:n pattern (project.pattern); give it to mp.run_projection")
    recipe = checked(recipe)
    recovery_options(recipe)
    if recipe.recover.epochs and len(recipe.grid.seeds) > 1:
        raise RecipeError(
            f"recipe key 'grid.seeds' has {len(recipe.grid.seeds)} seeds; a plan without grid.methods trains with one"
        )
    return recipe
