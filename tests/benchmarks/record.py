"""What every record of a measurement says of itself, and where it is kept."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mpviz.benchmark.machine import describe
from mpviz.files import write_text

FOLDER = Path(__file__).resolve().parents[2] / "data" / "benchmarks"


def heading(command: str) -> dict[str, Any]:
    """Command, date, hardware, versions and revision. Load is the machine's own, of the last minute."""
    return {"command": command, **describe()}


def write(name: str, command: str, results: dict[str, Any]) -> Path:
    """Keep `results` under data/benchmarks/<name>.json, whole or not at all."""
    path = FOLDER / f"{name}.json"
    text = json.dumps(heading(command) | results, indent=1)
    # a list of plain values on one line: readable, and a third of the size
    text = re.sub(r"\[[^\[\]{}]*\]", lambda found: re.sub(r"\s*\n\s*", " ", found[0]), text)
    write_text(path, text + "\n")
    return path
