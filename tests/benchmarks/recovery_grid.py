"""Pruning with recovery: magnitude, SEB by its four regimes, SER and Hybrid on the bundled networks, several seeds.

    python tests/benchmarks/recovery_grid.py [--networks …] [--arms …] [--seeds 0 1 2] [--folder runs/recovery-grid]

An epoch is the bundled 10 000 training images. A path prunes to each sparsity in turn and trains between them: two
epochs at each, of which SER spends the first one on selection (0.2 of one in the mended arms; recovery_ablation.py
tells why they are so), so that all arms train on the same number of images. Seeds set the order of the images, their
shifts and flips. The learning rate of each network is the one that magnitude does best with (9 000 images to train,
1 000 others to compare); all arms share it. Finished stages are kept in the folder, so a run goes on where it stopped.
The test images only measure. `--collect` puts all stages in the folder into data/benchmarks/recovery-grid.json, beside
those that the record holds already: a cell of the folder takes the place of the same cell of the record.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import record
import torch
from torch import Tensor, nn

import mpviz as mp
from mpviz.files import write_text
from mpviz.grid_results import measured_change, method_spectra
from mpviz.nets.data import Split
from mpviz.nets.forward import logits
from mpviz.train.augment import FlipShift
from mpviz.train.objectives import recovery_loss
from mpviz.train.ser import StepPlan, prune_in_steps

NAME = "recovery-grid"
COMMAND = " && ".join(f"python tests/benchmarks/recovery_grid.py{more}" for more in ("", " --collect"))
TARGETS = (0.2, 0.35, 0.5, 0.6, 0.7, 0.8, 0.9)
MENDED = {"ratio": 1.2, "restored": "before", "by": "agreement", "renew": True, "selection": 0.2, "recovery": 1.8}
ARMS: dict[str, dict[str, Any]] = {
    "magnitude": {"schedule": "magnitude"},
    "hybrid, mended": {"schedule": "hybrid"} | MENDED,
    "hybrid": {"schedule": "hybrid"},
    "ser, mended": {"schedule": "ser"} | MENDED,
    "ser": {"schedule": "ser"},
    "regimes": {"schedule": "seb"},
}
BATCH = 64
RATES = {"fashion-resnet": (3e-4, 1e-3, 3e-3), "fashion-vit": (1e-4, 3e-4, 1e-3, 3e-3)}


def whole_train() -> Split:
    """All 10 000 bundled training images, those that are usually set aside for calibration among them."""
    return mp.load_data("fashion-mnist", folder="bundled").whole_train


def tune(name: str, folder: Path) -> float:
    """The learning rate with the least cross-entropy on the images set aside, magnitude at 80 %, two epochs.

    Rates that the folder or the record knows are not tried again.
    """
    kept, known = folder / name / "rates.json", record.FOLDER / f"{NAME}.json"
    found = json.loads(known.read_text())["rates"].get(name, {}) if known.exists() else {}
    found |= json.loads(kept.read_text()) if kept.exists() else {}
    missing = [rate for rate in RATES[name] if str(rate) not in found]
    if missing:
        splits, model = mp.load_data("fashion-mnist", folder="bundled"), mp.load_model(name)
        masks = mp.prune_model(model, "magnitude", 0.8).masks
        images, labels = splits.calibration.sample()
    for rate in missing:
        after = mp.distill(model, model, splits.train, masks, 2, batch=BATCH, learning_rate=rate, augment=FlipShift())
        found[str(rate)] = float(recovery_loss(logits(after.model, images), labels).mean())
        print(name, rate, found[str(rate)], flush=True)
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_text(kept, json.dumps(found))
    return float(min(found, key=found.get))


def path_of(name: str, arm: str, seed: int, folder: Path, rate: float, until: float = TARGETS[-1]) -> None:
    """One path through all sparsities up to one; each stage's cell is kept beside its checkpoint."""
    model, out = mp.load_model(name), folder / name / arm.replace(", ", "-") / str(seed)
    images, labels = mp.load_data("fashion-mnist").test.sample()
    dense = logits(model, images)

    def measure(row: dict[str, Any], network: nn.Module, masks: Mapping[str, Tensor]) -> None:
        kept = out / f"cell-{row['target']:.4f}.json"
        if kept.exists():
            return
        numbers = measured_change(dense, logits(network, images), labels, "test")
        cell = {
            "network": name, "method": arm, "seed": seed, "sparsity": row["target"], **numbers,
            "removed": row["removed"], "restored": row["restored"],
            "epochs": row["selection_epochs"] + row["recovery_epochs"],
            "layers": {layer: int((~mask).sum()) for layer, mask in masks.items()},
        }  # fmt: skip
        write_text(kept, json.dumps(cell))
        print(name, arm, seed, row["target"], f"{numbers['accuracy']:.4f}", flush=True)

    plan = StepPlan(**{"targets": TARGETS, "selection": 1.0, "recovery": 1, "equal": True} | ARMS[arm])
    prune_in_steps(
        model, whole_train(), until, plan, seed=seed, out=out, after_stage=measure,
        batch=BATCH, learning_rate=rate, augment=FlipShift(),
    )  # fmt: skip


def spectra(folder: Path, name: str, cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Singular values of the four layers that lost most at the last sparsity, dense and after each arm's first seed.

    Empty where the folder lacks a checkpoint of these arms: spectra are compared within one run only.
    """
    last = [cell for cell in cells if (cell["network"], cell["seed"], cell["sparsity"]) == (name, 0, TARGETS[-1])]
    stages = {c["method"]: folder / name / c["method"].replace(", ", "-") / f"0/stage-{TARGETS[-1]:.4f}.safetensors"
              for c in last}  # fmt: skip
    if not all(stage.exists() for stage in stages.values()):
        return []
    lost: dict[str, int] = {}
    for cell in last:
        for layer, count in cell["layers"].items():
            lost[layer] = lost.get(layer, 0) + count
    dense = mp.load_model(name)
    pruned = [(method, mp.load(stage, dense).model) for method, stage in stages.items()]
    rows = method_spectra([("dense", dense), *pruned], sorted(lost, key=lambda layer: -lost[layer])[:4], TARGETS[-1])
    rows["values"] = [[float(f"{value:.4g}") for value in values] for values in rows["values"]]
    return json.loads(rows.to_json(orient="records"))


def with_restored(path: Path) -> dict[str, Any]:
    """A cell, and how many entries of each layer came back in its step, from the log in the checkpoint beside it."""
    cell = json.loads(path.read_text())
    if cell["restored"]:
        stage = path.with_name(path.name.replace("cell", "stage")).with_suffix(".safetensors")
        log = mp.load(stage, mp.load_model(cell["network"])).results["log"]
        cell["restored_layers"] = {layer: log.get(f"restored in {layer}", 0) for layer in cell["layers"]}
    return cell


def collect(folder: Path) -> None:
    """Write the record of all cells there are: each of them, and mean and spread over the seeds."""
    kept = record.FOLDER / f"{NAME}.json"
    before = json.loads(kept.read_text()) if kept.exists() else {"cells": [], "rates": {}, "spectra": {}}
    found = before["cells"] + [with_restored(path) for path in sorted(folder.glob("*/*/*/cell-*.json"))]
    cells = list({(c["network"], c["method"], c["seed"], c["sparsity"]): c for c in found}.values())
    cells.sort(key=lambda c: (c["network"], c["method"], c["seed"], c["sparsity"]))
    groups: dict[tuple[str, str, float], list[float]] = {}
    for cell in cells:
        groups.setdefault((cell["network"], cell["method"], cell["sparsity"]), []).append(cell["accuracy"])
    means = [
        {"network": n, "method": m, "sparsity": s, "seeds": len(a), "accuracy": statistics.mean(a),
         "spread": statistics.stdev(a) if len(a) > 1 else None}
        for (n, m, s), a in groups.items()
    ]  # fmt: skip
    rates = before["rates"] | {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/rates.json")}
    results: dict[str, Any] = {"batch": BATCH, "optimizer": "adamw", "rates": rates, "means": means, "cells": cells}
    new = {name: spectra(folder, name, cells) for name in dict.fromkeys(c["network"] for c in cells)}
    results["spectra"] = before["spectra"] | {name: rows for name, rows in new.items() if rows}
    record.write(NAME, COMMAND, results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=list(RATES))
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("runs/recovery-grid"))
    parser.add_argument("--collect", action="store_true")
    options = parser.parse_args()
    if options.collect:
        collect(options.folder)
        return
    for name in options.networks:
        rate = tune(name, options.folder)
        for seed in options.seeds:
            for arm in options.arms:
                path_of(name, arm, seed, options.folder, rate)


torch.set_num_threads(1)

if __name__ == "__main__":
    main()
