from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mpviz as mp
from mpviz.certificates.first_order import FirstOrder, first_order, first_order_jvp
from mpviz.errors import Cancelled, DataError, ModelError
from mpviz.nets.forward import logits


def network(act: type[nn.Module], double: bool = False) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1, stride=2), act(), nn.Flatten(), nn.Linear(64, 12), act(), nn.Linear(12, 5)
        )
    return (model.double() if double else model).eval()


def samples(n: int = 9, double: bool = False) -> Tensor:
    x = torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return x.double() if double else x


def half(model: nn.Module, names: tuple[str, ...] = ("0.weight", "3.weight", "5.weight")) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(2)
    weights = dict(model.named_parameters())
    return {name: torch.rand(weights[name].shape, generator=g) < 0.5 for name in names}


def test_equals_finite_differences_on_a_smooth_network() -> None:
    model, x = network(nn.Tanh, double=True), samples(double=True)
    masks = half(model)
    found = first_order(model, x, masks, batch=4)
    weights = {name: p.detach() for name, p in model.named_parameters()}
    rows, h = torch.arange(len(x)), 1e-5

    def margin(name: str, t: float) -> Tensor:
        moved = weights[name] - t * weights[name] * ~masks[name]
        z = torch.func.functional_call(model, weights | {name: moved}, (x,))
        return z[rows, torch.tensor(found.top)] - z[rows, torch.tensor(found.second)]

    for i, name in enumerate(found.layers):
        slope = (margin(name, h) - margin(name, -h)) / (2 * h)
        np.testing.assert_allclose(found.effects[:, i], slope.detach().numpy(), atol=1e-8, rtol=1e-6)
    assert np.abs(found.effects).min(axis=0).max() > 0


def test_equals_the_weights_own_gradients_on_a_relu_network() -> None:
    model, x = network(nn.ReLU), samples()
    masks = half(model)
    found = first_order(model, x, masks, batch=4)
    for n in range(len(x)):
        two = model(x[n : n + 1]).topk(2, dim=1).values[0]
        names = list(masks)
        grads = torch.autograd.grad(two[0] - two[1], [dict(model.named_parameters())[name] for name in names])
        for i, (name, g) in enumerate(zip(names, grads, strict=True)):
            weight = dict(model.named_parameters())[name]
            expected = -(g * weight * ~masks[name]).sum().item()
            assert found.effects[n, i] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ["fashion-vit", "fashion-resnet"])
def test_forward_mode_gives_the_same(name: str) -> None:
    model = mp.load_model(name)
    x = samples(3).repeat(1, 1, 4, 4)[:, :, :28, :28]
    masks = dict(list(mp.magnitude_masks(model, 0.5).items())[:6])
    back, forward = first_order(model, x, masks), first_order_jvp(model, x, masks)
    np.testing.assert_allclose(back.effects, forward.effects, atol=2e-4)
    assert np.abs(back.effects).max() > 0.01
    assert (back.top == forward.top).all() and back.tier == forward.tier == "estimate"


def test_leaves_the_model_as_found() -> None:
    model = network(nn.ReLU)
    before = {name: (id(p), p.detach().clone(), p.requires_grad) for name, p in model.named_parameters()}
    first_order(model, samples(), half(model))
    first_order_jvp(model, samples(), half(model))
    for name, p in model.named_parameters():
        assert id(p) == before[name][0] and torch.equal(p, before[name][1]) and p.requires_grad == before[name][2]
        assert p.grad is None
    assert not any(m._forward_hooks for m in model.modules())


def test_agreement_is_perfect_where_the_network_is_linear_in_the_weight_and_not_beyond() -> None:
    model, x = network(nn.ReLU), samples(40)
    masks = half(model, ("5.weight",))
    linear = first_order(model, x, masks).against(logits(model, x, masks))
    assert linear.same_sign == 1.0 and linear.optimism == pytest.approx(0, abs=1e-5)
    masks = half(model)
    assert abs(first_order(model, x, masks).against(logits(model, x, masks)).optimism) > 1e-3


def test_optimism_has_the_sign_of_a_promise_too_high() -> None:
    one = FirstOrder(("a",), np.array([[0.0]]), np.array([0]), np.array([1]), np.array([2.0]))
    found = one.against(torch.tensor([[0.0, 1.0]]))
    assert (found.optimism, found.same_sign) == (3.0, 0.0)


class Windows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part, self.unused = nn.Linear(16, 2), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x.reshape(-1, 16)).reshape(len(x), -1) + self.unused.weight.sum()


def test_layers_whose_samples_cannot_be_told_apart_are_refused_and_forward_mode_takes_them() -> None:
    model = Windows().eval()
    masks = {"part.weight": torch.zeros(2, 16, dtype=torch.bool)}
    with pytest.raises(ModelError, match=r"part\.weight sees 36 rows for 9 samples.*first_order_jvp"):
        first_order(model, samples(), masks)
    assert first_order_jvp(model, samples(), masks).effects.shape == (9, 1)
    with pytest.raises(ModelError, match=r"unused\.weight is not used by its own module"):
        first_order(model, samples(), {"unused.weight": torch.zeros(4, 4, dtype=torch.bool)})


def test_bad_input() -> None:
    model = network(nn.ReLU)
    with pytest.raises(DataError, match="one sample"):
        first_order(model, samples()[:0], half(model))
    with pytest.raises(DataError, match="NaN"):
        first_order(model, samples() * torch.nan, half(model))
    with pytest.raises(ModelError, match=r"\.eval"):
        first_order(network(nn.ReLU).train(), samples(), half(model))
    with pytest.raises(Cancelled):
        first_order(model, samples(), half(model), cancelled=lambda: True)
