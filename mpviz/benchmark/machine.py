"""What a record of a measurement says of the machine, and how fast that machine copies and multiplies."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy
import scipy
import torch

from mpviz.benchmark.timing import time_arms

_SIDE = {"cpu": 1024, "cuda": 8192}  # of the square matrices whose product is timed
_COPY = {"cpu": 64 * 2**20, "cuda": 1024 * 2**20}  # bytes that are copied, far more than caches hold


@dataclass(frozen=True)
class Rates:
    """What this machine reaches: bytes a second read and written by a copy, operations a second in a square product."""

    bytes: float
    operations: float
    dtype: str


def describe(device: str | torch.device = "cpu") -> dict[str, Any]:
    """Date, hardware, driver, clocks, load of the last minute, versions and git revision, as JSON takes them."""
    place, threads = torch.device(device), torch.get_num_threads()
    found: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "hardware": f"{_processor()}, {os.cpu_count()} CPUs, {threads} thread{'s' if threads > 1 else ''}",
        "load": round(os.getloadavg()[0], 2),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": numpy.__version__,
            "scipy": scipy.__version__,
            "mpviz": version("mpviz"),
        },
    }
    if place.type == "cuda":
        about = torch.cuda.get_device_properties(place)
        found["gpu"] = {
            "name": about.name, "compute_capability": f"{about.major}.{about.minor}",
            "memory_gib": round(about.total_memory / 2**30, 1), "cuda": torch.version.cuda,
            "cusparselt": torch.backends.cusparselt.version() if torch.backends.cusparselt.is_available() else None,
            **_driver(),
        }  # fmt: skip
    revision = _ask(["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"])
    return found | ({"revision": revision} if revision else {})


def rates(device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Rates:
    """Measured, the best of nine. A product of other shape or in a cache can be faster."""
    place = torch.device(device)
    side, size = _SIDE[place.type], _COPY[place.type] // 4
    left = torch.rand(side, side, device=place).to(dtype)
    source, target = torch.rand(size, device=place), torch.empty(size, device=place)
    found = time_arms({"product": lambda: left @ left, "copy": lambda: target.copy_(source)}, 9, 1, place).arms
    copied, multiplied = (min(found[name].samples) for name in ("copy", "product"))
    return Rates(2 * source.nbytes / copied, 2 * side**3 / multiplied, str(dtype).removeprefix("torch."))


def _driver() -> dict[str, Any]:
    """Driver, clocks and power limit, where nvidia-smi tells them."""
    fields = ("driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "power.limit")
    line = _ask(["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader", "-i", "0"])
    return dict(zip(fields, (part.strip() for part in line.splitlines()[0].split(",")), strict=False)) if line else {}


def _ask(command: list[str]) -> str:
    """What a program prints; "" where it is not there or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _processor() -> str:
    """The processor's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists() and (found := re.search(r"model name\s*:\s*(.+)", info.read_text())):
        return found[1].strip()
    return f"{platform.machine()} CPU"
