"""What enters one layer of a network on some samples, and what the removed part of its weight makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mpviz.certificates.lipschitz import apply, gamma
from mpviz.errors import BudgetError, DataError, MpvizError, nearest
from mpviz.nets.forward import pruned_copy
from mpviz.nets.layers import weight_of

Masks = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class LayerInput:
    """What enters a layer and what R makes of it, per sample, Float64["n"].

    moved: ‖Rψ₁‖∞ over all outputs and places, rounded up. largest: ‖ψ₁‖∞. lengths: Float64["n places"], ‖·‖₂ of each
    input vector, for a convolution of each patch, for a Linear layer of each token. untouched: Bool["n"], R meets only
    zeros in the sample, so that Rψ₁ = 0 exactly.
    """

    weight: str
    moved: np.ndarray
    largest: np.ndarray
    lengths: np.ndarray
    untouched: np.ndarray


def removed_part(model: nn.Module, weight: str, mask: Tensor) -> Tensor:
    """R = A where the mask is False, else 0, Float64 like the weight."""
    values = weight_of(model, weight).double()
    if mask.dtype != torch.bool or mask.shape != values.shape:
        raise BudgetError(f"the mask of {weight} is no bool tensor of shape {tuple(values.shape)}, True = kept")
    return torch.where(mask.to(values.device), torch.zeros_like(values), values)


def record_input(model: nn.Module, weight: str, removed: Tensor, images: Tensor, batch: int = 64) -> LayerInput:
    """What enters the layer of `weight` on these images, for any network; see `LayerInput`.

    model: in eval mode, left as it is. removed: R, shaped like the weight. ‖·‖∞ runs over all places and channels.
    Raises BudgetError for a weight that is no Linear or Conv2d layer's, DataError for no samples or NaN inside.
    """
    network = float64_copy(model, None)
    return record(network, weight, removed, check_images(images, model), batch)


def float64_copy(model: nn.Module, before: Masks | None) -> nn.Module:
    """A float64 copy of our own, with the earlier layers pruned."""
    if any(module.training for module in model.modules()):
        raise MpvizError(f"{type(model).__name__} is in training mode, its logits depend on the batch; call .eval()")
    return pruned_copy(model, before or {}).double()


def check_images(images: Tensor, model: nn.Module) -> Tensor:
    """The images in float64, where the model is. Raises DataError for no samples or values that are not finite."""
    if len(images) == 0:
        raise DataError("no samples: a budget is a mean over samples; give one at least")
    if not torch.isfinite(images).all():
        raise DataError("the images hold NaN or infinite values; repair the data")
    return images.double().to(next(model.parameters()).device)


def layer_module(network: nn.Module, weight: str) -> Any:
    """The Linear or Conv2d module of a weight. Raises BudgetError when there is none."""
    path, _, leaf = weight.rpartition(".")
    modules = {name: one for name, one in network.named_modules() if isinstance(one, (nn.Linear, nn.Conv2d))}
    if leaf != "weight" or path not in modules:
        known = [f"{name}.weight" for name in modules]
        raise BudgetError(f"'{weight}' is not the weight of a Linear or Conv2d layer; {nearest(weight, known)}")
    return modules[path]


@torch.no_grad()
def record(network: nn.Module, weight: str, removed: Tensor, images: Tensor, batch: int) -> LayerInput:
    """`record_input` on a float64 copy of the network."""
    module = layer_module(network, weight)
    if removed.shape != module.weight.shape:
        raise BudgetError(f"R has shape {tuple(removed.shape)}, {weight} {tuple(module.weight.shape)}; they must agree")
    if not torch.isfinite(removed).all():
        raise BudgetError(f"R of {weight} holds NaN or infinite entries; load the model again or repair it")
    removed = removed.detach().to(module.weight)
    seen: list[tuple[Tensor, ...]] = []

    def look(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(_look(module, removed, inputs[0]))

    handle = module.register_forward_pre_hook(look)
    try:
        for count, start in enumerate(range(0, len(images), batch), start=1):
            network(images[start : start + batch])
            if len(seen) != count:
                raise BudgetError(f"{weight} is used {len(seen) - count + 1} times in one pass; a budget needs one use")
    finally:
        handle.remove()
    moved, largest, lengths, untouched = (torch.cat(part).cpu().numpy() for part in zip(*seen, strict=True))
    if not np.isfinite(largest).all():
        raise DataError(f"NaN or infinite values enter {weight}; repair the weights before it")
    return LayerInput(weight, moved, largest, lengths, untouched)


def _look(module: Any, removed: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    """One batch of `LayerInput`."""
    moved = apply(module, removed, x).abs().flatten(1).amax(1)
    size = apply(module, removed.abs(), x.abs()).flatten(1).amax(1)
    if isinstance(module, nn.Conv2d) and module.padding_mode == "zeros":
        ones = torch.ones_like(removed[: module.groups])
        squares = apply(module, ones, x.square())  # the sum over each patch
        lengths = squares.clamp(min=0).sqrt().amax(1).flatten(1)
    elif isinstance(module, nn.Conv2d):
        lengths = x.new_full((len(x), 1), torch.inf)  # reflected entries count twice: nothing is said of them
    else:
        lengths = x.norm(dim=-1).reshape(len(x), -1)
    bound = moved + gamma(removed[0].numel()) * size
    return bound, x.abs().flatten(1).amax(1), lengths * (1 + gamma(removed[0].numel())), size == 0
