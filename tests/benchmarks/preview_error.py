"""How good the anchored preview and the first order are, and what they take.

    python tests/benchmarks/preview_error.py [--samples 512] [--vectors 24]

Tables are computed anew, none is read from disk. The budgets on which the errors are measured are drawn by a seed that
nothing else uses. Writes data/benchmarks/preview-error.json.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from record import write
from torch import Tensor, nn

import mpviz as mp
from mpviz.certificates.anchored import HELD_OUT, AnchoredPreview
from mpviz.certificates.anchors import ANCHORS, LAYER_GRID
from mpviz.certificates.first_order import first_order
from mpviz.nets.forward import logits
from mpviz.prune.masks import Ranking

NETWORKS = ("fashion-mlp", "fashion-resnet", "fashion-vit")
SPARSITIES = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9)
GOALS = {"slider_points": 1.0, "arbitrary_points": 4.0, "look_up_ms": 2.0, "precompute_vit_s": 180.0}


def milliseconds(preview: AnchoredPreview, counts: dict[str, int], times: int = 200) -> dict[str, float]:
    """Median and 95th percentile of one look-up, everything included."""
    found = []
    for _ in range(times):
        start = time.perf_counter()
        preview.estimate(counts)
        found.append(1000 * (time.perf_counter() - start))
    return {"median": round(float(np.median(found)), 3), "p95": round(float(np.percentile(found, 95)), 3)}


def anchored(model: nn.Module, images: Tensor, labels: Tensor, vectors: int) -> dict[str, Any]:
    """Time, memory and errors of one network."""
    family = Ranking(model)
    wall, cpu = time.perf_counter(), time.process_time()
    preview = AnchoredPreview(model, images, labels, family, family.counts, held_out=vectors, seed=20_26, progress=_say)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    rng = np.random.default_rng(0)
    every = preview.counts_of({name: float(rng.uniform(0.1, 0.9)) for name in preview.names})
    return {
        "layers": len(preview.names),
        "precompute_s": round(wall, 1),
        "precompute_cpu_s": round(cpu, 1),
        "tables_mib": round(preview.nbytes / 2**20, 2),
        "look_up_ms": milliseconds(preview, every),
        "errors_points": [asdict(error) for error in preview.error],
    }


def agreement(model: nn.Module, images: Tensor) -> dict[str, Any]:
    """The first order of all layers together against the measured margin, by sparsity."""
    found: dict[str, Any] = {}
    for s in SPARSITIES:
        masks = mp.magnitude_masks(model, s)
        start = time.perf_counter()
        one = first_order(model, images, masks)
        seconds = time.perf_counter() - start
        against = one.against(logits(model, images, masks))
        found[str(s)] = {k: round(v, 4) for k, v in asdict(against).items()} | {"seconds": round(seconds, 2)}
    return found


def synthetic() -> dict[str, Any]:
    """Look-up with 50 layers, 512 samples and 10 classes; a random narrow network whose tables are not small."""
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(16, 16)]
    for _ in range(50):
        layers += [nn.ReLU(), nn.Linear(16, 16)]
    torch.manual_seed(0)
    model = nn.Sequential(*layers, nn.ReLU(), nn.Linear(16, 10)).eval()
    family = Ranking(model)
    images, labels = torch.randn(512, 1, 4, 4), torch.zeros(512, dtype=torch.long)
    found: dict[str, Any] = {"layers": len(family.names)}
    for dtype in ("float32", "float16"):
        preview = AnchoredPreview(model, images, labels, family, family.counts, held_out=0, dtype=dtype)
        counts = preview.counts_of({name: 0.1 + 0.017 * i for i, name in enumerate(preview.names[:50])})
        found[dtype] = {"look_up_ms": milliseconds(preview, counts), "tables_mib": round(preview.nbytes / 2**20, 2)}
    return found


def _say(done: float, what: str) -> None:
    print(f"{100 * done:5.1f} % {what}", end="\r", flush=True)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--vectors", type=int, default=HELD_OUT, help="held-out budgets of each kind")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS, help="if some only, no file")
    given = parser.parse_args()
    images, labels = mp.load_data("fashion-mnist").calibration.sample(given.samples, 0)
    results: dict[str, Any] = {
        "samples": given.samples,
        "goals": GOALS,
        "anchors": list(ANCHORS),
        "layer_grid": list(LAYER_GRID),
        "synthetic": synthetic(),
        "networks": {},
    }
    for name in given.networks:
        model = mp.load_model(name)
        results["networks"][name] = anchored(model, images, labels, given.vectors)
        results["networks"][name]["first_order"] = agreement(model, images)
        print(name, results["networks"][name], flush=True)
    if set(given.networks) == set(NETWORKS):
        print(write("preview-error", f"python tests/benchmarks/preview_error.py --samples {given.samples}", results))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MPVIZ_CACHE"] = folder
        main()
