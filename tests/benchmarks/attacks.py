"""Members of a family that are chosen to break its bound: random, at corners, and optimised against one sample."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mpviz.certificates.families import Family

Weights = Mapping[str, Tensor]
Evaluate = Callable[[Weights, Tensor], Tensor]


def double(model: nn.Module) -> nn.Module:
    """A copy in double precision."""
    return copy.deepcopy(model).double().eval()


def evaluator(model64: nn.Module) -> Evaluate:
    """Logits Float64["n classes"] of a model with some weights replaced, by torch's own means."""
    return lambda weights, images: functional_call(model64, dict(weights), (images.double(),))


def logits(model64: nn.Module, weights: Weights, images: Tensor) -> Tensor:
    """The same, without gradients."""
    with torch.no_grad():
        return evaluator(model64)(weights, images)


def random_member(family: Family, generator: torch.Generator, corners: bool) -> dict[str, Tensor]:
    """A member drawn at random: at a corner of the box (a mask), inside it, or somewhere on the path."""
    if family.is_path:
        t = family.half * float(2 * torch.rand(1, generator=generator) - 1)
        return {name: family.centre[name] + t * step for name, step in family.direction.items()}
    member = {}
    for name, radius in family.radius.items():
        draw = 2 * torch.rand(radius.shape, generator=generator, dtype=torch.float64) - 1
        member[name] = family.centre[name] + (draw.sign() if corners else draw) * radius
    return member


def worst_members(
    evaluate: Evaluate, family: Family, images: Tensor, target: Tensor, rival: Tensor, steps: int = 4
) -> Iterator[dict[str, Tensor]]:
    """Members that lower the sum over `images` of z_target − z_rival: signs of its gradient, step after step."""
    names = list(family.radius)
    at = {name: family.centre[name].clone().requires_grad_(True) for name in names}
    for _ in range(steps):
        z = evaluate(at, images)
        gap = (z.gather(1, target[:, None]) - z.gather(1, rival[:, None])).sum()
        slopes = torch.autograd.grad(gap, list(at.values()))
        member = {
            name: family.centre[name] - slope.sign() * family.radius[name]
            for name, slope in zip(names, slopes, strict=True)
        }
        yield member
        at = {name: values.clone().requires_grad_(True) for name, values in member.items()}


def worst_inputs(model64: nn.Module, images: Tensor, target: Tensor, rival: Tensor, radius: float) -> Iterator[Tensor]:
    """Inputs of the ball that lower z_target − z_rival: signs of the gradient, step after step."""
    x = images.double()
    at = x
    for _ in range(4):
        at = at.detach().requires_grad_(True)
        z = model64(at)
        gap = (z.gather(1, target[:, None]) - z.gather(1, rival[:, None])).sum()
        (slope,) = torch.autograd.grad(gap, at)
        at = x - radius * slope.sign()
        yield at


def broken(z: Tensor, target: Tensor, lower: Tensor) -> tuple[int, float]:
    """How many samples lie below their bound, and the least slack z_target − z_class − bound."""
    gap = z.gather(1, target[:, None]) - z
    own = torch.nn.functional.one_hot(target, z.shape[1]).bool()
    slack = (gap - lower).masked_fill(own, torch.inf).amin(dim=1)
    return int((slack < 0).sum()), float(slack.detach().min())
