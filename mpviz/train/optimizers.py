"""Optimisers of recovery: which parameters decay, and how the learning rate goes over the steps."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import nn

from mpviz.errors import TrainingError, nearest

OPTIMIZERS = ("adamw", "sgd")

# Told by the last part of a parameter's name, or of an embedding's that holds it: these are places and marks in the
# sequence, not maps between features.
_TABLE = re.compile(r"(pos(ition(al)?)?_?emb\w*|rel(ative)?_pos\w*|relative_(position_)?bias\w*|\w*_token)$")
_NORMS = (nn.LayerNorm, nn.RMSNorm)  # of the norms, those whose scale can have two axes; vectors are exempt anyway


def decays(model: nn.Module) -> dict[str, bool]:
    """For each trainable parameter, by name, whether weight decay acts on it.

    No decay for biases and other vectors, for norms, for position embeddings and tokens, and for what the model itself
    exempts (``no_weight_decay()`` of timm).
    """
    own: Any = getattr(model, "no_weight_decay", None)
    exempt = set(own()) if callable(own) else set()
    for prefix, module in model.named_modules():
        table = isinstance(module, nn.Embedding) and _TABLE.match(prefix.rpartition(".")[2])
        if isinstance(module, _NORMS) or table:
            exempt |= {f"{prefix}.{name}".lstrip(".") for name, _ in module.named_parameters(recurse=False)}
    return {
        name: not (parameter.ndim <= 1 or name in exempt or _TABLE.match(name.rpartition(".")[2]))
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for a torch optimiser, with and without decay; `names` lists the parameters of each in order.

    Raises TrainingError for a model without trainable parameters.
    """
    parameters, chosen = dict(model.named_parameters()), decays(model)
    if not chosen:
        raise TrainingError(f"{type(model).__name__} has no trainable parameter; set requires_grad on what may change")
    groups = []
    for decay in (True, False):
        names = [name for name, wanted in chosen.items() if wanted is decay]
        if names:
            groups.append(
                {
                    "params": [parameters[name] for name in names],
                    "names": names,
                    "weight_decay": weight_decay if decay else 0.0,
                }
            )
    return groups


def build_optimizer(
    model: nn.Module, name: str, learning_rate: float, weight_decay: float, momentum: float
) -> torch.optim.Optimizer:
    """AdamW (decoupled decay) or SGD with momentum (decay in the gradient) on `parameter_groups`.

    momentum: of SGD; AdamW keeps its β = (0.9, 0.999). Raises TrainingError for another name.
    """
    groups = parameter_groups(model, weight_decay)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=learning_rate, momentum=momentum)
    raise TrainingError(f"unknown optimizer '{name}'; {nearest(name, OPTIMIZERS)}")


def cosine_factor(step: int, steps: int, warmup: float) -> float:
    """Factor on the learning rate at `step` of 0 … steps − 1: a linear rise over a share `warmup`, then half a cosine.

    The first step already moves (factor 1 / rise), the last one stays above zero, so that no step is wasted.

    >>> [round(cosine_factor(step, 6, 0.34), 2) for step in range(6)]
    [0.5, 1.0, 1.0, 0.85, 0.5, 0.15]
    """
    rise = min(steps - 1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1.0 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))
