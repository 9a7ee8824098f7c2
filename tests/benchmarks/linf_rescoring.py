"""Does the literal ‖Rψ‖∞ choose better patterns than its mean square? python tests/benchmarks/linf_rescoring.py

CAST projections of the bundled networks, before and after `mpviz.prune.rescore` on 64 calibration images that the seed
draws: the mean over images of ‖Rψ‖∞ on these and on 64 other training images, each layer behind the dense ones before
it and averaged over layers as a ratio; accuracy, cross-entropy and the largest change of a logit on all test images.
Written to data/benchmarks/linf-rescoring.json after each cell; cells that are there are not run again.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import record
import torch
from torch import Tensor, nn

import mpviz as mp
from mpviz.grid_results import measured_change
from mpviz.nets.calibrate import layer_inputs
from mpviz.nets.forward import logits
from mpviz.nets.layers import weight_of
from mpviz.prune.cast import Projected, project
from mpviz.prune.rescore import rescore

NAME = "linf-rescoring"
CASES = (("fashion-mlp", (0, 1, 2)), ("fashion-resnet", (0, 1, 2)), ("fashion-vit", (0,)))
PATTERNS = ("2:4", "8:16")
IMAGES = 64


def worst(model: nn.Module, masks: dict[str, Tensor], images: Tensor) -> dict[str, float]:
    """Mean over images of the largest change of any output, by layer."""
    found = {}
    for name, mask in masks.items():
        removed = (weight_of(model, name) * ~mask).flatten(1)
        changes = layer_inputs(model, name, images, None) @ removed.T
        found[name] = float(changes.abs().amax(dim=(1, 2)).mean())
    return found


def cell(name: str, pattern: str, seed: int) -> dict[str, Any]:
    model, data = mp.load_model(name), mp.load_data("fashion-mnist", folder="bundled")
    images, labels = data.test.sample()
    held, dense = data.train.sample(IMAGES, seed)[0], logits(model, images)
    before: Projected = project(model, pattern, data.calibration, images=IMAGES, seed=seed)
    start = time.process_time()
    after = rescore(model, before, data.calibration, IMAGES, seed=seed)
    spent = time.process_time() - start
    row: dict[str, Any] = {
        "network": name, "pattern": pattern, "seed": seed, "cpu_s": round(spent, 1),
        "changed": int(after.table["changed"].sum()), "groups": int(before.cost["groups"].sum()),
        "calibration_ratio": float((after.table["after"] / after.table["before"]).mean()),
    }  # fmt: skip
    ratios = [worst(model, one.masks, held) for one in (before, after.projected)]
    row["held_out_ratio"] = sum(ratios[1][layer] / ratios[0][layer] for layer in ratios[0]) / len(ratios[0])
    for phase, network in (("before", before.model), ("after", after.projected.model)):
        row[phase] = measured_change(dense, logits(network, images), labels, "test")
    return row


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    path = record.FOLDER / f"{NAME}.json"
    cells = json.loads(path.read_text())["cells"] if path.exists() else []
    for name, seeds in CASES:
        for pattern in PATTERNS:
            for seed in seeds:
                if any((c["network"], c["pattern"], c["seed"]) == (name, pattern, seed) for c in cells):
                    continue
                cells.append(cell(name, pattern, seed))
                print(cells[-1], flush=True)
                record.write(NAME, "python tests/benchmarks/linf_rescoring.py", {"images": IMAGES, "cells": cells})


torch.set_num_threads(1)

if __name__ == "__main__":
    main()
