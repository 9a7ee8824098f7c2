"""Which part of prune–restore helps or harms: one step from 80 to 90 % with one setting or several changed.

    python tests/benchmarks/recovery_ablation.py [--network fashion-resnet] [--folder runs/recovery-grid]

starts from the hybrid's 80 % network, seed 0, of recovery_grid.py, and takes the step to 90 % with other settings; the
last arm is magnitude from the same network. An arm has two epochs of the bundled 10 000 images, selection counted in,
or as many as its row says. Measured once, with one seed, on all test images, and written to
data/benchmarks/recovery-ablation.json after each arm; arms that are there are not run again.
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
from recovery_grid import BATCH, tune, whole_train
from torch import Tensor, nn

import mpviz as mp
from mpviz.nets.forward import logits
from mpviz.train.augment import FlipShift
from mpviz.train.ser import StepPlan, prune_in_steps

NAME = "recovery-ablation"
START, GOAL = 0.8, 0.9
ARMS: dict[str, dict[str, Any]] = {
    "start: ratio 1.6, times w, values as moved, selection 1": {},
    "over-pruning ratio 1.2": {"ratio": 1.2},
    "restored entries take their old values": {"restored": "before"},
    "movement divided by w": {"factor": "divide"},
    "movement alone": {"factor": "none"},
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", default="fashion-resnet")
    parser.add_argument("--folder", type=Path, default=Path("runs/recovery-grid"))
    options = parser.parse_args()
    path = record.FOLDER / f"{NAME}.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    done = {(row["network"], row["arm"]) for row in rows}
    model, rate = mp.load_model(options.network), tune(options.network, options.folder)
    data, (images, labels) = whole_train(), mp.load_data("fashion-mnist").test.sample()
    for arm, changed in ARMS.items():
        if (options.network, arm) in done:
            continue

        def measure(row: dict[str, Any], network: nn.Module, masks: Mapping[str, Tensor], arm: str = arm) -> None:
            if row["target"] == GOAL:
                accuracy = float((logits(network, images).argmax(1) == labels).double().mean())
                epochs = row["selection_epochs"] + row["recovery_epochs"]
                found = {"network": options.network, "arm": arm, "accuracy": accuracy, "epochs": epochs}
                rows.append(found | {"restored": row["restored"], "over": row["over"]})

        plan = StepPlan(**{"schedule": "hybrid", "until": START, "targets": (START, GOAL), "selection": 1.0,
                           "recovery": 1, "equal": True} | changed)  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            stage = options.folder / options.network / "hybrid" / "0" / f"stage-{START:.4f}.safetensors"
            shutil.copy2(stage, folder)
            prune_in_steps(
                model, data, GOAL, plan, seed=0, out=folder, after_stage=measure,
                batch=BATCH, learning_rate=rate, augment=FlipShift(),
            )  # fmt: skip
        print(rows[-1], flush=True)
        record.write(NAME, "python tests/benchmarks/recovery_ablation.py", {"start": START, "goal": GOAL, "rows": rows})


torch.set_num_threads(1)

if __name__ == "__main__":
    main()
