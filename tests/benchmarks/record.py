"""What every record of a measurement says of itself, and where it is kept."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
from pathlib import Path
from typing import Any

import numpy
import scipy
import torch

import mpviz as mp
from mpviz.files import write_text

FOLDER = Path(__file__).resolve().parents[2] / "data" / "benchmarks"


def heading(command: str) -> dict[str, Any]:
    """Command, date, hardware and versions. Load is the machine's own, of the last minute: it is often shared."""
    return {
        "command": command,
        "date": datetime.date.today().isoformat(),
        "hardware": f"{_processor()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads",
        "load": round(os.getloadavg()[0], 2),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": numpy.__version__,
            "scipy": scipy.__version__,
            "mpviz": mp.__version__,
        },
    }


def write(name: str, command: str, results: dict[str, Any]) -> Path:
    """Keep `results` under data/benchmarks/<name>.json, whole or not at all."""
    path = FOLDER / f"{name}.json"
    text = json.dumps(heading(command) | results, indent=1)
    # a list of plain values on one line: readable, and a third of the size
    text = re.sub(r"\[[^\[\]{}]*\]", lambda found: re.sub(r"\s*\n\s*", " ", found[0]), text)
    write_text(path, text + "\n")
    return path


def _processor() -> str:
    """The processor's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return f"{platform.machine()} CPU"
