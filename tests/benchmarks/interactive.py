"""What a person waits for before and beside the slider: the import, each figure, a step of the lecture's law.

    python tests/benchmarks/interactive.py

writes data/benchmarks/interactive.json: milliseconds, each thing often, the import in interpreters of its own.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
from record import write

import mpviz as mp
from mpviz.ui import figures
from mpviz.ui.law_figure import law_figure
from mpviz.workbench.law import LawPlan, draw_law

IMPORT = "import time; start = time.perf_counter(); import mpviz; print(time.perf_counter() - start)"


def timed(job: Callable[[int], object], rounds: int) -> dict[str, float]:
    """Median and 95th percentile of `job(round)`, in milliseconds; the first call, which warms up, is left out."""
    times = []
    for number in range(rounds + 1):
        start = time.perf_counter()
        job(number)
        times.append(1e3 * (time.perf_counter() - start))
    return summary(times[1:])


def summary(times: list[float]) -> dict[str, float]:
    """Median and 95th percentile."""
    p95 = float(np.percentile(times, 95))
    return {"median_ms": round(statistics.median(times), 2), "p95_ms": round(p95, 2), "rounds": len(times)}


def main() -> None:
    """Measure everything on the bundled ViT and write the file."""
    asked = [sys.executable, "-c", IMPORT]
    imports = [1e3 * float(subprocess.run(asked, capture_output=True, text=True, check=True).stdout) for _ in range(11)]
    bench = mp.Workbench("fashion-vit", samples=100)
    bench.start_preview()
    bench.wait_preview(300)
    rows = {
        "import mpviz": summary(imports[1:]),
        "figure: strip": timed(lambda _: figures.strip(bench.table, bench.layer), 50),
        "figure: spectrum": timed(lambda _: figures.spectrum(bench.spectrum, "singular"), 50),
        "figure: budgets": timed(lambda _: figures.budgets(bench.budgets, bench.layer), 50),
        "figure: coverage": timed(lambda _: figures.coverage(bench.curve), 50),
        "law, 1000 x 1000": timed(lambda i: law_figure(draw_law(LawPlan(1000, 1000, seed=100 + i))), 10),
    }
    bench.close()
    for name, row in rows.items():
        print(f"{name:20} {row['median_ms']:8.2f} ms, 95th percentile {row['p95_ms']:8.2f}")
    write("interactive", "python tests/benchmarks/interactive.py", {"model": "fashion-vit", "rows": rows})


if __name__ == "__main__":
    main()
