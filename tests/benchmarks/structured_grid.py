"""k:n patterns on the bundled networks: magnitude, Wanda and CAST, with and without permutation and merged tokens.

    python tests/benchmarks/structured_grid.py [--networks …] [--distil] [--seeds 0 1 2]

Without training: 2:4, 4:8, 8:16 and 12:16; calibration on 256 images of the calibration split drawn by each seed, which
is all that is random (magnitude without permutation looks at none). --distil: 2:4 and 8:16 after three epochs of the
bundled 10 000 training images with the dense network as teacher, AdamW at 1e-3 (which the recovery grid found best for
the ViT and the ResNet, from training images), batch 64, flips and shifts; seeds set the calibration images and the
order of the training images. All 10 000 test images only measure. "best" is our choice of order, "interleave" the
paper's; repair lets kept entries take over what went; damping is that of `mp.project`; renew tells the
batch norms what changed. Cells are kept in data/benchmarks/structured-grid.json as soon as they are done, and not run
again.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import record
import torch
from recovery_grid import whole_train

import mpviz as mp
from mpviz.grid_results import measured_change
from mpviz.nets.forward import logits
from mpviz.nets.macs import count_macs
from mpviz.prune.cast import project
from mpviz.train.augment import FlipShift

NAME = "structured-grid"
COMMAND = " && ".join(f"python tests/benchmarks/structured_grid.py{more}" for more in ("", " --distil"))
NETWORKS = ("fashion-mlp", "fashion-vit", "fashion-resnet")
PATTERNS = ("2:4", "4:8", "8:16", "12:16")
DISTILLED = ("2:4", "8:16")
CRITERIA = ("magnitude", "wanda", "cast")
ORDERS = ("none", "interleave", "best")
MERGED = 4  # pairs of tokens a block of the ViT
DAMPING = 1.0  # the best of 0, 0.1, 0.3, 1, 3 by the cross-entropy on training images, 2:4 of MLP and ResNet
EPOCHS, BATCH = 3, 64
RATE = 1e-3


Arm = tuple[str, str, int, bool, float, bool]  # criterion, order, merges, repair, damping, renew


def arms(network: str, distilled: bool) -> list[Arm]:
    """The arms of a network; fewer are distilled, for that takes hours."""
    orders = ("none", "best") if distilled else ORDERS
    found: list[Arm] = [(criterion, order, 0, False, 0.0, False) for criterion in CRITERIA for order in orders]
    found.append(("cast", "best", 0, True, 0.0, False))
    if not distilled:
        found += [("cast", "none", 0, True, 0.0, False)]
        found += [("cast", "best", 0, repair, DAMPING, False) for repair in (False, True)]
        if network == "fashion-resnet":  # the only one with batch norms; training renews them by itself
            found += [(criterion, order, 0, False, 0.0, True) for criterion in CRITERIA for order in ("none", "best")]
            found.append(("cast", "best", 0, True, 0.0, True))
    if network != "fashion-vit":
        return found
    again = [("cast", "best", 0, False, 0.0, False)] if distilled else list(found)
    return found + [(criterion, order, MERGED, *rest) for criterion, order, _, *rest in again]


class Bench:
    """One network with all that its cells share."""

    def __init__(self, name: str) -> None:
        self.name, self.model = name, mp.load_model(name)
        self.data = mp.load_data("fashion-mnist", folder="bundled")
        self.images, self.labels = self.data.test.sample()
        self.dense = logits(self.model, self.images)

    def cell(
        self,
        pattern: str,
        criterion: str,
        order: str,
        tome: int,
        repair: bool,
        damping: float,
        renew: bool,
        seed: int,
        epochs: int,
    ) -> dict[str, Any]:
        found = project(
            self.model, pattern, self.data.calibration, permute=order, criterion=criterion, repair=repair,
            damping=damping, renew=renew, tome=tome, seed=seed,
        )  # fmt: skip
        network = found.model
        if epochs:
            network = mp.distill(
                network, self.model, whole_train(), found.masks, epochs, batch=BATCH, learning_rate=RATE,
                augment=FlipShift(), seed=seed,
            ).model  # fmt: skip
            found.check(network)
        cost, power = float(found.cost["left"].sum()), float(found.cost["power"].sum())
        macs = count_macs(found.model, pattern=pattern)
        return {
            "network": self.name, "pattern": pattern, "criterion": criterion, "order": order, "tome": tome,
            "repair": repair, "damping": damping, "renew": renew, "seed": seed, "epochs": epochs,
            **measured_change(self.dense, logits(network, self.images), self.labels, "test"),
            "cost": cost, "share": cost / power, "macs": macs.sparse, "mac_reduction": macs.reduction,
        }  # fmt: skip


KEY = ("network", "pattern", "criterion", "order", "tome", "repair", "damping", "renew", "seed", "epochs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--distil", action="store_true")
    options = parser.parse_args()
    path = record.FOLDER / f"{NAME}.json"
    epochs = EPOCHS if options.distil else 0
    benches: dict[str, Bench] = {}

    def known() -> list[dict[str, Any]]:
        return json.loads(path.read_text())["cells"] if path.exists() else []

    for seed in options.seeds:
        for name in options.networks:
            for pattern in DISTILLED if options.distil else PATTERNS:
                for arm in arms(name, options.distil):
                    asked = (name, pattern, *arm, seed, epochs)
                    if asked in {tuple(cell[part] for part in KEY) for cell in known()}:
                        continue
                    if name not in benches:
                        benches[name] = Bench(name)
                    cell = benches[name].cell(pattern, *arm, seed, epochs)
                    print(*asked, f"{cell['accuracy']:.4f} cost {cell['share']:.4f}", flush=True)
                    record.write(NAME, COMMAND, {"cells": [*known(), cell]})  # read again: another may have written


torch.set_num_threads(1)

if __name__ == "__main__":
    main()
