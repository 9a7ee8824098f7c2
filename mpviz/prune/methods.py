"""The methods that prune a network at once, by name: a table of them, and one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import pandas as pd
from torch import nn

from mpviz.errors import BudgetError, nearest
from mpviz.nets.calibrate import Moments
from mpviz.prune.bulk import Haar, SubEdge, Support
from mpviz.prune.magnitude import SEB, Magnitude, Regimes
from mpviz.prune.options import misfit
from mpviz.prune.pruning import Inputs, Method, Pruning
from mpviz.prune.scores import SparseGPT, Wanda

METHODS: dict[str, type[Any]] = {
    "magnitude": Magnitude,
    "seb": SEB,
    "regimes": Regimes,
    "sub-edge": SubEdge,
    "haar": Haar,
    "support": Support,
    "wanda": Wanda,
    "sparsegpt": SparseGPT,
}
LOOK_AT_SPECTRA = ("seb", "regimes", "sub-edge", "support")
LOOK_AT_DATA = ("wanda", "sparsegpt")


def method_of(name: str, options: Mapping[str, Any] | None = None) -> Method:
    """A method with its options. Raises BudgetError for unknown ones, with the nearest, and values of another kind."""
    if name not in METHODS:
        raise BudgetError(f"unknown method '{name}'; {nearest(str(name), METHODS)}")
    known = [field.name for field in fields(METHODS[name])]
    for option in options or {}:
        if option not in known:
            said = nearest(option, known) if known else "it has none"
            raise BudgetError(f"the method '{name}' has no option '{option}'; {said}")
    made = METHODS[name](**(options or {}))
    wrong = misfit(made)
    if wrong is not None:
        raise BudgetError(f"the method '{name}' cannot take {wrong}")
    chosen: Method = made
    return chosen


def prune_once(
    model: nn.Module,
    method: str = "seb",
    sparsity: float = 0.5,
    *,
    table: pd.DataFrame | None = None,
    calibration: Mapping[str, Moments] | None = None,
    seed: int = 0,
    cancelled: Callable[[], bool] = lambda: False,
    **options: Any,
) -> Pruning:
    """What a method removes from a network at a sparsity, in one step and without training.

    method, options: of METHODS. table: of `mp.analyze`, for LOOK_AT_SPECTRA; calibration: of `second_moments`, for
    LOOK_AT_DATA. Exactly round(s·n) of the n prunable entries are removed. The model is left as it is.
    Raises BudgetError for unknown methods, options and impossible sparsities, Cancelled.
    """
    chosen = method_of(method, options)
    return chosen.prune(model, sparsity, Inputs(table, calibration, seed, cancelled))
