"""The rules of operations without weights that can move: batch norm, addition, flatten, pooling, activations."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mpviz.certificates import smooth
from mpviz.certificates.boxes import State, relu_backward, relu_forward
from mpviz.nets.graph import Network, Node


def _scale_shift(module: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """A batch norm in eval mode as x ↦ scale·x + shift, shaped for channels."""
    scale = (module.running_var.to(like) + module.eps).rsqrt()
    if module.affine:
        scale = scale * module.weight.detach().to(like)
    shift = -module.running_mean.to(like) * scale
    if module.affine:
        shift = shift + module.bias.detach().to(like)
    shape = (-1, *(1 for _ in range(like.ndim - 2)))
    return scale.reshape(shape), shift.reshape(shape)


def _pool(module: Any, x: Tensor) -> Tensor:
    """An average pool on any leading axes."""
    return module(x)


def value(network: Network, node: Node, inputs: list[Tensor]) -> Tensor:
    """The output of one operation without weights that can move, at the centre."""
    x = inputs[0]
    match node.op:
        case "norm":
            scale, shift = _scale_shift(network.module(node), x)
            return x * scale + shift
        case "relu":
            return x.clamp(min=0)
        case "add":
            return inputs[0] + inputs[1]
        case "flatten":
            return x.flatten(1)
        case "first" | "second":
            return x[:, int(node.op == "second")]
        case "gelu":
            return F.gelu(x)
        case "layernorm":
            return smooth.layernorm(network.module(node), x)
        case "avgpool" | "maxpool":
            return _pool(network.module(node), x)
        case _:
            return x


def forward(network: Network, node: Node, inputs: list[State], unit: float) -> State:
    """The box of the output, widened by the rounding of this very step."""
    x = inputs[0]
    if node.op == "layernorm":
        return smooth.layernorm_forward(network.module(node), x, unit)
    if node.op == "relu":
        out = relu_forward(x)
    else:
        centre = value(network, node, [state.centre for state in inputs])
        if all(state.low is None for state in inputs):
            out = State(centre)
        else:
            low, high = _box(network, node, inputs, centre)
            out = State(centre, low, high)
    if node.op in ("flatten", "identity", "first", "second"):
        return out
    size = sum(state.centre.abs() + state.magnitude() for state in inputs)
    assert isinstance(size, Tensor)
    if node.op == "norm":
        module = network.module(node)
        scale, shift = _scale_shift(module, x.centre)
        # the shift is a difference, which may be small where its terms are not
        terms = 2 * (module.running_mean.to(x.centre).abs().reshape(scale.shape) * scale.abs()) + shift.abs()
        size = size * scale.abs() + terms
    elif node.op in ("avgpool", "maxpool"):
        size = F.max_pool2d(size, 1) if size.shape == out.centre.shape else _largest(network.module(node), size)
    out.rounding = out.cost = 64 * unit * size if node.op != "avgpool" else 4 * (_terms(x, out) + 16) * unit * size
    if out.low is None or out.high is None:
        if node.op != "relu":  # a ReLU of an exact value is exact
            out.low, out.high = -out.cost, out.cost
        else:
            out.cost = out.rounding = None
    else:
        out.low, out.high = out.low - out.cost, out.high + out.cost
    return out


def _terms(x: State, out: State) -> int:
    return max(1, x.centre[0].numel() // max(1, out.centre[0].numel()))


def _largest(module: Any, size: Tensor) -> Tensor:
    """At each output, a number no smaller than the largest input it sees."""
    if isinstance(module, torch.nn.AdaptiveAvgPool2d):
        return F.adaptive_max_pool2d(size, _pool(module, size).shape[-2:])
    if isinstance(module, torch.nn.AvgPool2d):
        return F.max_pool2d(size, module.kernel_size, module.stride, module.padding, ceil_mode=module.ceil_mode)
    return module(size)


def _box(network: Network, node: Node, inputs: list[State], centre: Tensor) -> tuple[Tensor, Tensor]:
    lows = [_end(state, "low") for state in inputs]
    highs = [_end(state, "high") for state in inputs]
    match node.op:
        case "norm":
            scale, _ = _scale_shift(network.module(node), inputs[0].centre)
            a, b = lows[0] * scale, highs[0] * scale
            return torch.minimum(a, b), torch.maximum(a, b)
        case "maxpool":
            module, c = network.module(node), inputs[0].centre
            return module(c + lows[0]) - centre, module(c + highs[0]) - centre
        case "gelu":
            return smooth.gelu_box(inputs[0].centre, lows[0], highs[0])
        case _:
            return value(network, node, lows), value(network, node, highs)


def _end(state: State, which: str) -> Tensor:
    end: Tensor | None = getattr(state, which)
    return torch.zeros_like(state.centre) if end is None else end


def backward(network: Network, node: Node, v: Tensor, inputs: list[State], out: State) -> tuple[list[Tensor], Tensor]:
    """Rows for the inputs, and the constant Float64["n k"]."""
    none = v.new_zeros(v.shape[:2])
    x = inputs[0]
    match node.op:
        case "norm":
            scale, _ = _scale_shift(network.module(node), x.centre)
            return [v * scale], none
        case "relu":
            back, constant = relu_backward(v, x, out)
            return [back], constant
        case "add":
            return [v, v], none
        case "gelu":
            back, constant = smooth.gelu_backward(v, x)
            return [back], constant
        case "layernorm":
            back, constant = smooth.layernorm_backward(network.module(node), v, x)
            return [back], constant
        case "first" | "second":
            other = torch.zeros_like(v)
            return [torch.stack([v, other] if node.op == "first" else [other, v], dim=2)], none
        case "flatten":
            return [v.reshape(*v.shape[:2], *x.centre.shape[1:])], none
        case "avgpool":
            return [_transpose(network.module(node), v, x.centre.shape[1:])], none
        case "maxpool":
            return _maxpool_backward(network.module(node), v, x, out)
        case _:
            return [v], none


def _transpose(module: Any, v: Tensor, shape: torch.Size) -> Tensor:
    """The transpose of an average pool, taken from its gradient: it is linear."""
    flat = v.flatten(0, 1)
    with torch.enable_grad():
        x = flat.new_zeros((flat.shape[0], *shape), requires_grad=True)
        (back,) = torch.autograd.grad(module(x), x, flat)
    return back.unflatten(0, v.shape[:2])


def _maxpool_backward(module: Any, v: Tensor, x: State, out: State) -> tuple[list[Tensor], Tensor]:
    """Below by the entry that is largest at the centre; above by it where no other can win, else by the box's end."""
    _, where = F.max_pool2d(
        x.centre, module.kernel_size, module.stride, module.padding, module.dilation, return_indices=True
    )
    n, k = v.shape[:2]
    winners = where.flatten(2)
    if x.low is None or x.high is None:
        sure = torch.ones_like(out.centre, dtype=torch.bool)
    else:
        worst = (x.centre + x.low).flatten(2).gather(2, winners).reshape(out.centre.shape)
        others = (x.centre + x.high).flatten(2).scatter(2, winners, -torch.inf).reshape(x.centre.shape)
        sure = worst >= _window_max(module, others, x, where)
    up = torch.zeros_like(out.centre) if out.high is None else out.high
    positive, negative = v.clamp(min=0), v.clamp(max=0)
    kept = positive + negative * sure[:, None]
    constant = (negative * (up * ~sure)[:, None]).flatten(2).sum(2)
    back = v.new_zeros((n, k, *x.centre.shape[1:])).flatten(3)
    back.scatter_add_(3, winners[:, None].expand(n, k, *winners.shape[1:]), kept.flatten(3))
    return [back.reshape(n, k, *x.centre.shape[1:])], constant


def _window_max(module: Any, others: Tensor, x: State, where: Tensor) -> Tensor:
    """The largest upper end that an entry other than the winner can reach in each window.

    An entry that wins one window is left out of all others too, so windows that overlap are treated apart.
    """
    size, stride = module.kernel_size, module.stride
    apart = size == stride and module.padding in (0, (0, 0)) and module.dilation in (1, (1, 1))
    if not apart:
        highest = x.centre if x.high is None else x.centre + x.high
        columns = F.unfold(F.pad(highest, _sides(module), value=-1e300), size, stride=stride, dilation=module.dilation)
        n, c = x.centre.shape[:2]
        columns = columns.reshape(n, c, -1, columns.shape[-1])
        best = columns.topk(min(2, columns.shape[2]), dim=2).values
        # the winner's own upper end is the best or another one is: only then does the best count against it
        own = highest.flatten(2).gather(2, where.flatten(2))
        rival = torch.where(best[:, :, 0] > own, best[:, :, 0], best[:, :, -1])
        return rival.reshape(where.shape)
    return F.max_pool2d(others, size, stride)


def _sides(module: Any) -> tuple[int, int, int, int]:
    padding = module.padding if isinstance(module.padding, tuple) else (module.padding, module.padding)
    return (padding[1], padding[1], padding[0], padding[0])
