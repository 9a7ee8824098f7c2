"""The selection phase of prune–restore: only removed entries train, and how far they move is told."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from mpviz.errors import Cancelled, DataError, TrainingError
from mpviz.nets.data import Split
from mpviz.train.batches import Order, read
from mpviz.train.checkpoints import Progress
from mpviz.train.keeper import Keeper
from mpviz.train.objectives import recovery_loss
from mpviz.train.plan import data_digest, digest
from mpviz.train.processes import choose_device, placed


def movement_of(
    network: nn.Module,
    open_: Mapping[str, Tensor],
    data: Split,
    teacher: nn.Module | None = None,
    epochs: float = 0.2,
    batch: int = 128,
    learning_rate: float = 1e-3,
    momentum: float = 0.9,
    weight: float = 0.5,
    temperature: float = 2.0,
    seed: int = 0,
    renew: bool = False,
    progress: Callable[[float], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    device: str | torch.device | None = None,
    out: Path | None = None,
    every: int = 200,
) -> dict[str, Tensor]:
    """What each open entry is after a short training in which nothing else may move: {name: Float like the weight}.

    network: pruned; the entries of `open_` (Bool, True = may train) begin at zero. They are trained by SGD with
    momentum on the recovery loss, at a constant rate; kept entries, biases, norms and their statistics are frozen,
    so that an entry's movement is what the loss asks of it alone. renew: batch norms' means and variances are
    measured again on the pruned network first, on the selection's own images, and left alone then: removing much
    shifts them. epochs: a part of one is enough. network and teacher are left as they are. device: as in `distill`.
    out, every: a folder for checkpoints, written after so many steps and when it is cancelled; a call with the same
    arguments goes on there and ends with the same bits on a CPU. Zero where an entry is not open, and on the CPU.
    Source: the selection phase of SER, arXiv:2606.02608.
    Raises TrainingError for a loss that is not finite, or entries that are open but not zero; DataError for an image
    that cannot be read; CheckpointError when `out` holds another selection; Cancelled.
    """
    settings = {"epochs": epochs, "batch": batch, "rate": learning_rate, "momentum": momentum, "weight": weight,
                "temperature": temperature, "seed": seed, "renew": renew}  # fmt: skip
    selection = _Selection(network, open_, data, teacher, settings, choose_device(device)[0], out)
    selection.run(every, progress, cancelled)
    return selection.moved()


class _Selection:
    """A frozen copy of the pruned network, its open entries, and how far their training has come."""

    def __init__(
        self, network: nn.Module, open_: Mapping[str, Tensor], data: Split, teacher: nn.Module | None,
        settings: Mapping[str, Any], device: torch.device, out: Path | None,
    ) -> None:  # fmt: skip
        self.settings, self.data, self.device = settings, data, device
        self.network, self.moving = _opened(network, open_, device)
        self.teacher = None if teacher is None else placed(teacher, device)
        self.open = {name: may.to(device) for name, may in open_.items()}
        self.optimizer = torch.optim.SGD(list(self.moving.values()), lr=settings["rate"], momentum=settings["momentum"])
        self.chosen = _chosen(len(data), min(settings["batch"], len(data)), settings["epochs"], settings["seed"])
        self.step = 0
        self.keeper = Keeper(out, {} if out is None else self._identity(), "selection")

    def _identity(self) -> dict[str, Any]:
        return dict(self.settings) | {
            "student": digest(self.network.state_dict()),
            "open": digest(self.open),
            "teacher": None if self.teacher is None else digest(self.teacher.state_dict()),
            "data": data_digest(self.data),
        }

    def run(self, every: int, progress: Callable[[float], None] | None, cancelled: Callable[[], bool] | None) -> None:
        """Train to the end, from where the folder stands."""
        with torch.no_grad():
            classes = self.network(self.data.sample(1)[0].to(self.device)).shape[1]
        saved = self.keeper.newest()
        self.keeper.take_up(saved, self.network, self.optimizer)
        if saved is not None:
            self.step = saved.progress.step
        elif self.settings["renew"]:
            update_bn((x for x, _ in self._batches(classes)), self.network, self.device)
        for images, labels in self._batches(classes):
            self._take_step(images.to(self.device), labels.to(self.device))
            stop = cancelled is not None and cancelled()
            if stop or (self.step % every == 0 and self.step < len(self.chosen)):
                self._save()
            if stop:
                raise Cancelled(f"the selection was cancelled after step {self.step}; {self.keeper.kept()}")
            if progress is not None:
                progress(self.step / len(self.chosen))

    def _batches(self, classes: int) -> Iterator[tuple[Tensor, Tensor]]:
        """What is still to be seen. Raises DataError that says where it stopped."""
        try:
            yield from read(self.data.dataset, self.chosen[self.step :], classes)
        except DataError as error:
            raise DataError(
                f"{error}; the selection stopped at step {self.step + 1} of {len(self.chosen)}; {self.keeper.kept()}"
            ) from error

    def _take_step(self, images: Tensor, labels: Tensor) -> None:
        with torch.no_grad():
            told = None if self.teacher is None else self.teacher(images)
        with torch.enable_grad():
            ours = self.network(images)
            loss = recovery_loss(ours, labels, told, self.settings["weight"], self.settings["temperature"]).mean()
        if not torch.isfinite(loss):
            remedy = "lower its rate"
            if told is not None and not torch.isfinite(told).all() and torch.isfinite(images).all():
                remedy = "the teacher's logits are not finite: give another teacher"
            else:
                self.keeper.spoiled(self.step, self.network, images)
            raise TrainingError(
                f"the loss of the selection is {loss.item()} at step {self.step + 1}; {remedy}; {self.keeper.kept()}"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for name, parameter in self.moving.items():
            assert parameter.grad is not None
            parameter.grad.mul_(self.open[name])  # momentum stays zero with it
        self.optimizer.step()
        self.step += 1

    def _save(self) -> None:
        progress = Progress(self.step, self.keeper.identity, epochs=[], partial={}, seconds=0.0)
        self.keeper.write(self.network, {}, self.optimizer, {}, progress)

    def moved(self) -> dict[str, Tensor]:
        """The open entries as they are now, on the CPU."""
        return {
            name: torch.where(self.open[name], weight.detach(), torch.zeros_like(weight)).cpu()
            for name, weight in self.moving.items()
        }


def _opened(
    network: nn.Module, open_: Mapping[str, Tensor], device: torch.device
) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """A frozen copy in eval mode, and its weights that have entries to train."""
    trained = copy.deepcopy(network).to(device).eval().requires_grad_(False)
    parameters = dict(trained.named_parameters())
    moving = {name: parameters[name] for name in open_}
    for name, parameter in moving.items():
        if bool(parameter.detach()[open_[name].to(device)].any()):
            raise TrainingError(f"{name} has open entries that are not zero; selection starts from removed entries")
        parameter.requires_grad_(True)
    return trained, moving


def _chosen(samples: int, batch: int, epochs: float, seed: int) -> list[np.ndarray]:
    """The sample numbers of each step."""
    order = Order(samples, batch, seed)
    steps = max(1, math.ceil(epochs * order.steps))
    return [numbers for epoch in range(math.ceil(steps / order.steps)) for numbers in order.batches(epoch)][:steps]
