"""The paper's fully connected table on Fashion-MNIST: MP pruning, elastic net, both, both with two-factor storage.

    python tests/benchmarks/fc_table.py [--width 1000 --epochs 20] [--device cuda --width 3000 --epochs 100]

trains 784-w-w-w-w-500-10 with ReLU on all training images that are there (59 000 with the full data set, 1 000 set
aside) and tests once, after the last epoch, on all 10 000 test images. Every row gets its learning rate in the same
way: the paper's and two larger ones are tried for four epochs (before anything is removed, so rows that differ only in
what they remove share the trial), and the one with the least cross-entropy on the images set aside is taken. The
paper's own rate is run for every row too, as rows of `rate: "paper"`. Rows are written to
data/benchmarks/fc-table.json as they are done, and are not run again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
from pathlib import Path
from typing import Any

import record
import torch
from torch import nn
from torch.nn import functional as F

import mpviz as mp
from mpviz.nets.forward import logits
from mpviz.train.mp_training import MPPlan, mp_train

NAME = "fc-table"
RATES = (0.01, 0.03, 0.1)
ROWS: dict[str, dict[str, Any]] = {
    "no pruning, no regularisation": {"remove": False, "lambda1": 0.0, "lambda2": 0.0},
    "MP pruning only": {"lambda1": 0.0, "lambda2": 0.0},
    "L1 + L2 only": {"remove": False},
    "MP pruning + L1 + L2": {},
    "MP pruning + L2": {"lambda1": 0.0},
    "MP pruning + L1 + L2, two factors": {"factor": True},
}


def network(width: int) -> nn.Sequential:
    """784-w-w-w-w-500-10 with PyTorch's default initialisation, seed 0."""
    torch.manual_seed(0)
    sizes = [784, width, width, width, width, 500]
    layers: list[nn.Module] = [nn.Flatten()]
    for inside, out in itertools.pairwise(sizes):
        layers += [nn.Linear(inside, out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(500, 10))


def tuned(options: argparse.Namespace, changed: dict[str, Any], trials: list[dict[str, Any]]) -> float:
    """The rate with the least cross-entropy on the images set aside after four epochs without removal."""
    net = {key: changed.get(key, getattr(MPPlan, key)) for key in ("lambda1", "lambda2")}
    data = mp.load_data("fashion-mnist")
    images, labels = data.calibration.sample()
    found: dict[float, float] = {}
    for rate in RATES:
        asked = {"width": options.width, **net, "learning_rate": rate}
        known = [one for one in trials if asked.items() <= one.items()]
        if not known:
            plan = MPPlan(epochs=4, learning_rate=rate, remove=False, **net)
            after = mp_train(network(options.width).to(options.device), data.train, plan).model.cpu()
            known = [asked | {"cross_entropy": float(F.cross_entropy(logits(after, images).float(), labels))}]
            trials += known
            print(known[0], flush=True)
        found[rate] = known[0]["cross_entropy"]
    return min(found, key=lambda rate: found[rate])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, default=Path("runs/fc-table"), help="where a stopped training goes on")
    options = parser.parse_args()
    path = record.FOLDER / f"{NAME}.json"
    old = json.loads(path.read_text()) if path.exists() else {"rows": [], "trials": []}
    rows, trials = old["rows"], old["trials"]
    done = {(row["width"], row["epochs"], row["rate"], row["row"]) for row in rows}
    for kind in ("tuned", "paper"):
        for name, changed in ROWS.items():
            if (options.width, options.epochs, kind, name) in done:
                continue
            rate = tuned(options, changed, trials) if kind == "tuned" else MPPlan.learning_rate
            same = [row for row in rows if row["row"] == name and row["learning_rate"] == rate
                    and (row["width"], row["epochs"]) == (options.width, options.epochs)]  # fmt: skip
            row = same[0] if same else run(options, name, changed | {"learning_rate": rate})
            rows.append(row | {"rate": kind})
            print(rows[-1], flush=True)
            record.write(NAME, "python tests/benchmarks/fc_table.py", {"rows": rows, "trials": trials})


def run(options: argparse.Namespace, name: str, changed: dict[str, Any]) -> dict[str, Any]:
    """One row of the table: a training from the same start, and one test."""
    data = mp.load_data("fashion-mnist")
    images, labels = data.test.sample()
    model = network(options.width).to(options.device)
    plan = MPPlan(epochs=options.epochs, **changed)
    name_of = "-".join([*re.findall("[A-Za-z0-9]+", name), f"{changed['learning_rate']:g}"])
    out = options.folder / f"{options.width}-{options.epochs}" / name_of
    found = mp_train(model, data.train, plan, lambda _, words: print(words), out=out)
    after = found.model.cpu()
    return {
        "row": name, "width": options.width, "epochs": options.epochs, "device": options.device,
        "learning_rate": changed["learning_rate"],
        "train_images": len(data.train), "train_accuracy": float(found.history["accuracy"].iloc[-1]),
        "test_accuracy": float((logits(after, images).argmax(1) == labels).double().mean()),
        "parameters": found.parameters[0], "stored": found.parameters[1],
        "removed": int(found.log["removed"].sum()) if len(found.log) else 0,
        "grades": {} if found.log.empty else found.log["grade"].value_counts().to_dict(),
        "seconds": round(float(found.history["seconds"].iloc[-1]), 1),
    }  # fmt: skip


if __name__ == "__main__":
    main()
