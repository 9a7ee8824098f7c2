"""Which part of prune–restore helps or harms: one step with one setting or several changed.

    python tests/benchmarks/recovery_ablation.py [--network fashion-resnet] [--folder runs/recovery-grid]

From 80 to 90 %, seed 0: starts from the hybrid's 80 % network of recovery_grid.py; the last arm is magnitude from the
same network. From 50 to 60 %, where the layers' weights w differ (beyond 85 % all are 1), three seeds: whether entries
come back by movement × w, ÷ w or alone. An arm has two epochs of the bundled 10 000 images, selection counted in, or as
many as its row says. Measured on all test images, and written to data/benchmarks/recovery-ablation.json after each arm;
arms that are there are not run again. Networks to start from that the folder lacks are made first.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import record
import torch
from recovery_grid import BATCH, path_of, tune, whole_train
from torch import Tensor, nn

import mpviz as mp
from mpviz.nets.forward import logits
from mpviz.train.augment import FlipShift
from mpviz.train.ser import StepPlan, prune_in_steps

NAME = "recovery-ablation"
ARMS: dict[str, dict[str, Any]] = {
    "start: ratio 1.6, times w, values as moved, selection 1": {},
    "over-pruning ratio 1.2": {"ratio": 1.2},
    "restored entries take their old values": {"restored": "before"},
    "all removed entries are candidates": {"candidates": "all"},
    "selection 0.2, recovery 2": {"selection": 0.2, "recovery": 2},
    "old values, ratio 1.2, selection 0.2, recovery 2": {
        "restored": "before", "ratio": 1.2, "selection": 0.2, "recovery": 2,
    },
    "selection at ten times the rate": {"selection_rate": 1e-2},
    "batch norms measured again before selection": {"renew": True},
    "old values, ratio 1.2, selection 0.2, recovery 1.8": {
        "restored": "before", "ratio": 1.2, "selection": 0.2, "recovery": 1.8,
    },
    "the same, batch norms measured again": {
        "restored": "before", "ratio": 1.2, "selection": 0.2, "recovery": 1.8, "renew": True,
    },
    "the same, batch norms measured again, by agreement": {
        "restored": "before", "ratio": 1.2, "selection": 0.2, "recovery": 1.8, "renew": True, "by": "agreement",
    },
    "the same but ratio 1.6, batch norms measured again, by agreement": {
        "restored": "before", "ratio": 1.6, "selection": 0.2, "recovery": 1.8, "renew": True, "by": "agreement",
    },
    "magnitude from the same network": {"schedule": "magnitude"},
}  # fmt: skip


FACTORS: dict[str, dict[str, Any]] = {
    "movement times w": {}, "movement divided by w": {"factor": "divide"}, "movement alone": {"factor": "none"},
}  # fmt: skip
STEPS = ((0.8, 0.9, (0,), ARMS), (0.5, 0.6, (0, 1, 2), FACTORS))


def start_of(network: str, seed: int, at: float, folder: Path, rate: float) -> Path:
    """The hybrid's checkpoint at a sparsity, as recovery_grid.py makes it."""
    out = folder / network / "hybrid" / str(seed)
    stage = out / f"stage-{at:.4f}.safetensors"
    if not stage.exists():
        path_of(network, "hybrid", seed, folder, rate, until=at)
    return stage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", default="fashion-resnet")
    parser.add_argument("--folder", type=Path, default=Path("runs/recovery-grid"))
    options = parser.parse_args()
    path = record.FOLDER / f"{NAME}.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    model, rate = mp.load_model(options.network), tune(options.network, options.folder)
    data, (images, labels) = whole_train(), mp.load_data("fashion-mnist").test.sample()
    for start, goal, seeds, arms in STEPS:
        for seed, arm in ((seed, arm) for seed in seeds for arm in arms):
            known = {"network": options.network, "arm": arm, "start": start, "goal": goal, "seed": seed}
            if any(known.items() <= row.items() for row in rows):
                continue

            def measure(
                row: dict[str, Any], network: nn.Module, masks: Mapping[str, Tensor], known: dict[str, Any] = known
            ) -> None:
                if row["target"] == known["goal"]:
                    accuracy = float((logits(network, images).argmax(1) == labels).double().mean())
                    epochs = row["selection_epochs"] + row["recovery_epochs"]
                    found = known | {"accuracy": accuracy, "epochs": epochs}
                    rows.append(found | {"restored": row["restored"], "over": row["over"]})

            plan = StepPlan(**{"schedule": "hybrid", "until": start, "targets": (start, goal), "selection": 1.0,
                               "recovery": 1, "equal": True} | arms[arm])  # fmt: skip
            with tempfile.TemporaryDirectory() as folder:
                shutil.copy2(start_of(options.network, seed, start, options.folder, rate), folder)
                prune_in_steps(
                    model, data, goal, plan, seed=seed, out=folder, after_stage=measure,
                    batch=BATCH, learning_rate=rate, augment=FlipShift(),
                )  # fmt: skip
            print(rows[-1], flush=True)
            record.write(NAME, "python tests/benchmarks/recovery_ablation.py", {"rows": rows})


torch.set_num_threads(1)

if __name__ == "__main__":
    main()
