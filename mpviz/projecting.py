"""Running a projection plan from end to end: prune first where asked → choose patterns → measure → distil → save."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from mpviz.certificates.margins import Certificate, compare_logits
from mpviz.certificates.objective import Penalty
from mpviz.errors import CheckpointError, MpvizError, PatternError, RecipeError, nearest
from mpviz.files import Writer, write_together
from mpviz.grid_results import environment, measured_change
from mpviz.nets.architectures import ARCHITECTURES
from mpviz.nets.batch_norms import batch_norms
from mpviz.nets.calibrate import second_moments
from mpviz.nets.data import Split, Splits, load_data
from mpviz.nets.forward import split_logits
from mpviz.nets.kn_pattern import KN
from mpviz.nets.macs import Macs, count_macs
from mpviz.nets.spectra import analyze
from mpviz.nets.store import load, save
from mpviz.nets.tome import planned_schedule
from mpviz.nets.zoo import model_card
from mpviz.prune.cast import Projected, project
from mpviz.prune.cast_job import Plan
from mpviz.prune.cast_source import chosen_layers
from mpviz.prune.methods import LOOK_AT_DATA, LOOK_AT_SPECTRA, METHODS
from mpviz.prune.pruning import Pruning
from mpviz.recipe import STEPPED, ProjectPlan, Recipe, checked, read_recipe
from mpviz.recipe_parts import dense_model, recovery_options, source_options, training_split
from mpviz.run_results import check_folder, run_folder, text_writer
from mpviz.structured import restore_certificates
from mpviz.train.any_method import prune_model
from mpviz.train.distill import distill
from mpviz.train.processes import launched

Progress = Callable[[float, str], None]
Stop = Callable[[], bool]
_OPTIONAL = ("report.html", "restore.csv", "recovery.csv", "recovered-samples.csv")


@dataclass(frozen=True, eq=False)
class ProjectionResult:
    """All that a projection run found.

    projected: before training. model: the last network, merging tokens where asked. certificates: by phase
    ("projected", "recovered"), measured against the dense network. metrics: a row a phase. macs, macs_paper: counted as
    executed and by the paper's convention. restore: prune–restore certificates of a pruned source, None where none were
    asked for. curve: loss and accuracy of each optimiser step, None without training.
    """

    recipe: Recipe
    projected: Projected
    model: nn.Module
    certificates: Mapping[str, Certificate]
    metrics: pd.DataFrame
    macs: Macs
    macs_paper: Macs
    environment: Mapping[str, Any]
    restore: pd.DataFrame | None = None
    curve: pd.DataFrame | None = None
    checkpoint: Path | None = None
    folder: Path | None = None


def run_projection(
    recipe: Recipe | str | Path,
    out: str | Path | None = None,
    progress: Progress | None = None,
    cancelled: Stop | None = None,
    report: Callable[[ProjectionResult], str] | None = None,
) -> ProjectionResult:
    """Run a recipe with a k:n pattern headless; with `out`, write its folder.

    Where project.source names a method, the network is pruned by it on the training split first. Patterns are chosen on
    calibration images, on the graph that will run. With recover.epochs the projected network is then trained under its
    masks with the dense one as teacher, and its pattern is looked at after every epoch. The test or calibration split
    only measures. The folder gets recipe.toml, environment.json, layers.csv (the table of `Projected`), macs.csv,
    metrics.csv, samples.csv, projected.safetensors, results.json and report.html when `report` makes one, all together
    at the end; before that it holds the checkpoints of an unfinished pruning or training alone, from which a call with
    the same recipe goes on. A finished run makes way for the same recipe only.
    Raises RecipeError, ModelError, DataError, PatternError, BudgetError, TrainingError or CheckpointError, each naming
    what is wrong, and Cancelled when asked to stop.
    """
    recipe = checked_projection(recipe if isinstance(recipe, Recipe) else read_recipe(recipe))
    folder = run_folder(out, "projected.safetensors", recipe)
    tell = progress or (lambda share, words: None)
    tell(0.0, "loading the model")
    model = dense_model(recipe)
    # what does not fit is told now, not after its source was pruned for hours
    chosen_layers(model, KN.parse(recipe.project.pattern), recipe.project.conv, recipe.project.layers or None)
    planned_schedule(model, recipe.project.tome)
    if recipe.project.renew:
        batch_norms(model)
    data = load_data(recipe.data.name, recipe.data.folder or None, model)
    run = _Run(recipe, model, data, folder, tell, cancelled)
    result = run.result()
    if folder is not None and launched()[0] == 0:
        tell(0.98, f"writing {folder}")
        result = write_projection(result, folder, None if report is None else report(result))
        own = {"source": recipe.project.source in STEPPED, "recovery": recipe.recover.epochs > 0}
        for name in (name for name, used in own.items() if used):  # what an unfinished run would have gone on from
            shutil.rmtree(folder / name, ignore_errors=True)
    tell(1.0, "done")
    return result


def checked_projection(recipe: Recipe) -> Recipe:
    """The recipe of a projection. Raises RecipeError for what `run_projection` refuses before it loads anything."""
    recipe = checked(recipe)
    plan = recipe.project
    if not plan.pattern:
        place = "mp.run_grid" if recipe.grid.methods else "mp.run"
        raise RecipeError(f"this recipe has no project.pattern; set one, such as 2:4, or give it to {place}")
    if recipe.certify.tiers != ["measured"]:
        raise RecipeError("recipe key 'certify.tiers': a projection is measured; leave it at ['measured']")
    if len(recipe.grid.seeds) > 1:
        raise RecipeError(f"recipe key 'grid.seeds' has {len(recipe.grid.seeds)} seeds; a projection runs with one")
    known = ("dense", *METHODS, *STEPPED)
    if plan.source not in known and not plan.source.endswith(".safetensors"):
        raise RecipeError(
            f"recipe key 'project.source' is '{plan.source}', no method and no .safetensors file; "
            f"{nearest(plan.source, known)}"
        )
    if plan.restore_images and plan.source == "dense":
        raise RecipeError("recipe key 'project.restore_images' is about a pruned source; set project.source")
    _check_settings(plan)
    recovery_options(recipe)
    source_options(recipe)
    return recipe


def _check_settings(plan: ProjectPlan) -> None:
    """Raises RecipeError for settings that `mp.project` would refuse for any network."""
    try:
        Plan(
            KN.parse(plan.pattern), conv=plan.conv, permute=plan.permute, foldable=plan.foldable,
            criterion=plan.criterion, damping=plan.damping, repair=plan.repair, renew=plan.renew, prior=plan.prior,
            alpha=plan.alpha_ser, method="auto", seed=0, memory=0, threads=None, cancelled=None,
        )  # fmt: skip
    except PatternError as error:
        raise RecipeError(f"recipe table [project]: {error}") from error


class _Run:
    """One projection with all that its steps share."""

    def __init__(
        self,
        recipe: Recipe,
        model: nn.Module,
        data: Splits,
        folder: Path | None,
        tell: Progress,
        cancelled: Stop | None,
    ) -> None:
        self.recipe, self.model, self.data, self.folder = recipe, model, data, folder
        self.plan, self.seed, self.tell, self.cancelled = recipe.project, recipe.grid.seeds[0], tell, cancelled
        self.split: Split = getattr(data, recipe.certify.split)
        self.train = training_split(recipe, data)

    def part(self, start: float, stop: float) -> Progress:
        return lambda share, words: self.tell(start + (stop - start) * share, words)

    def measured(self, network: nn.Module, start: float, stop: float, words: str) -> tuple[Tensor, Tensor]:
        certify, tell = self.recipe.certify, self.part(start, stop)
        return split_logits(
            network, self.split, certify.samples or None, certify.seed, batch=self.recipe.recover.batch or 64,
            progress=lambda share: tell(share, words), cancelled=self.cancelled,
        )  # fmt: skip

    def result(self) -> ProjectionResult:
        recipe = self.recipe
        options: dict[str, Any] = {"seed": self.seed, "cancelled": self.cancelled}
        source, masks = self.source()
        found = project_by_plan(
            self.model, self.plan, self.data.calibration, source, masks, progress=self.part(0.25, 0.5), **options
        )
        dense, labels = self.measured(self.model, 0.5, 0.55, "dense network")
        after, _ = self.measured(found.model, 0.55, 0.6, "projected network")
        phases, model, curve = {"projected": after}, found.model, None
        if recipe.recover.epochs:
            trained = distill(
                found.model, self.model, self.train, found.masks, recipe.recover.epochs,
                out=None if self.folder is None else self.folder / "recovery", check=found.check,
                progress=self.part(0.6, 0.9), **options, **recovery_options(recipe, self.train),
            )  # fmt: skip
            model, curve = trained.model, trained.curve
            phases["recovered"], _ = self.measured(model, 0.9, 0.95, "trained network")
        indices = self.split.indices(recipe.certify.samples or None, recipe.certify.seed)
        certificates = {
            phase: compare_logits(dense, values, labels, self.split.name, indices) for phase, values in phases.items()
        }
        rows = [{"phase": phase, **measured_change(dense, values, labels, self.split.name)}
                for phase, values in phases.items()]  # fmt: skip
        size = tuple(self.data.calibration.sample(1)[0].shape[1:])
        executed, theirs = (self.macs(found, size, convention) for convention in ("executed", "paper"))
        restored = self.restore(found, masks)
        return ProjectionResult(
            recipe, found, model, certificates, pd.DataFrame(rows), executed, theirs, environment(), restored, curve
        )

    def macs(self, found: Projected, size: tuple[int, ...], convention: str) -> Macs:
        return count_macs(
            self.model, size, str(found.pattern), tome=found.tome or 0, convention=convention, layers=list(found.masks)
        )

    def source(self) -> tuple[str | nn.Module, Mapping[str, Tensor] | None]:
        """What is projected: the dense network, one that a method prunes now, or one from a file."""
        plan = self.plan
        if plan.source == "dense":
            return "dense", None
        if plan.source.endswith(".safetensors"):
            kept = load(plan.source, self.model)
            return kept.model, kept.masks
        options = source_options(self.recipe, self.train)
        if plan.source in STEPPED:
            out = None if self.folder is None else self.folder / "source"
            options |= {"data": self.train, "out": out, "progress": self.part(0.02, 0.25),
                        "check": self.data.calibration if plan.source == "drop-threshold" else None}  # fmt: skip
        elif plan.source in LOOK_AT_SPECTRA:
            options["table"] = analyze(self.model, cancelled=self.cancelled)
        elif plan.source in LOOK_AT_DATA:
            options["calibration"] = second_moments(
                self.model, self.data.calibration, n=plan.images, seed=self.seed, cancelled=self.cancelled
            )
        pruned: Pruning = prune_model(
            self.model, plan.source, plan.source_sparsity, seed=self.seed, cancelled=self.cancelled, **options
        )
        return pruned.of(self.model), pruned.masks

    def restore(self, found: Projected, masks: Mapping[str, Tensor] | None) -> pd.DataFrame | None:
        """The prune–restore certificates, where the source was pruned and they are asked for."""
        if masks is None or not self.plan.restore_images:
            return None
        images, _ = self.data.calibration.sample(self.plan.restore_images, self.seed)
        return restore_certificates(self.model, found, masks, images, _penalty(self.recipe))


def project_by_plan(
    model: nn.Module,
    plan: ProjectPlan,
    calibration: Split,
    source: str | nn.Module = "dense",
    masks: Mapping[str, Tensor] | None = None,
    **options: Any,
) -> Projected:
    """`mp.project` with the settings of a plan."""
    return project(
        model, plan.pattern, calibration, source, masks, permute=plan.permute, alpha_ser=plan.alpha_ser,
        free_restoration=plan.free_restoration, conv=plan.conv, tome=plan.tome, layers=plan.layers or None,
        criterion=plan.criterion, damping=plan.damping, repair=plan.repair, renew=plan.renew, foldable=plan.foldable,
        prior=plan.prior, images=plan.images, **options,
    )  # fmt: skip


def _penalty(recipe: Recipe) -> Penalty:
    plan, card = recipe.project, {}
    if recipe.model.name in ARCHITECTURES and not (plan.lambda1 or plan.lambda2):
        card = model_card(recipe.model.name)["recipe"]
    return Penalty(plan.lambda2 or card.get("lambda2", 0.0), plan.lambda1 or card.get("lambda1", 0.0))


def write_projection(result: ProjectionResult, folder: str | Path, report: str | None = None) -> ProjectionResult:
    """Write a finished projection into `folder`: all of its files, or none when one fails. Raises CheckpointError."""
    folder = check_folder(folder)
    tables = {"layers.csv": result.projected.cost, "metrics.csv": result.metrics.set_index("phase"),
              "macs.csv": result.macs.table, "samples.csv": result.certificates["projected"].table()}  # fmt: skip
    if result.curve is not None:
        tables |= {"recovery.csv": result.curve, "recovered-samples.csv": result.certificates["recovered"].table()}
    if result.restore is not None:
        tables["restore.csv"] = result.restore
    results = summary_of(result)
    texts = {"recipe.toml": result.recipe.to_toml(), "results.json": json.dumps(results, indent=1) + "\n",
             "environment.json": json.dumps(dict(result.environment), indent=1) + "\n"}  # fmt: skip
    if report is not None:
        texts["report.html"] = report
    writers: dict[str, Writer] = {name: text_writer(text) for name, text in texts.items()}
    writers |= {name: frame.to_csv for name, frame in tables.items()}
    writers["projected.safetensors"] = lambda path: save(
        path, result.model, recipe=result.recipe.to_dict(), results=results, **result.projected.saved_as
    )
    try:
        write_together(folder, writers, gone=_OPTIONAL)
    except OSError as error:
        reason = error.__cause__ if isinstance(error, CheckpointError) and error.__cause__ else error
        raise CheckpointError(f"cannot write the run into {folder}: {reason}; what was there is unchanged") from error
    return replace(result, checkpoint=folder / "projected.safetensors", folder=folder)


def summary_of(result: ProjectionResult) -> dict[str, Any]:
    """The numbers of a projection as JSON data, each by how it is known."""
    found = result.projected
    phases = {row["phase"]: {k: v for k, v in row.items() if k != "phase"} for row in result.metrics.to_dict("records")}
    share = float(found.cost["left"].sum() / found.cost["power"].sum())
    return {
        "pattern": str(found.pattern), "conv": found.conv, "tome": list(found.tome), "layers": len(found.masks),
        "left_dense": int((found.cost["why"] != "").sum()), "permuted": len(found.permutations),
        "exact": bool(found.cost["exact"].dropna().all()), "cost_share": share, "settings": dict(found.settings),
        "measured": phases,
        "macs": {"dense": result.macs.dense, "executed": result.macs.sparse, "reduction": result.macs.reduction,
                 "paper_convention": result.macs_paper.sparse, "paper_reduction": result.macs_paper.reduction},
    }  # fmt: skip


def check_reload(result: ProjectionResult, images: Tensor) -> None:
    """Raises MpvizError when the checkpoint of a run does not give the logits of its network, bit by bit."""
    if result.checkpoint is None:
        raise MpvizError("this run has no checkpoint; give it a folder")
    with torch.no_grad():
        if not torch.equal(load(result.checkpoint).model(images), result.model(images)):
            raise MpvizError(f"{result.checkpoint} gives other logits than the network that was saved")
