"""The 2:4 benchmark that comes with mpviz: its cells, the way from fp32 to the fastest, and what can be timed here."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from mpviz.benchmark.endpoints import ENDPOINTS, Endpoint, missing
from mpviz.benchmark.ledger import Arm, Cell, Ratio, read_cells
from mpviz.errors import CheckpointError, DataError
from mpviz.nets.paths import data_root

FIRST = "fp32"  # the dense endpoint that every way starts from
# What sets endpoints apart, in the order in which it is taken back: field, its plain value, how it is called.
_CHANGES: tuple[tuple[str, Any, str], ...] = (
    ("sparse", "", "2:4"),
    ("channels_last", False, "channels last"),
    ("conv", "library", "convolutions as im2col"),
    ("compiled", False, "compiled"),
    ("arithmetic", "float32", "number type"),
)


@dataclass(frozen=True)
class Step:
    """An endpoint on the way. change: what sets it apart from the one before it, "" for the first.

    before: that endpoint. gain: how many times faster than `before`; total: than fp32. Both are measured.
    """

    endpoint: str
    arithmetic: str
    before: str
    change: str
    gain: Ratio | None
    total: Ratio | None


@dataclass(frozen=True)
class Route:
    """The way from fp32 to the fastest endpoint of a cell, one change a step.

    Where 2:4 was timed and is not on the way, the fastest 2:4 endpoint stands behind it as a last step of its own.
    limit: estimate of how many times faster than a dense endpoint 2:4 is (Amdahl). dense: the fastest dense endpoint,
    dense_total how many times faster it is than fp32.
    """

    model: str
    batch: int
    tome: int
    steps: tuple[Step, ...]
    fastest: str
    limit: float
    dense: str
    dense_total: float


def gpu_here() -> str:
    """Name of the CUDA GPU of this machine; "" where there is none."""
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else ""


def missing_here() -> str:
    """Why 2:4 cannot be timed on this machine; "" where it can."""
    return missing(ENDPOINTS["2:4"], torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def benchmark_cells(folder: Path | None = None) -> list[Cell]:
    """Cells of a folder, by default those that come with mpviz; none where it is not there.

    Raises CheckpointError for a file that is no cell, which it calls by its name alone.
    """
    place = data_root() / "benchmarks" / "two-four" if folder is None else folder
    try:
        return read_cells(place)
    except CheckpointError as error:
        raise CheckpointError(str(error).replace(f"{place}{os.sep}", "")) from error


def hardware(cell: Cell) -> str:
    """What a cell was timed on: the GPU, or the processor with its threads."""
    gpu = cell.machine.get("gpu")
    return str(gpu["name"] if gpu else cell.machine.get("hardware", "unknown hardware"))


def layers_of(cell: Cell) -> pd.DataFrame:
    """Shapes of layers beside their limits, as `roofline` measured them for a cell; no rows where it did not."""
    table = pd.DataFrame([dict(row) for row in cell.layers])
    return table.astype({name: float for name in ("dense_s", "sparse_s", "of_limit", "speedup") if name in table})


def fastest(cell: Cell, sparse: bool | None = None) -> Arm | None:
    """The arm with the least median; sparse: among 2:4 endpoints or dense ones alone. None where none was timed."""
    timed = [
        (one.timing.median, one)
        for one in cell.arms
        if one.timing is not None and one.endpoint in ENDPOINTS
        if sparse is None or bool(ENDPOINTS[one.endpoint].sparse) == sparse
    ]
    return min(timed, key=lambda pair: pair[0])[1] if timed else None


def two_four_gain(cell: Cell) -> Ratio | None:
    """The fastest 2:4 endpoint against the same endpoint with dense kernels; None where one of both was not timed."""
    best = fastest(cell, sparse=True)
    if best is None:
        return None
    before, change = _before(ENDPOINTS[best.endpoint], _timed(cell))
    return cell.ratio(best.endpoint, before) if change == "2:4" else None


def route(cell: Cell) -> Route:
    """The way from fp32 to the fastest endpoint of a cell. Raises DataError where fp32 was not timed."""
    timed, best, dense = _timed(cell), fastest(cell), fastest(cell, sparse=False)
    if FIRST not in timed or best is None or dense is None:
        raise DataError(f"{cell.model} at batch {cell.batch} has no timing of {FIRST}; bench it with that endpoint too")
    steps = _way(cell, best.endpoint, timed)
    sparse = fastest(cell, sparse=True)
    if sparse is not None and sparse.endpoint not in {step.endpoint for step in steps}:
        steps.append(_way(cell, sparse.endpoint, timed)[-1])
    return Route(cell.model, cell.batch, cell.tome, tuple(steps), best.endpoint, cell.limit, dense.endpoint,
                 cell.ratio(dense.endpoint, FIRST).value)  # fmt: skip


def _timed(cell: Cell) -> set[str]:
    return {one.endpoint for one in cell.arms if one.timing is not None}


def _way(cell: Cell, end: str, timed: set[str]) -> list[Step]:
    steps: list[Step] = []
    while end != FIRST:
        before, change = _before(ENDPOINTS[end], timed)
        steps.append(Step(end, cell.arm(end).arithmetic, before, change, cell.ratio(end, before),
                          cell.ratio(end, FIRST)))  # fmt: skip
        end = before
    return [Step(FIRST, cell.arm(FIRST).arithmetic, "", "", None, None), *reversed(steps)]


def _before(endpoint: Endpoint, timed: Iterable[str]) -> tuple[str, str]:
    """The timed endpoint that lacks one thing of this one, and that thing; fp32 and all things where there is none."""
    known = {_traits(ENDPOINTS[name]): name for name in timed if name in ENDPOINTS}
    differs = [(field, plain, words) for field, plain, words in _CHANGES if getattr(endpoint, field) != plain]
    for field, plain, words in differs:
        plainer = known.get(_traits(replace(endpoint, **{field: plain})))
        if plainer is not None:
            return plainer, words
    return FIRST, ", ".join(words for _, _, words in reversed(differs))


def _traits(endpoint: Endpoint) -> tuple[object, ...]:
    return tuple(getattr(endpoint, field) for field, _, _ in _CHANGES)
