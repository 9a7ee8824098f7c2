"""What a benchmark found, with every raw timing: one cell for each batch and number of merged tokens."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from mpviz.benchmark.timing import Timing
from mpviz.errors import CheckpointError, ModelError, nearest
from mpviz.files import write_text

FORMAT = 1  # of a cell's file


@dataclass(frozen=True)
class Arm:
    """One endpoint of a cell. error: ‖logits − fp32 logits‖ / ‖fp32 logits‖, taken before it was timed.

    why: the reason when there is no timing. converted: layers that ran as 2:4, as 8-bit products, or both.
    """

    endpoint: str
    arithmetic: str
    timing: Timing | None = None
    error: float | None = None
    why: str = ""
    converted: int = 0


@dataclass(frozen=True)
class Ratio:
    """How many times faster an arm is than another, taken round by round: median (value) and quartiles (low, high)."""

    value: float
    low: float
    high: float
    words: str

    def __str__(self) -> str:
        """The ratio with both arms, and that they differ in number type where they do."""
        return self.words


@dataclass(frozen=True)
class Cell:
    """Arms that took turns in one run.

    limit: estimate of how many times faster 2:4 can make this network (`amdahl`). layers: rows of `roofline` at this
    batch, none where they were not asked for; rates: what they were compared with.
    """

    model: str
    batch: int
    tome: int
    input_size: tuple[int, int, int]
    arms: tuple[Arm, ...]
    limit: float
    machine: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    weights: str = ""
    layers: tuple[Mapping[str, Any], ...] = ()
    rates: Mapping[str, Any] = field(default_factory=dict)

    def arm(self, endpoint: str) -> Arm:
        """The arm of an endpoint. Raises ModelError for one that is not here."""
        found = {one.endpoint: one for one in self.arms}
        if endpoint not in found:
            raise ModelError(f"batch {self.batch} has no endpoint '{endpoint}'; {nearest(endpoint, found)}")
        return found[endpoint]

    def ratio(self, endpoint: str, baseline: str) -> Ratio:
        """How many times faster than the baseline, in words that name both number types where they differ.

        Raises ModelError where one of the two was not timed, with the reason.
        """
        arms = self.arm(endpoint), self.arm(baseline)
        for one in arms:
            if one.timing is None:
                raise ModelError(f"{one.endpoint} was not timed at batch {self.batch}: {one.why}")
        fast, slow = (one.timing for one in arms if one.timing is not None)
        rounds = [b / a for a, b in zip(fast.samples, slow.samples, strict=True)]
        low, value, high = statistics.quantiles(rounds, n=4, method="inclusive")
        types = [one.arithmetic for one in arms]
        differ = "" if types[0] == types[1] else f"; {types[0]} against {types[1]}, not the same number type"
        merged = f", {self.tome} pairs merged a block" if self.tome else ""
        words = (
            f"{value:.2f} × ({low:.2f}–{high:.2f}): {endpoint} against {baseline} at batch {self.batch}{merged}{differ}"
        )
        return Ratio(value, low, high, words)

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON takes it."""
        arms = [
            {"endpoint": one.endpoint, "arithmetic": one.arithmetic, "error": one.error, "why": one.why,
             "converted": one.converted, **_timing_json(one.timing)}
            for one in self.arms
        ]  # fmt: skip
        return {"format": FORMAT, "model": self.model, "batch": self.batch, "tome": self.tome,
                "input_size": list(self.input_size), "weights": self.weights, "limit": self.limit,
                "command": self.command, "machine": dict(self.machine), "arms": arms,
                "layers": [dict(one) for one in self.layers], "rates": dict(self.rates)}  # fmt: skip

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Cell:
        """The cell that `to_json` wrote. Raises CheckpointError for what it did not write."""
        try:
            if found["format"] != FORMAT:
                raise CheckpointError(
                    f"the cell has format {found['format']}, this version reads {FORMAT}; run it again"
                )
            arms = tuple(
                Arm(one["endpoint"], one["arithmetic"], _timing(one), one["error"], one["why"], one["converted"])
                for one in found["arms"]
            )
            return cls(found["model"], found["batch"], found["tome"], tuple(found["input_size"]), arms,
                       found["limit"], found["machine"], found["command"], found["weights"],
                       tuple(found["layers"]), found["rates"])  # fmt: skip
        except (KeyError, TypeError, IndexError) as error:
            raise CheckpointError(f"this is no cell of a benchmark: {error!r}; run it again") from error


def _timing_json(timing: Timing | None) -> dict[str, Any]:
    if timing is None:
        return {"seconds": []}
    return {"seconds": list(timing.samples), "wall": list(timing.wall), "calls": timing.calls,
            "peak_bytes": timing.peak_bytes, "joules": timing.joules}  # fmt: skip


def _timing(one: Mapping[str, Any]) -> Timing | None:
    if not one["seconds"]:
        return None
    return Timing(tuple(one["seconds"]), tuple(one["wall"]), one["calls"], one["peak_bytes"], one["joules"])


@dataclass(frozen=True, eq=False)
class BenchReport:
    """Cells of one network on one machine.

    packing: what `packable` says of each layer, with exact (packed and unpacked to the same bits) and bytes_packed.
    about: model, device, weights.
    """

    cells: tuple[Cell, ...]
    packing: pd.DataFrame
    about: Mapping[str, Any]

    @property
    def layers(self) -> pd.DataFrame:
        """Shapes beside their limits, what `roofline` gives, with batch and tome; empty where it was not asked for."""
        rows = [{"batch": cell.batch, "tome": cell.tome, **one} for cell in self.cells for one in cell.layers]
        return pd.DataFrame(rows).astype({"sparse_s": float, "speedup": float} if rows else {})

    @property
    def table(self) -> pd.DataFrame:
        """A row for each cell and endpoint: median, quartiles, images a second, memory, energy, or why it has none."""
        return cells_table(self.cells)

    def cell(self, batch: int, tome: int = 0) -> Cell:
        """The cell of a batch size. Raises ModelError for one that was not run."""
        for one in self.cells:
            if (one.batch, one.tome) == (batch, tome):
                return one
        ran = ", ".join(f"{one.batch}" + (f" with {one.tome} merged" if one.tome else "") for one in self.cells)
        raise ModelError(f"batch {batch} with {tome} merged was not run; there is {ran}")

    def ratio(self, endpoint: str, baseline: str, batch: int, tome: int = 0) -> Ratio:
        """How many times faster an endpoint is. Errors: `Cell.ratio` and `cell`."""
        return self.cell(batch, tome).ratio(endpoint, baseline)


COLUMNS = ("model", "batch", "tome", "endpoint", "arithmetic", "median_ms", "low_ms", "high_ms", "images_per_s",
           "peak_mib", "joules_per_image", "error", "converted", "why")  # fmt: skip


def cells_table(cells: tuple[Cell, ...] | list[Cell]) -> pd.DataFrame:
    """A row for each cell and endpoint; see `BenchReport.table`."""
    rows = []
    for cell in cells:
        for arm in cell.arms:
            timing = arm.timing
            row = {"model": cell.model, "batch": cell.batch, "tome": cell.tome, "endpoint": arm.endpoint,
                   "arithmetic": arm.arithmetic, "error": math.nan if arm.error is None else arm.error,
                   "converted": arm.converted, "why": arm.why}  # fmt: skip
            if timing is not None:
                low, high = timing.quartiles
                peak, joules = timing.peak_bytes, timing.joules
                row |= {"median_ms": 1e3 * timing.median, "low_ms": 1e3 * low, "high_ms": 1e3 * high,
                        "images_per_s": cell.batch / timing.median,
                        "peak_mib": math.nan if peak is None else peak / 2**20,
                        "joules_per_image": math.nan if joules is None else joules / cell.batch}  # fmt: skip
            rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS)


def cell_path(folder: Path, model: str, batch: int, tome: int, device: str) -> Path:
    """Where a cell is kept: MODEL-DEVICE-bBATCH[-tR].json."""
    name = "".join(letter if letter.isalnum() or letter in "._" else "-" for letter in model)
    return folder / f"{name}-{device}-b{batch}{f'-t{tome}' if tome else ''}.json"


def write_cell(path: Path, cell: Cell) -> None:
    """Keep a cell, whole or not at all. Raises CheckpointError where that fails."""
    try:
        write_text(path, json.dumps(cell.to_json(), indent=1) + "\n")
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error}; nothing was changed") from error


def read_cell(path: Path) -> Cell:
    """A cell that was kept. Raises CheckpointError for a file that is none, with its name."""
    try:
        return Cell.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, CheckpointError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error


def read_cells(folder: Path) -> list[Cell]:
    """All cells of a folder, by model, merged tokens and batch; none where the folder is not there."""
    cells = [read_cell(path) for path in sorted(folder.glob("*.json"))]
    return sorted(cells, key=lambda cell: (cell.model, cell.tome, cell.batch))
