"""Logits of a network, dense or under masks, without touching the network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from mpviz.errors import BudgetError, Cancelled, DataError, ModelError, nearest
from mpviz.nets.data import Split

Masks = Mapping[str, Tensor]


def masked_parameters(model: nn.Module, masks: Masks) -> dict[str, Tensor]:
    """Copies of the masked weights with the removed entries set to zero.

    Raises BudgetError when a mask names no parameter, or has another shape or type than bool.
    """
    parameters = dict(model.named_parameters())
    masked = {}
    for name, mask in masks.items():
        if name not in parameters:
            raise BudgetError(f"the mask '{name}' names no parameter of the model; {nearest(name, parameters)}")
        weight = parameters[name].detach()
        if not isinstance(mask, Tensor):
            raise BudgetError(f"the mask of {name} is a {type(mask).__name__}; give a bool tensor, True = kept")
        if mask.shape != weight.shape:
            raise BudgetError(
                f"the mask of {name} has shape {tuple(mask.shape)}, the parameter {tuple(weight.shape)}; "
                "masks are shaped like their parameter"
            )
        if mask.dtype != torch.bool:
            raise BudgetError(f"the mask of {name} is {mask.dtype}; give a bool tensor, True = kept")
        # where, not *: a product would leave -0.0
        masked[name] = torch.where(mask.to(weight.device), weight, torch.zeros_like(weight))
    return masked


def masked_copy(model: nn.Module, masks: Masks) -> nn.Module:
    """A second module, for reading only: masked weights are new tensors, the others are the model's own.

    Costs the masked weights in memory, nothing else. Swapping tensors in place (``torch.func.functional_call``) would
    disturb other threads that use the model. Raises BudgetError for masks that do not fit.
    """
    replaced = masked_parameters(model, masks)
    memo: dict[int, object] = {}
    for name, parameter in model.named_parameters():
        memo[id(parameter)] = nn.Parameter(replaced[name], requires_grad=False) if name in replaced else parameter
    for buffer in model.buffers():
        memo[id(buffer)] = buffer
    return copy.deepcopy(model, memo)


def pruned_copy(model: nn.Module, masks: Masks) -> nn.Module:
    """A second module that shares nothing with the model, with the removed weights set to zero.

    Raises BudgetError for masks that do not fit.
    """
    replaced = masked_parameters(model, masks)
    pruned = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in pruned.named_parameters():
            if name in replaced:
                parameter.copy_(replaced[name])
    return pruned


def run_checked(network: nn.Module, x: Tensor) -> object:
    """What the network gives for images Float["b c h w"]. Raises ModelError for images that it cannot take."""
    try:
        return network(x)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError, ValueError) as error:  # what torch and timm raise for shapes that do not fit
        raise ModelError(
            f"{type(network).__name__} cannot take images of shape {tuple(x.shape[1:])} ({error}); choose data that fit"
        ) from error


def split_logits(
    model: nn.Module,
    split: Split,
    n: int | None = None,
    seed: int = 0,
    batch: int = 64,
    workers: int = 0,
    progress: Callable[[float], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> tuple[Tensor, Tensor]:
    """Logits Float["n classes"] of n samples of a split, drawn by `seed`, and their labels Int["n"].

    One batch of images is in memory at a time, so splits of any size fit. workers: processes that decode image files.
    Errors: `logits`.
    """
    indices = split.indices(n, seed).tolist()
    part = replace(split, dataset=Subset(split.dataset, indices))
    parts, labels = [], []
    for images, truth in part.loader(batch, workers=workers):
        parts.append(logits(model, images, batch=batch, cancelled=cancelled))
        labels.append(truth)
        if progress is not None:
            progress(min(1.0, len(parts) * batch / len(indices)))
    if not parts:
        raise DataError(f"the {split.name} split is empty")
    return torch.cat(parts), torch.cat(labels)


@torch.no_grad()
def logits(
    model: nn.Module,
    images: Tensor,
    masks: Masks | None = None,
    batch: int = 250,
    progress: Callable[[float], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Tensor:
    """Float32["n classes"] of the model in eval mode, on the CPU; under `masks` where given.

    Float64 where the model's are. images: Float["n c h w"]. The model's own weights and its mode are left as they are,
    so several threads may call this on one model. Raises ModelError for a model of which a part is in training mode, or
    whose output is not Float["n classes"].
    """
    if len(images) == 0:
        raise ModelError("no images to evaluate; give at least one sample")
    if any(module.training for module in model.modules()):
        raise ModelError(f"{type(model).__name__} is in training mode, its logits depend on the batch; call .eval()")
    device = next(model.parameters()).device
    network = masked_copy(model, masks) if masks else model
    parts = []
    for start in range(0, len(images), batch):
        if cancelled is not None and cancelled():
            raise Cancelled("the evaluation was cancelled")
        x = images[start : start + batch].to(device)
        out = run_checked(network, x)
        if not isinstance(out, Tensor) or out.ndim != 2:
            raise ModelError(f"{type(model).__name__} gives no logits of shape (n, classes); wrap it so that it does")
        parts.append((out if out.dtype == torch.float64 else out.float()).cpu())
        if progress is not None:
            progress(min(1.0, (start + batch) / len(images)))
    return torch.cat(parts)
