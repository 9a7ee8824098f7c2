"""What one slider step computes, in this process: plan, look-up and the figures that change.

``python tests/benchmarks/slider_step.py`` writes data/benchmarks/slider-step.json. The floor is the look-up in the
sorted magnitudes: about 30 bisections over every layer.
"""

from __future__ import annotations

import statistics
import time

import numpy as np
from record import write

import mpviz as mp
from mpviz.ui import figures

STEPS = 100


def measure(name: str) -> dict:
    """Milliseconds of a step: the state alone, and with the figures that a slider changes."""
    bench = mp.Workbench(name, samples=100)
    bench.start_preview()
    bench.wait_preview(300)
    state, both = [], []
    for sparsity in np.random.default_rng(0).uniform(0.05, 0.95, STEPS).round(3):
        start = time.perf_counter()
        bench.sparsity = float(sparsity)
        middle = time.perf_counter()
        figures.budgets(bench.budgets, bench.layer)
        figures.coverage(bench.curve)
        end = time.perf_counter()
        state.append(1e3 * (middle - start))
        both.append(1e3 * (end - start))
    bench.close()
    row = {"model": name, "layers": len(bench.budgets), "weights": int(bench.budgets["params"].sum()), "steps": STEPS}
    for key, values in (("state_ms", state), ("state_and_figures_ms", both)):
        row[key] = {"median": round(statistics.median(values), 2), "p95": round(float(np.percentile(values, 95)), 2)}
    print(row, flush=True)
    return row


def main() -> None:
    """Measure all bundled networks and write the file."""
    write(
        "slider-step",
        "python tests/benchmarks/slider_step.py",
        {"rows": [measure(name) for name in ("fashion-mlp", "fashion-vit", "fashion-resnet")]},
    )


if __name__ == "__main__":
    main()
