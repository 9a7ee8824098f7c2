"""A layer stored as two with the same product: one to a few channels, and one from these to the outputs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mpviz.errors import ModelError


class TwoFactors(nn.Sequential):
    """Two layers in the place of one: `first` leads to `rank` channels, `second` from these to the outputs.

    Of a convolution the first has its kernel, the second a kernel of 1×1.
    """

    first: nn.Linear | nn.Conv2d
    second: nn.Linear | nn.Conv2d

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__(OrderedDict(first=first, second=second))

    @property
    def rank(self) -> int:
        """Channels between the two."""
        return len(self.first.weight)

    @property
    def weight(self) -> Tensor:
        """The weight of the one layer, for networks that read it; shaped like it."""
        return (self.second.weight.flatten(1) @ self.first.weight.flatten(1)).reshape(-1, *self.first.weight.shape[1:])

    @property
    def bias(self) -> Tensor | None:
        """The bias of the one layer."""
        return self.second.bias


def splits(layer: nn.Module) -> bool:
    """Whether a layer can be two: a plain linear layer, or a plain convolution without groups."""
    return type(layer) is nn.Linear or (type(layer) is nn.Conv2d and layer.groups == 1)


def factored(layer: nn.Module) -> nn.Module:
    """The layer as two with the same product, where its rank makes them smaller; else the layer itself.

    Rank: singular values above float32's rounding of the largest. Raises ModelError for a layer that cannot be two.
    """
    matrix = _weight(layer).detach().flatten(1).double()
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    out, inside = matrix.shape
    rank = max(1, int((s > s[0] * max(out, inside) * torch.finfo(torch.float32).eps).sum()))
    root = s[:rank].sqrt()
    return of_factors(layer, u[:, :rank] * root, root[:, None] * vt[:rank])


def of_factors(layer: nn.Module, left: Tensor, right: Tensor) -> nn.Module:
    """A layer whose weight is left · right, as two where that takes fewer numbers; else the layer itself.

    left: Float["out r"], right: Float["r in"], of the weight as a matrix. The bias is the layer's.
    Raises ModelError for a layer that cannot be two.
    """
    if left.numel() + right.numel() >= _weight(layer).numel():
        return layer
    two = empty_factors(layer, len(right))
    with torch.no_grad():
        two.first.weight.copy_(right.reshape(two.first.weight.shape))
        two.second.weight.copy_(left.reshape(two.second.weight.shape))
        if two.bias is not None and isinstance(layer.bias, Tensor):
            two.bias.copy_(layer.bias)
    return two


def empty_factors(layer: nn.Module, rank: int) -> TwoFactors:
    """Two layers of that rank without values, with the layer's device and type of numbers.

    Raises ModelError for a layer that cannot be two.
    """
    weight = _weight(layer)
    like: dict[str, Any] = {"device": "meta", "dtype": weight.dtype}
    if isinstance(layer, nn.Linear):
        two = TwoFactors(
            nn.Linear(layer.in_features, rank, bias=False, **like),
            nn.Linear(rank, layer.out_features, bias=layer.bias is not None, **like),
        )
    else:
        assert isinstance(layer, nn.Conv2d)
        two = TwoFactors(
            nn.Conv2d(
                layer.in_channels, rank, layer.kernel_size, layer.stride, layer.padding, layer.dilation,  # type: ignore[arg-type]
                bias=False, padding_mode=layer.padding_mode, **like,
            ),
            nn.Conv2d(rank, layer.out_channels, 1, bias=layer.bias is not None, **like),
        )  # fmt: skip
    return two.to_empty(device=weight.device).train(layer.training)


def replace_layer(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put a layer in the place of the one of that name, in place, and wherever else that one stands."""
    old = model.get_submodule(name)
    for parent in model.modules():
        for key in [key for key, child in parent._modules.items() if child is old]:
            setattr(parent, key, layer)


def ranks_of(model: nn.Module) -> dict[str, int]:
    """The layers that are two, by name, and their ranks."""
    modules = model.named_modules(remove_duplicate=False)
    return {name: module.rank for name, module in modules if isinstance(module, TwoFactors)}


def rebuild(model: nn.Module, ranks: Mapping[str, int]) -> nn.Module:
    """Give a model, in place, two layers without values wherever `ranks` of another say so.

    Raises ModelError for a name that is no layer of the model, or a layer that cannot be two.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, rank in ranks.items():
        if name not in modules:
            raise ModelError(
                f"{type(model).__name__} has no layer {name}, which is stored as two; give its architecture"
            )
        now = model.get_submodule(name)
        if not (isinstance(now, TwoFactors) and now.rank == rank):
            replace_layer(model, name, empty_factors(now, rank))
    return model


def _weight(layer: nn.Module) -> Tensor:
    if not splits(layer):
        raise ModelError(f"a {type(layer).__name__} cannot be stored as two layers; leave it whole")
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight
