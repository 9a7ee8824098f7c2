"""What enters batch norms, against statistics by hand; what changed is carried over, and nothing else moves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import mpviz as mp
from mpviz.errors import Cancelled, DataError, ModelError
from mpviz.nets.batch_norms import Entering, batch_norms, norm_inputs, renew_batch_norms


class Small(nn.Module):
    """Two batch norms, one that keeps nothing, and a dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, momentum=0.3)
        self.drop, self.blind = nn.Dropout(0.5), nn.BatchNorm2d(6, track_running_stats=False)
        self.fc, self.two = nn.Linear(6, 5), nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.one(self.conv(x)).relu())
        return self.two(self.fc(self.blind(x).mean((2, 3))))


@pytest.fixture
def net() -> Small:
    torch.manual_seed(0)
    found = Small().eval()
    for one in (found.one, found.two):
        nn.init.normal_(one.running_mean)
        nn.init.uniform_(one.running_var, 0.5, 2.0)
        nn.init.normal_(one.weight)
        nn.init.normal_(one.bias)
    return found


def by_hand(x: Tensor, norm: nn.BatchNorm2d | nn.BatchNorm1d) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and output of a batch norm, per channel over all else."""
    over, shape = [d for d in range(x.ndim) if d != 1], [1, -1, *[1] * (x.ndim - 2)]
    mean, var = x.mean(over), x.var(over, unbiased=False)
    out = (x - mean.view(shape)) / (var + norm.eps).sqrt().view(shape)
    return mean, x.var(over), out * norm.weight.view(shape) + norm.bias.view(shape)


@torch.no_grad()
def test_they_are_the_statistics_of_what_enters(net: Small) -> None:
    x = torch.randn(10, 3, 7, 7) * 2 + 1
    mean, var, out = by_hand(net.conv(x), net.one)
    second = net.fc(net.blind(out.relu()).mean((2, 3)))  # no dropout
    one, two = norm_inputs(net, x)
    assert torch.allclose(one.mean, mean, atol=1e-5) and torch.allclose(one.variance, var, atol=1e-4)
    mean, var, _ = by_hand(second, net.two)
    assert torch.allclose(two.mean, mean, atol=1e-5) and torch.allclose(two.variance, var, atol=1e-4)


@torch.no_grad()
def test_parts_are_of_nearly_equal_size_and_count_alike(net: Small) -> None:
    x = torch.randn(10, 3, 7, 7)
    parts = [by_hand(net.conv(part), net.one) for part in (x[:4], x[4:7], x[7:])]
    found = norm_inputs(net, x, batch=4)[0]
    assert torch.allclose(found.mean, sum(mean for mean, _, _ in parts) / 3, atol=1e-5)
    assert torch.allclose(found.variance, sum(var for _, var, _ in parts) / 3, atol=1e-4)


def test_looking_moves_nothing(net: Small) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    norm_inputs(net, torch.randn(10, 3, 7, 7), batch=5)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(module.training for module in net.modules())
    assert (net.one.momentum, net.two.momentum) == (0.3, 0.1) and net.blind.running_mean is None


def test_what_did_not_change_stays_and_a_rescaled_layer_is_followed_exactly(net: Small) -> None:
    """Whatever the images are: a shift and a scale of a channel are undone by the norm behind it."""
    x, others = 3 * torch.randn(12, 3, 7, 7) + 2, torch.randn(4, 3, 7, 7)
    with torch.no_grad():
        expected = net(others)
        before = norm_inputs(net, x)
        renew_batch_norms(net, before, before)
        assert torch.allclose(net(others), expected, atol=1e-5)
        scale, shift = torch.rand(6) + 0.2, torch.randn(6)
        net.conv.weight *= scale[:, None, None, None]
        net.conv.bias *= scale
        net.conv.bias += shift
        assert not torch.allclose(net(others), expected, atol=1e-2)
        mean, variance = net.one.running_mean.clone(), net.one.running_var.clone()
        renew_batch_norms(net, before, norm_inputs(net, x))
        assert torch.allclose(net.one.running_mean, scale * mean + shift, atol=1e-3)
        assert torch.allclose(net.one.running_var, scale.square() * variance, rtol=1e-3)
        assert torch.allclose(net(others), expected, atol=1e-2)


def test_channels_that_went_silent_or_always_were_stay_finite(net: Small) -> None:
    zeros, ones = torch.zeros(6), torch.ones(6)
    mean, variance = net.one.running_mean.clone(), net.one.running_var.clone()
    rest = [Entering(torch.zeros(5), torch.ones(5))]
    renew_batch_norms(net, [Entering(zeros, ones), *rest], [Entering(zeros, zeros), *rest])
    assert torch.allclose(net.one.running_var, 1e-3 * variance)
    assert torch.allclose(net.one.running_mean, 1e-3**0.5 * mean)
    net.one.running_var.copy_(variance)
    net.one.running_mean.copy_(mean)
    renew_batch_norms(net, [Entering(zeros, zeros), *rest], [Entering(ones, ones), *rest])
    assert torch.equal(net.one.running_var, variance) and torch.allclose(net.one.running_mean, mean + 1)


def refused(kind: type[Exception], words: str, net: nn.Module, images: object, **options: object) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    with pytest.raises(kind, match=words) as caught:
        norm_inputs(net, images, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert modes == [module.training for module in net.modules()]


def test_bad_input_leaves_the_statistics_as_they_were(net: Small) -> None:
    x = torch.randn(10, 3, 7, 7)
    spoiled = x.clone()
    spoiled[9, 0, 0, 0] = float("nan")
    refused(DataError, "NaN or infinite values enter a batch norm", net, spoiled, batch=4)
    refused(DataError, "no images", net, x[:0])
    refused(DataError, "test split only measures", net, mp.load_data("digits").test)
    refused(ModelError, "channels", net, torch.randn(4, 2, 7, 7))
    calls = iter([False, True])
    refused(Cancelled, "as they were", net, x, batch=5, cancelled=lambda: next(calls))
    assert (net.one.momentum, net.two.momentum) == (0.3, 0.1)
    refused(ModelError, "training mode", Small(), x)
    refused(ModelError, "Sequential has no batch norms to renew; leave renew off", nn.Sequential(nn.Flatten()), x)


def test_the_norms_of_timm_are_found() -> None:
    torch.manual_seed(0)
    net = mp.load_model("efficientnet_lite0", pretrained=False)  # BatchNormAct2d
    norms = batch_norms(net)
    found = norm_inputs(net, torch.randn(6, 3, 64, 64), batch=3)
    assert len(norms) == len(found) > 40 and all(one.mean.abs().sum() > 0 for one in found)
