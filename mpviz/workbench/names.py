"""Names that the state and its faces share; importing them costs nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

VIEWS = ("histogram", "distribution", "quantiles", "tail")
PLAN = ("sparsity", "signal", "beta", "decay_end", "beta_attention", "beta_mlp", "locked")  # settings that make a plan
TIERS = ("unchanged", "measured", "population", "first order", "slider", "path", "bracket", "sub-masks", "ball",
         "gaussian")  # fmt: skip
TIERS_SHOWN = tuple(name for name in TIERS if name not in ("bracket", "ball", "gaussian"))  # until somebody chooses
SHOWN = (
    "layer",
    "split",
    "samples",
    "scale",
    "log_y",
    "view",
    "shuffled",
    "tiers",
)  # settings that are none of the plan
STATE = ("model", "data", "folder", *PLAN, *SHOWN)  # what a session's file and an address say


def to_query(state: Mapping[str, Any]) -> str:
    """A state as the query of an address.

    >>> to_query({"model": "fashion-vit", "sparsity": 0.6, "locked": ["a", "b"], "log_y": True})
    'model=fashion-vit&sparsity=0.6&locked=a&locked=b&log_y=true'
    """
    plain: dict[str, Any] = {}
    for name, value in state.items():
        if isinstance(value, bool):
            plain[name] = str(value).lower()
        elif isinstance(value, list):
            plain[name] = value or [""]
        else:
            plain[name] = value
    return urlencode(plain, doseq=True)
