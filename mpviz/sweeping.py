"""Many recipes, run side by side: on this machine or on SLURM, by submitit; watched and stopped through the folder."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mpviz.errors import CheckpointError
from mpviz.files import write_text
from mpviz.recipe import Recipe, read_recipe
from mpviz.run_results import check_folder
from mpviz.sweep_engines import check_engine, drive
from mpviz.sweep_folder import (
    Plan,
    SweepState,
    is_sweep,
    read_plan,
    recipe_path,
    write_plan,
)  # fmt: skip
from mpviz.sweep_plan import plan_runs
from mpviz.sweep_watch import refuse_while_moving

Progress = Callable[[float, str], None]


def sweep(
    recipes: str | Path | Recipe | Sequence[str | Path | Recipe],
    out: str | Path,
    settings: Sequence[str] = (),
    engine: str = "local",
    parallel: int | None = None,
    processes: int = 1,
    slurm: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> SweepState:
    """Run each recipe with each combination of settings as `mpviz run` does, each into a folder of its own below `out`.

    settings: "key=value,value,…" as in ``mpviz sweep --set``; all combinations are run. All recipes are checked before
    the first begins. engine: "local" (several at a time on this machine, through submitit), "here" (one after
    another) or "slurm" (an array of jobs; returns at once). parallel: runs at a time, two locally unless it says
    otherwise. processes: of each run, launched by accelerate, a GPU each.
    slurm: options of sbatch by name, such as {"partition": "gpu", "time": "2:00:00"}; a job whose time ends is queued
    again and goes on. A call on the same `out` goes on with what is not done, and may add recipes and settings.
    progress(share done, words), cancelled(): while runs of this machine are waited for.

    Raises RecipeError that names recipe and key, CheckpointError when `out` holds something else or still runs,
    MpvizError for an engine that is not there, and Cancelled when asked to stop, once all runs have kept their last
    step.
    """
    folder = check_folder(out)
    given = [recipes] if isinstance(recipes, (str, Path, Recipe)) else list(recipes)
    at_once = parallel or (2 if engine == "local" else 256 if engine == "slurm" else 1)
    plan = Plan(engine, (), at_once, processes, dict(slurm or {}), [sys.executable, "-m", "mpviz", "run"])
    check_engine(plan, folder)
    planned = plan_runs(given, settings, processes)
    if is_sweep(folder):
        refuse_while_moving(folder)
        there = {run.name: run for run in read_plan(folder).runs}
        for run, recipe in planned:
            if run.name in there and read_recipe(recipe_path(folder, run.name)) != recipe:
                raise CheckpointError(f"{folder} holds another recipe for the run {run.name}; choose another folder")
        runs = [*there.values(), *(run for run, _ in planned if run.name not in there)]
    else:
        taken = [run.name for run, _ in planned if (folder / run.name).exists()]
        if taken:
            raise CheckpointError(f"{folder} holds {taken[0]}, which no sweep made; choose another folder")
        runs = [run for run, _ in planned]
    try:
        for run, recipe in planned:
            write_text(recipe_path(folder, run.name), recipe.to_toml())
    except OSError as error:
        raise CheckpointError(f"cannot write into {folder}: {error}") from error
    plan = replace(plan, runs=tuple(runs))
    write_plan(folder, plan)
    return drive(folder, plan, progress, cancelled)


def continue_sweep(
    folder: str | Path, progress: Progress | None = None, cancelled: Callable[[], bool] | None = None
) -> SweepState:
    """Run what is not done of a sweep, as it was asked for. Raises the errors of `sweep`."""
    folder = Path(folder)
    plan = read_plan(folder)
    refuse_while_moving(folder)
    check_engine(plan, folder)
    return drive(folder, plan, progress, cancelled)
