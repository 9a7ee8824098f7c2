"""Methods that act on singular values and vectors: classical RMT pruning, Haar denoising, support recovery."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from mpviz.errors import BudgetError
from mpviz.nets.layers import as_matrix
from mpviz.prune.allocate import check_sparsity
from mpviz.prune.magnitude import column, roles_of
from mpviz.prune.masks import Ranking
from mpviz.prune.pruning import Inputs, Pruning, log_of, smallest, weights_of


@dataclass(frozen=True)
class SubEdge:
    """Classical RMT pruning: drop singular values in the bulk, thin out singular vectors, then remove small entries.

    drop: share of the singular values below σ₊ that are dropped, the smallest first. theta: entries of the singular
    vectors u_i, v_i below T_i = θ·max(1/750, (1 − s_i/σ₊)₊³⁰) are set to zero; 0 leaves the vectors alone. factors:
    keep U√S and √S Vᵀ of layers for which two factors hold fewer numbers than the kept entries; they stand for the
    layer before small entries are removed, and `Pruning.of(model, factored=True)` stores it as the two. A layer
    without a fitted edge is left to magnitude alone. The recomposed weights are then pruned by global magnitude to the
    sparsity. Source: arXiv:2606.02608.
    """

    drop: float = 0.5
    theta: float = 1.0
    factors: bool = False

    def prune(self, model: nn.Module, sparsity: float, inputs: Inputs) -> Pruning:
        """Needs inputs.table, for the edges."""
        if not 0 <= self.drop <= 1 or not (math.isfinite(self.theta) and self.theta >= 0):
            raise BudgetError(f"drop is a share 0 … 1 and theta at least 0; got {self.drop} and {self.theta}")
        edges = column(inputs.spectra("sub-edge", model), "sigma_plus")
        halves: dict[str, tuple[Tensor, Tensor]] = {}

        def change(name: str, matrix: Tensor) -> Tensor:
            u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
            keep = kept_values(s, edges[name], self.drop)
            limits = vector_limits(s, edges[name], self.theta)
            u = torch.where(u.abs() < limits, 0.0, u)[:, keep] * s[keep].sqrt()
            vt = s[keep].sqrt()[:, None] * torch.where(vt.abs() < limits[:, None], 0.0, vt)[keep]
            halves[name] = (u, vt)
            return u @ vt

        found = _recomposed(self, "sub-edge", model, sparsity, inputs, change, edge=edges)
        if not self.factors:
            return found
        small = {name: pair for name, pair in halves.items()
                 if sum(int((one != 0).sum()) for one in pair) < int(found.masks[name].sum())}  # fmt: skip
        return Pruning(found.method, found.options, found.sparsity, found.masks, found.log, found.values, small)


def kept_values(s: Tensor, edge: float, drop: float) -> Tensor:
    """Bool["r"]: all singular values but the smallest round(drop · k) of the k below the edge. s: descending."""
    keep = torch.ones(len(s), dtype=torch.bool)
    below = int((s < edge).sum())
    gone = round(drop * below)
    if gone:
        keep[len(s) - gone :] = False
    return keep


def vector_limits(s: Tensor, edge: float, theta: float) -> Tensor:
    """T_i = θ·max(1/750, (1 − s_i/σ₊)₊³⁰), Float["r"]: the deeper in the bulk, the less of a vector is believed."""
    if not edge > 0:  # no edge is known: nothing is doubted
        return torch.zeros_like(s)
    inside = (1 - s / edge).clamp(min=0)
    return theta * inside.pow(30).clamp(min=1 / 750)


@dataclass(frozen=True)
class Haar:
    """Haar denoising: coordinates of singular vectors that are small for a random direction are set to zero.

    A coordinate of a uniform unit vector in n dimensions times √n is nearly standard normal; below z0 it is dropped.
    Vectors of spikes are left alone when spikes=False. The recomposed weights are pruned by global magnitude.
    Source: arXiv:2606.02608, which found a marginal effect at z0 = 0.5.
    """

    z0: float = 0.5
    spikes: bool = True

    def prune(self, model: nn.Module, sparsity: float, inputs: Inputs) -> Pruning:
        """Needs inputs.table when spikes are left alone."""
        if not (math.isfinite(self.z0) and self.z0 >= 0):
            raise BudgetError(f"z0 is a number of standard deviations, at least 0; got {self.z0}")
        edges = {} if self.spikes else column(inputs.spectra("haar", model), "sigma_plus")

        def change(name: str, matrix: Tensor) -> Tensor:
            u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
            touched = torch.ones_like(s, dtype=torch.bool) if self.spikes else s < edges[name]
            u = torch.where((math.sqrt(len(u)) * u.abs() < self.z0) & touched, 0.0, u)
            vt = torch.where((math.sqrt(vt.shape[1]) * vt.abs() < self.z0) & touched[:, None], 0.0, vt)
            return (u * s) @ vt

        return _recomposed(self, "haar", model, sparsity, inputs, change)


@dataclass(frozen=True)
class Support:
    """Entrywise support recovery: an entry below t = √(2g log(2NM/δ)/N) cannot be told from noise of the layer's bulk.

    g/N is the variance of the noise entries, taken from the fitted bulk. If W = S + R with R independent Gaussian, no
    entry outside the support of S is kept, with probability ≥ 1 − δ, and only entries with |S_ij| ≤ 2t are missed.
    Trained weights obey that model only roughly. The entries of least |W|/t over all layers go, so that at the
    sparsity at which the threshold itself is reached this is the recovered support; the log says what that is. A layer
    without a fitted bulk has no noise level and loses nothing.
    Source: arXiv:2606.02608.
    """

    delta: float = 0.05

    def prune(self, model: nn.Module, sparsity: float, inputs: Inputs) -> Pruning:
        """Needs inputs.table, for the variance of the bulk."""
        if not 0 < self.delta < 1:
            raise BudgetError(f"delta is the probability to keep noise, in (0, 1); got {self.delta}")
        ranking = Ranking(model)
        variances = column(inputs.spectra("support", model), "variance")
        weights = weights_of(model, ranking.names)
        limits = {name: threshold(variances[name], weight.numel(), self.delta) for name, weight in weights.items()}
        ranks = {name: limit if math.isfinite(limit) else 0.0 for name, limit in limits.items()}  # 0 locks
        if not any(ranks.values()):
            raise BudgetError("no layer has a bulk to take a noise level from; use another method for this network")
        masks = ranking.masks(ranking.counts(sparsity, ranks))
        below = {name: float((weight.abs() <= limits[name]).double().mean()) for name, weight in weights.items()}
        log = log_of("support", ranking, masks, roles_of(inputs.table), threshold=limits, below_threshold=below)
        return Pruning("support", asdict(self), float(sparsity), masks, log)


def threshold(variance: float, entries: int, delta: float) -> float:
    """t = √(2 v log(2NM/δ)), v = g/N the variance of a noise entry: P(|R_ij| > t for any of the NM entries) ≤ δ."""
    return math.sqrt(2 * variance * math.log(2 * entries / delta)) if variance > 0 else math.nan


def _recomposed(
    method: SubEdge | Haar,
    name: str,
    model: nn.Module,
    sparsity: float,
    inputs: Inputs,
    change: Callable[[str, Tensor], Tensor],
    **more: Mapping[str, float],
) -> Pruning:
    """New weights for each prunable layer, then global magnitude on them."""
    share, ranking = check_sparsity(sparsity), Ranking(model)
    values, moved, zeros = {}, {}, {}
    for layer, weight in weights_of(model, ranking.names).items():
        inputs.check()
        new = change(layer, as_matrix(weight).double().cpu()).reshape(weight.shape)
        moved[layer] = float((new - weight.double().cpu()).norm() / weight.double().norm().clamp(min=1e-300))
        zeros[layer] = float((new == 0).double().mean())
        values[layer] = new.to(weight)
    masks = smallest({layer: new.abs() for layer, new in values.items()}, round(share * ranking.total))
    log = log_of(name, ranking, masks, roles_of(inputs.table), change=moved, zero_before=zeros, **more)
    kept = {
        layer: torch.where(masks[layer].to(new.device), new, torch.zeros_like(new)) for layer, new in values.items()
    }
    return Pruning(name, asdict(method), share, masks, log, kept)
