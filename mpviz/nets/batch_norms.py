"""Batch norms after pruning: what enters them changes when the layers before them lose weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mpviz.errors import Cancelled, DataError, ModelError
from mpviz.nets.calibrate import IMAGES, check_mode, drawn
from mpviz.nets.data import Split
from mpviz.nets.forward import run_checked

_LEAST = 1e-3  # of a variance stays at least, so that a channel that went silent is not blown up


@dataclass(frozen=True, eq=False)
class Entering:
    """Mean and variance, Float["channels"] each, of what enters a batch norm."""

    mean: Tensor
    variance: Tensor


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """The batch norms that keep running statistics. Raises ModelError where there are none."""
    found = [one for one in model.modules() if isinstance(one, _BatchNorm) and one.running_mean is not None]
    if not found:
        raise ModelError(f"{type(model).__name__} has no batch norms to renew; leave renew off")
    return found


@torch.no_grad()
def norm_inputs(
    model: nn.Module, images: Tensor | Split, n: int | None = IMAGES, seed: int = 0, batch: int = 64,
    cancelled: Callable[[], bool] | None = None,
) -> list[Entering]:  # fmt: skip
    """What enters each batch norm on `images` while all of them normalise by the images at hand; the model stays as is.

    Every other layer stays in evaluation mode, so that dropout adds no noise (`torch.optim.swa_utils.update_bn` puts
    all of the model in training mode). images, n, seed: as for `second_moments`; batch: about how many pass at once,
    in parts of nearly equal size, over which statistics are averaged. Raises ModelError for a network without such
    layers or in training mode, DataError for images that there are none of, of the test split or that give statistics
    that are not finite, Cancelled.
    """
    norms = batch_norms(model)
    check_mode(model)
    x, device = drawn(images, n, seed), next(model.parameters()).device
    kept = [{name: buffer.clone() for name, buffer in one.named_buffers(recurse=False)} for one in norms]
    momenta = [one.momentum for one in norms]
    try:
        for one in norms:
            one.reset_running_stats()
            one.momentum = None  # a plain average
            one.train()
        for part in x.tensor_split(math.ceil(len(x) / batch)):
            if cancelled is not None and cancelled():
                raise Cancelled("the batch norms were not measured to the end; they are as they were")
            run_checked(model, part.to(device))
        found = [
            Entering(one.get_buffer("running_mean").clone(), one.get_buffer("running_var").clone()) for one in norms
        ]
    finally:
        for one, buffers, momentum in zip(norms, kept, momenta, strict=True):
            one.momentum = momentum
            one.eval()
            for name, buffer in buffers.items():
                getattr(one, name).copy_(buffer)
    if not all(torch.isfinite(one.mean).all() and torch.isfinite(one.variance).all() for one in found):
        raise DataError("NaN or infinite values enter a batch norm; look at the images and the weights before it")
    return found


@torch.no_grad()
def renew_batch_norms(model: nn.Module, before: Sequence[Entering], after: Sequence[Entering]) -> None:
    """Carry the change of what enters each batch norm over to its running statistics, in place; nothing is trained.

    before, after: of `norm_inputs` on the same images, with the weights that the running statistics belong to, and as
    they are now. The map that takes the one normal distribution to the other (x ↦ now + r · (x − was), r the ratio of
    standard deviations) is applied to the running statistics. A network that did not change keeps them, a channel that
    was only scaled and shifted is followed exactly, and images unlike those of training tell no more than what pruning
    did, where statistics measured afresh would take over all else that sets these images apart.
    """
    for one, was, now in zip(batch_norms(model), before, after, strict=True):
        mean, variance = one.get_buffer("running_mean"), one.get_buffer("running_var")
        ratio = torch.where(was.variance > 0, now.variance / was.variance, torch.ones_like(variance)).clamp(min=_LEAST)
        mean.copy_(now.mean + ratio.sqrt() * (mean - was.mean))
        variance.mul_(ratio)
