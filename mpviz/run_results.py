"""What the run of one plan came to, and its folder: written whole or not at all, and read back."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor, nn

from mpviz.certificates.margins import Certificate
from mpviz.certificates.summary import read_tiers, recovered_results, results_of
from mpviz.errors import CheckpointError, RecipeError
from mpviz.files import Writer, write_together
from mpviz.nets.forward import pruned_copy
from mpviz.nets.spectra import LayerSpectrum, layer_spectra, table_of
from mpviz.nets.store import load, save
from mpviz.recipe import Recipe, read_recipe
from mpviz.recipe_parts import dense_model


@dataclass(frozen=True, eq=False)
class Recovered:
    """What training gave back to the pruned network.

    model: in eval mode, removed entries exactly zero. certificate: against the dense network, on the samples of the
    pruned one's. curve: one row an optimiser step (index), with epoch, learning_rate, loss (nats) and accuracy.
    """

    model: nn.Module
    certificate: Certificate
    curve: pd.DataFrame


@dataclass(frozen=True)
class RunResult:
    """All that a run found. table: of `analyze`. budgets: one row a prunable layer. comparison: before and after.

    pruned, certificate: of the network without training. metrics: one row a phase ("pruned", "recovered"), with the
    columns of a grid's. environment: what it ran on. curve: columns sparsity, coverage, unchanged, accuracy, tier and
    samples along the slider's positions without training, None when it was not asked for. recovered: None when the
    recipe trains nothing. checkpoint: the file of the last network, None when nothing was written.
    """

    recipe: Recipe
    spectra: dict[str, LayerSpectrum]
    table: pd.DataFrame
    budgets: pd.DataFrame
    masks: dict[str, Tensor]
    pruned: nn.Module
    certificate: Certificate
    comparison: pd.DataFrame
    metrics: pd.DataFrame
    environment: Mapping[str, Any]
    curve: pd.DataFrame | None = None
    recovered: Recovered | None = None
    checkpoint: Path | None = None
    folder: Path | None = None

    @property
    def model(self) -> nn.Module:
        """The network that the run is for: the recovered one, else the pruned one."""
        return self.pruned if self.recovered is None else self.recovered.model


def check_folder(folder: str | Path) -> Path:
    """The folder of a run. Raises CheckpointError when its name is taken by a file, before any work is done."""
    folder = Path(folder)
    for part in (folder, *folder.parents):
        if part.exists() and not part.is_dir():
            raise CheckpointError(f"{part} is a file where the run needs a folder; choose another name")
    return folder


_MARKS = {
    "cells": "a grid of methods", "pruned.safetensors": "the run of a plan", "projected.safetensors": "a projection",
}  # fmt: skip


def run_folder(out: str | Path | None, own: str, recipe: Recipe) -> Path | None:
    """The folder of a recipe's run whose last network is called `own`, None where nothing is to be written.

    Raises CheckpointError when its name is taken by a file, or a run of another kind or of another recipe lies there.
    """
    if out is None:
        return None
    folder = check_folder(out)
    refuse_other_kinds(folder, own)
    if (folder / own).exists():
        refuse_other_recipes(folder, _MARKS[own], recipe.to_dict(), recipe_there(folder).to_dict())
    return folder


def refuse_other_kinds(folder: Path, own: str) -> None:
    """Raises CheckpointError when a folder holds a run of another kind than the one that `own` marks."""
    for mark, what in _MARKS.items():
        if mark != own and (folder / mark).exists():
            raise CheckpointError(f"{folder} holds {what}; choose another folder")


def recipe_there(folder: Path) -> Recipe:
    """The recipe of the work that a folder holds. Raises CheckpointError when it is lost."""
    try:
        return read_recipe(folder / "recipe.toml")
    except RecipeError as error:
        raise CheckpointError(f"{folder} holds work whose recipe is lost ({error}); choose another folder") from error


def refuse_other_recipes(folder: Path, what: str, asked: Mapping[str, Any], there: Mapping[str, Any]) -> None:
    """Raises CheckpointError, naming the keys, when the recipe of what a folder holds is not the one that is asked."""
    mine, theirs = _flat(asked), _flat(there)
    other = [key for key in {**theirs, **mine} if mine.get(key) != theirs.get(key)]
    if other:
        shown = "; ".join(f"{key}: {theirs.get(key)!r} there, {mine.get(key)!r} asked" for key in other[:3])
        more = f"; and {len(other) - 3} more" if len(other) > 3 else ""
        raise CheckpointError(
            f"{folder} holds {what} by another recipe ({shown}{more}); choose another folder, or remove that one"
        )


def _flat(values: Mapping[str, Any], head: str = "") -> dict[str, Any]:
    """Nested tables as one, by dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{head}{key}.") if isinstance(value, Mapping) else {f"{head}{key}": value}
    return found


_OPTIONAL = ("curve.csv", "recovery.csv", "recovered-samples.csv", "report.html")  # of an earlier run: they go with it


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
        "metrics.csv": result.metrics.set_index("method"),
    }
    if result.curve is not None:
        tables["curve.csv"] = result.curve.set_index("sparsity")
    if result.recovered is not None:
        results["recovered"] = recovered_results(result.recovered.certificate)
        tables["recovered-samples.csv"] = result.recovered.certificate.table()
        tables["recovery.csv"] = result.recovered.curve
    texts = {
        "recipe.toml": result.recipe.to_toml(),
        "environment.json": json.dumps(dict(result.environment), indent=1) + "\n",
        **(extra or {}),
    }
    writers: dict[str, Writer] = {name: text_writer(text) for name, text in texts.items()}
    writers |= {name: frame.to_csv for name, frame in tables.items()}
    writers["pruned.safetensors"] = lambda path: save(
        path, result.model, result.masks, recipe=result.recipe.to_dict(), results=results
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
    dense = dense_model(recipe)
    spectra = layer_spectra(dense)
    checkpoint = load(folder / "pruned.safetensors")
    try:
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        environment = dict(json.loads((folder / "environment.json").read_text(encoding="utf-8")))
        budgets = _read_table(folder / "budgets.csv").set_index("layer")
        metrics = _read_table(folder / "metrics.csv")
        if "pruned" not in set(metrics["phase"]):
            raise ValueError("metrics.csv has no row of the pruned network")
        comparison = pd.read_csv(folder / "comparison.csv", dtype=object)
        for column in ("dense", "pruned", *(["recovered"] if "recovered" in results else [])):
            # counts are whole numbers, shares are not
            comparison[column] = pd.Series([_json(value) for value in comparison[column]], dtype=object)
        curve = _read_table(folder / "curve.csv") if (folder / "curve.csv").exists() else None
        cert = _certificate(results, folder / "samples.csv")
        pruned, recovered = checkpoint.model, None
        if "recovered" in results:
            steps = _read_table(folder / "recovery.csv").set_index("step")
            after = _certificate(results | results["recovered"], folder / "recovered-samples.csv")
            pruned, recovered = pruned_copy(dense, checkpoint.masks), Recovered(checkpoint.model, after, steps)
    except (OSError, LookupError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder} is no whole run folder ({error}); run its recipe again") from error
    return RunResult(
        recipe, spectra, table_of(spectra), budgets, checkpoint.masks, pruned, cert, comparison, metrics, environment,
        curve, recovered, folder / "pruned.safetensors", folder,
    )  # fmt: skip


def _certificate(results: Mapping[str, Any], path: Path) -> Certificate:
    samples = _read_table(path)
    columns = ("labels", "dense_prediction", "pruned_prediction", "margin", "eta", "slack")
    arrays: dict[str, np.ndarray] = {name: samples[name].to_numpy() for name in columns}
    indices, tiers = samples["sample"].to_numpy(), read_tiers(results["tiers"], samples)
    return Certificate(results["tier"], results["split"], indices, tiers=tiers, **arrays)


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
