"""How much the logits can move when the output of one layer moves: products of norms, and interval Jacobians.

Everything is about the part of a network behind one weight layer, its tail ψ₂, and about ‖·‖∞ on both sides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from mpviz.errors import DataError, ModelError, nearest
from mpviz.nets.graph import Network, Node

UNIT = 2.0**-53


@dataclass(frozen=True, eq=False)
class TailJacobian:
    """Every Jacobian of seeds·ψ₂ over the segment, entrywise: |J − centre| ≤ radius, Float64["n k ..."].

    step: Rψ₁(x) times the length of the piece, Float64["n ..."], by which the layer's output differs between both ends
    of the piece; error: of its rounding.
    """

    centre: Tensor
    radius: Tensor
    step: Tensor
    error: Tensor

    def lipschitz(self) -> Tensor:
        """Largest absolute row sum over the segment, Float64["n"]: ‖ψ₂(a) − ψ₂(b)‖∞ ≤ L‖a − b‖∞ for unit seeds."""
        rows = (self.centre.abs() + self.radius).flatten(2)
        return rows.sum(2).amax(1) * (1 + gamma(rows.shape[2]))

    def change(self) -> tuple[Tensor, Tensor]:
        """Lower and upper bound of seeds·(z at the piece's lower end − z at its upper end), Float64["n k"]."""
        centre, radius, step = self.centre.flatten(2), self.radius.flatten(2), self.step.flatten(1)
        size = gamma(step.shape[1]) * step.abs() + (1 + 1e-9) * self.error.flatten(1)
        middle = -torch.einsum("nkf,nf->nk", centre, step)
        spread = torch.einsum("nkf,nf->nk", radius, step.abs())
        spread = spread + torch.einsum("nkf,nf->nk", centre.abs() + radius, size)
        return middle - spread, middle + spread


def gamma(terms: int) -> float:
    """4(k + 16)·2⁻⁵³, by which a float64 sum of k products errs at most, relative to that of absolute values."""
    return 4 * (terms + 16) * UNIT


def layer_node(network: Network, weight: str) -> Node:
    """The node of a weight. Raises ModelError when no layer has it, or one is used more than once."""
    if weight not in network.weights:
        raise ModelError(f"no layer of the network has the weight '{weight}'; {nearest(weight, network.weights)}")
    uses = [node for node in network if node.weight == weight]
    if len(uses) > 1:
        raise ModelError(f"{weight} is used {len(uses)} times in one pass; a bound for one layer needs one use")
    return uses[0]


def global_lipschitz(network: Network, weight: str) -> float:
    """L of the whole tail by products of norms: valid everywhere, and the loosest there is. For teaching.

    Proof sketch. Let every output of the layer move by at most 1. A Linear layer or convolution multiplies by its
    largest absolute row sum (a padded window only leaves terms out), a batch norm by its largest |scale|, an addition
    adds, and ReLU, flatten and pooling are 1-Lipschitz. Walking along the network gives the bound at the logits.
    """
    start = layer_node(network, weight)
    reach = {start.name: 1.0}
    for node in network.after(start.name):
        reach[node.name] = _gain(network, node) * sum(reach.get(name, 0.0) for name in node.inputs) * (1 + 8 * UNIT)
    if network.output not in reach:
        raise ModelError(f"the logits do not depend on {weight}; there is nothing to bound")
    return reach[network.output]


def _gain(network: Network, node: Node) -> float:
    module: Any = network.module(node) if node.module else None
    if node.op in ("linear", "conv"):
        weight = module.weight.detach().double().flatten(1)
        return float(weight.abs().sum(1).amax()) * (1 + gamma(weight.shape[1]))
    if node.op == "norm":
        return float(_scale(module).abs().amax())
    if node.op == "avgpool" and getattr(module, "divisor_override", None):
        raise ModelError(f"no rule for AvgPool2d with divisor_override ({node.module}); give the constants yourself")
    if node.op in ("relu", "add", "flatten", "avgpool", "maxpool", "identity"):
        return 1.0
    raise ModelError(f"no Lipschitz constant for '{node.op}' ({node.name}); give the constants yourself")


def tail_jacobian(
    network: Network,
    weight: str,
    removed: Tensor,
    images: Tensor,
    seeds: Tensor | None = None,
    piece: tuple[float, float] = (0.0, 1.0),
) -> TailJacobian:
    """Interval Jacobian of the tail over {A_θψ₁(x) : θ in piece}, for networks of ReLU layers.

    network: with A in place. removed: R. images: Float["n ..."], one batch. seeds: Float["n k classes"], rows that the
    logits are multiplied with; the unit rows when None. piece: a part of [0, 1], the whole path unless told.
    Raises ModelError for tails with an operation without a rule.

    Proof sketch. The outputs A_θψ₁ + b lie in the box between both ends; interval arithmetic gives boxes for all
    values behind. There ψ₂ is Lipschitz and piecewise linear: ψ₂(a) − ψ₂(b) = J(a − b) with J an average of
    generalised Jacobians along the segment (Clarke 1983), and each is a product of weights and ReLU slopes: 1 where the
    box is positive, 0 where it is negative, else something in [0, 1]. Interval products from the logits backwards hold
    them all. Each step widens boxes, and radii, by γ = 4(k + 16)·2⁻⁵³ of the sum of absolute values.
    """
    start = layer_node(network, weight)
    boxes, step, error = _boxes(network, start, removed.double(), images.double(), piece)
    low, high = boxes[network.output]
    if low.ndim != 2 or not bool(torch.isfinite(low).all() and torch.isfinite(high).all()):
        raise DataError("the network gives NaN or infinite logits, or none of shape (n, classes); nothing is proved")
    n, classes = low.shape
    if seeds is None:
        seeds = torch.eye(classes, dtype=torch.float64, device=low.device).repeat(n, 1, 1)
    found = {network.output: (seeds.double(), torch.zeros_like(seeds, dtype=torch.float64))}
    for node in reversed(network.after(start.name)):
        if node.name not in found:
            continue
        centre, radius = found.pop(node.name)
        shape = boxes[node.inputs[0]][0].shape[1:]
        part = _back(network, node, centre, radius, boxes[node.inputs[0]], shape)
        for name in node.inputs:  # an input that is read twice gets both parts
            if name in found:
                c, r = found[name]
                found[name] = (c + part[0], (r + part[1]) + 4 * UNIT * (c.abs() + part[0].abs() + r + part[1]))
            else:
                found[name] = part
    centre, radius = found[start.name]
    length = piece[1] - piece[0]
    return TailJacobian(centre, radius, length * step, length * error + 4 * UNIT * step.abs())  # the length is rounded


def _boxes(
    network: Network, start: Node, removed: Tensor, x: Tensor, piece: tuple[float, float]
) -> tuple[dict[str, tuple[Tensor, Tensor]], Tensor, Tensor]:
    """Boxes of all values on the segment, Rψ₁(x) and its error. Before the layer they are points, up to rounding."""
    boxes: dict[str, tuple[Tensor, Tensor]] = {}
    step = error = None
    for node in network:
        if node.op == "input":
            boxes[node.name] = (x, x)
            continue
        low, high = _forward(network, node, [boxes[name] for name in node.inputs])
        if node.name == start.name:
            module, (least, most) = network.module(node), boxes[node.inputs[0]]
            if removed.shape != module.weight.shape:
                raise DataError(
                    f"R has shape {tuple(removed.shape)}, {node.weight} {tuple(module.weight.shape)}; give its entries"
                )
            step, size = apply(module, removed, 0.5 * (least + most)), torch.maximum(least.abs(), most.abs())
            error = apply(module, removed.abs(), 0.5 * (most - least) + gamma(removed[0].numel()) * size)
            # A_θψ₁ = Aψ₁ − (1 − θ)Rψ₁ at both ends of the piece
            ends = [(1.0 - theta) * step for theta in piece]
            error = error + 4 * UNIT * step.abs() + 4 * UNIT * torch.maximum(low.abs(), high.abs())
            low, high = low - torch.maximum(*ends) - error, high - torch.minimum(*ends) + error
        boxes[node.name] = (low, high)
    assert step is not None and error is not None
    return boxes, step, error


def _forward(network: Network, node: Node, inputs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    low, high = inputs[0]
    module: Any = network.module(node) if node.module else None
    match node.op:
        case "linear" | "conv":
            weight, size = module.weight.detach().double(), torch.maximum(low.abs(), high.abs())
            middle = apply(module, weight, 0.5 * (low + high), module.bias)
            bound = apply(module, weight.abs(), size, None if module.bias is None else module.bias.abs())
            spread = apply(module, weight.abs(), 0.5 * (high - low)) + gamma(weight[0].numel()) * bound
            return middle - spread, middle + spread
        case "norm":
            scale, shift = _scale(module), _shift(module)
            shape = (-1, *(1 for _ in range(low.ndim - 2)))
            scale, shift = scale.reshape(shape), shift.reshape(shape)
            one, other = low * scale + shift, high * scale + shift
            terms = module.running_mean.double().abs().reshape(shape) * scale.abs() + shift.abs()  # it is a difference
            error = 64 * UNIT * (torch.maximum(low.abs(), high.abs()) * scale.abs() + 2 * terms)
            return torch.minimum(one, other) - error, torch.maximum(one, other) + error
        case "relu":
            return low.clamp(min=0), high.clamp(min=0)
        case "add":
            low, high = inputs[0][0] + inputs[1][0], inputs[0][1] + inputs[1][1]
            error = 4 * UNIT * torch.maximum(low.abs(), high.abs())
            return low - error, high + error
        case "flatten":
            return low.flatten(1), high.flatten(1)
        case "avgpool" | "maxpool":
            out = module(low), module(high)
            error = gamma(low[0].numel()) * torch.maximum(low.abs(), high.abs()).flatten(1).amax(1)
            error = error.reshape(-1, *(1 for _ in range(out[0].ndim - 1)))
            return out[0] - error, out[1] + error
        case "identity":
            return low, high
        case _:
            raise ModelError(f"no rule for '{node.op}' ({node.name}), so no bound is proved behind it; measure instead")


def _back(
    network: Network, node: Node, centre: Tensor, radius: Tensor, box: tuple[Tensor, Tensor], shape: torch.Size
) -> tuple[Tensor, Tensor]:
    """The interval rows of a node's output, as rows of its input."""
    module: Any = network.module(node) if node.module else None
    match node.op:
        case "linear" | "conv":
            weight = module.weight.detach().double()
            back = _transpose(module, weight, centre, shape)
            size = _transpose(module, weight.abs(), centre.abs() + radius, shape)
            # γ with the terms of the transposed sum: every output of every place
            return back, _transpose(module, weight.abs(), radius, shape) + gamma(weight[:, 0].numel()) * size
        case "norm":
            scale = _scale(module).reshape(-1, *(1 for _ in range(centre.ndim - 3)))
            back = centre * scale
            return back, radius * scale.abs() + 64 * UNIT * (back.abs() + radius * scale.abs())
        case "relu":
            low, high = box[0][:, None], box[1][:, None]
            on, off = low > 0, high < 0
            slope = torch.where(on, 1.0, torch.where(off, 0.0, 0.5)).to(centre)
            half = torch.where(on | off, 0.0, 0.5).to(centre)
            return centre * slope, (centre.abs() * half + radius * (slope + half)) * (1 + 8 * UNIT)
        case "flatten":
            return centre.reshape(*centre.shape[:2], *shape), radius.reshape(*radius.shape[:2], *shape)
        case "avgpool":
            back, wide = _unpool(module, centre, shape), _unpool(module, radius, shape)
            return back, wide + gamma(centre[0, 0].numel()) * (_unpool(module, centre.abs(), shape) + wide)
        case "add" | "identity":
            return centre, radius
        case _:
            raise ModelError(
                f"no rule for '{node.op}' ({node.name}) in the constants of a segment; use the product of norms"
            )


def apply(module: Any, weight: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """The layer with other weights: Float64["n ..."]."""
    bias = None if bias is None else bias.detach().double()
    if isinstance(module, nn.Linear):
        return F.linear(x, weight, bias)
    return module._conv_forward(x, weight, bias)  # knows its padding, strides and groups


def _transpose(module: Any, weight: Tensor, rows: Tensor, shape: torch.Size) -> Tensor:
    if isinstance(module, nn.Linear):
        return rows @ weight
    flat = rows.flatten(0, 1)
    size = (flat.shape[0], *shape)
    back = conv2d_input(size, weight, flat, module.stride, module.padding, module.dilation, module.groups)
    return back.unflatten(0, rows.shape[:2])


def _unpool(module: Any, rows: Tensor, shape: torch.Size) -> Tensor:
    """The transpose of an average pool, which is linear: its gradient."""
    flat = rows.flatten(0, 1)
    with torch.enable_grad():
        x = flat.new_zeros((flat.shape[0], *shape), requires_grad=True)
        (back,) = torch.autograd.grad(module(x), x, flat)
    return back.unflatten(0, rows.shape[:2])


def _scale(module: Any) -> Tensor:
    scale = (module.running_var.double() + module.eps).rsqrt()
    return scale if module.weight is None else scale * module.weight.detach().double()


def _shift(module: Any) -> Tensor:
    shift = -module.running_mean.double() * _scale(module)
    return shift if module.bias is None else shift + module.bias.detach().double()


def finite(value: float) -> float:
    """The value itself. Raises ModelError when a product of norms has overflowed."""
    if not math.isfinite(value):
        raise ModelError("the product of norms is not finite: the network holds NaN or infinite weights; repair them")
    return value
