"""The table of `analyze`: one row a layer, from spectra that are already there."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from mpviz.nets.layer_spectrum import LayerSpectrum

_INFO = ("role", "kind", "rows", "cols", "aspect", "params", "prunable", "why")
_FIT = (
    *("variance", "lambda_minus", "lambda_plus", "threshold", "sigma_plus", "fit_error", "mp_like", "grade", "verdict"),
    *("bulk_fraction", "n_spikes"),
)
_QUALITY = ("method", "reason", "rigidity", "p_value", "sigma_plus_low", "sigma_plus_high", "rank")
_PAIRS = {  # columns that are one end of an interval
    "lambda_minus": ("edges", 0),
    "lambda_plus": ("edges", 1),
    "sigma_plus_low": ("sigma_plus_interval", 0),
    "sigma_plus_high": ("sigma_plus_interval", 1),
}
_TAIL = {"tail_alpha": "alpha", "tail_x_min": "x_min", "tail_ks": "ks"}
_NORMS = ("frobenius", "spectral", "nuclear")
_ENTRIES = ("kurtosis", "column_spread", "row_spread")

Cell = Callable[[LayerSpectrum], Any]


def _columns() -> dict[str, Cell]:
    """{column: how it is read from a layer}, in the order of the table."""
    cells: dict[str, Cell] = {name: _of("info", name) for name in _INFO}
    cells |= {name: _pair(*_PAIRS[name]) if name in _PAIRS else _of("fit", name) for name in _FIT}
    cells |= {"alpha": lambda layer: layer.alpha, "stable_rank": lambda layer: layer.stable_rank}
    cells |= {name: _pair(*_PAIRS[name]) if name in _PAIRS else _of("fit", name) for name in _QUALITY}
    cells |= {column: _of("tail", name) for column, name in _TAIL.items()}
    cells["no_tail"] = lambda layer: layer.tail is None or layer.tail.no_tail
    cells |= {"entropy": lambda layer: layer.entropy, "soft_rank": lambda layer: layer.soft_rank}
    cells |= {name: _of("norms", name) for name in _NORMS}
    cells |= {name: _of("entries", name) for name in _ENTRIES}
    cells |= {"groups": lambda layer: layer.info.groups, "engine": lambda layer: layer.engine}
    return cells


def _of(part: str, name: str) -> Cell:
    def cell(layer: LayerSpectrum) -> Any:
        record = getattr(layer, part)
        return math.nan if record is None else getattr(record, name)

    return cell


def _pair(name: str, end: int) -> Cell:
    return lambda layer: getattr(layer.fit, name)[end]


_CELLS = _columns()
COLUMNS = tuple(_CELLS)


def table_of(spectra: Mapping[str, LayerSpectrum], skipped: Mapping[str, str] | None = None) -> pd.DataFrame:
    """The table of `analyze` from spectra that are already there. skipped: {tensor: why}, kept in table.attrs."""
    # column by column: a table made of rows would look at the type of every cell
    columns = {name: [cell(layer) for layer in spectra.values()] for name, cell in _CELLS.items()}
    table = pd.DataFrame(columns, index=pd.Index(list(spectra), name="layer"))
    table.attrs["skipped"] = dict(skipped or {})
    return table
