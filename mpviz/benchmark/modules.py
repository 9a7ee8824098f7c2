"""Layers in the forms that are timed: convolutions as matrix products, and inputs put in order before a product."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpviz.errors import ModelError


def unfolds(module: nn.Module) -> bool:
    """Whether it is a convolution that `UnfoldedConv` can stand for: ungrouped, padded by numbers with zeros."""
    return (
        isinstance(module, nn.Conv2d)
        and module.groups == 1
        and (module.padding_mode == "zeros" and not isinstance(module.padding, str))
    )


class UnfoldedConv(nn.Module):
    """A convolution as im2col and one matrix product; a 1 × 1 kernel needs no unfolding.

    Float["b in h w"] → Float["b out h' w'"]. Raises ModelError for groups, and for padding that is not of zeros.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        if not unfolds(conv):
            raise ModelError("grouped convolutions and padding by name or by other than zeros have no im2col form here")
        self.kernel, self.stride = conv.kernel_size, conv.stride
        self.padding: Any = conv.padding
        self.dilation = conv.dilation
        self.linear = nn.Linear(conv.weight[0].numel(), conv.out_channels, bias=conv.bias is not None)
        self.linear.weight = nn.Parameter(conv.weight.detach().flatten(1).contiguous(), requires_grad=False)
        if conv.bias is not None:
            self.linear.bias = nn.Parameter(conv.bias.detach(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """The product over all places of all images at once."""
        height, width = (
            (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, pad, dilation in zip(
                x.shape[2:], self.kernel, self.stride, self.padding, self.dilation, strict=True
            )
        )
        if self.kernel == (1, 1) and self.padding in ((0, 0), 0):
            columns = x[:, :, :: self.stride[0], :: self.stride[1]].flatten(2)
        else:
            columns = F.unfold(x, self.kernel, self.dilation, self.padding, self.stride)
        out = self.linear(columns.transpose(1, 2).reshape(-1, columns.shape[1]))
        return out.reshape(x.shape[0], height * width, -1).transpose(1, 2).reshape(x.shape[0], -1, height, width)


class GatheredLinear(nn.Module):
    """A Linear layer whose weight stands in another order of its inputs, which are gathered first."""

    order: Tensor

    def __init__(self, linear: nn.Linear, order: Tensor) -> None:
        super().__init__()
        self.linear = nn.Linear(linear.in_features, linear.out_features, bias=linear.bias is not None)
        order = order.to(linear.weight.device).long()
        self.linear.weight = nn.Parameter(linear.weight.detach()[:, order].contiguous(), requires_grad=False)
        if linear.bias is not None:
            self.linear.bias = nn.Parameter(linear.bias.detach(), requires_grad=False)
        self.register_buffer("order", order)

    def forward(self, x: Tensor) -> Tensor:
        """Float["... in"] → Float["... out"]."""
        return self.linear(torch.index_select(x, -1, self.order))


def replace_module(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module in the place of another, in the model itself."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
