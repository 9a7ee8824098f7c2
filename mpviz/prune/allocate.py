"""Spectral Edge Budgeting (SEB): how much each layer's weights are protected, from its edge or tail exponent."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from mpviz.errors import BudgetError, nearest

SIGNALS = ("sigma_plus", "alpha")
MIN_WEIGHT = 0.1


def check_sparsity(sparsity: Any) -> float:
    """The sparsity as a float. Raises BudgetError outside [0, 1)."""
    try:
        value = math.nan if isinstance(sparsity, (str, bytes)) else float(sparsity)
    except (TypeError, ValueError):
        value = math.nan
    if not 0.0 <= value < 1.0:
        raise BudgetError(f"sparsity is the share removed, in [0, 1); got {sparsity}")
    return value


def decay(sparsity: float, decay_end: float, power: float = 1.0) -> float:
    """d(s) = [(1 − s/s_d)₊]^p: how much the spectral signal still counts at sparsity s.

    >>> decay(0.35, 0.7)
    0.5
    """
    if not 0.0 < decay_end:
        raise BudgetError(f"decay_end is the sparsity at which the signal stops to count, above 0; got {decay_end}")
    return max(0.0, 1.0 - sparsity / decay_end) ** power


def _standardised(signal: np.ndarray) -> np.ndarray:
    finite = signal[np.isfinite(signal)]
    spread = float(finite.std()) if len(finite) else 0.0
    if not spread > 0.0:  # one layer, or all alike: nothing to tell layers apart
        return np.zeros(len(signal))
    standard = (signal - finite.mean()) / spread
    return np.where(np.isnan(standard), 0.0, standard)  # a layer without a fit is neither protected nor exposed


def layer_names(names: Iterable[str], known: Iterable[str], what: str) -> list[str]:
    """The full parameter names of `names`. Raises BudgetError for one that is not known."""
    known = list(known)
    checked = []
    for name in [names] if isinstance(names, str) else names:
        full = name if name in known else f"{name}.weight"
        if full not in known:
            raise BudgetError(f"unknown {what} '{name}'; {nearest(name, known)}")
        checked.append(full)
    return checked


def allocate(
    table: pd.DataFrame,
    sparsity: float,
    signal: str = "sigma_plus",
    beta: float = 1.25,
    decay_end: float = 0.7,
    beta_by_role: Mapping[str, float] | None = None,
    locked: Iterable[str] = (),
) -> pd.Series:
    """SEB weights of the prunable layers: w = max(0.1, 1 + β d(s) z), the signal z standardised over all of them.

    table: of `mp.analyze`. signal: "sigma_plus" or "alpha". beta_by_role: strengths that replace β, e.g.
    {"attention": 1.0, "mlp": 2.0}. locked: layers that lose nothing; their weight is 0.0, which stands for "never
    removed", and the others make up for them. Ranking |W|/w then gives the masks (`mp.magnitude_masks`).
    Source: Spectral Edge Budgeting, arXiv:2606.02608. Raises BudgetError for a sparsity outside [0, 1), unknown
    signals, roles or layers, and a prunable layer whose weights could not be analysed.
    """
    sparsity = check_sparsity(sparsity)
    if signal not in SIGNALS:
        raise BudgetError(f"unknown signal '{signal}'; {nearest(signal, SIGNALS)}")
    prunable = table["prunable"].to_numpy(dtype=bool)
    names = table.index[prunable]
    if names.empty:
        raise BudgetError("the table has no prunable layer; there is nothing to allocate")
    if "engine" in table:  # empty exactly where the weights could not be analysed, e.g. because one is NaN
        broken = names[table["engine"].to_numpy()[prunable] == ""]
        if len(broken):
            raise BudgetError(f"{broken[0]} has no budget: {table.loc[broken[0], 'verdict']}")
    # in arrays, not in columns of the table: a slider waits for it
    roles = table["role"].to_numpy()[prunable].tolist()
    strengths = _betas(roles, beta, beta_by_role)
    betas = np.array([strengths[role] for role in roles], dtype=float)
    standard = _standardised(table[signal].to_numpy(dtype=float)[prunable])
    weights = np.maximum(1.0 + betas * decay(sparsity, decay_end) * standard, MIN_WEIGHT)
    kept = set(layer_names(locked, names, "locked layer"))
    weights[[name in kept for name in names]] = 0.0
    return pd.Series(weights, index=names, name="weight")


def _betas(roles: Iterable[str], beta: float, by_role: Mapping[str, float] | None) -> dict[str, float]:
    betas = dict.fromkeys(roles, beta)
    for role, value in (by_role or {}).items():
        if role not in ("attention", "mlp", "conv", "depthwise", "stem", "head"):
            raise BudgetError(
                f"unknown role '{role}'; {nearest(role, ['attention', 'mlp', 'conv', 'depthwise', 'stem', 'head'])}"
            )
        betas[role] = value
    for role, value in betas.items():
        if not (math.isfinite(value) and value >= 0):
            raise BudgetError(f"β is a strength of at least 0; got {value} for {role} layers")
    return betas
