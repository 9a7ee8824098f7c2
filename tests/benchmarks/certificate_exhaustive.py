"""How many predictions no position of the slider changes in a stretch of one percent: every mask of it run.

    python tests/benchmarks/certificate_exhaustive.py [--mlp 500] [--resnet 64] [--vit 32]

writes data/benchmarks/certificate-exhaustive.json after each cell; cells that are there already are not run again.
Whole networks, all prunable layers, plain magnitude. "every position": the share of images whose prediction is the
dense one under each of the masks; "both ends": under the first and the last alone; "bound": the linear bounds of the
slider tier on the same images, null where they say nothing. "seconds": of running the masks, without finding them.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import record
import torch
from certificate_cases import WIDTH, samples

import mpviz as mp
from mpviz.certificates.bounds import slider_bound
from mpviz.certificates.exhaustive import every_position, stretch
from mpviz.errors import ModelError
from mpviz.nets.forward import logits
from mpviz.nets.graph import trace
from mpviz.prune.masks import Ranking

NAME = "certificate-exhaustive"
SPARSITIES = {
    "fashion-mlp": (0.1, 0.3, 0.5, 0.7),
    "fashion-mlp-l1": (0.1, 0.3, 0.5, 0.7),
    "fashion-resnet": (0.3, 0.5, 0.1, 0.7),
    "fashion-vit": (0.3, 0.5),
}
BOUNDED = ("fashion-mlp", "fashion-mlp-l1")  # whole networks of which bounds say something


def cell(name: str, sparsity: float, count: int) -> dict[str, Any]:
    """One network and one stretch."""
    model = mp.load_model(name).to(memory_format=torch.channels_last)
    images = samples(count)[0].to(memory_format=torch.channels_last)
    ranking = Ranking(model)
    masks_at = lambda s: ranking.masks(ranking.counts(s))  # noqa: E731
    target = logits(model, images).argmax(dim=1)
    found = stretch(masks_at, sparsity, sparsity + WIDTH)
    ran = every_position(model, found, sparsity, sparsity + WIDTH, images, target)
    ends = [logits(model, images, masks_at(s)).argmax(dim=1) == target for s in (sparsity, sparsity + WIDTH)]
    return {
        "network": name,
        "sparsity": sparsity,
        "samples": count,
        "masks": ran.masks,
        "every position": ran.coverage,
        "both ends": float((ends[0] & ends[1]).double().mean()),
        "bound": bound(name, model, sparsity, images, target),
        "seconds": round(ran.seconds, 1),
    }


def bound(
    name: str, model: torch.nn.Module, sparsity: float, images: torch.Tensor, target: torch.Tensor
) -> float | None:
    """Coverage by linear bounds on the same images."""
    if name not in BOUNDED:
        return None
    ranking = Ranking(model)
    try:
        network = trace(model)
    except ModelError:
        return None
    ends = (sparsity, sparsity + WIDTH)
    return slider_bound(network, lambda s: ranking.masks(ranking.counts(s)), ends, images, target).coverage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for short, count in (("mlp", 500), ("resnet", 64), ("vit", 32)):
        parser.add_argument(f"--{short}", type=int, default=count)
    options = parser.parse_args()
    counts = {name: getattr(options, name.split("-")[1]) for name in SPARSITIES}
    path = record.FOLDER / f"{NAME}.json"
    cells = json.loads(path.read_text())["cells"] if path.exists() else []
    done = {(one["network"], one["sparsity"], one["samples"]) for one in cells}
    command = f"python tests/benchmarks/{NAME.replace('-', '_')}.py" + "".join(
        f" --{short} {getattr(options, short)}" for short in ("mlp", "resnet", "vit")
    )
    for name, sparsities in SPARSITIES.items():
        for sparsity in sparsities:
            if (name, sparsity, counts[name]) in done:
                continue
            cells.append(cell(name, sparsity, counts[name]))
            print(cells[-1], flush=True)
            record.write(NAME, command, {"width": WIDTH, "cells": cells})


if __name__ == "__main__":
    main()
