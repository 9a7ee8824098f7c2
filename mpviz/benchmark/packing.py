"""2:4 as hardware stores it: half of the values, and two bits for the place of each.

The layout is CUTLASS's, by PyTorch's own conversion, which runs on any device; cuSPARSELt's is not published. It is
checked here, on a CPU too, that what goes in comes out with the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor, nn
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

from mpviz.errors import ModelError, PatternError
from mpviz.nets.layers import LayerInfo, as_matrix, list_layers, weight_of

K, N = 2, 4
SIDES = {torch.bfloat16: 16, torch.float16: 16, torch.int8: 32}  # both sides of a weight are multiples (cuSPARSELt)
_ROWS, _COLS = 32, 64  # what CUTLASS's layout of 16-bit values comes in


@dataclass(frozen=True, eq=False)
class Packed:
    """values: ["rows cols/2"], padded to whole tiles; places: Int16, CUTLASS's order; shape: of the dense matrix."""

    values: Tensor
    places: Tensor
    shape: tuple[int, int]

    @property
    def bytes(self) -> int:
        """Of values and places together, padding included."""
        return self.values.nbytes + self.places.nbytes

    def dense(self) -> Tensor:
        """The matrix that was packed."""
        whole = sparse_semi_structured_to_dense_cutlass(self.values, self.places)
        return whole[: self.shape[0], : self.shape[1]].contiguous()


def broken_groups(matrix: Tensor) -> int:
    """How many groups of four inputs of Float["rows cols"] keep more than two; a rest of a row counts as a group."""
    rows, cols = matrix.shape
    padded = nn.functional.pad(matrix != 0, (0, -cols % N))
    return int((padded.reshape(rows, -1, N).sum(dim=2) > K).sum())


def best_two(matrix: Tensor) -> Tensor:
    """Bool["rows cols"]: of every four inputs the two largest in size. A matrix that is 2:4 loses nothing.

    Raises PatternError when 4 does not divide the width.
    """
    rows, cols = matrix.shape
    if cols % N:
        raise PatternError(f"2:4 needs a multiple of {N} inputs; the matrix has {cols}")
    groups = matrix.abs().reshape(rows, -1, N)
    kept = torch.zeros_like(groups, dtype=torch.bool)
    return kept.scatter_(2, groups.topk(K, dim=2).indices, True).reshape(rows, cols)


def pack(matrix: Tensor) -> Packed:
    """A 2:4 matrix of halves Float["rows cols"], packed; −0 becomes 0, which hardware takes for a kept value.

    Sides that are no whole tiles are padded with zeros. Raises PatternError for a matrix that is not 2:4, with how many
    groups break it; ModelError for values that are not bfloat16 or float16.
    """
    if matrix.dtype not in (torch.bfloat16, torch.float16):
        raise ModelError(f"2:4 packs bfloat16 and float16; the matrix is {matrix.dtype}; convert it first")
    broken = broken_groups(matrix)
    if broken:
        total = matrix.shape[0] * -(-matrix.shape[1] // N)
        raise PatternError(f"{broken} of {total} groups of four keep more than two; project the weights to 2:4 first")
    rows, cols = matrix.shape
    clean = torch.where(matrix == 0, torch.zeros_like(matrix), matrix)
    padded = nn.functional.pad(clean, (0, -cols % _COLS, 0, -rows % _ROWS)).contiguous()
    values, places = sparse_semi_structured_from_dense_cutlass(padded)
    return Packed(values, places, (rows, cols))


def packable(model: nn.Module, dtype: torch.dtype = torch.bfloat16) -> pd.DataFrame:
    """Which weights the 2:4 kernels of PyTorch can take, one row a layer, indexed by parameter name.

    Columns: role, kind, rows, cols (of the unfolded kernel), packs, why (a layer stays dense), broken (groups of four
    that keep more than two). Linear layers and ungrouped convolutions whose sides are multiples of 16 (int8: 32) pack.
    Raises ModelError for a type that no kernel takes.
    """
    if dtype not in SIDES:
        known = ", ".join(str(one).removeprefix("torch.") for one in SIDES)
        raise ModelError(f"there are no 2:4 kernels for {dtype}; known: {known}")
    rows = []
    for info in list_layers(model):
        why = _why_not(info, SIDES[dtype])
        weight = as_matrix(weight_of(model, info.name).detach())
        rows.append({"layer": info.name, "role": info.role, "kind": info.kind, "rows": info.rows, "cols": info.cols,
                     "packs": not why, "why": why, "broken": broken_groups(weight)})  # fmt: skip
    return pd.DataFrame(rows).set_index("layer")


def _why_not(info: LayerInfo, side: int) -> str:
    if info.kind not in ("Linear", "Conv2d"):
        return f"a {info.kind} has no 2:4 kernel"
    if info.groups > 1:
        return "a grouped convolution is many small products"
    odd = [f"{value} {name}" for name, value in (("outputs", info.rows), ("inputs", info.cols)) if value % side]
    return f"{' and '.join(odd)}: no multiple of {side}" if odd else ""
