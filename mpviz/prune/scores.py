"""Outside baselines that look at data: Wanda's scores, and SparseGPT's with its updates of what is kept."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from mpviz.errors import BudgetError
from mpviz.nets.layers import as_matrix
from mpviz.prune.allocate import check_sparsity
from mpviz.prune.magnitude import even_counts, roles_of
from mpviz.prune.masks import Ranking
from mpviz.prune.pruning import Inputs, Pruning, log_of, weights_of


@dataclass(frozen=True)
class Wanda:
    """Wanda: the entries of least |W_ij|·‖x_j‖₂ go, compared within each output row, the same share of each row.

    A convolution's rows are its unfolded kernels. Rows that the share does not divide lose the whole part, and those
    whose next entry scores least one more, so that each layer loses exactly its count.
    Source: Sun, Liu, Bair & Kolter (2024).
    """

    def prune(self, model: nn.Module, sparsity: float, inputs: Inputs) -> Pruning:
        """Needs inputs.calibration."""
        ranking = Ranking(model)
        moments = inputs.moments("wanda", ranking.names)
        masks, cost = {}, {}
        for name, count in even_counts(ranking, check_sparsity(sparsity)).items():
            inputs.check()
            weight = weights_of(model, [name])[name]
            matrix, norms = as_matrix(weight).double().cpu(), moments[name].norms
            if len(norms) != matrix.shape[1]:
                raise BudgetError(f"the calibration of {name} is of another network; calibrate this one")
            mask = by_row(matrix.abs() * norms, count)
            masks[name] = mask.reshape(weight.shape)
            cost[name] = output_error(matrix, torch.where(mask, matrix, 0.0), moments[name].gram)
        log = log_of("wanda", ranking, masks, roles_of(inputs.table), output_error=cost)
        return Pruning("wanda", asdict(self), float(sparsity), masks, log)


def by_row(scores: Tensor, count: int) -> Tensor:
    """Bool["rows cols"] that removes `count` entries, the same share of each row, least score first."""
    rows, cols = scores.shape
    each, extra = divmod(count, rows)
    order = scores.argsort(dim=1, stable=True)
    mask = torch.ones(rows, cols, dtype=torch.bool)
    mask.scatter_(1, order[:, :each], False)
    if extra:
        following = scores.gather(1, order[:, each : each + 1]).squeeze(1)
        some = following.argsort(stable=True)[:extra]
        mask[some, order[some, each]] = False
    return mask


def output_error(dense: Tensor, pruned: Tensor, gram: Tensor) -> float:
    """‖(W − W′)X‖² / ‖WX‖² on the calibration data, from E[h hᵀ]."""
    difference = dense - pruned
    whole = float((dense @ gram * dense).sum())
    return float((difference @ gram * difference).sum()) / whole if whole > 0 else 0.0


@dataclass(frozen=True)
class SparseGPT:
    """SparseGPT: column by column, what is removed is made up for by the columns that follow (OBS updates).

    Within each block of columns the entries of least W_ij² / [H⁻¹]_jj go, H = E[h hᵀ] + damping · mean diagonal; each
    layer loses the same share. Entries whose input was always zero go first. What is kept changes, so the masks come
    with values.
    Source: Frantar & Alistarh (2023).
    """

    block: int = 128
    damping: float = 0.01

    def prune(self, model: nn.Module, sparsity: float, inputs: Inputs) -> Pruning:
        """Needs inputs.calibration."""
        if self.block < 1 or not (math.isfinite(self.damping) and self.damping > 0):
            raise BudgetError(f"block is at least 1 and damping above 0; got {self.block} and {self.damping}")
        ranking = Ranking(model)
        moments = inputs.moments("sparsegpt", ranking.names)
        masks, values, cost = {}, {}, {}
        for name, count in even_counts(ranking, check_sparsity(sparsity)).items():
            inputs.check()
            weight = weights_of(model, [name])[name]
            matrix = as_matrix(weight).double().cpu()
            if len(moments[name].gram) != matrix.shape[1]:
                raise BudgetError(f"the calibration of {name} is of another network; calibrate this one")
            new, mask = obs(matrix, moments[name].gram, count, self.block, self.damping)
            masks[name], values[name] = mask.reshape(weight.shape), new.reshape(weight.shape).to(weight)
            cost[name] = output_error(matrix, new, moments[name].gram)
        log = log_of("sparsegpt", ranking, masks, roles_of(inputs.table), output_error=cost)
        return Pruning("sparsegpt", asdict(self), float(sparsity), masks, log, values)


def obs(matrix: Tensor, gram: Tensor, count: int, block: int, damping: float) -> tuple[Tensor, Tensor]:
    """New weights and mask, Float64 and Bool["rows cols"], with `count` entries removed.

    With H⁻¹ = UᵀU, U upper triangular, row j of U holds what column j's error does to the columns behind it once those
    before are fixed: the update of SparseGPT. Columns whose input is always zero go first: they cost nothing.
    """
    rows, cols = matrix.shape
    w, mask = matrix.clone(), torch.ones(rows, cols, dtype=torch.bool)
    hessian = gram.clone()
    dead = hessian.diagonal() <= 0
    hessian.diagonal()[dead] = 1.0
    hessian.diagonal().add_(damping * gram.diagonal().mean())
    try:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
        upper = torch.linalg.cholesky(inverse, upper=True)
    except torch.linalg.LinAlgError as failed:
        raise BudgetError(
            f"the inputs' second moments cannot be inverted with a damping of {damping:g}; take 0.01, or more images"
        ) from failed
    quotas = block_counts(dead, rows, count, block)
    for start, take in zip(range(0, cols, block), quotas, strict=True):
        stop = min(start + block, cols)
        part = w[:, start:stop]
        scores = torch.where(dead[start:stop], -1.0, (part / upper.diagonal()[start:stop]) ** 2)
        here = torch.ones(rows * (stop - start), dtype=torch.bool)
        here[scores.flatten().argsort(stable=True)[:take]] = False
        here = here.reshape(rows, stop - start)
        errors = torch.zeros_like(part)
        for j in range(start, stop):
            kept = torch.where(here[:, j - start], w[:, j], 0.0)
            error = (w[:, j] - kept) / upper[j, j]
            w[:, j] = kept
            w[:, j + 1 : stop] -= error[:, None] * upper[j, j + 1 : stop]
            errors[:, j - start] = error
        w[:, stop:] -= errors @ upper[start:stop, stop:]
        mask[:, start:stop] = here
    return w, mask


def block_counts(dead: Tensor, rows: int, count: int, block: int) -> list[int]:
    """How many entries each block of columns loses, `count` in all.

    dead: Bool["cols"], whose entries go first; what is left is shared out by the number of live columns.

    >>> block_counts(torch.tensor([False, False, True, False]), rows=3, count=6, block=2)
    [2, 4]
    """
    free = min(count, rows * int(dead.sum()))
    live, rest, first = max(1, int((~dead).sum())), count - free, 0
    counts, shared, seen = [], 0, 0
    for here in dead.split(block):
        unused = min(rows * int(here.sum()), free - first)
        seen += int((~here).sum())
        share = round(rest * seen / live) - shared  # whole numbers that add up
        first, shared = first + unused, shared + share
        counts.append(unused + share)
    return counts
