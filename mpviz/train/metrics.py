"""The metrics of a run as a CSV file that is readable at any moment: one row a step, written in one piece."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pandas as pd

from mpviz.errors import CheckpointError
from mpviz.files import write_text

NAME = "metrics.csv"
COLUMNS = {"step": int, "epoch": int, "learning_rate": float, "loss": float, "accuracy": float}


class Metrics:
    """Rows of COLUMNS, kept in memory and, with a folder, in its metrics.csv as well.

    A row is one write to a file opened for appending, so a killed process leaves whole rows; what a power cut may leave
    of the last one is dropped on reading.
    """

    def __init__(self, folder: Path | None, until: int = 0, write: bool = True) -> None:
        """Go on after step `until`: later rows, of steps whose checkpoint was never written, are taken out.

        write: False for all processes but one.
        """
        self.path = None if folder is None else folder / NAME
        self.rows = [] if self.path is None else [row for row in _read(self.path) if row["step"] <= until]
        self._file: int | None = None
        if self.path is not None and write:
            try:
                write_text(self.path, "".join(map(_line, [COLUMNS, *(list(row.values()) for row in self.rows)])))
                self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND)
            except OSError as error:
                raise CheckpointError(f"cannot write {self.path}: {error}; choose another folder") from error

    def add(self, **row: Any) -> None:
        """Append one row, with the keys of COLUMNS. Raises CheckpointError when the disk does not take it."""
        self.rows.append({name: row[name] for name in COLUMNS})
        if self._file is not None:
            try:
                os.write(self._file, _line(list(self.rows[-1].values())).encode())
            except OSError as error:
                raise CheckpointError(f"cannot write {self.path}: {error}; make room and start again") from error

    def close(self) -> None:
        """Let the file go; rows are on disk already."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def table(self) -> pd.DataFrame:
        """One row a step, indexed by step."""
        return pd.DataFrame(self.rows, columns=list(COLUMNS)).set_index("step")


def _line(values: Any) -> str:
    return ",".join(value if isinstance(value, str) else repr(value) for value in values) + "\n"


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True)[1:]:
        cells = line.rstrip("\n").split(",")
        try:
            row = {name: kind(cell) for (name, kind), cell in zip(COLUMNS.items(), cells, strict=True)}
        except ValueError:
            break
        if not line.endswith("\n"):
            break
        rows.append(row)
    return rows
