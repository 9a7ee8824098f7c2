"""Sweeps looked at and stopped, from any process or machine that sees their folder; torch is not needed for it."""

from __future__ import annotations

from pathlib import Path

from mpviz.errors import CheckpointError
from mpviz.sweep_engines import ask_slurm, take_back
from mpviz.sweep_folder import SweepState, read_plan, read_sweep, stop_path


def sweep_status(folder: str | Path) -> SweepState:
    """How a sweep stands; where it was given to SLURM, and SLURM can be asked here, with what SLURM says.

    Raises CheckpointError for a folder that is no sweep's.
    """
    folder = Path(folder)
    plan = read_plan(folder)
    ids = [run.job for run in plan.runs if run.job] if plan.engine == "slurm" else []
    return read_sweep(folder, ask_slurm(folder, ids) if ids else None)


def cancel_sweep(folder: str | Path) -> SweepState:
    """Ask all runs of a sweep to stop, from wherever the folder is seen; each keeps its last step first.

    Raises CheckpointError for a folder that is no sweep's, MpvizError when SLURM does not take the jobs back.
    """
    state = sweep_status(folder)
    try:
        stop_path(state.folder).touch()
    except OSError as error:
        raise CheckpointError(f"cannot ask the runs of {folder} to stop: {error}") from error
    if state.plan.engine == "slurm":  # what runs already sees the file, and stops by itself
        take_back(state.folder, [run.job for run in state.runs if run.state == "queued" and run.job])
    return sweep_status(folder)


def refuse_while_moving(folder: Path) -> None:
    """Raises CheckpointError while runs of a sweep are under way, or something submits them."""
    state = sweep_status(folder)
    busy = [run.name for run in state.runs if run.state == "running" or (run.state == "queued" and run.job)]
    if busy or state.driven:
        words = f"{len(busy)} of its runs, such as {busy[0]}, run or wait" if busy else "a process drives it"
        raise CheckpointError(f"{folder} is under way: {words}; mpviz sweep cancel {folder} stops it")
