"""`mp.distill`: give a pruned network its accuracy back, its masks frozen, with the dense network as its teacher."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from mpviz.errors import BudgetError, ModelError, TrainingError
from mpviz.nets.data import Split
from mpviz.nets.forward import logits, pruned_copy
from mpviz.train.feed import check_training_data
from mpviz.train.keeper import check_every, open_folder
from mpviz.train.plan import RecoveryPlan, check_count, identity, make_plan
from mpviz.train.processes import choose_device, open_accelerator
from mpviz.train.recovery import Setting, Training


@dataclass(frozen=True)
class Recovery:
    """A finished recovery.

    model: the trained student in eval mode; removed entries are exactly zero. masks: as given. history: one row an
    epoch (index) with steps, loss (nats), accuracy (on the training batches as they were trained on), learning_rate and
    seconds. curve: one row an optimiser step (index) with epoch, learning_rate, loss, accuracy. steps: optimiser steps.
    seconds: spent in all, over interruptions. checkpoint: the last one in `out`, None without. plan: with every
    automatic value filled in. why: the reason of each automatic choice.
    """

    model: nn.Module
    masks: dict[str, Tensor]
    history: pd.DataFrame
    curve: pd.DataFrame
    steps: int
    seconds: float
    checkpoint: Path | None
    plan: RecoveryPlan
    why: dict[str, str]


def distill(
    student: nn.Module,
    teacher: nn.Module | None,
    data: Split,
    masks: Mapping[str, Tensor] | None = None,
    epochs: float = 3,
    temperature: float = 2.0,
    weight: float = 0.5,
    optimizer: str = "adamw",
    seed: int = 0,
    out: str | Path | None = None,
    device: str | torch.device | None = None,
    *,
    every: int = 200,
    workers: int = 0,
    in_place: bool = False,
    progress: Callable[[float, str], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    after_epoch: Callable[[dict[str, Any]], None] | None = None,
    check: Callable[[nn.Module], None] | None = None,
    **options: Any,
) -> Recovery:
    """Train a copy of `student` under frozen masks on labels and on the teacher's answers.

    The loss is (1 − a)·CE_smooth + a·τ²·KL(teacher/τ ‖ student/τ) with a = `weight`, τ = `temperature`; masks
    {parameter name: bool tensor, True = kept} are applied again after every optimiser step. teacher: None for plain
    fine-tuning. data: ``splits.train``. optimizer: "adamw" or "sgd". seed: of order, augmentation and dropout.

    out: folder for checkpoints (every `every` steps and after each epoch; `mp.load` opens them) and metrics.csv. A call
    with the same settings goes on where the folder stands; on a CPU it ends with the very bits of an uninterrupted run.
    device: "cpu", "cuda", or None for what there is (`Recovery.why` says which). workers: processes that decode image
    files. in_place: give the trained weights to `student` as well, at the end. progress(share done, text),
    cancelled(), after_epoch(row of the history): called by the first process; `cancelled` by all. check(network):
    called by all after each epoch, such as `Projected.check` of a projection; what it raises ends the run.
    options: the other fields of `RecoveryPlan`: learning_rate, batch, accumulate, precision, mixup, augment, …
    One script runs in one process or, by ``accelerate launch`` (on GPUs) or ``torchrun``, in many.

    Raises DataError for another split than the training data, an unreadable image or a label without a class;
    BudgetError for masks that do not fit; ModelError for a teacher with other classes; TrainingError for an impossible
    setting or a loss that is not finite (it names the step and the last good checkpoint); CheckpointError when `out`
    holds another run; Cancelled when asked to stop, after a checkpoint. Recipe: arXiv:2606.02608.
    """
    plan = make_plan(epochs=epochs, temperature=temperature, weight=weight, optimizer=optimizer, seed=seed, **options)
    check_training_data(data)
    check_every(every)
    check_count("workers", workers)
    trained = pruned_copy(student, _named(masks)).eval()
    kept = {name: mask.detach().clone() for name, mask in (masks or {}).items()}
    chosen, why = choose_device(device)
    guide = _guide(teacher, student, in_place)
    classes = _check_networks(trained, guide, data)
    known = identity(plan, trained, guide, kept, data)
    told = (progress, cancelled, after_epoch, check)
    setting = Setting(trained, guide, kept, data, classes, plan, known, open_folder(out), every, workers, *told)
    with contextlib.ExitStack() as stack:
        accelerator = stack.enter_context(open_accelerator(chosen, plan.precision, cancelled))
        training = Training(setting, accelerator, stack)
        training.run()
        reasons = _reasons(why, optimizer, options, teacher, accelerator.num_processes)
        return _result(student, training, kept, reasons, in_place)


def _named(masks: Mapping[str, Tensor] | None) -> Mapping[str, Tensor]:
    if masks is not None and not isinstance(masks, Mapping):
        raise BudgetError(f"masks are a {type(masks).__name__}; give a bool tensor for each parameter name")
    return masks or {}


def _guide(teacher: nn.Module | None, student: nn.Module, in_place: bool) -> nn.Module | None:
    """The teacher in eval mode; a copy when that, or training in place, would change the caller's."""
    if teacher is None:
        return None
    if in_place and teacher is student:
        raise TrainingError("the teacher is the student itself; give a copy of the dense network, or in_place=False")
    training = any(module.training for module in teacher.modules())
    return copy.deepcopy(teacher).eval() if training else teacher


def _check_networks(student: nn.Module, teacher: nn.Module | None, data: Split) -> int:
    """How many classes both networks have. Raises ModelError when they do not agree or cannot take the images."""
    images, _ = data.sample(1)
    classes = logits(student, images).shape[1]
    theirs = classes if teacher is None else logits(teacher, images).shape[1]
    if theirs != classes:
        raise ModelError(
            f"the teacher has {theirs} classes and the student {classes}; take the dense network that the student was "
            "pruned from, or teacher=None"
        )
    return classes


def _reasons(
    device: str, optimizer: str, options: Mapping[str, Any], teacher: nn.Module | None, processes: int
) -> dict[str, str]:
    why = {"device": device, "processes": f"{processes}, as launched"}
    for name in ("learning_rate", "weight_decay", "batch"):
        if options.get(name) is None:
            why[name] = f"the paper's for {optimizer}"
    if teacher is None:
        why["weight"] = "no teacher: cross-entropy alone"
    return why


def _result(
    student: nn.Module, training: Training, masks: dict[str, Tensor], why: dict[str, str], in_place: bool
) -> Recovery:
    # into a fresh copy: the one that was trained carries what accelerate wrapped around it
    model = student if in_place else copy.deepcopy(student)
    model.load_state_dict(training.model.state_dict())
    columns = ["epoch", "steps", "loss", "accuracy", "learning_rate", "seconds"]
    return Recovery(
        model=model.eval(),
        masks=masks,
        history=pd.DataFrame(training.epochs, columns=columns).set_index("epoch"),
        curve=training.metrics.table(),
        steps=training.step,
        seconds=training.seconds,
        checkpoint=training.keeper.checkpoint,
        plan=training.plan,
        why=why,
    )
