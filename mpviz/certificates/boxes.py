"""One rule an operation: how far its output moves over a set (forwards), and what that costs a margin (backwards).

All is told as deviations d = x − c from the centre's values c as they were computed. A forward rule turns boxes of
deviations into a box. A backward rule turns a row v, for which a lower bound of v·(deviation of the output) is wanted,
into rows for the inputs and a number: v·d_out ≥ Σ v_in·d_in + constant.

Rounding: every affine rule widens by γ(|C|(|c| + |d|) + |b| + R|x|), γ = 4(k + 16)·u, with k terms a sum and u the unit
roundoff. One γ covers the computed centre, which then needs no exact arithmetic; the others cover the bound's own
products and sums (Higham 2002, section 3.1).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input

from mpviz.nets.graph import Network, Node

ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24}


@dataclass
class State:
    """What a node knows. centre: Float64["n ..."]; low, high: its box of deviations, None where it is exactly zero.

    cost: Float64["n ..."] by which |v| is charged for weights and rounding; first: Float64["n ..."], first-order change
    at t = 1 (paths only); rounding: the part of `cost` that is rounding.
    """

    centre: Tensor
    low: Tensor | None = None
    high: Tensor | None = None
    cost: Tensor | None = None
    first: Tensor | None = None
    rounding: Tensor | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def magnitude(self) -> Tensor:
        """Largest |deviation|, Float64["n ..."]."""
        if self.low is None or self.high is None:
            return torch.zeros_like(self.centre)
        return torch.maximum(self.low.abs(), self.high.abs())


@dataclass(frozen=True, eq=False)
class Affine:
    """x ↦ Wx + b for a Linear layer or a convolution, with W = centre + E."""

    module: Any
    centre: Tensor
    bias: Tensor | None
    radius: Tensor | None
    direction: Tensor | None
    half: float
    unit: float

    @property
    def is_conv(self) -> bool:
        """A convolution, not a Linear layer."""
        return self.centre.ndim == 4

    def apply(self, weight: Tensor, x: Tensor) -> Tensor:
        """Wx without bias: Float64["n ..."]."""
        if not self.is_conv:
            return F.linear(x, weight)
        m = self.module
        return F.conv2d(x, weight, None, m.stride, m.padding, m.dilation, m.groups)

    def pull(self, v: Tensor, shape: torch.Size) -> Tensor:
        """vW: Float64["n k ..."] to Float64["n k ..."], `shape` being one input's without its sample axis."""
        if not self.is_conv:
            return v @ self.centre
        m = self.module
        flat = v.flatten(0, 1)
        size = (flat.shape[0], *shape)
        back = conv2d_input(size, self.centre, flat, m.stride, m.padding, m.dilation, m.groups)
        return back.unflatten(0, v.shape[:2])

    def value(self, x: Tensor) -> Tensor:
        """The centre's output."""
        out = self.apply(self.centre, x)
        if self.bias is None:
            return out
        return out + (self.bias[:, None, None] if self.is_conv else self.bias)

    def forward(self, x: State) -> State:
        """The box of the output, and what a unit of |v| costs here."""
        centre = self.value(x.centre)
        terms = self.centre[0].numel()
        gamma = 4 * (terms + 16) * self.unit
        magnitude = x.magnitude()
        reach = x.centre.abs() + magnitude
        bias = 0.0 if self.bias is None else self.bias.abs()
        if self.is_conv and self.bias is not None:
            bias = self.bias.abs()[:, None, None]
        rounding = gamma * (self.apply(self.centre.abs(), reach) + bias)
        cost, first = rounding, None
        if self.radius is not None:
            moved = self.apply(self.radius, reach)
            cost, rounding = cost + (1 + gamma) * moved, rounding + gamma * moved
        if self.direction is not None:
            first = self.apply(self.direction, x.centre)
            size = self.direction.abs()
            second = self.half * self.apply(size, magnitude)
            slack = gamma * self.half * self.apply(size, reach)
            cost, rounding = cost + second + slack, rounding + slack
        spread = cost if first is None else cost + self.half * first.abs()
        if x.low is None or x.high is None:
            low, high = -spread, spread
        else:
            middle, half = 0.5 * (x.low + x.high), 0.5 * (x.high - x.low)
            shift, spread = self.apply(self.centre, middle), spread + self.apply(self.centre.abs(), half)
            low, high = shift - spread, shift + spread
        return State(centre, low, high, cost, first, rounding)


def affine(network: Network, node: Node, x: Tensor, family: Any, unit: float) -> Affine:
    """The rule of one weight layer over a family."""
    module = network.module(node)

    def at(values: Any) -> Tensor | None:
        found = values.get(node.weight)
        return None if found is None else found.to(x)

    own = module.weight.detach().to(x)
    centre = at(family.centre)
    bias = None if module.bias is None else module.bias.detach().to(x)
    return Affine(
        module, own if centre is None else centre, bias, at(family.radius), at(family.direction), family.half, unit
    )


def relu_forward(x: State) -> State:
    """max(c + d, 0) − max(c, 0) over the box: monotone in d."""
    centre = x.centre.clamp(min=0)
    if x.low is None or x.high is None:
        return State(centre)
    return State(centre, (x.centre + x.low).clamp(min=0) - centre, (x.centre + x.high).clamp(min=0) - centre)


def relu_backward(v: Tensor, x: State, out: State) -> tuple[Tensor, Tensor]:
    """Below by the tangent that is exact at d = 0, above by the chord (convexity)."""
    if x.low is None or x.high is None:  # exact: nothing moves
        return v * (x.centre > 0).to(v)[:, None], v.new_zeros(v.shape[:2])
    assert out.low is not None and out.high is not None
    lower = (x.centre > 0).to(v)
    width = x.high - x.low
    upper = torch.where(width > 0, (out.high - out.low) / width.clamp(min=1e-300), lower).clamp(0.0, 1.0)
    # the largest gap between function and line is at an end or at the kink; taken from all three, it needs no algebra
    kink = (-x.centre).clamp(min=x.low, max=x.high)
    at_kink = (x.centre + kink).clamp(min=0) - out.centre
    gap = torch.maximum(out.low - upper * x.low, out.high - upper * x.high)
    gap = torch.maximum(gap, at_kink - upper * kink)
    negative = v.clamp(max=0)
    back = v.clamp(min=0) * lower[:, None] + negative * upper[:, None]
    return back, (negative * gap[:, None]).flatten(2).sum(2)
