"""Where the groups of a k:n pattern lie in a layer's weight, and whether a mask keeps the pattern."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mpviz.errors import PatternError, nearest
from mpviz.nets.kn_pattern import KN

CONV = ("flattened", "native")


@dataclass(frozen=True, eq=False)
class Layout:
    """Which columns of an unfolded weight form a group.

    shape: of the weight. columns: Int["groups n"], columns of the weight as Float["out in"], in which a convolution's
    kernel is unfolded to C_in·kh·kw.
    """

    shape: tuple[int, ...]
    columns: Tensor

    def cells(self, weight: Tensor) -> Tensor:
        """The weight, or a mask like it, as ["out groups n"]."""
        return weight.reshape(self.shape[0], -1)[:, self.columns.to(weight.device)]

    def weight(self, cells: Tensor) -> Tensor:
        """The inverse of `cells`."""
        flat = torch.empty(self.shape[0], self.columns.numel(), dtype=cells.dtype, device=cells.device)
        flat[:, self.columns.reshape(-1).to(cells.device)] = cells.reshape(self.shape[0], -1)
        return flat.reshape(self.shape)

    def blocks(self, gram: Tensor) -> Tensor:
        """The groups' own parts Float["groups n n"] of a second moment Float["in in"] of the layer's inputs."""
        columns = self.columns.to(gram.device)
        return gram[columns[:, :, None], columns[:, None, :]]

    def kept(self, mask: Tensor) -> Tensor:
        """Int["out groups"]: how many entries of each group a mask keeps."""
        return self.cells(mask).sum(dim=2)


def units(shape: tuple[int, ...], conv: str = "flattened") -> int:
    """How many inputs a permutation of this weight orders: unfolded columns, or a convolution's channels if "native".

    >>> units((64, 32, 3, 3)), units((64, 32, 3, 3), "native"), units((64, 32))
    (288, 32, 32)
    """
    return shape[1] if conv == "native" else math.prod(shape[1:])


def layout(
    name: str, shape: tuple[int, ...], pattern: KN, conv: str = "flattened", order: Tensor | None = None
) -> Layout:
    """The groups of a weight: n consecutive inputs after reordering them by `order`.

    name: for messages. conv: "flattened" takes n consecutive columns of the unfolded kernel C_in·kh·kw; "native" takes
    n consecutive input channels at each pixel of the kernel, the form that TensorRT's sparse convolutions accept.
    order: Int["units"] (see `units`), the input that stands at each place; None leaves them as they are.
    Raises PatternError for a width that n does not divide, an unknown `conv`, or an order that is no permutation.
    """
    if conv not in CONV:
        raise PatternError(f"unknown way to group a convolution '{conv}'; {nearest(str(conv), CONV)}")
    width = units(shape, conv)
    if width % pattern.n:
        what = "input channels" if conv == "native" and len(shape) > 2 else "inputs"
        raise PatternError(f"{pattern} needs a multiple of {pattern.n} {what}; {name} has {width}")
    order = torch.arange(width) if order is None else order.cpu().long()
    if order.shape != (width,) or not torch.equal(order.sort().values, torch.arange(width)):
        raise PatternError(f"the order of {name} is no permutation of its {width} inputs; give each of them once")
    groups = order.reshape(-1, pattern.n)
    pixels = math.prod(shape[2:]) if conv == "native" else 1
    # channel c at pixel p of the kernel is column c·pixels + p
    columns = (groups[None] * pixels + torch.arange(pixels)[:, None, None]).reshape(-1, pattern.n)
    return Layout(tuple(shape), columns)


def check_legal(name: str, mask: Tensor, pattern: KN, conv: str = "flattened", order: Tensor | None = None) -> None:
    """Raises PatternError when a group of the mask does not keep exactly k, with how many groups break the pattern."""
    kept = layout(name, tuple(mask.shape), pattern, conv, order).kept(mask)
    broken = int((kept != pattern.k).sum())
    if broken:
        raise PatternError(
            f"{broken} of {kept.numel()} groups of {name} do not keep {pattern.k} of {pattern.n}; "
            "project the model again, or give the order that its groups were made with"
        )
