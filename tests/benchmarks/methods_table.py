"""Every unstructured method without any training after it, by sparsity, on the full test set.

    python tests/benchmarks/methods_table.py [--networks fashion-resnet fashion-vit] [--calibration 256]

writes data/benchmarks/methods.json after each cell; cells that are there already are not run again. Masks are made from
the weights and, for Wanda and SparseGPT, from calibration images, which the seed draws. SER, the hybrid and the
drop-threshold variant prune in steps of 5 % and train on the way only what decides which entries come back, 0.2 epochs
of the bundled training images a step, in an order that the seed sets. Three seeds where one decides something (of the
drop-threshold variant, which is magnitude for most of its way, one). The test
images only measure: accuracy, coverage (margin > 2η), unchanged, budget (2 · mean η) and the change of the
cross-entropy; layers counts what went from each.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
import record
import torch
from torch import Tensor, nn

import mpviz as mp
from mpviz.grid_results import measured_change, method_spectra
from mpviz.nets.calibrate import Moments
from mpviz.nets.forward import logits
from mpviz.train.ser import prune_in_steps
from mpviz.train.step_plan import StepPlan

NAME = "methods"
COMMAND = "python tests/benchmarks/methods_table.py"
Masks = Mapping[str, Tensor]
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


STEPS = {"SER": "ser", "hybrid": "hybrid", "drop-threshold": "drop-threshold"}
SEEDS = {"Wanda": (0, 1, 2), "SparseGPT": (0, 1, 2), "SER": (0, 1, 2), "hybrid": (0, 1, 2)}
SHOWN = 0.7  # sparsity at which spectra are compared
BATCH = 64


class Bench:
    """One network with all that its cells share."""

    def __init__(self, name: str, calibration: int) -> None:
        self.name, self.model, self.images_used = name, mp.load_model(name), calibration
        self.data = mp.load_data("fashion-mnist", folder="bundled")
        self.images, self.labels = self.data.test.sample()
        if any(isinstance(module, nn.Conv2d) and module.kernel_size[0] < 7 for module in self.model.modules()):
            self.model = self.model.to(memory_format=torch.channels_last)  # twice as fast on a CPU, same numbers
            self.images = self.images.contiguous(memory_format=torch.channels_last)
        self.dense = logits(self.model, self.images)
        self.table: pd.DataFrame = mp.analyze(self.model)
        self.moments: dict[int, dict[str, Moments]] = {}

    def measured(self, arm: str, sparsity: float, seed: int, network: nn.Module, masks: Masks) -> dict[str, Any]:
        return {
            "network": self.name, "method": arm, "sparsity": sparsity, "seed": seed,
            **measured_change(self.dense, logits(network, self.images), self.labels, "test"),
            "layers": {layer: int((~mask).sum()) for layer, mask in masks.items()},
        }  # fmt: skip

    def at_once(self, arm: str, sparsity: float, seed: int) -> dict[str, Any]:
        """One method at one sparsity."""
        method, options = ARMS[arm]
        if arm in SEEDS and seed not in self.moments:
            drawn = mp.second_moments(self.model, self.data.calibration, n=self.images_used, seed=seed)
            self.moments[seed] = drawn
        start = time.process_time()
        found = mp.prune_model(
            self.model, method, sparsity, table=self.table, calibration=self.moments.get(seed), **options
        )
        spent = time.process_time() - start
        return self.measured(arm, sparsity, seed, found.of(self.model), found.masks) | {"prune_cpu_s": round(spent, 3)}

    def in_steps(self, arm: str, seed: int, keep: Callable[[dict[str, Any]], None]) -> None:
        """One path of a method through all sparsities, none of them trained after the choice."""

        def measure(row: dict[str, Any], network: nn.Module, masks: Masks) -> None:
            cell = self.measured(arm, round(row["target"], 2), seed, network, masks)
            keep(cell | {"restored": row["restored"]})

        plan = StepPlan(STEPS[arm], recovery=0)
        check = self.data.calibration if STEPS[arm] == "drop-threshold" else None
        prune_in_steps(self.model, self.data.train, SPARSITIES[-1], plan, check, seed, after_stage=measure, batch=BATCH)

    def spectra(self) -> list[dict[str, Any]]:
        """Singular values of the two layers that global magnitude takes most from, before and after each method."""
        lost = mp.prune_model(self.model, "magnitude", SHOWN).masks
        most = sorted(lost, key=lambda layer: -int((~lost[layer]).sum()))[:2]
        networks = [("dense", self.model)]
        for arm, (method, options) in ARMS.items():
            found = mp.prune_model(
                self.model, method, SHOWN, table=self.table, calibration=self.moments.get(0), **options
            )
            networks.append((arm, found.of(self.model)))
        rows = method_spectra(networks, most, SHOWN)
        rows["values"] = [[float(f"{value:.4g}") for value in values] for values in rows["values"]]
        return json.loads(rows.to_json(orient="records"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=["fashion-resnet", "fashion-vit"])
    parser.add_argument("--calibration", type=int, default=256)
    options = parser.parse_args()
    path = record.FOLDER / f"{NAME}.json"
    old = json.loads(path.read_text()) if path.exists() else {}
    cells, spectra = old.get("cells", []), old.get("spectra", {})

    def keep(cell: dict[str, Any]) -> None:
        same = ("network", "method", "sparsity", "seed")
        cells[:] = [one for one in cells if any(one[key] != cell[key] for key in same)]
        cells.append(cell)
        print(cell["network"], cell["method"], cell["sparsity"], cell["seed"], f"{cell['accuracy']:.4f}", flush=True)
        record.write(NAME, COMMAND, {"calibration_images": options.calibration, "cells": cells, "spectra": spectra})

    for name in options.networks:
        bench = Bench(name, options.calibration)
        # cells without a budget are of an earlier measurement, and stay until they are measured anew
        done = {
            (one["method"], one["sparsity"], one["seed"]) for one in cells if one["network"] == name and "budget" in one
        }
        for sparsity in SPARSITIES:
            for arm in ARMS:
                for seed in SEEDS.get(arm, (0,)):
                    if (arm, sparsity, seed) not in done:
                        keep(bench.at_once(arm, sparsity, seed))
        if name not in spectra:
            spectra[name] = bench.spectra()
        for arm in STEPS:
            for seed in SEEDS.get(arm, (0,)):
                if (arm, SPARSITIES[-1], seed) not in done:
                    cells[:] = [
                        one for one in cells if (one["network"], one["method"], one["seed"]) != (name, arm, seed)
                    ]
                    bench.in_steps(arm, seed, keep)


torch.set_num_threads(1)

if __name__ == "__main__":
    main()
