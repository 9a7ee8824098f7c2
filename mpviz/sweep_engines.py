"""What runs the jobs of a sweep: this process, submitit's local executor, or SLURM by way of submitit."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mpviz.errors import Cancelled, CheckpointError, MpvizError, nearest
from mpviz.sweep_folder import (
    ENGINES,
    JOBS,
    Plan,
    SweepState,
    driver_path,
    read_sweep,
    status_path,
    stop_path,
    write_plan,
)  # fmt: skip
from mpviz.sweep_job import SweptRun, run_here
from mpviz.sweep_life import LifeFile

Progress = Callable[[float, str], None]
Stop = Callable[[], bool]
_POLL = 0.3  # seconds between looks at jobs of this machine
_MONTH = 60 * 24 * 30  # minutes that a job of this machine may take
_HOUR = "60"  # of a job on SLURM, unless it is told otherwise; a longer run is queued again and goes on
_FRESH = 5.0  # seconds that an answer of SLURM is good for: several people may watch
_said: dict[tuple[str, ...], tuple[float, dict[str, str]]] = {}
_OWN = ("time", "setup")  # options for SLURM that are no plain flags of sbatch


def _submitit() -> Any:
    try:
        import submitit
    except ImportError as error:
        raise MpvizError("many runs at once need submitit: pip install mpviz[sweep], or the engine 'here'") from error
    return submitit


def check_engine(plan: Plan, folder: Path) -> None:
    """Raises MpvizError for an engine that is unknown or not here, or options that it does not take."""
    if plan.engine not in ENGINES:
        raise MpvizError(f"no engine is called '{plan.engine}'; {nearest(plan.engine, ENGINES)}")
    for name in ("parallel", "processes"):
        if getattr(plan, name) < 1:
            raise MpvizError(f"{name} is a number of at least 1; got {getattr(plan, name)}")
    if plan.slurm and plan.engine != "slurm":
        raise MpvizError(f"options for SLURM mean nothing to the engine '{plan.engine}'; choose the engine 'slurm'")
    for key, value in plan.slurm.items():
        if not re.fullmatch(r"[a-z][a-z_-]*", key) or not str(value).isprintable():
            raise MpvizError(f"an option for SLURM looks like partition=gpu; got '{key}={value}'")
    if plan.engine != "here":
        _submitit()
        if "%" in str(folder.absolute()):
            raise CheckpointError(f"submitit reads % in the folder {folder} as a mark of its own; choose another name")
    if plan.engine == "slurm":
        _minutes(plan.slurm.get("time", _HOUR))
        if shutil.which("srun") is None:
            raise MpvizError("there is no SLURM here: no srun on the PATH; run this on its login node, or use 'local'")


def drive(folder: Path, plan: Plan, progress: Progress | None, cancelled: Stop | None) -> SweepState:
    """Run all runs of a plan that are not done; SLURM gets them and is not waited for.

    Raises MpvizError when SLURM does not take them, Cancelled once all runs have stopped.
    """
    stop_path(folder).unlink(missing_ok=True)
    todo = [run.name for run in read_sweep(folder).runs if run.state != "done"]
    plan = replace(plan, runs=tuple(replace(run, job="") if run.name in todo else run for run in plan.runs))
    for name in todo:
        status_path(folder, name).unlink(missing_ok=True)
    write_plan(folder, plan)
    if plan.engine == "slurm":
        if todo:
            _submit_array(folder, plan, todo)
        return read_sweep(folder)
    try:
        with LifeFile(driver_path(folder)):
            if plan.engine == "here":
                _one_by_one(folder, plan, todo, progress, cancelled)
            else:
                _side_by_side(folder, plan, todo, progress, cancelled)
    except KeyboardInterrupt:
        stop_path(folder).touch()
        raise
    return read_sweep(folder)


def _tell(folder: Path, progress: Progress | None) -> None:
    if progress is not None:
        state = read_sweep(folder)
        share = sum(1.0 if run.state in ("done", "failed") else run.progress for run in state.runs) / len(state.runs)
        words = [f"{count} {name}" for name, count in state.counts.items()]
        busy = [f"{run.name}: {run.message}" for run in state.runs if run.state == "running"]
        progress(share, ", ".join(words) + (f" · {busy[0]}" if busy else ""))


def _stopped(folder: Path, cancelled: Stop | None) -> bool:
    if cancelled is not None and cancelled():
        stop_path(folder).touch()
    return stop_path(folder).exists()


def _one_by_one(
    folder: Path, plan: Plan, todo: Sequence[str], progress: Progress | None, cancelled: Stop | None
) -> None:
    def look() -> None:
        _stopped(folder, cancelled)
        _tell(folder, progress)

    for name in todo:
        if _stopped(folder, cancelled):
            raise Cancelled(f"the sweep was cancelled; mpviz sweep {folder} goes on")
        run_here(SweptRun(folder, name, plan.processes), look)


def _side_by_side(
    folder: Path, plan: Plan, todo: Sequence[str], progress: Progress | None, cancelled: Stop | None
) -> None:
    """Keep `parallel` jobs of submitit's local executor going until none is left."""
    submitit = _submitit()
    executor = submitit.LocalExecutor(folder / JOBS)
    executor.update_parameters(timeout_min=_MONTH)
    waiting, slots, ids = list(todo), _slots(plan), {run.name: run.job for run in plan.runs}
    threads = max(1, (os.cpu_count() or 1) // (plan.parallel * plan.processes))
    running: dict[int, Any] = {}
    while waiting or running:
        running = {slot: job for slot, job in running.items() if not job.done()}
        stopped = _stopped(folder, cancelled)
        if stopped and not running:
            raise Cancelled(f"the sweep was cancelled; mpviz sweep {folder} goes on")
        for slot, gpus in enumerate(slots):
            if waiting and slot not in running and not stopped:
                name = waiting.pop(0)
                running[slot] = executor.submit(SweptRun(folder, name, plan.processes, gpus, threads))
                ids[name] = running[slot].job_id
                write_plan(folder, replace(plan, runs=tuple(replace(run, job=ids[run.name]) for run in plan.runs)))
        _tell(folder, progress)
        time.sleep(_POLL)


def _slots(plan: Plan) -> list[str]:
    """The GPUs that each of the runs at a time may see, in turn; "" hides them where there are none."""
    import torch

    count = torch.cuda.device_count()
    blocks = [range(first, first + plan.processes) for first in range(0, count - plan.processes + 1, plan.processes)]
    if not blocks:
        return [""] * plan.parallel
    return [",".join(map(str, blocks[slot % len(blocks)])) for slot in range(plan.parallel)]


def _submit_array(folder: Path, plan: Plan, todo: Sequence[str]) -> None:
    """Give SLURM one array of jobs, and note their ids."""
    executor = _submitit().AutoExecutor(folder / JOBS, cluster="slurm", slurm_max_num_timeout=100)
    flags: dict[str, Any] = {key: value if value else True for key, value in plan.slurm.items() if key not in _OWN}
    if plan.processes > 1 and not {"gpus", "gpus-per-node", "gpus_per_node", "gres"} & flags.keys():
        flags["gpus-per-node"] = plan.processes
    executor.update_parameters(
        name=re.sub(r"\W+", "-", folder.absolute().name) or "sweep",
        timeout_min=_minutes(plan.slurm.get("time", _HOUR)), slurm_array_parallelism=plan.parallel,
        slurm_additional_parameters=flags,
        **({"slurm_setup": [plan.slurm["setup"]]} if "setup" in plan.slurm else {}),
    )  # fmt: skip
    try:
        with executor.batch():
            jobs = [executor.submit(SweptRun(folder, name, plan.processes)) for name in todo]
    except Exception as error:  # submitit raises what its command raises, and several kinds of its own
        raise MpvizError(f"SLURM did not take the jobs of {folder}: {error}; nothing runs") from error
    ids = {name: str(job.job_id) for name, job in zip(todo, jobs, strict=True)}
    write_plan(folder, replace(plan, runs=tuple(replace(run, job=ids.get(run.name, run.job)) for run in plan.runs)))


def _minutes(words: str) -> int:
    """Minutes of a time as sbatch takes it: minutes, [days-]hours:minutes[:seconds]."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d\d))?(?::(\d\d))?", str(words))
    if found is None:
        raise MpvizError(f"a time for SLURM looks like 90 (minutes), 2:00:00 or 1-12:00:00; got '{words}'")
    days, first, second, third = found.groups()
    if days is None and second is None:
        return max(1, int(first))
    if days is None and third is None:  # minutes:seconds
        return max(1, int(first))
    return max(1, 60 * (24 * int(days or 0) + int(first)) + int(second or 0))


def take_back(folder: Path, ids: Sequence[str]) -> None:
    """Cancel jobs that wait in SLURM's queue. Raises MpvizError when it does not take them back."""
    _submitit()
    from submitit import SlurmJob

    for job in ids:
        try:
            SlurmJob(folder=folder / JOBS, job_id=job).cancel(check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise MpvizError(f"SLURM did not take the job {job} back ({error}); scancel {job}") from error


def ask_slurm(folder: Path, ids: Sequence[str]) -> dict[str, str]:
    """{job: its state in SLURM's words}, at most some seconds old; empty where SLURM cannot be asked."""
    if shutil.which("sacct") is None:
        return {}
    when, known = _said.get(tuple(ids), (0.0, {}))
    if time.monotonic() - when > _FRESH:
        from submitit import SlurmJob

        jobs = [SlurmJob(folder=folder / JOBS, job_id=job) for job in ids]  # all of them before the first is asked
        known = {job.job_id: job.state for job in jobs}
        _said[tuple(ids)] = (time.monotonic(), known)
    return known
