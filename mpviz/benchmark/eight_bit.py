"""Linear layers whose products are of 8-bit values, dense and 2:4.

Weights have one scale an output, inputs one a row, taken anew in each call (dynamic, symmetric). Everything else of the
network stays in its own type.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

LARGEST = {"int8": 127.0, "float8": 448.0}  # float8 is e4m3
_STORED = {"int8": torch.int8, "float8": torch.float8_e4m3fn}
ROWS = 32  # inputs are padded to a multiple; the kernels ask for 16, and more than 16


class EightBitLinear(nn.Module):
    """A Linear layer as an 8-bit product. Float["... in"] → Float["... out"], in the type of the inputs.

    kind: "int8" or "float8". On a CPU it is dense. `pack` makes it 2:4 for cuSPARSELt.
    """

    values: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear, kind: str) -> None:
        super().__init__()
        self.kind, self.out, self.algorithm, self.packed = kind, linear.out_features, 0, False
        values, scale = quantised(linear.weight.detach(), kind)
        self.register_buffer("values", values)
        self.register_buffer("scale", scale.reshape(-1))
        bias: Tensor | None = linear.bias
        self.register_buffer("bias", None if bias is None else bias.detach())

    def pack(self, inputs: Tensor) -> None:
        """Make the weight 2:4, in the algorithm that is quickest for these inputs. Needs CUDA and cuSPARSELt."""
        rows, _ = quantised(_whole(inputs), self.kind)
        self.values, self.packed = torch._cslt_compress(self.values), True
        self.algorithm = int(
            torch._cslt_sparse_mm_search(self.values, rows.t(), out_dtype=torch.bfloat16, transpose_result=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        """The product of rounded values, scaled back."""
        many = x.numel() // x.shape[-1]
        rows, scale = quantised(_whole(x), self.kind)
        if self.packed:
            out = torch._cslt_sparse_mm(
                self.values, rows.t(), out_dtype=torch.bfloat16, transpose_result=True, alg_id=self.algorithm
            )
            out = out * (scale * self.scale)
        elif self.kind == "int8":
            out = torch._int_mm(rows, self.values.t()) * (scale * self.scale)
        else:
            out = torch._scaled_mm(rows, self.values.t(), scale, self.scale[None], out_dtype=torch.bfloat16)
        out = out[:many].to(x.dtype)
        return (out if self.bias is None else out + self.bias).reshape(*x.shape[:-1], self.out)


def quantised(matrix: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Float["rows cols"] as 8-bit values, and Float32["rows 1"] scales: matrix ≈ values · scale. Zeros stay +0.

    >>> values, scale = quantised(torch.tensor([[1.0, -2.0], [0.0, 0.0]]), "int8")
    >>> values.tolist()
    [[64, -127], [0, 0]]
    """
    most = matrix.abs().amax(dim=1, keepdim=True).float()
    scale = torch.where(most > 0, most, 1.0) / LARGEST[kind]
    scaled = matrix.float() / scale
    if kind == "int8":
        scaled = scaled.round()
    # 2:4 takes −0 for a kept value; what rounds to 0 in float8 is below half of its least number, 2⁻⁹
    scaled = torch.where(scaled.abs() <= 2.0**-10, 0.0, scaled)
    return scaled.clamp(-LARGEST[kind], LARGEST[kind]).to(_STORED[kind]), scale


def _whole(x: Tensor) -> Tensor:
    """Inputs as one matrix whose rows are padded with zeros to a multiple of `ROWS`."""
    rows = x.reshape(-1, x.shape[-1])
    short = -len(rows) % ROWS
    return nn.functional.pad(rows, (0, 0, 0, short)) if short else rows
