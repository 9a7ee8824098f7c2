"""Supervised training with the elastic-net penalty inside the loss (coupled), as the certificates assume."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpviz.errors import TrainingError


@dataclass(frozen=True)
class Schedule:
    """What a run depends on, beside the data and the architecture.

    The objective is J = cross-entropy + lambda1·‖A‖₁ + lambda2·‖A‖_F² over all weights with two or more axes.
    """

    optimizer: str = "sgd"
    learning_rate: float = 0.1
    epochs: int = 10
    batch: int = 128
    lambda1: float = 0.0
    lambda2: float = 1e-4
    warmup: float = 0.1
    flip: bool = True
    shift: int = 2
    bfloat16: bool = True
    seed: int = 0


def penalised(model: nn.Module) -> list[Tensor]:
    """The weights that the elastic net acts on: every parameter with two or more axes."""
    return [p for name, p in model.named_parameters() if p.ndim >= 2 and not name.endswith(("pos_embed", "cls_token"))]


def elastic_net(weights: list[Tensor], lambda1: float, lambda2: float) -> Tensor:
    """λ₁ Σ‖A‖₁ + λ₂ Σ‖A‖_F², the penalty of the paper's objective J."""
    total = weights[0].new_zeros(())
    for w in weights:
        if lambda2:
            total = total + lambda2 * w.square().sum()
        if lambda1:
            total = total + lambda1 * w.abs().sum()
    return total


def augment(images: Tensor, flip: bool, shift: int, generator: torch.Generator) -> Tensor:
    """Mirror at random and shift each image by up to `shift` pixels (zero padding): Float["n c h w"]."""
    n, _, height, width = images.shape
    if flip:
        mirrored = torch.rand(n, generator=generator) < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    if shift:
        padded = F.pad(images, [shift] * 4)
        dy, dx = torch.randint(0, 2 * shift + 1, (2, n), generator=generator)
        rows = dy[:, None] + torch.arange(height)
        cols = dx[:, None] + torch.arange(width)
        sample = torch.arange(n)[:, None, None]
        images = padded.permute(0, 2, 3, 1)[sample, rows[:, :, None], cols[:, None, :]].permute(0, 3, 1, 2)
    return images


def one_cycle(step: int, steps: int, warmup: float) -> float:
    """Factor on the learning rate: linear warm-up, then half a cosine down to zero."""
    progress = step / max(1, steps)
    if progress < warmup:
        return 0.05 + 0.95 * progress / warmup
    return 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * (progress - warmup) / (1 - warmup)))))


def _optimizer(model: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    if schedule.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), lr=schedule.learning_rate, momentum=0.9, nesterov=True)
    if schedule.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=schedule.learning_rate, betas=(0.9, 0.99))
    raise TrainingError(f"unknown optimizer '{schedule.optimizer}'; use 'sgd' or 'adam'")


def _batches(
    images: Tensor, labels: Tensor, schedule: Schedule, rng: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    order = torch.randperm(len(images), generator=rng)
    for start in range(0, len(order) - schedule.batch + 1, schedule.batch):
        chosen = order[start : start + schedule.batch]
        yield augment(images[chosen], schedule.flip, schedule.shift, rng), labels[chosen]


def fit(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    schedule: Schedule,
    after_epoch: Callable[[dict], None] | None = None,
) -> nn.Module:
    """Train `model` in place on normalised images Float["n c h w"] and labels Int["n"]; returns it in eval mode.

    Raises TrainingError when the loss stops being finite, naming the step.
    """
    if len(images) < schedule.batch:
        raise TrainingError(f"{len(images)} images are fewer than one batch of {schedule.batch}; lower the batch")
    rng = torch.Generator().manual_seed(schedule.seed)
    torch.manual_seed(schedule.seed)
    optimizer = _optimizer(model, schedule)
    weights = penalised(model)
    steps, step = schedule.epochs * (len(images) // schedule.batch), 0
    started = time.monotonic()
    for epoch in range(1, schedule.epochs + 1):
        model.train()
        total, hits, seen = 0.0, 0, 0
        for x, y in _batches(images, labels, schedule, rng):
            for group in optimizer.param_groups:
                group["lr"] = schedule.learning_rate * one_cycle(step, steps, schedule.warmup)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=schedule.bfloat16):
                logits = model(x).float()
            loss = F.cross_entropy(logits, y)
            objective = loss + elastic_net(weights, schedule.lambda1, schedule.lambda2)
            if not torch.isfinite(objective):
                raise TrainingError(
                    f"the loss is {objective.item()} at step {step} (epoch {epoch}); lower the learning rate"
                )
            optimizer.zero_grad(set_to_none=True)
            objective.backward()
            optimizer.step()
            step += 1
            total += loss.item() * len(y)
            hits += int((logits.argmax(1) == y).sum())
            seen += len(y)
        if after_epoch:
            after_epoch(
                {
                    "epoch": epoch,
                    "loss": total / seen,
                    "train_accuracy": hits / seen,
                    "seconds": time.monotonic() - started,
                }
            )
    return model.eval()
