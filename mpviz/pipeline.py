"""Running a plan from end to end: analyse → allocate → prune → certify → evaluate → save."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor, nn

from mpviz.certificates.bounds import Options
from mpviz.certificates.certify import TIERS, Slider, tier_results
from mpviz.certificates.margins import Certificate, compare_logits
from mpviz.certificates.preview import POSITIONS, coverage_curve
from mpviz.certificates.summary import compare_models, read_tiers, results_of
from mpviz.errors import BudgetError, Cancelled, CheckpointError, RecipeError, nearest
from mpviz.files import Writer, write_together
from mpviz.nets.data import Split, load_data
from mpviz.nets.forward import logits, pruned_copy
from mpviz.nets.spectra import LayerSpectrum, layer_spectra, table_of
from mpviz.nets.store import load, save
from mpviz.nets.zoo import load_model
from mpviz.prune.allocate import allocate
from mpviz.prune.masks import Ranking
from mpviz.recipe import BudgetPlan, Recipe, checked, read_recipe

Progress = Callable[[float, str], None]
Stop = Callable[[], bool]
WIDTH = 0.01  # of the stretch of the slider that a run asks bounds for
LAST = 0.999


@dataclass(frozen=True)
class RunResult:
    """All that a run found. table: of `analyze`. budgets: one row a prunable layer. comparison: before and after.

    curve: columns sparsity, coverage, unchanged, accuracy, tier and samples along the slider's positions, None when
    it was not asked for. checkpoint: the file of the pruned model, None when nothing was written.
    """

    recipe: Recipe
    spectra: dict[str, LayerSpectrum]
    table: pd.DataFrame
    budgets: pd.DataFrame
    masks: dict[str, Tensor]
    pruned: nn.Module
    certificate: Certificate
    comparison: pd.DataFrame
    curve: pd.DataFrame | None = None
    checkpoint: Path | None = None
    folder: Path | None = None


def plan_weights(table: pd.DataFrame, plan: BudgetPlan) -> pd.Series:
    """SEB weights of a budget plan."""
    return allocate(
        table, plan.sparsity, plan.signal, plan.beta, plan.decay_end, plan.beta_by_role or None, tuple(plan.locked)
    )


def budget_table(table: pd.DataFrame, weights: pd.Series, counts: Mapping[str, int]) -> pd.DataFrame:
    """One row a prunable layer: role, params, SEB weight, removed entries, sparsity of the layer, locked."""
    names = list(counts)
    params = table.loc[names, "params"].to_numpy()
    removed = np.array([counts[name] for name in names])
    return pd.DataFrame(
        {
            "role": table.loc[names, "role"].to_numpy(),
            "params": params,
            "weight": weights.loc[names].to_numpy(),
            "removed": removed,
            "sparsity": removed / params,
            "locked": weights.loc[names].to_numpy() == 0.0,
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


def prune_and_certify(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    split: Split,
    samples: int | None = None,
    seed: int = 0,
    dense: Tensor | None = None,
    progress: Progress | None = None,
    cancelled: Stop | None = None,
) -> tuple[nn.Module, Certificate, Tensor]:
    """The pruned copy, its measured certificate on `split`, and the dense logits (given again, they save a forward)."""

    def part(start: float, end: float, what: str) -> Callable[[float], None]:
        def report(fraction: float) -> None:
            if progress is not None:
                progress(start + (end - start) * fraction, what)

        return report

    images, labels = split.sample(samples, seed)
    pruned = pruned_copy(model, masks)
    if dense is None:
        dense = logits(model, images, progress=part(0.0, 0.5, "dense network"), cancelled=cancelled)
        start = 0.5
    else:
        start = 0.0
    after = logits(pruned, images, progress=part(start, 1.0, "pruned network"), cancelled=cancelled)
    cert = compare_logits(dense, after, labels, split.name, split.indices(samples, seed))
    return pruned, cert, dense


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
) -> RunResult:
    """Run a recipe headless; with `out`, write recipe.toml, the CSV tables, pruned.safetensors and results.json there.

    Masks come from the weights alone; the chosen split is read only afterwards, to measure. The files appear together
    when the run is complete. curve_samples: measure the coverage curve too, on so many images of the split.
    Raises RecipeError, ModelError, DataError, BudgetError or CheckpointError, each naming what is wrong, and
    Cancelled when asked to stop.
    """
    recipe = _checked_plan(recipe if isinstance(recipe, Recipe) else read_recipe(recipe))
    if out is not None:
        check_folder(out)

    def tell(fraction: float, message: str) -> None:
        if cancelled is not None and cancelled():
            raise Cancelled("the run was cancelled; nothing was written")
        if progress is not None:
            progress(fraction, message)

    result = _run(recipe, tell, cancelled, curve_samples)
    if out is not None:
        tell(0.95, f"writing {out}")
        result = write_run(result, out)
    tell(1.0, "done")
    return result


def _run(recipe: Recipe, tell: Progress, cancelled: Stop | None, curve_samples: int) -> RunResult:
    tell(0.0, "loading the model")
    model = dense_model(recipe)
    tell(0.05, "analysing its layers")
    spectra = layer_spectra(model, progress=lambda f, name: tell(0.05 + 0.25 * f, name), cancelled=cancelled)
    table = table_of(spectra)
    tell(0.3, "ranking the weights")
    ranking = Ranking(model)
    weights = plan_weights(table, recipe.budget)
    counts = ranking.counts(recipe.budget.sparsity, weights)
    masks, budgets = ranking.masks(counts), budget_table(table, weights, counts)
    tell(0.35, "reading the data")
    plan = recipe.certify
    split = getattr(load_data(recipe.data.name, recipe.data.folder or None, model), plan.split)

    def part(start: float, end: float) -> Progress:
        return lambda fraction, what: tell(start + (end - start) * fraction, what)

    end = 0.6 if curve_samples else 0.95
    pruned, cert, _ = prune_and_certify(
        model, masks, split, plan.samples or None, plan.seed, progress=part(0.35, end), cancelled=cancelled
    )
    if plan.tiers != ["measured"]:
        tell(end, "proving bounds")
        slider = slider_of(ranking, table, recipe.budget)
        images, _ = split.sample(plan.samples or None, plan.seed)
        options = Options(cancelled=cancelled)
        cert = replace(
            cert, tiers=tier_results(cert, model, pruned, images, plan.tiers, slider=slider, options=options)
        )
    curve = None
    if curve_samples:
        samples = split.sample(curve_samples, plan.seed)
        curve = measure_curve(model, ranking, table, recipe.budget, samples, part(end, 0.95), cancelled)
    comparison = compare_models(model, pruned, budgets, cert)
    return RunResult(recipe, spectra, table, budgets, masks, pruned, cert, comparison, curve)


def dense_model(recipe: Recipe) -> nn.Module:
    """The network of a recipe, before pruning."""
    plan = recipe.model
    return load_model(plan.name, pretrained=plan.pretrained, weights=plan.weights or None, **plan.options)


def _checked_plan(recipe: Recipe) -> Recipe:
    for tier in recipe.certify.tiers:
        if tier not in TIERS:
            raise RecipeError(f"recipe key 'certify.tiers' names the unknown tier '{tier}'; {nearest(tier, TIERS)}")
    if recipe.grid.methods:
        raise RecipeError("this recipe compares methods (grid.methods); give it to mp.run_grid")
    return checked(recipe)


def check_folder(folder: str | Path) -> Path:
    """The folder of a run. Raises CheckpointError when its name is taken by a file, before any work is done."""
    folder = Path(folder)
    for part in (folder, *folder.parents):
        if part.exists() and not part.is_dir():
            raise CheckpointError(f"{part} is a file where the run needs a folder; choose another name")
    return folder


_OPTIONAL = ("curve.csv", "report.html")  # of an earlier run in the same folder: they go with it


def write_run(result: RunResult, folder: str | Path, extra: Mapping[str, str] | None = None) -> RunResult:
    """Write a finished run into `folder`: all of its files, or none when one fails.

    extra: further text files {name: text}, such as a report. Raises CheckpointError; what the folder held is then
    as it was.
    """
    folder = check_folder(folder)
    results = results_of(result.certificate, result.budgets)
    tables = {
        "layers.csv": result.table,
        "budgets.csv": result.budgets,
        "samples.csv": result.certificate.table(),
        "comparison.csv": result.comparison.set_index("quantity"),
    }
    if result.curve is not None:
        tables["curve.csv"] = result.curve.set_index("sparsity")
    texts = {"recipe.toml": result.recipe.to_toml(), **(extra or {})}
    writers: dict[str, Writer] = {name: text_writer(text) for name, text in texts.items()}
    writers |= {name: frame.to_csv for name, frame in tables.items()}
    writers["pruned.safetensors"] = lambda path: save(
        path, result.pruned, result.masks, recipe=result.recipe.to_dict(), results=results
    )
    writers["results.json"] = text_writer(json.dumps(results, indent=1) + "\n")
    try:
        write_together(folder, writers, gone=_OPTIONAL)
    except OSError as error:
        reason = error.__cause__ if isinstance(error, CheckpointError) and error.__cause__ else error
        raise CheckpointError(f"cannot write the run into {folder}: {reason}; what was there is unchanged") from error
    return replace(result, checkpoint=folder / "pruned.safetensors", folder=folder)


def text_writer(text: str) -> Writer:
    """What writes this text to a path."""
    return lambda path: path.write_text(text, encoding="utf-8")


def read_run(folder: str | Path) -> RunResult:
    """A finished run, read back from its folder; the dense network is loaded and analysed again.

    Raises CheckpointError when a file of the run is missing or damaged, and the errors of `load_model`.
    """
    folder = Path(folder)
    recipe = read_recipe(folder / "recipe.toml")
    spectra = layer_spectra(dense_model(recipe))
    checkpoint = load(folder / "pruned.safetensors")
    try:
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        budgets = _read_table(folder / "budgets.csv").set_index("layer")
        samples = _read_table(folder / "samples.csv")
        comparison = pd.read_csv(folder / "comparison.csv", dtype=object)
        for column in ("dense", "pruned"):  # counts are whole numbers, shares are not
            comparison[column] = pd.Series([_json(value) for value in comparison[column]], dtype=object)
        curve = _read_table(folder / "curve.csv") if (folder / "curve.csv").exists() else None
        columns = ("labels", "dense_prediction", "pruned_prediction", "margin", "eta", "slack")
        arrays = {name: samples[name].to_numpy() for name in columns}
        indices, tiers = samples["sample"].to_numpy(), read_tiers(results["tiers"], samples)
        cert = Certificate(results["tier"], results["split"], indices, tiers=tiers, **arrays)
    except (OSError, LookupError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder} is no whole run folder ({error}); run its recipe again") from error
    return RunResult(
        recipe, spectra, table_of(spectra), budgets, checkpoint.masks, checkpoint.model, cert, comparison, curve,
        folder / "pruned.safetensors", folder,
    )  # fmt: skip


def _json(value: Any) -> Any:
    return None if pd.isna(value) else json.loads(value)


def _read_table(path: Path) -> pd.DataFrame:
    """A CSV file that `write_run` wrote; floats come back bit by bit, which pandas' own parser does not promise."""
    return pd.read_csv(path, dtype=str, keep_default_na=False).apply(_typed)


def _typed(column: pd.Series) -> pd.Series:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return pd.Series([kind(value) for value in column])
    return column == "True" if set(column) <= {"True", "False"} else column
