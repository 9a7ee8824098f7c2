"""The folder of a grid: whose it is, what each finished cell leaves there, and what goes when it is done."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from mpviz.errors import CheckpointError
from mpviz.files import Writer, write_text, write_together
from mpviz.grid_results import GridResult, environment, read_grid
from mpviz.recipe import Recipe
from mpviz.run_results import check_folder, recipe_there, refuse_other_kinds, refuse_other_recipes, text_writer
from mpviz.train.processes import all_there, launched

FAILED = "failed.json"
FREE = ("methods", "seeds", "sparsities")  # of a recipe's grid: a run may be taken up with more of them


@dataclass
class GridFolder:
    """Where a grid lies: its recipe and environment, and below cells/METHOD/seed-N what each cell came to."""

    place: Path
    roles: Mapping[str, str] = field(default_factory=dict)  # of the layers
    started: float = field(default_factory=time.monotonic)
    before: float = 0.0  # seconds that earlier calls took
    writes: bool = field(default_factory=lambda: launched()[0] == 0)  # of processes launched together the first

    def __post_init__(self) -> None:
        check_folder(self.place)
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            self.before = float(json.loads((self.place / "environment.json").read_text(encoding="utf-8"))["seconds"])

    def path(self, method: str, seed: int) -> Path:
        """Where the cells of a method and seed lie."""
        return self.place / "cells" / method / f"seed-{seed}"

    def check(self, recipe: Recipe) -> None:
        """Raises CheckpointError when the folder holds something else, or cells that this recipe would not make.

        What no work was kept of does not count: a recipe that failed can be mended.
        """
        refuse_other_kinds(self.place, "cells")
        kept = self._kept()
        if kept:
            asked, there = (_binding(one, kept) for one in (recipe, recipe_there(self.place)))
            refuse_other_recipes(self.place, "a grid of methods", asked, there)

    def claim(self, recipe: Recipe) -> None:
        """Write recipe and environment, so that the grid can be looked at while it runs."""
        while not self.writes:  # the first of several processes tidies up before the others leave anything here
            with contextlib.suppress(CheckpointError):
                if recipe_there(self.place) == recipe:
                    return
            time.sleep(0.1)
        kept = self._kept()
        if not (self.place / "recipe.toml").exists() or recipe_there(self.place) != recipe:
            for folder in self.place.glob("cells/*"):
                if folder.name not in kept:  # notes of a training that failed before it kept anything
                    shutil.rmtree(folder, ignore_errors=True)
        texts = {"recipe.toml": recipe.to_toml(), "environment.json": self._environment()}
        self._write({name: text_writer(text) for name, text in texts.items()})

    def keep(
        self, method: str, seed: int, sparsity: float, masks: Mapping[str, Tensor],
        phases: Mapping[str, Mapping[str, Any]], log: Sequence[Mapping[str, Any]],
        restored: Mapping[str, int] | None = None, reservoir: Mapping[str, int] | None = None,
    ) -> None:  # fmt: skip
        """Write the record of a finished cell.

        phases: measured numbers by phase. log: rows of what was decided, of earlier steps too, which name their target.
        reservoir, restored: entries of each layer that might come back in the cell's own step, and that did.
        """
        head: dict[str, Any] = {"method": method, "seed": seed, "sparsity": sparsity}
        back, might = dict(restored or {}), dict(reservoir or {})
        gone = {name: int((~mask).sum()) for name, mask in masks.items()}
        counts = {"removed": sum(gone.values()), "restored": sum(back.values())}
        metrics = [head | {"phase": phase} | dict(values) | counts for phase, values in phases.items()]
        layers = [
            head | {"layer": name, "role": self.roles.get(name, ""), "params": masks[name].numel(),
                    "removed": gone[name], "reservoir": might.get(name, 0), "restored": back.get(name, 0)}
            for name in masks
        ]  # fmt: skip
        rows = [{"method": method, "seed": seed, "target": sparsity, **row} for row in log]
        record = {"metrics": metrics, "layers": layers, "log": rows}
        place = self.path(method, seed)
        self.note(place / f"cell-{sparsity:.4f}.json", record)
        self.tidy(place, sparsity)
        self._write({"environment.json": text_writer(self._environment())})

    def failed(self, method: str, seed: int, error: Exception) -> None:
        """Note that a training failed: what it left is no reason to refuse a mended recipe."""
        self.note(self.path(method, seed) / FAILED, {"error": str(error)})

    def note(self, path: Path, values: Any) -> None:
        """Write JSON atomically. Raises CheckpointError."""
        try:
            if self.writes:
                write_text(path, json.dumps(values, indent=1) + "\n")
        except OSError as error:
            raise CheckpointError(f"cannot write {path} ({error}); earlier cells are as they were") from error

    def tidy(self, place: Path, sparsity: float) -> None:
        """Take away what only an unfinished cell needs: checkpoints with the optimiser; the cell's own one stays."""
        notes = (place / f"pruned-{sparsity:.4f}.json", place / f"selected-{sparsity:.4f}.safetensors")
        for old in () if not self.writes else (*place.glob(f"recovery-{sparsity:.4f}/*.safetensors"), *notes):
            old.unlink(missing_ok=True)

    def finish(self, recipe: Recipe, report: Callable[[GridResult], str] | None) -> GridResult:
        """Read all cells and write their tables, and the report where there is one."""
        all_there()  # the first has kept its last cell
        result = read_grid(self.place, recipe, json.loads(self._environment()))
        if not self.writes:
            return result
        texts = {"environment.json": self._environment()} | ({} if report is None else {"report.html": report(result)})
        tables = {"metrics.csv": result.metrics, "layers.csv": result.layers, "log.csv": result.log}
        texts |= {name: table.to_csv(index=False) for name, table in tables.items()}
        self._write({name: text_writer(text) for name, text in texts.items()})
        return result

    def _environment(self) -> str:
        seconds = self.before + time.monotonic() - self.started
        return json.dumps(environment() | {"seconds": round(seconds, 1)}, indent=1) + "\n"

    def _kept(self) -> set[str]:
        """Methods of which a cell or a checkpoint is there."""
        return {path.name for path in self.place.glob("cells/*") if _holds_work(path)}

    def _write(self, files: Mapping[str, Writer]) -> None:
        try:
            if self.writes:
                write_together(self.place, files)
        except OSError as error:
            raise CheckpointError(f"cannot write into {self.place} ({error}); finished cells are kept") from error


def _holds_work(folder: Path) -> bool:
    """Whether a method has a finished cell or stage, or checkpoints of a training that was stopped and did not fail."""
    if any(folder.glob("*/cell-*.json")) or any(folder.glob("*/stage-*.safetensors")):
        return True
    return any(any(seed.glob("**/*.safetensors")) for seed in folder.glob("*") if not (seed / FAILED).exists())


def _binding(recipe: Recipe, kept: set[str]) -> dict[str, Any]:
    """What must not change while cells of these methods are there."""
    grid = recipe.to_dict()["grid"]
    options = {method: grid["options"].get(method, {}) for method in sorted(kept)}
    return recipe.to_dict() | {"grid": {key: grid[key] for key in grid if key not in FREE} | {"options": options}}


def log_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of a log as JSON can hold them: None for what is not a number."""
    return [
        {str(key): None if isinstance(value, float) and value != value else value for key, value in row.items()}
        for row in table.to_dict("records")
    ]


def by_layer(
    stage: Mapping[str, Any], masks: Mapping[str, Tensor], roles: Mapping[str, str]
) -> list[dict[str, Any]]:  # fmt: skip
    """A stage's row of `prune_in_steps` as a row a layer; its keys "… in LAYER" and "… of LAYER" speak of one each.

    step: what was done, "magnitude", "seb" or "restore"; removed: at the end of the stage; reservoir: what might come
    back in it; restored: what did.
    """
    step = "restore" if stage["selection_epochs"] else "seb" if stage["spectral"] else "magnitude"
    ends = {f" {word} {name}": name for word in ("in", "of") for name in masks}
    own: dict[str, dict[str, Any]] = {name: {} for name in masks}
    shared = {key: value for key, value in stage.items() if key not in ("removed", "reservoir", "restored")}
    for key, value in stage.items():
        for end in filter(key.endswith, ends):
            own[ends[end]][key.removesuffix(end)] = value
            shared.pop(key, None)
    rows = []
    for name, mask in masks.items():
        gone = int((~mask).sum())
        row = {"step": step, "layer": name, "role": roles.get(name, ""), "params": mask.numel(), "removed": gone,
               "sparsity": gone / mask.numel(), "reservoir": 0, "restored": 0}  # fmt: skip
        rows.append(shared | row | own[name])
    return rows
