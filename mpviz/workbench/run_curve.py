"""Loss and accuracy of a training that runs, read from the file that it writes: only what is new, in bounded memory."""

from __future__ import annotations

import contextlib
import json
import math
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

METRICS = "metrics.csv"
COLUMNS = ("step", "epoch", "loss", "accuracy")
POINTS = 1000  # that a curve keeps; with twice as many, neighbours become their mean
LARGEST_READ = 32 * 2**20  # bytes that one look takes: a file that is longer is caught up with over several


@dataclass(frozen=True)
class Epoch:
    """One epoch so far: its number from 1, its steps, and the means over them."""

    number: int
    steps: int
    loss: float
    accuracy: float


@dataclass(frozen=True)
class Curve:
    """A training as far as it has come.

    steps, loss (nats), accuracy (0 … 1): each point the mean of `width` optimiser steps, at the last of them. last: the
    epoch that the newest step belongs to. ends: {epoch: its last step} of those that are over. rows: steps read so far.
    """

    steps: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    width: int = 1
    last: Epoch | None = None
    ends: dict[int, int] = field(default_factory=dict)
    rows: int = 0
    name: str = ""


class Tail:
    """New whole lines of a text file that grows, each time it is looked at.

    What a writer has not finished waits. A file that was replaced, or is shorter than what was read, is read anew.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._place: tuple[int, int] | None = None
        self._read = 0
        self._rest = b""

    def lines(self) -> tuple[bool, list[str]]:
        """(whether this is another file than before, its new lines); none where there is no file."""
        anew = False
        try:
            with self.path.open("rb") as file:
                found = _identity(file.fileno())
                if found[:2] != self._place or found[2] < self._read:
                    self._place, self._read, self._rest, anew = found[:2], 0, b"", True
                file.seek(self._read)
                block = file.read(LARGEST_READ)
        except OSError:
            return False, []
        self._read += len(block)
        *whole, self._rest = (self._rest + block).split(b"\n")
        return anew, [line.decode("utf-8", "replace") for line in whole]


def _identity(handle: int) -> tuple[int, int, int]:
    found = os.fstat(handle)
    return found.st_dev, found.st_ino, found.st_size


class CurveFile:
    """The curve of one metrics file. `look` may be called from any thread."""

    def __init__(self, path: Path, name: str = "") -> None:
        self.path, self._name = path, name
        self._tail, self._lock = Tail(path), threading.Lock()
        self._begin()

    def _begin(self) -> None:
        self._head: list[int] = []
        self._points: list[tuple[int, float, float]] = []
        self._width, self._rows = 1, 0
        self._open = [0.0, 0.0, 0]  # sums of loss and accuracy, and steps, that make no point yet
        self._epoch = [0, 0, 0.0, 0.0]
        self._ends: dict[int, int] = {}
        self._step = 0

    def look(self) -> Curve:
        """Read what is new."""
        with self._lock:
            anew, lines = self._tail.lines()
            if anew:
                self._begin()
            for line in lines:
                self._take(line)
            points = [*self._points]
            loss, accuracy, steps = self._open
            if steps:
                points.append((self._step, loss / steps, accuracy / steps))
            number, seen, loss, accuracy = self._epoch
            last = Epoch(int(number), int(seen), loss / seen, accuracy / seen) if seen else None
            return Curve(
                [point[0] for point in points], [point[1] for point in points], [point[2] for point in points],
                self._width, last, dict(self._ends), self._rows, self._name,
            )  # fmt: skip

    def _take(self, line: str) -> None:
        cells = line.rstrip("\r").split(",")  # numbers alone: nothing is quoted
        if not self._head:
            with contextlib.suppress(ValueError):
                self._head = [cells.index(name) for name in COLUMNS]
            return
        try:
            step, epoch = (int(cells[place]) for place in self._head[:2])
            loss, accuracy = (float(cells[place]) for place in self._head[2:])
        except (ValueError, IndexError):  # what a power cut left of a line
            return
        if not (math.isfinite(loss) and math.isfinite(accuracy)):
            return
        if self._epoch[0] and epoch != self._epoch[0]:
            self._ends[int(self._epoch[0])] = self._step
        if epoch != self._epoch[0]:
            self._epoch = [epoch, 0, 0.0, 0.0]
        self._epoch[1] += 1
        self._epoch[2] += loss
        self._epoch[3] += accuracy
        self._rows, self._step = self._rows + 1, step
        self._open = [self._open[0] + loss, self._open[1] + accuracy, self._open[2] + 1]
        if self._open[2] == self._width:
            self._points.append((step, self._open[0] / self._width, self._open[1] / self._width))
            self._open = [0.0, 0.0, 0]
            if len(self._points) == 2 * POINTS:
                self._halve()

    def _halve(self) -> None:
        pairs = zip(self._points[::2], self._points[1::2], strict=True)
        self._points = [(b[0], (a[1] + b[1]) / 2, (a[2] + b[2]) / 2) for a, b in pairs]
        self._width *= 2


class RunCurve:
    """The training of one run's folder: the one that was written to last, for a grid has many."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: CurveFile | None = None

    def look(self) -> Curve:
        """The curve as it is now; an empty one before any training has begun."""
        path = newest_metrics(self.folder)
        if path is None:
            self._file = None
            return Curve()
        if self._file is None or self._file.path != path:
            self._file = CurveFile(path, _name_of(path, self.folder))
        return self._file.look()


def newest_metrics(folder: Path) -> Path | None:
    """The file of steps that was written to last, of a run that runs or has ended; None where nothing trains."""
    done = folder / "recovery.csv"  # what a finished plan or projection keeps of them
    found = [path for path in folder.glob(f"**/{METRICS}") if path.parent != folder]
    times = {}
    for path in [*found, *([done] if done.is_file() else [])]:
        with contextlib.suppress(OSError):  # a run that ends takes its checkpoints away
            times[path] = path.stat().st_mtime_ns
    return max(times, key=lambda path: (times[path], str(path)), default=None)


def _name_of(path: Path, folder: Path) -> str:
    """Of a grid's training: its method, seed and sparsity, as "hybrid, seed 0, 50 %"; "" for the only one of a run."""
    parts = path.relative_to(folder).parts
    if parts[0] != "cells" or len(parts) < 4:
        return ""
    words = [parts[1], parts[2].replace("-", " ")]
    _, _, sparsity = parts[3].partition("-")
    with contextlib.suppress(ValueError):
        words.append(f"{100 * float(sparsity):g} %")
    return ", ".join(words)


def grid_cells(folder: Path) -> list[dict[str, Any]]:
    """Rows of the finished cells of a grid, oldest first: method, seed, sparsity, phase and what was measured."""
    rows: list[dict[str, Any]] = []
    for path in sorted(folder.glob("cells/*/*/cell-*.json"), key=lambda path: (path.stat().st_mtime_ns, str(path))):
        rows += _rows(path)
    return rows


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["metrics"]
    except (OSError, ValueError, LookupError, TypeError):  # `read_grid` says what is wrong with it
        return iter(())
    return (dict(row) for row in found if isinstance(row, dict))


def last_lines(path: Path, lines: int = 200, most: int = 200_000) -> list[str]:
    """The last lines of a log, none where there is no file. most: bytes that are read of its end."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(size - most, 0))
            found = file.read(most)
    except OSError:
        return []
    return found.decode("utf-8", "replace").splitlines()[-lines:]
