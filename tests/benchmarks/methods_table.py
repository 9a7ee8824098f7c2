"""Every unstructured method without any training after it, by sparsity, on the full test set.

    python tests/benchmarks/methods_table.py [--networks fashion-resnet fashion-vit] [--calibration 256]

writes data/benchmarks/methods.json after each cell; cells that are there already are not run again. Masks are made from
the weights and, for Wanda and SparseGPT, from calibration images; the test images only measure. Nothing here is random
but the choice of calibration images (seed 0). accuracy, coverage (margin > 2η), unchanged, budget (2 · mean η) and the
change of the cross-entropy are measured on all test images; layers counts what went from each.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import pandas as pd
import record
import torch

import mpviz as mp
from mpviz.grid_results import measured_change
from mpviz.nets.calibrate import Moments
from mpviz.nets.forward import logits

NAME = "methods"
SPARSITIES = tuple(round(0.05 * i, 2) for i in range(1, 19))
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "magnitude": ("magnitude", {}),
    "magnitude, layer by layer": ("magnitude", {"scope": "layer"}),
    "SEB σ₊": ("seb", {}),
    "SEB α": ("seb", {"signal": "alpha"}),
    "SEB, four regimes": ("regimes", {}),
    "sub-edge": ("sub-edge", {}),
    "Haar": ("haar", {}),
    "support": ("support", {}),
    "Wanda": ("wanda", {}),
    "SparseGPT": ("sparsegpt", {}),
}


class Bench:
    """One network with all that its cells share."""

    def __init__(self, name: str, calibration: int) -> None:
        self.name, self.model = name, mp.load_model(name)
        data = mp.load_data("fashion-mnist")
        self.images, self.labels = data.test.sample()
        self.dense = logits(self.model, self.images)
        self.table: pd.DataFrame = mp.analyze(self.model)
        self.moments: dict[str, Moments] = mp.second_moments(self.model, data.calibration, n=calibration)

    def cell(self, arm: str, sparsity: float) -> dict[str, Any]:
        """One method at one sparsity."""
        method, options = ARMS[arm]
        start = time.process_time()
        found = mp.prune_model(self.model, method, sparsity, table=self.table, calibration=self.moments, **options)
        spent = time.process_time() - start
        after = logits(found.of(self.model), self.images)
        return {
            "network": self.name,
            "method": arm,
            "sparsity": sparsity,
            **measured_change(self.dense, after, self.labels, "test"),
            "prune_cpu_s": round(spent, 3),
            "layers": {layer: int((~mask).sum()) for layer, mask in found.masks.items()},
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=["fashion-resnet", "fashion-vit"])
    parser.add_argument("--calibration", type=int, default=256)
    options = parser.parse_args()
    path = record.FOLDER / f"{NAME}.json"
    cells = json.loads(path.read_text())["cells"] if path.exists() else []
    done = {(one["network"], one["method"], one["sparsity"]) for one in cells}
    command = f"python tests/benchmarks/methods_table.py --calibration {options.calibration}"
    for name in options.networks:
        todo = [(arm, s) for s in SPARSITIES for arm in ARMS if (name, arm, s) not in done]
        bench = Bench(name, options.calibration) if todo else None
        for arm, sparsity in todo:
            assert bench is not None
            cells.append(bench.cell(arm, sparsity))
            print(name, arm, sparsity, f"{cells[-1]['accuracy']:.4f}", flush=True)
            record.write(NAME, command, {"calibration_images": options.calibration, "cells": cells})


torch.set_num_threads(1)

if __name__ == "__main__":
    main()
