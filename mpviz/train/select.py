"""The selection phase of prune–restore: only removed entries train, and how far they move is told."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from mpviz.errors import Cancelled, TrainingError
from mpviz.nets.data import Split
from mpviz.train.batches import Order, read
from mpviz.train.objectives import recovery_loss


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
) -> dict[str, Tensor]:
    """What each open entry is after a short training in which nothing else may move: {name: Float like the weight}.

    network: pruned; the entries of `open_` (Bool, True = may train) begin at zero. They are trained by SGD with
    momentum on the recovery loss, at a constant rate; kept entries, biases, norms and their statistics are frozen,
    so that an entry's movement is what the loss asks of it alone. renew: batch norms' means and variances are
    measured again on the pruned network first, on the selection's own images, and left alone then: removing much
    shifts them. epochs: a part of one is enough. network and teacher are left as they are. Zero where an entry is
    not open. Source: the selection phase of SER, arXiv:2606.02608.
    Raises TrainingError for a loss that is not finite, or entries that are open but not zero; Cancelled.
    """
    trained, moving = _opened(network, open_)
    optimizer = torch.optim.SGD(list(moving.values()), lr=learning_rate, momentum=momentum)
    device = next(trained.parameters()).device
    order = Order(len(data), min(batch, len(data)), seed)
    steps = max(1, math.ceil(epochs * order.steps))
    chosen = [numbers for epoch in range(math.ceil(steps / order.steps)) for numbers in order.batches(epoch)][:steps]
    masks = {name: may.to(device) for name, may in open_.items()}
    with torch.no_grad():
        classes = trained(data.sample(1)[0].to(device)).shape[1]
    if renew:
        update_bn((images for images, _ in read(data.dataset, chosen, classes)), trained, device)
    for step, (images, labels) in enumerate(read(data.dataset, chosen, classes)):
        if cancelled is not None and cancelled():
            raise Cancelled(f"the selection was cancelled at step {step}; the network is as it was")
        x = images.to(device)
        with torch.no_grad():
            told = None if teacher is None else teacher(x)
        with torch.enable_grad():
            loss = recovery_loss(trained(x), labels.to(device), told, weight, temperature).mean()
            if not torch.isfinite(loss):
                raise TrainingError(f"the loss of the selection is {loss.item()} at step {step + 1}; lower its rate")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
        for name, parameter in moving.items():
            assert parameter.grad is not None
            parameter.grad.mul_(masks[name])  # momentum stays zero with it
        optimizer.step()
        if progress is not None:
            progress((step + 1) / steps)
    return {name: torch.where(masks[name], p.detach(), torch.zeros_like(p)).cpu() for name, p in moving.items()}


def _opened(network: nn.Module, open_: Mapping[str, Tensor]) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """A frozen copy in eval mode, and its weights that have entries to train."""
    trained = copy.deepcopy(network).eval().requires_grad_(False)
    parameters = dict(trained.named_parameters())
    moving = {name: parameters[name] for name in open_}
    for name, parameter in moving.items():
        if bool(parameter.detach()[open_[name]].any()):
            raise TrainingError(f"{name} has open entries that are not zero; selection starts from removed entries")
        parameter.requires_grad_(True)
    return trained, moving
