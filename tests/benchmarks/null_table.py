"""What pure noise does to the fit: the null of p × KS and the scatter of the fitted edge, for every method.

``python tests/benchmarks/null_table.py`` writes mpviz/rmt/null_table.json, which `mpviz.rmt.nulls` reads; about an hour
on one core. Run it again whenever an estimator changes. The eigenvalues are those of a Gaussian p × n matrix drawn
exactly, but from the bidiagonal model of Dumitriu and Edelman (2002), which costs p² and not p³.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import time
from pathlib import Path

import numpy as np
import scipy
from scipy.linalg import eigvalsh_tridiagonal

from mpviz.rmt.checks import METHODS
from mpviz.rmt.estimators import estimate, rigidity

OUT = Path(__file__).resolve().parents[2] / "mpviz" / "rmt" / "null_table.json"
SIZES = (16, 32, 64, 128, 256, 512, 1024, 2048)  # p, the shorter side
ASPECTS = (1.0, 0.8, 0.5, 0.25, 0.1, 0.03)  # p / n
TAILS = (0.9, 0.75, 0.5, 0.25, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)  # shares of draws with a larger p × KS
DRAWS, SEED = 10_000, 20261123
TRIM, LEVEL = 0.1, 0.99  # the defaults of fit_bulk


def gaussian_gram(rng: np.random.Generator, p: int, n: int) -> np.ndarray:
    """Ascending eigenvalues of G Gᵀ for a p × n matrix G of standard normal entries, p ≤ n."""
    diagonal = rng.chisquare(n - np.arange(p))
    below = rng.chisquare(p - 1 - np.arange(p - 1))
    total = diagonal.copy()
    total[1:] += below
    return np.maximum(eigvalsh_tridiagonal(total, np.sqrt(diagonal[:-1] * below)), 1e-300)


def cell(p: int, aspect: float, draws: int) -> dict[str, list[float]]:
    """Per method: the quantiles of p × KS at TAILS, then the 2.5 and 97.5 % points of the edge's scaled log error."""
    n = round(p / aspect)
    rng = np.random.default_rng(np.random.SeedSequence([SEED, p, n]))
    truth, unit = math.sqrt(n) + math.sqrt(p), math.sqrt(2 * n * p)
    seen: dict[str, list[tuple[float, float]]] = {method: [] for method in METHODS}
    for _ in range(draws):
        gram = gaussian_gram(rng, p, n)
        for method in METHODS:
            block = estimate(method, gram, n, TRIM, LEVEL)
            seen[method].append((rigidity(block, gram), unit * math.log(block.edge / truth)))
    rows = {}
    for method, pairs in seen.items():
        rigid, scatter = np.array(pairs).T
        rows[method] = [round(float(q), 2) for q in np.quantile(rigid, 1 - np.array(TAILS))]
        rows[method] += [round(float(q), 2) for q in np.quantile(scatter, [0.025, 0.975])]
    return rows


def main() -> None:
    """Simulate every cell and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    start = time.process_time()
    cells: dict[str, list[list[list[float]]]] = {method: [] for method in METHODS}
    for p in SIZES:
        found = [cell(p, aspect, options.draws) for aspect in ASPECTS]
        for method in METHODS:
            cells[method].append([one[method] for one in found])
        print(p, f"{time.process_time() - start:.0f} s", flush=True)
    record = {
        "command": "python tests/benchmarks/null_table.py",
        "date": datetime.date.today().isoformat(),
        "hardware": f"{platform.machine()} CPU, 1 of {os.cpu_count()} cores, {time.process_time() - start:.0f} CPU s",
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__},
        "seed": SEED,
        "draws": options.draws,
        "trim": TRIM,
        "level": LEVEL,
        "sizes": SIZES,
        "aspects": ASPECTS,
        "tails": TAILS,
        "columns": "p x KS exceeded by the share `tails` of draws; sqrt(2np) log(edge / true edge) at 2.5 and 97.5 %",
        "cells": cells,
    }
    text = json.dumps(record, separators=(",", ":"))
    options.out.write_text(text.replace("[[", "\n[[").replace("],[", "],\n[") + "\n")


if __name__ == "__main__":
    main()
