"""The paper's fully connected table on Fashion-MNIST: MP pruning, elastic net, both, both with two-factor storage.

    python tests/benchmarks/fc_table.py [--width 1000 --epochs 20] [--device cuda --width 3000 --epochs 100]

trains 784-w-w-w-w-500-10 with ReLU on all training images that are there (59 000 with the full data set, 1 000 set
aside), the same schedule for every row, and tests once, after the last epoch, on all 10 000 test images. Rows are
written to data/benchmarks/fc-table.json as they are done, and are not run again.
"""

from __future__ import annotations

import argparse
import itertools
import json
from typing import Any

import record
import torch
from torch import nn

import mpviz as mp
from mpviz.nets.forward import logits
from mpviz.train.mp_training import MPPlan, mp_train

NAME = "fc-table"
ROWS: dict[str, dict[str, Any]] = {
    "no pruning, no regularisation": {"remove": False, "lambda1": 0.0, "lambda2": 0.0},
    "MP pruning only": {"lambda1": 0.0, "lambda2": 0.0},
    "L1 + L2 only": {"remove": False},
    "MP pruning + L1 + L2": {},
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    path = record.FOLDER / f"{NAME}.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    done = {(row["width"], row["epochs"], row["row"]) for row in rows}
    data = mp.load_data("fashion-mnist")
    images, labels = data.test.sample()
    for name, changed in ROWS.items():
        if (options.width, options.epochs, name) in done:
            continue
        model = network(options.width).to(options.device)
        found = mp_train(model, data.train, MPPlan(epochs=options.epochs, **changed), lambda _, words: print(words))
        after = found.model.cpu()
        rows.append({
            "row": name, "width": options.width, "epochs": options.epochs, "device": options.device,
            "train_images": len(data.train), "train_accuracy": float(found.history["accuracy"].iloc[-1]),
            "test_accuracy": float((logits(after, images).argmax(1) == labels).double().mean()),
            "parameters": found.parameters[0], "stored": found.parameters[1],
            "removed": int(found.log["removed"].sum()) if len(found.log) else 0,
            "seconds": round(float(found.history["seconds"].iloc[-1]), 1),
        })  # fmt: skip
        print(rows[-1], flush=True)
        record.write(NAME, "python tests/benchmarks/fc_table.py", {"rows": rows})


if __name__ == "__main__":
    main()
