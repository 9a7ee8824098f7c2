"""Batch norm over the global batch: several processes share means and variances as if they were one."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

_KINDS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@contextlib.contextmanager
def shared_statistics(model: nn.Module) -> Iterator[_Shared]:
    """Inside, every batch norm of `model` that trains uses the samples of all processes; works on CPUs too.

    torch.nn.SyncBatchNorm does the same on GPUs only. Yields the switch that leaves a process out of a batch in which
    it has no samples of its own. The running variance is the unbiased one, as in torch.
    """
    shared = _Shared()
    changed = [module for module in model.modules() if isinstance(module, _KINDS)]
    try:
        for module in changed:
            module.forward = types.MethodType(shared.forward, module)  # type: ignore[method-assign]
        yield shared
    finally:
        for module in changed:
            module.__dict__.pop("forward", None)


class _Shared:
    """Forward passes of batch norms that talk to each other. silent: this process only lends its pass, not its data."""

    silent = False

    def forward(self, module: nn.BatchNorm2d, x: Tensor) -> Tensor:
        if not module.training:
            return type(module).forward(module, x)
        axes = [0, *range(2, x.ndim)]
        share = 0.0 if self.silent else 1.0
        values = x.float()
        count = values.new_tensor([share * values.numel() / values.shape[1]])
        mean, count = _means(values, count, axes, share)
        centred = values - _along(mean, x)
        variance = _sum(centred.square().sum(axes) * share) / count
        if module.track_running_stats and module.running_mean is not None and module.running_var is not None:
            _follow(module, mean.detach(), (variance * count / (count - 1).clamp(min=1)).detach())
        out = centred * _along(torch.rsqrt(variance + module.eps), x)
        if module.affine:
            out = out * _along(module.weight, x) + _along(module.bias, x)
        out = out.to(x.dtype)
        # timm's BatchNormAct2d, which is a BatchNorm2d, ends with these two
        for name in ("drop", "act"):
            inner = getattr(module, name, None)
            if isinstance(inner, nn.Module):
                out = inner(out)
        return out


def _means(values: Tensor, count: Tensor, axes: list[int], share: float) -> tuple[Tensor, Tensor]:
    totals = _sum(torch.cat([values.sum(axes) * share, count]))
    return totals[:-1] / totals[-1], totals[-1]


def _along(channel: Tensor, x: Tensor) -> Tensor:
    """Float["c"] shaped so that it acts on axis 1 of x."""
    return channel.reshape(1, -1, *[1] * (x.ndim - 2))


class _Sum(torch.autograd.Function):
    """Sum over all processes. Each of them uses the sum, so the gradients of all of them flow back into each value."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total


def _sum(value: Tensor) -> Tensor:
    return _Sum.apply(value)


def _follow(module: nn.BatchNorm2d, mean: Tensor, variance: Tensor) -> None:
    assert module.running_mean is not None and module.running_var is not None and module.num_batches_tracked is not None
    module.num_batches_tracked += 1
    rate = module.momentum if module.momentum is not None else 1.0 / float(module.num_batches_tracked)
    with torch.no_grad():
        module.running_mean.lerp_(mean.to(module.running_mean.dtype), rate)
        module.running_var.lerp_(variance.to(module.running_var.dtype), rate)
