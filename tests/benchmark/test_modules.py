"""Layers in the forms that are timed compute what they computed."""

import pytest
import torch
from torch import nn

from mpviz.benchmark.modules import GatheredLinear, UnfoldedConv
from mpviz.errors import ModelError


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [(1, 1, 0, 1), (1, 2, 0, 1), (3, 1, 1, 1), (3, 2, 1, 1), ((3, 5), (2, 1), (0, 2), (2, 1)), (1, 1, 1, 1)],
)
def test_an_unfolded_convolution_gives_the_same(kernel, stride, padding, dilation, bias):
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 10, kernel, stride, padding, dilation, bias=bias).double()
    x = torch.randn(3, 6, 11, 13, dtype=torch.float64)
    torch.testing.assert_close(UnfoldedConv(conv)(x), conv(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, 1, 1, padding_mode="reflect"),
    ],
)
def test_convolutions_without_that_form_are_refused(conv):
    with pytest.raises(ModelError, match="no im2col form"):
        UnfoldedConv(conv)


def test_a_layer_that_gathers_gives_the_same():
    torch.manual_seed(0)
    linear, x = nn.Linear(12, 5).double(), torch.randn(2, 7, 12, dtype=torch.float64)
    order = torch.randperm(12)
    gathered = GatheredLinear(linear, order)
    torch.testing.assert_close(gathered(x), linear(x), rtol=1e-12, atol=1e-12)
    assert torch.equal(gathered.linear.weight, linear.weight[:, order])
