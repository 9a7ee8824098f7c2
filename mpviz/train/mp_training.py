"""MP training of fully connected networks: an elastic net, and every few epochs part of the sub-edge spectrum goes.

Source: arXiv:2606.02608. With weight decay an admissible random part of a weight matrix must vanish at the end of
training; MP training takes it out on the way.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpviz.errors import Cancelled, DataError, TrainingError
from mpviz.nets.data import Split
from mpviz.rmt.fit import fit_bulk
from mpviz.train.loop import elastic_net


@dataclass(frozen=True)
class MPPlan:
    """What a run depends on, beside data and network; all numbers but the batch are the paper's.

    SGD with momentum; the rate is multiplied by `decay` every `every` epochs. lambda1, lambda2: of the elastic net
    λ₁Σ|W| + λ₂ΣW² over all linear weights. remove: whether the sub-edge spectrum is thinned out after every `every`
    epochs, keeping a share max(0, 1 − epoch/horizon) of the singular values below σ₊, the largest of them, in layers
    whose fit is at least "fair". factor: store a layer as two at the end where that takes fewer numbers.
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
    under it), share (kept of these), removed, rank (that is left). parameters: before and after factoring.
    """

    model: nn.Module
    history: pd.DataFrame
    log: pd.DataFrame
    parameters: tuple[int, int]
    plan: MPPlan


def kept_share(epoch: int, horizon: float = 200.0) -> float:
    """f(epoch) = max(0, 1 − epoch/horizon): the share of the singular values below the edge that stays.

    >>> kept_share(0), kept_share(50), kept_share(400)
    (1.0, 0.75, 0.0)
    """
    return max(0.0, 1.0 - epoch / horizon)


def thin_out(weight: Tensor, share: float) -> tuple[Tensor, dict[str, Any]]:
    """The matrix Float["out in"] without the smallest of its singular values below the fitted edge, and what was seen.

    Of the k singular values below σ₊ the largest round(share · k) stay. A matrix whose fit is poor, or has none, comes
    back as it is: its edge means nothing.
    """
    u, s, vt = torch.linalg.svd(weight.detach().double(), full_matrices=False)
    values = np.sort((s.cpu().numpy() ** 2) / weight.shape[0])
    # what an earlier removal left at zero comes back as rounding, and must not be taken for a spectrum
    fit = fit_bulk(values.astype(np.float32), (weight.shape[0], weight.shape[1]), strict=False)
    seen: dict[str, Any] = {"grade": fit.grade, "fit_error": fit.fit_error, "edge": fit.sigma_plus,
                            "below": 0, "share": share, "removed": 0, "rank": int(fit.rank)}  # fmt: skip
    if fit.grade not in ("good", "fair"):
        return weight.detach().clone(), seen
    floor = s[0] * max(weight.shape) * torch.finfo(torch.float32).eps
    below = (s < fit.sigma_plus) & (s > floor)
    gone = int(below.sum()) - round(share * int(below.sum()))
    places = torch.nonzero(below).flatten()
    keep = s > floor
    if gone:
        keep[places[-gone:]] = False
    seen |= {"below": int(below.sum()), "removed": gone, "rank": int(keep.sum())}
    if not gone:
        return weight.detach().clone(), seen
    return ((u[:, keep] * s[keep]) @ vt[keep]).to(weight), seen


def factored(layer: nn.Linear) -> nn.Module:
    """The layer as two with the same product, where its rank makes them smaller; else the layer itself."""
    u, s, vt = torch.linalg.svd(layer.weight.detach().double(), full_matrices=False)
    out, inside = layer.weight.shape
    rank = max(1, int((s > s[0] * max(out, inside) * torch.finfo(torch.float32).eps).sum()))
    if rank * (out + inside) >= out * inside:
        return layer
    first, second = nn.Linear(inside, rank, bias=False), nn.Linear(rank, out, bias=layer.bias is not None)
    with torch.no_grad():
        root = s[:rank].sqrt()
        first.weight.copy_(root[:, None] * vt[:rank])
        second.weight.copy_(u[:, :rank] * root)
        if layer.bias is not None:
            second.bias.copy_(layer.bias)
    return nn.Sequential(first, second).to(layer.weight)


def mp_train(
    model: nn.Module,
    data: Split,
    plan: MPPlan | None = None,
    progress: Callable[[float, str], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    after_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> MPTraining:
    """Train a copy of a fully connected network on ``splits.train``; the last linear layer is never thinned out.

    The network trains on the device where it is. Raises DataError for another split, TrainingError for a senseless
    plan, a network with fewer than two linear layers or a loss that is not finite (it names epoch and step), Cancelled.
    """
    plan = (plan or MPPlan()).checked()
    if data.name != "train":
        raise DataError(f"MP training refuses the {data.name} split, which must only measure; give splits.train")
    trained = copy.deepcopy(model).train()
    linear = {name: module for name, module in trained.named_modules() if isinstance(module, nn.Linear)}
    if len(linear) < 2:
        raise TrainingError(f"MP training needs a network with two linear layers or more; this one has {len(linear)}")
    inner = dict(list(linear.items())[:-1])
    device = next(trained.parameters()).device
    images, labels = (values.to(device) for values in data.sample())
    optimizer = torch.optim.SGD(trained.parameters(), lr=plan.learning_rate, momentum=plan.momentum)
    weights, order = [layer.weight for layer in linear.values()], torch.Generator().manual_seed(plan.seed)
    torch.manual_seed(plan.seed)
    history: list[dict[str, Any]] = []
    log: list[dict[str, Any]] = []
    started = time.monotonic()
    for epoch in range(1, plan.epochs + 1):
        if cancelled is not None and cancelled():
            raise Cancelled(f"MP training was cancelled before epoch {epoch}; the network is as it was")
        rate = plan.learning_rate * plan.decay ** ((epoch - 1) // plan.every)
        row = {"epoch": epoch, "learning_rate": rate}
        row |= _epoch(trained, (images, labels), optimizer, weights, plan, rate, epoch, order)
        if plan.remove and epoch % plan.every == 0:
            log += _thin_out_all(inner, epoch, plan)
        row["seconds"] = time.monotonic() - started
        history.append(row)
        if after_epoch is not None:
            after_epoch(dict(row))
        if progress is not None:
            progress(epoch / plan.epochs, f"epoch {epoch} of {plan.epochs}, loss {row['loss']:.4f}")
    before = _count(trained)
    if plan.factor:
        for name, layer in inner.items():
            place, _, last = name.rpartition(".")
            setattr(trained.get_submodule(place), last, factored(layer))
    frame = pd.DataFrame(history).set_index("epoch")
    return MPTraining(trained.eval(), frame, pd.DataFrame(log), (before, _count(trained)), plan)


def _epoch(
    model: nn.Module, data: tuple[Tensor, Tensor], optimizer: torch.optim.Optimizer, weights: list[Tensor],
    plan: MPPlan, rate: float, epoch: int, order: torch.Generator,
) -> dict[str, float]:  # fmt: skip
    """One pass over all images; loss is the objective with its penalty, accuracy that of the training batches."""
    images, labels = data
    for group in optimizer.param_groups:
        group["lr"] = rate
    total, hits = 0.0, 0
    for step, chosen in enumerate(torch.randperm(len(labels), generator=order).split(plan.batch), start=1):
        x, y = images[chosen.to(images.device)], labels[chosen.to(labels.device)]
        found = model(x)
        loss = F.cross_entropy(found, y) + elastic_net(weights, plan.lambda1, plan.lambda2)
        if not torch.isfinite(loss):
            raise TrainingError(f"the loss is {loss.item()} at step {step} of epoch {epoch}; lower the learning rate")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        total += loss.item() * len(y)
        hits += int((found.detach().argmax(1) == y).sum())
    return {"loss": total / len(labels), "accuracy": hits / len(labels)}


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
