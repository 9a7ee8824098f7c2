"""What a model computes by, beside its weights: another order of memory or another kernel gives other last bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


def layout_of(model: nn.Module) -> dict[str, Any]:
    """JSON of what differs from a model that was just built; empty where nothing does.

    channels_last: True where convolutions lie in that order. unfused: names of timm's attention modules that compute
    without the fused kernel.
    """
    found: dict[str, Any] = {}
    kernels = [module.weight for module in model.modules() if isinstance(module, nn.Conv2d)]
    if any(_channels_last(weight) for weight in kernels):
        found["channels_last"] = True
    unfused = [name for name, module in model.named_modules() if getattr(module, "fused_attn", True) is False]
    return found | ({"unfused": unfused} if unfused else {})


def _channels_last(weight: torch.Tensor) -> bool:
    return weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


def lay_out(model: nn.Module, layout: Mapping[str, Any]) -> None:
    """Make a model compute as `layout_of` says, in place; modules that it does not have are left out."""
    if layout.get("channels_last"):
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    modules: dict[str, Any] = dict(model.named_modules())
    for name in layout.get("unfused", ()):
        if isinstance(getattr(modules.get(name), "fused_attn", None), bool):
            modules[name].fused_attn = False
