"""Batch norms measured again: what enters them changes when the layers before them lose weights."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mpviz.errors import Cancelled, DataError, ModelError
from mpviz.nets.calibrate import IMAGES, check_mode, drawn
from mpviz.nets.data import Split
from mpviz.nets.forward import run_checked


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """The batch norms that keep running statistics. Raises ModelError where there are none."""
    found = [one for one in model.modules() if isinstance(one, _BatchNorm) and one.running_mean is not None]
    if not found:
        raise ModelError(f"{type(model).__name__} has no batch norms to measure again; leave renew off")
    return found


@torch.no_grad()
def renew_batch_norms(
    model: nn.Module, images: Tensor | Split, n: int | None = IMAGES, seed: int = 0, batch: int = 64,
    cancelled: Callable[[], bool] | None = None,
) -> None:  # fmt: skip
    """Take running means and variances anew, in place, as averages over `images`; weights stay, nothing is trained.

    Every other layer stays in evaluation mode, so that dropout adds no noise (`torch.optim.swa_utils.update_bn` puts
    all of the model in training mode). images, n, seed: as for `second_moments`; batch: about how many pass at once,
    in parts of nearly equal size. Raises ModelError for a network without such layers or in training mode, DataError
    for images that there are none of, of the test split or that give statistics that are not finite, Cancelled; the
    statistics are then as they were.
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
        if not all(torch.isfinite(buffer).all() for one in norms for buffer in one.buffers(recurse=False)):
            raise DataError("NaN or infinite values enter a batch norm; look at the images and the weights before it")
    except BaseException:
        for one, buffers in zip(norms, kept, strict=True):
            for name, buffer in buffers.items():
                getattr(one, name).copy_(buffer)
        raise
    finally:
        for one, momentum in zip(norms, momenta, strict=True):
            one.momentum = momentum
            one.eval()
