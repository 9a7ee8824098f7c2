"""Rules of GELU and LayerNorm: a tangent and a bound of what it leaves out (Taylor's theorem)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mpviz.certificates.boxes import State

_LOWEST_AT = -0.7517915246935645  # where x·Φ(x) turns from falling to rising
_LOWEST = -0.16997120747
_SLACK = 1e-9  # around those two numbers, which are rounded


def _density(x: Tensor) -> Tensor:
    return torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def _slope(x: Tensor) -> Tensor:
    """Derivative of x·Φ(x): Φ(x) + x·φ(x)."""
    return 0.5 * (1 + torch.erf(x / math.sqrt(2))) + x * _density(x)


def gelu_box(centre: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Least and largest change of x·Φ(x), which falls up to one point and rises after it."""
    base, a, b = F.gelu(centre), centre + low, centre + high
    left, right = F.gelu(a), F.gelu(b)
    turns = (a < _LOWEST_AT + _SLACK) & (b > _LOWEST_AT - _SLACK)
    least = torch.where(turns, torch.full_like(a, _LOWEST - _SLACK), torch.minimum(left, right))
    return least - base, torch.maximum(left, right) - base


def gelu_backward(v: Tensor, x: State) -> tuple[Tensor, Tensor]:
    """f(c + d) = f(c) + f′(c)·d within ½·K·d², K ≥ |f″| = φ(y)·|2 − y²| for all y of the box.

    φ falls and 2 − y² is monotone in |y|, so K is φ at the least |y| times the larger of the two ends.
    """
    slope = _slope(x.centre)
    back = v * slope[:, None]
    if x.low is None or x.high is None:
        return back, v.new_zeros(v.shape[:2])
    a, b = x.centre + x.low, x.centre + x.high
    nearest = torch.where((a <= 0) & (b >= 0), torch.zeros_like(a), torch.minimum(a.abs(), b.abs()))
    farthest = torch.maximum(a.abs(), b.abs())
    bend = _density(nearest) * torch.maximum((2 - nearest**2).abs(), (2 - farthest**2).abs())
    size = x.magnitude()
    # beyond where Taylor helps, slopes of GELU lie within (−0.13, 1.13): the change is d times one of them
    gap = torch.minimum(0.5 * bend * size**2, torch.maximum(slope + 0.13, 1.13 - slope) * size)
    return back, -torch.einsum("nkf,nf->nk", v.abs().flatten(2), gap.flatten(1))


def layernorm(module: Any, x: Tensor) -> Tensor:
    """LayerNorm over the last axis in the precision of x."""
    weight = None if module.weight is None else module.weight.detach().to(x)
    bias = None if module.bias is None else module.bias.detach().to(x)
    return F.layer_norm(x, (x.shape[-1],), weight, bias, module.eps)


def _normal(module: Any, x: State) -> dict[str, Tensor]:
    """u₀ = Pc with P taking the mean off, ‖u₀‖, s₀ = (‖u₀‖²/D + ε)^−½; the range of s and of Pd over the box.

    ‖Pd‖₂ ≤ ‖d‖₂ ≤ ‖max |d|‖₂ =: m, as P is a projection, so ‖u‖ is within m of ‖u₀‖.
    """
    width = x.centre.shape[-1]
    u = x.centre - x.centre.mean(-1, keepdim=True)
    size = x.magnitude()
    m = size.norm(dim=-1, keepdim=True)
    norm = u.norm(dim=-1, keepdim=True)
    spread = lambda r: (r * r / width + module.eps).rsqrt()  # noqa: E731 - named by its formula in the docstring
    scale, least, most = spread(norm), spread(norm + m), spread((norm - m).clamp(min=0))
    return {"u": u, "m": m, "norm": norm, "scale": scale, "least": least, "most": most, "size": size}


def layernorm_forward(module: Any, x: State, unit: float) -> State:
    """γ(su − s₀u₀) = γ(s₀·Pd + (s − s₀)·u), each part over its own range; widened by rounding."""
    out = State(layernorm(module, x.centre))
    parts = _normal(module, x)
    weight = torch.ones_like(x.centre[0]) if module.weight is None else module.weight.detach().to(x.centre).abs()
    width = x.centre.shape[-1]
    reach = (x.centre.abs() + parts["size"]).amax(dim=-1, keepdim=True)
    rounding = 16 * (width + 16) * unit * (weight * parts["most"] * reach + out.centre.abs())
    out.cost = out.rounding = rounding
    if x.low is None or x.high is None:
        out.low, out.high = -rounding, rounding
        return out
    low, high = x.low - x.high.mean(-1, keepdim=True), x.high - x.low.mean(-1, keepdim=True)
    shift = torch.maximum(low.abs(), high.abs())
    swing = torch.maximum(parts["most"] - parts["scale"], parts["scale"] - parts["least"])
    extra = swing * (parts["u"].abs() + shift)
    a, b = parts["scale"] * low - extra, parts["scale"] * high + extra
    sign = torch.ones_like(x.centre[0]) if module.weight is None else module.weight.detach().to(x.centre)
    a, b = a * sign, b * sign
    out.low, out.high = torch.minimum(a, b) - rounding, torch.maximum(a, b) + rounding
    return out


def layernorm_backward(module: Any, v: Tensor, x: State) -> tuple[Tensor, Tensor]:
    """With w = γv: w·(su − s₀u₀) = s₀·Pw·d + (s − s₀)·w·u₀ + (s − s₀)·Pw·d.

    The second term has the slope −s₀³·(u₀·d)/D and a rest of at most ½s₀³m²/D + ⅜·s_max⁵·((2‖u₀‖m + m²)/D)², Taylor of
    (q + ε)^−½ in q = ‖u‖²/D; where that is larger than |s − s₀| itself, the slope is left out.
    """
    w = v if module.weight is None else v * module.weight.detach().to(v)
    centred = w - w.mean(-1, keepdim=True)
    parts = {name: value[:, None] for name, value in _normal(module, x).items()}
    scale, m, norm, width = parts["scale"], parts["m"], parts["norm"], x.centre.shape[-1]
    back = scale * centred
    if x.low is None or x.high is None:
        return back - scale**3 / width * (w * parts["u"]).sum(-1, keepdim=True) * parts["u"], v.new_zeros(v.shape[:2])
    swing = torch.maximum(parts["most"] - scale, scale - parts["least"])
    rest = 0.5 * scale**3 * m**2 / width + 0.375 * parts["most"] ** 5 * ((2 * norm * m + m**2) / width) ** 2
    along = (w * parts["u"]).sum(-1, keepdim=True)
    use = rest < swing
    back = back - torch.where(use, scale**3 / width * along, torch.zeros_like(along)) * parts["u"]
    loss = torch.where(use, rest, swing) * along.abs() + swing * (centred.abs() * parts["size"]).sum(-1, keepdim=True)
    return back, -loss.flatten(2).sum(2)
