"""Methods that rank entries by |W|: over all layers, layer by layer, and with spectral budgets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import pandas as pd
from torch import nn

from mpviz.errors import BudgetError, nearest
from mpviz.prune.allocate import allocate, check_sparsity, decay
from mpviz.prune.masks import Ranking
from mpviz.prune.pruning import Inputs, Pruning, log_of, weights_of

SCOPES = ("global", "layer")


@dataclass(frozen=True)
class Magnitude:
    """Remove the smallest |W|: of all layers together ("global"), or the same share of each ("layer").

    Layer by layer, round(s·n) entries go in all: each layer loses the whole part of its share, and those with the
    largest remainders one more (earlier layers first where these are equal).
    """

    scope: str = "global"

    def prune(self, model: nn.Module, sparsity: float, inputs: Inputs) -> Pruning:
        """Needs the weights only."""
        if self.scope not in SCOPES:
            raise BudgetError(f"unknown scope '{self.scope}'; {nearest(self.scope, SCOPES)}")
        ranking = Ranking(model)
        counts = ranking.counts(sparsity) if self.scope == "global" else even_counts(ranking, sparsity)
        masks = ranking.masks(counts)
        cuts = {name: float(weight.abs()[masks[name]].min()) if masks[name].any() else float("nan")
                for name, weight in weights_of(model, ranking.names).items()}  # fmt: skip
        log = log_of("magnitude", ranking, masks, roles_of(inputs.table), smallest_kept=cuts)
        return Pruning("magnitude", asdict(self), float(sparsity), masks, log)


def even_counts(ranking: Ranking, sparsity: float) -> dict[str, int]:
    """How many entries each layer loses when all lose the same share, round(s·n) in all."""
    share = check_sparsity(sparsity)
    exact = share * ranking.sizes
    counts = exact.astype(int)
    missing = round(share * ranking.total) - int(counts.sum())
    for i in sorted(range(len(counts)), key=lambda i: counts[i] - exact[i])[:missing]:
        counts[i] += 1
    return dict(zip(ranking.names, counts.tolist(), strict=True))


def roles_of(table: pd.DataFrame | None) -> dict[str, str]:
    """The role of each layer, where a table tells it."""
    return {} if table is None else {str(name): str(role) for name, role in table["role"].items()}


def column(table: pd.DataFrame, name: str) -> dict[str, float]:
    """One number a layer."""
    return {str(layer): float(value) for layer, value in table[name].items()}


@dataclass(frozen=True)
class SEB:
    """Spectral Edge Budgeting: the smallest |W|/w go, w = max(0.1, 1 + β d(s) z) from the edge σ₊ or the exponent α.

    beta_by_role: strengths that replace β for "attention", "mlp" or "conv". locked: layers that lose nothing.
    Source: arXiv:2606.02608; `mp.allocate`.
    """

    signal: str = "sigma_plus"
    beta: float = 1.25
    decay_end: float = 0.7
    beta_by_role: Mapping[str, float] = field(default_factory=dict)
    locked: tuple[str, ...] | str = ()

    def prune(self, model: nn.Module, sparsity: float, inputs: Inputs) -> Pruning:
        """Needs inputs.table."""
        return _budgeted(self, "seb", model, sparsity, inputs)


@dataclass(frozen=True)
class Regimes:
    """SEB with the four regimes of the paper: α up to 0.20, then σ₊ with stronger β, by type beyond 0.55.

    Beyond 0.55 layers that are neither attention nor MLP use β = 1.25. Source: arXiv:2606.02608.
    """

    def prune(self, model: nn.Module, sparsity: float, inputs: Inputs) -> Pruning:
        """Needs inputs.table."""
        return _budgeted(regime(sparsity), "regimes", model, sparsity, inputs)


def regime(sparsity: float) -> SEB:
    """The strengths that the four-regime schedule takes at a sparsity.

    >>> regime(0.2).signal, regime(0.3).beta, regime(0.5).decay_end, regime(0.6).beta_by_role["mlp"]
    ('alpha', 1.0, 0.7, 2.0)
    """
    share = check_sparsity(sparsity) - 1e-9  # sums of steps miss a boundary by rounding
    if share <= 0.20:
        return SEB("alpha", 0.50, 0.30)
    if share <= 0.40:
        return SEB("sigma_plus", 1.00, 0.50)
    if share <= 0.55:
        return SEB("sigma_plus", 1.25, 0.70)
    return SEB("sigma_plus", 1.25, 0.85, {"attention": 1.00, "mlp": 2.00})


def _budgeted(seb: SEB, name: str, model: nn.Module, sparsity: float, inputs: Inputs) -> Pruning:
    table, ranking = inputs.spectra(name, model), Ranking(model)
    weights = allocate(table, sparsity, seb.signal, seb.beta, seb.decay_end, seb.beta_by_role, seb.locked)
    masks = ranking.masks(ranking.counts(sparsity, weights))
    signal, shares = column(table, seb.signal), {str(layer): float(value) for layer, value in weights.items()}
    log = log_of(name, ranking, masks, roles_of(table), signal=signal, weight=shares)
    log["decay"] = decay(sparsity, seb.decay_end)
    return Pruning(name, asdict(seb), float(sparsity), masks, log)
