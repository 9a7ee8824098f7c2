"""What a fit of pure noise looks like: the null of p × KS and the scatter of the fitted edge, from a simulated table.

The eigenvalues of noise are rigid: they keep their distance, so the empirical distribution function stays within a few
steps of the law, and the usual Kolmogorov–Smirnov p-value, made for independent numbers, means nothing. The table holds
what the same fit of exact Gaussian noise gives, per method, shorter side p and aspect c = p / n;
tests/benchmarks/null_table.py made it and makes it again.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mpviz.errors import SpectrumError

Floats = NDArray[np.float64]

_FILE = Path(__file__).with_name("null_table.json")
LIMIT_SHARE = 0.01  # of noise layers that the verdict calls bad; the threshold of the spikes has the same level
_SLOPE_FROM = 256  # the size from which p × KS grows like log p


@dataclass(frozen=True)
class Null:
    """What noise of one shape gives, for one method.

    tails: shares of simulated draws, falling. rigidity: p × KS that this share exceeds, same shape.
    edge_error: 2.5 and 97.5 % points of √(2np) · log(fitted / true upper edge), without unit.
    """

    tails: Floats
    rigidity: Floats
    edge_error: tuple[float, float]

    @property
    def limit(self) -> float:
        """The p × KS above which a fit is called bad: one noise layer in a hundred exceeds it."""
        return float(np.interp(math.log(LIMIT_SHARE), np.log(self.tails[::-1]), self.rigidity[::-1]))

    def p_value(self, rigidity: float) -> float:
        """Share of noise layers with a larger p × KS; between the table's shares log-linear, never below the last."""
        if rigidity >= self.rigidity[-1]:
            return float(self.tails[-1])
        # no empirical step is closer to its law than half of itself, so every p × KS is at least 0.5
        points = np.concatenate([[0.5], self.rigidity])
        logs = np.concatenate([[0.0], np.log(self.tails)])
        return math.exp(float(np.interp(rigidity, points, logs)))

    def interval(self, edge: float, short: int, long: int) -> tuple[float, float]:
        """The 95 % interval of the true edge around a fitted one, in the unit of `edge`."""
        low, high = self.edge_error
        unit = math.sqrt(2.0 * short * long)
        return edge * math.exp(-high / unit), edge * math.exp(-low / unit)


def null_of(method: str, short: int, long: int) -> Null:
    """The null for a short × long block, interpolated in log p and log c.

    Below the smallest size and outside the tabulated aspects the nearest entry stands in; above the largest size p × KS
    is continued along log p, as it grows in the table.
    """
    table = _table()
    sizes, aspects, values = table.sizes, table.aspects, table.values[method]
    size = math.log(short)
    row = min(max(size, sizes[0]), sizes[-1])
    column = min(max(math.log(short / long), aspects[0]), aspects[-1])
    i, u = _cell(sizes, row)
    j, v = _cell(aspects, column)
    corner = values[i : i + 2, j : j + 2]
    weights = np.outer([1 - u, u], [1 - v, v])
    mixed = np.einsum("ij,ijk->k", weights, corner)
    count = len(table.tails)
    rigidity = mixed[:count] + table.slopes[method] * max(0.0, size - sizes[-1])
    return Null(table.tails, rigidity, (float(mixed[count]), float(mixed[count + 1])))


@dataclass(frozen=True)
class _Table:
    """The file: values[method] has shape (sizes, aspects, tails + 2); sizes and aspects are logarithms, ascending."""

    sizes: Floats
    aspects: Floats
    tails: Floats
    values: dict[str, Floats]
    slopes: dict[str, Floats]


@cache
def _table() -> _Table:
    try:
        record = json.loads(_FILE.read_text(encoding="utf-8"))
    except OSError as problem:
        raise SpectrumError(f"{_FILE.name} is missing from the installation of mpviz; install it again") from problem
    sizes, aspects = np.log(record["sizes"]), np.log(record["aspects"])
    order = np.argsort(aspects)
    values = {method: np.array(cells)[:, order] for method, cells in record["cells"].items()}
    tails = np.array(record["tails"])
    far = int(np.searchsorted(sizes, math.log(_SLOPE_FROM) - 1e-9))
    slopes = {
        method: np.mean(cells[-1] - cells[far], axis=0)[: len(tails)] / (sizes[-1] - sizes[far])
        for method, cells in values.items()
    }
    return _Table(sizes, aspects[order], tails, values, slopes)


def _cell(grid: Floats, x: float) -> tuple[int, float]:
    """Index of the cell of an ascending grid that holds x, and where in it x lies, 0 to 1."""
    index = min(max(int(np.searchsorted(grid, x, side="right")) - 1, 0), len(grid) - 2)
    return index, (x - float(grid[index])) / float(grid[index + 1] - grid[index])
