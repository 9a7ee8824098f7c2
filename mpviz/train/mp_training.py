"""MP training of fully connected networks: an elastic net, and every few epochs part of the sub-edge spectrum goes.

Source: arXiv:2606.02608. With weight decay an admissible random part of a weight matrix must vanish at the end of
training; MP training takes it out on the way.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpviz.errors import Cancelled, TrainingError
from mpviz.nets.data import Split
from mpviz.nets.factors import factored, replace_layer
from mpviz.prune.options import misfit
from mpviz.train.checkpoints import Progress, random_state, restore_random
from mpviz.train.feed import check_training_data
from mpviz.train.keeper import Keeper, answers, check_every, open_folder
from mpviz.train.loop import elastic_net
from mpviz.train.plan import data_digest, digest
from mpviz.train.processes import randomness_kept
from mpviz.train.thinning import kept_share, thin_out


@dataclass(frozen=True)
class MPPlan:
    """What a run depends on, beside data and network; all numbers but the batch are the paper's.

    SGD with momentum; the rate is multiplied by `decay` every `every` epochs. lambda1, lambda2: of the elastic net
    λ₁Σ|W| + λ₂ΣW² over all linear weights. remove: whether the sub-edge spectrum is thinned out after every `every`
    epochs, keeping a share max(0, 1 − epoch/horizon) of the singular values below σ₊, the largest of them, in layers
    whose fit is at least "fair". factor: store a layer as two at the end where that takes fewer numbers
    (`mpviz.nets.factors`; `mp.save` and `mp.load` know them).
    """

    epochs: int = 100
    learning_rate: float = 0.01
    decay: float = 0.96
    every: int = 4
    momentum: float = 0.9
    batch: int = 128
    lambda1: float = 1e-6
    lambda2: float = 1e-6
    remove: bool = True
    horizon: float = 200.0
    factor: bool = False
    seed: int = 0

    def checked(self) -> MPPlan:
        """Raises TrainingError for numbers that mean nothing."""
        wrong = misfit(self)
        if wrong is not None:
            raise TrainingError(f"MP training cannot take {wrong}")
        for name in ("epochs", "every", "batch"):
            if getattr(self, name) < 1:
                raise TrainingError(f"{name} = {getattr(self, name)}; give at least 1")
        for name in ("learning_rate", "decay", "horizon"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise TrainingError(f"{name} = {value}; give a number above 0")
        for name in ("momentum", "lambda1", "lambda2"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise TrainingError(f"{name} = {value}; give 0 or more")
        return self


@dataclass(frozen=True, eq=False)
class MPTraining:
    """model: the trained copy, in eval mode. history: one row an epoch (index): loss, accuracy, learning_rate, seconds.

    log: one row a removal and layer: epoch, layer, grade and fit_error of its fit, edge σ₊, below (singular values
    under it), share (kept of these), removed, rank (that is left). parameters: before and after factoring. checkpoint:
    the last one in `out` (of the network before factoring), None without.
    """

    model: nn.Module
    history: pd.DataFrame
    log: pd.DataFrame
    parameters: tuple[int, int]
    plan: MPPlan
    checkpoint: Path | None = None


def mp_train(
    model: nn.Module,
    data: Split,
    plan: MPPlan | None = None,
    progress: Callable[[float, str], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    after_epoch: Callable[[dict[str, Any]], None] | None = None,
    *,
    out: str | Path | None = None,
    every: int = 500,
) -> MPTraining:
    """Train a copy of a fully connected network on ``splits.train``; the last linear layer is never thinned out.

    The network trains on the device where it is. out: folder for checkpoints, written every `every` optimiser steps,
    at the end, and when it is cancelled (`mp.load` opens them, with the network as `model`). A call with the same
    network, data and plan goes on where the folder stands; on a CPU it ends with the very bits of an uninterrupted run.
    Raises DataError for another split; TrainingError for a senseless plan, a network with fewer than two linear layers
    or a loss that is not finite (it names the step and the last good checkpoint); CheckpointError when `out` holds
    another run; Cancelled.
    """
    plan = (plan or MPPlan()).checked()
    check_every(every)
    check_training_data(data, "MP training")
    with randomness_kept():
        run = _Run(copy.deepcopy(model).train(), data, plan, open_folder(out), every)
        run.begin()
        run.train(progress, cancelled, after_epoch)
    trained = run.model.eval()
    before = _count(trained)
    for name, layer in run.inner.items() if plan.factor else ():
        replace_layer(trained, name, factored(layer))
    history = pd.DataFrame(run.history).set_index("epoch")
    return MPTraining(trained, history, pd.DataFrame(run.log), (before, _count(trained)), plan, run.keeper.checkpoint)


class _Run:
    """One training, from its begin or a checkpoint to its end. inner: the linear layers but the last, by name."""

    def __init__(self, model: nn.Module, data: Split, plan: MPPlan, folder: Path | None, every: int) -> None:
        linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        if len(linear) < 2:
            raise TrainingError(
                f"MP training needs a network with two linear layers or more; this one has {len(linear)}"
            )
        self.model, self.plan, self.every = model, plan, every
        self.inner = dict(list(linear.items())[:-1])
        self.weights = [layer.weight for layer in linear.values()]
        self.device = next(model.parameters()).device
        self.images, self.labels = (values.to(self.device) for values in data.sample())
        self._check_shapes()
        self.optimizer = torch.optim.SGD(model.parameters(), lr=plan.learning_rate, momentum=plan.momentum)
        known = {"network": digest(model.state_dict()), "data": data_digest(data)} if folder else {}
        self.keeper = Keeper(folder, asdict(plan) | known, "MP training")
        self.per_epoch = math.ceil(len(self.labels) / plan.batch)
        self.step, self.before = 0, 0.0
        self.history: list[dict[str, Any]] = []
        self.log: list[dict[str, Any]] = []
        self.partial = {"loss": 0.0, "hits": 0.0}

    @torch.no_grad()
    def _check_shapes(self) -> None:
        """Raises TrainingError for a network that does not take these images, or has no class for a label."""
        classes = int(self.labels.max()) + 1
        try:
            found = self.model.eval()(self.images[:2])
        except RuntimeError as error:  # what torch raises for shapes that do not fit
            shape = tuple(self.images.shape[1:])
            raise TrainingError(f"the network cannot take images of shape {shape}; make one that does") from error
        finally:
            self.model.train()
        if found.ndim != 2 or found.shape[1] < classes:
            raise TrainingError(
                f"the data have {classes} classes, the network gives {tuple(found.shape[1:])}; "
                "give it an output for each class"
            )

    def begin(self) -> None:
        """Take up what the folder holds, or write its first checkpoint."""
        saved = self.keeper.newest()
        self.keeper.take_up(saved, self.model, self.optimizer)
        self.started = time.monotonic()
        if saved is None:
            torch.manual_seed(self.plan.seed)
            self._save()
            return
        found = saved.progress
        self.step, self.before, self.partial = found.step, found.seconds, dict(found.partial)
        self.history, self.log = list(found.epochs), list(found.log)
        restore_random(saved.part("random/"), self.device)

    def train(
        self,
        progress: Callable[[float, str], None] | None,
        cancelled: Callable[[], bool] | None,
        after_epoch: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        """All epochs that are left."""
        plan, order = self.plan, torch.Generator().manual_seed(self.plan.seed)
        for epoch in range(1, plan.epochs + 1):
            batches = torch.randperm(len(self.labels), generator=order).split(plan.batch)
            # what a checkpoint holds already is drawn, and left out
            for chosen in batches[max(0, self.step - (epoch - 1) * self.per_epoch) :]:
                self._take_step(epoch, chosen.to(self.device))
                if self.step % self.per_epoch == 0:
                    self._check(epoch, chosen)
                    self._end_epoch(epoch, after_epoch)
                    if progress is not None:
                        loss = self.history[-1]["loss"]
                        progress(epoch / plan.epochs, f"epoch {epoch} of {plan.epochs}, loss {loss:.4f}")
                stop = cancelled is not None and cancelled()
                if stop or self.step % self.every == 0 or self.step == plan.epochs * self.per_epoch:
                    self._save()
                if stop:
                    raise Cancelled(
                        f"MP training was cancelled after step {self.step} (epoch {epoch}); {self.keeper.kept()}"
                    )

    def _rate(self, epoch: int) -> float:
        return self.plan.learning_rate * self.plan.decay ** ((epoch - 1) // self.plan.every)

    def _take_step(self, epoch: int, chosen: Tensor) -> None:
        """One batch. Raises TrainingError for a loss that is not finite, before it reaches the weights."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate(epoch)
        x, y = self.images[chosen], self.labels[chosen]
        found = self.model(x)
        loss = F.cross_entropy(found, y) + elastic_net(self.weights, self.plan.lambda1, self.plan.lambda2)
        if not torch.isfinite(loss):
            self.keeper.spoiled(self.step, self.model, x)
            raise TrainingError(
                f"the loss is {loss.item()} at step {self.step + 1} (epoch {epoch}); lower the learning rate; "
                f"{self.keeper.kept()}"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.step += 1
        self.partial["loss"] += loss.item() * len(y)
        self.partial["hits"] += int((found.detach().argmax(1) == y).sum())

    def _check(self, epoch: int, chosen: Tensor) -> None:
        """Before its singular values are looked at, and at the end, a network must give finite logits."""
        if not answers(self.model, self.images[chosen.to(self.device)]):
            raise TrainingError(
                f"the logits are not finite after step {self.step} (epoch {epoch}); lower the learning rate; "
                f"{self.keeper.kept()}"
            )
        self.model.train()

    def _end_epoch(self, epoch: int, after_epoch: Callable[[dict[str, Any]], None] | None) -> None:
        """Note the epoch (loss is the objective with its penalty, accuracy that of its batches), and thin out."""
        if self.plan.remove and epoch % self.plan.every == 0:
            self.log += _thin_out_all(self.inner, epoch, self.plan)
        seen = len(self.labels)
        row = {
            "epoch": epoch,
            "learning_rate": self._rate(epoch),
            "loss": self.partial["loss"] / seen,
            "accuracy": self.partial["hits"] / seen,
            "seconds": self.before + time.monotonic() - self.started,
        }
        self.history.append(row)
        self.partial = dict.fromkeys(self.partial, 0.0)
        if after_epoch is not None:
            after_epoch(dict(row))

    def _save(self) -> None:
        progress = Progress(
            self.step, self.keeper.identity, self.history, self.partial,
            self.before + time.monotonic() - self.started, log=self.log,
        )  # fmt: skip
        randomness = {} if self.keeper.folder is None else random_state(self.device)
        self.keeper.write(self.model, {}, self.optimizer, randomness, progress)


def _thin_out_all(layers: dict[str, nn.Linear], epoch: int, plan: MPPlan) -> list[dict[str, Any]]:
    rows = []
    for name, layer in layers.items():
        values, seen = thin_out(layer.weight, kept_share(epoch, plan.horizon))
        with torch.no_grad():
            layer.weight.copy_(values)
        rows.append({"epoch": epoch, "layer": name} | seen)
    return rows


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
