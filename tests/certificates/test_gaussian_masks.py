"""The gaussian tier of masks: the corollary layer by layer, and what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from mpviz.certificates.gaussian_masks import gaussian_certified
from mpviz.errors import Cancelled, DataError, ModelError


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(9, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


def removed(model: nn.Module, share: float) -> dict[str, torch.Tensor]:
    masks = {}
    for name in ("1.weight", "3.weight"):
        w = model.get_parameter(name).detach().abs()
        masks[name] = w > w.flatten().quantile(share)
    return masks


def test_it_is_the_corollary_layer_by_layer() -> None:
    model, x = net(), torch.randn(5, 1, 3, 3)
    masks = removed(model, 0.3)
    w1, b1, w2 = (model.get_parameter(n).detach().double() for n in ("1.weight", "1.bias", "3.weight"))
    r1, r2 = (w.masked_fill(masks[n], 0) for w, n in ((w1, "1.weight"), (w2, "3.weight")))
    flat = x.flatten(1).double()
    hidden = torch.relu(flat @ (w1 - r1).T + b1)
    tail = w2.abs().sum(1).max()
    n, delta = len(x), 0.05 / 2
    sizes = [
        tail * flat.norm(dim=1) * math.sqrt(2 * float(r1.square().mean()) * math.log(2 * 6 * n / delta)),
        hidden.norm(dim=1) * math.sqrt(2 * float(r2.square().mean()) * math.log(2 * 3 * n / delta)),
    ]
    eta = sum(sizes).numpy()
    for factor, expected in ((1 - 1e-6, False), (1 + 1e-6, True)):
        found = gaussian_certified(model, masks, x, 2 * eta * factor)
        assert (found == expected).all()


def test_what_it_cannot_say_is_an_error() -> None:
    model, x = net(), torch.randn(2, 1, 3, 3)
    masks = removed(model, 0.3)
    with pytest.raises(DataError, match="margins"):
        gaussian_certified(model, masks, x, np.ones(3))
    with pytest.raises(Cancelled):
        gaussian_certified(model, masks, x, np.ones(2), cancelled=lambda: True)
    with pytest.raises(ModelError):
        gaussian_certified(nn.Sequential(model, nn.Softmax(1)).eval(), {}, x, np.ones(2))
