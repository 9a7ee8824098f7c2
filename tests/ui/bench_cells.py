"""Cells of a benchmark made by hand, with numbers that can be checked in the head."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mpviz.benchmark.ledger import Arm, Cell
from mpviz.benchmark.timing import Timing

CPU = {"hardware": "Example CPU, 2 threads", "load": 0.5, "date": "2026-01-02", "versions": {"torch": "2.9.0"}}
GPU = {**CPU, "gpu": {"name": "Example GPU", "driver_version": "550.1"}}
VIT = "vit_base_patch16_224"  # of the paper's rows 1, 2 and 22


def timing(ms: float, spread: float = 0.0) -> Timing:
    """Five rounds around a median in milliseconds; quartiles are `spread` of it away."""
    samples = tuple(ms * (1 + spread * step) / 1e3 for step in (-2, -1, 0, 1, 2))
    return Timing(samples, samples, 1)


def arm(endpoint: str, ms: float | None, arithmetic: str = "bfloat16", spread: float = 0.0, why: str = "") -> Arm:
    return Arm(endpoint, arithmetic, None if ms is None else timing(ms, spread), None if ms is None else 0.004, why)


# times as fast as fp32: compiled 1.25, bf16 4, bf16 compiled 5, 2:4 4 and 2:4 compiled 8
ON_GPU = (
    arm("fp32", 80.0, "float32"), arm("fp32 compiled", 64.0, "float32"), arm("bf16", 20.0),
    arm("bf16 compiled", 16.0), arm("2:4", 20.0), arm("2:4 compiled", 10.0),
    arm("2:4 selective compiled", None, why="out of <memory>"),
)  # fmt: skip
ON_CPU = (arm("fp32", 40.0, "float32", 0.1), arm("autocast", 50.0, "autocast bfloat16"), arm("bf16", 20.0))


def cell(
    arms: tuple[Arm, ...] = ON_GPU, model: str = VIT, batch: int = 64, tome: int = 0, limit: float = 1.6,
    machine: Mapping[str, Any] = GPU, layers: tuple[Mapping[str, Any], ...] = (),
) -> Cell:  # fmt: skip
    return Cell(model, batch, tome, (3, 224, 224), arms, limit, machine, "mpviz bench", "all 8 layers were 2:4",
                layers)  # fmt: skip


def shape(out: int, dense_s: float, compute_s: float, memory_s: float, speedup: float = math.nan) -> dict[str, Any]:
    """A row of `roofline`."""
    of_limit = max(compute_s, memory_s) / dense_s
    bound = "overhead" if of_limit < 0.5 else "compute" if compute_s >= memory_s else "memory"
    return {"out": out, "in": 64, "rows": 100, "operations": 2 * out * 64 * 100, "numbers": 1, "packs": True,
            "layers": 2, "names": "a, b", "dense_s": dense_s, "sparse_s": dense_s / speedup, "compute_s": compute_s,
            "memory_s": memory_s, "of_limit": of_limit, "bound": bound, "speedup": speedup}  # fmt: skip


ROOFLINE = (
    shape(512, 1e-3, 8e-4, 1e-4), shape(256, 5e-4, 1e-4, 4e-4), shape(16, 1e-4, 1e-5, 2e-5),
)  # fmt: skip


def committed() -> list[Cell]:
    """A GPU's cells of two runs and a CPU's of another network and of the same one."""
    layers = (shape(512, 1e-3, 8e-4, 1e-4, 1.5), shape(16, 1e-4, 1e-5, 2e-5))
    return [
        cell(ON_CPU, "fashion-vit", 8, 0, 1.9, CPU, ROOFLINE),
        cell(ON_CPU, "fashion-vit", 8, 4, 1.8, CPU),
        cell(layers=layers),
        cell(tome=8, limit=1.5),
        cell(ON_CPU, batch=8, machine=CPU),
    ]
