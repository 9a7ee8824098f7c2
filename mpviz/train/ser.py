"""Pruning in steps with recovery between them: gradual magnitude and SEB, prune–restore (SER), the hybrid of both."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor, nn

from mpviz.errors import CheckpointError, TrainingError, nearest
from mpviz.files import write_text
from mpviz.nets.data import Split
from mpviz.prune.restore import Stage
from mpviz.train.feed import check_training_data
from mpviz.train.keeper import check_every
from mpviz.train.plan import RecoveryPlan, check_count, data_digest, digest, make_plan
from mpviz.train.processes import launched
from mpviz.train.stage import BeforeRecovery, Stages, Tell, place_of
from mpviz.train.step_plan import StepPlan

RUN = ("after_epoch", "device", "every", "workers")  # options of `distill` that do not change what comes out
RECOVERY = (*(field.name for field in fields(RecoveryPlan) if field.name not in ("epochs", "seed")), *RUN)


@dataclass(frozen=True, eq=False)
class Gradual:
    """What a gradual pruning came to. model: the last one, in eval mode; masks: its own; log: one row a stage.

    Columns of the log: target and over (sparsities at the end and before entries came back), removed (in all, and
    "removed in NAME" for each layer), reservoir (the same, that might come back in this step), restored (the same, that
    did), spectral and "weight of NAME" (the SEB weights
    that it went by), selection_epochs, recovery_epochs, loss (of the last epoch), check_accuracy.
    """

    model: nn.Module
    masks: dict[str, Tensor]
    log: pd.DataFrame
    plan: StepPlan


def prune_in_steps(
    model: nn.Module,
    data: Split,
    sparsity: float,
    plan: StepPlan | None = None,
    check: Split | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    progress: Tell | None = None,
    cancelled: Callable[[], bool] | None = None,
    after_stage: Callable[[dict[str, Any], nn.Module, Mapping[str, Tensor]], None] | None = None,
    before_recovery: BeforeRecovery | None = None,
    **recovery: Any,
) -> Gradual:
    """Prune a copy of the model step by step, training between the steps with the dense model as teacher.

    data: ``splits.train``; masks follow from it and the weights alone. check: a split that is not the test split, for
    the schedule "drop-threshold". after_stage(row of the log, model, masks): after each stage. before_recovery(target,
    model): of a stage that is pruned, and not yet trained again. recovery: options of `distill`, such as optimizer,
    learning_rate, batch, augment, device; `every` counts for the selection phase too.

    out: a folder, for one network, data set and plan. Each finished stage is kept there as a checkpoint; of the one
    under way, what its selection came to and how far its two trainings are. A call with the same settings goes on
    there, and loses at most `every` optimiser steps. Of the last stage "selected-….safetensors" stays: the network
    before its recovery, for which before_recovery is then called again. Launched in many processes, it needs a folder
    that all of them see: the first one selects.
    Raises TrainingError for an impossible plan or option, DataError for another split than the training data,
    CheckpointError when `out` holds another run, and the errors of `distill`; Cancelled after a checkpoint.
    """
    plan = (plan or StepPlan()).checked()
    check_training_data(data, "pruning in steps")
    check_count("seed", seed)
    training = checked_recovery(recovery, seed)
    todo = plan.stages(sparsity)
    run = Stages(model, data, plan, check, seed, recovery, cancelled, before_recovery)
    folder = None
    if out is None and launched()[1] > 1:
        raise TrainingError("many processes prune in steps by way of files; give out=, a folder all of them see")
    if out is not None:
        asked = plan.record() | {"seed": seed, "training": training, "network": digest(run.teacher.state_dict()),
                                 "data": data_digest(data)}  # fmt: skip
        if run.check is not None and check is not None:
            asked["check"] = data_digest(check)
        if plan.last:  # the last of these stages is trained for longer
            asked["stages"] = [stage.target for stage in todo]
        folder = _folder(Path(out).expanduser(), asked)
    for number, stage in enumerate(todo):
        last = number == len(todo) - 1
        place = None if folder is None else place_of(folder, stage.target)
        if place is not None and place.stage.exists():
            run.take_up(place, last)
        else:
            run.do(stage, last, place, _part(progress, number, len(todo), stage))
        if after_stage is not None:
            after_stage(run.log[-1], run.model, run.masks)
    return Gradual(run.model, run.masks, pd.DataFrame(run.log), plan)


def checked_recovery(options: Mapping[str, Any], seed: int = 0) -> dict[str, Any]:
    """The options of `distill` that decide what comes out, as JSON data.

    Raises TrainingError for those that it does not have or that pruning in steps sets itself, and for wrong values.
    """
    for name in options:
        if name not in RECOVERY:
            said = "the plan's recovery says how long" if name == "epochs" else nearest(name, RECOVERY)
            raise TrainingError(f"recovery between steps has no option '{name}'; {said}")
    check_every(options.get("every", 1))
    return make_plan(seed=seed, **{name: value for name, value in options.items() if name not in RUN}).record()


def _part(progress: Tell | None, number: int, stages: int, stage: Stage) -> Tell:
    def tell(share: float, words: str) -> None:
        if progress is not None:
            progress((number + share) / stages, f"to {100 * stage.target:.0f} %: {words}")

    return tell


def _folder(folder: Path, asked: Mapping[str, Any]) -> Path:
    """The folder of a run, which holds this run or none. Raises CheckpointError for another."""
    note, asked = folder / "steps.json", json.loads(json.dumps(asked))
    if note.exists():
        there = json.loads(note.read_text(encoding="utf-8"))
        other = sorted(key for key in asked.keys() | there.keys() if asked.get(key) != there.get(key))
        if other:
            raise CheckpointError(f"{folder} holds another run: {', '.join(other)} differ; choose another folder")
    else:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_text(note, json.dumps(asked, indent=1) + "\n")
        except OSError as error:
            raise CheckpointError(f"cannot write to {folder} ({error}); choose another folder") from error
    return folder
