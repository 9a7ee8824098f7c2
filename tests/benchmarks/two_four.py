"""2:4 by layer and by network: python tests/benchmarks/two_four.py [--networks …] [--device cuda].

Packs every layer that fits of each architecture of the paper's structured tables (random weights, pruned to 2:4) and
compares the bits that come back: data/benchmarks/two-four-packing.json. Then times networks with `mp.bench`, a cell a
batch under data/benchmarks/two-four; cells that are there are not run again. On a GPU these are the paper's networks at
batches 64, 128 and 256 with all endpoints; on a CPU, which has no 2:4 kernels, the dense ones on one thread.
"""

from __future__ import annotations

import argparse
from typing import Any

import record
import torch

import mpviz as mp
from mpviz.benchmark.running import bench
from mpviz.paper import paper_rows

ON_CPU: dict[str, dict[str, Any]] = {
    "fashion-mlp": {"batches": (1, 64)},
    "fashion-vit": {"batches": (1, 64), "tome": (0, 4)},
    "fashion-resnet": {"batches": (1, 64)},
    "vit_base_patch16_224": {"batches": (1, 8), "tome": (0, 8), "rounds": 9},
    "resnet50": {"batches": (1, 8), "rounds": 9},
}
ON_GPU: dict[str, dict[str, Any]] = {
    name: {"batches": (128, 64, 256), "rounds": 30, **more}
    for name, more in {
        "vit_large_patch16_224": {"tome": (0, 8)}, "vit_base_patch16_224": {"tome": (0, 8)},
        "deit_small_patch16_224": {"tome": (0, 8)}, "convnextv2_base": {}, "resnet50": {}, "resnet152d": {},
    }.items()
}  # fmt: skip


def packing() -> None:
    """One row an architecture: how many layers pack, how many come back with the same bits, and why others stay."""
    rows = []
    for name in dict.fromkeys(row.checkpoint.split(".")[0] for row in paper_rows()):
        model = mp.load_model(name, pretrained=False)
        table = mp.bench(model, batches=(1,), endpoints=["2:4"], layers=False, device="cpu", name=name).packing
        packs = table[table["packs"]]
        rows.append(
            {"model": name, "layers": len(table), "packs": len(packs), "exact": int(packs["exact"].sum()),
             "bytes_dense": int(packs["bytes_dense"].sum()), "bytes_packed": int(packs["bytes_packed"].sum()),
             "dense": {layer: why for layer, why in table["why"].items() if why}}
        )  # fmt: skip
        print({key: value for key, value in rows[-1].items() if key != "dense"}, flush=True)
    record.write("two-four-packing", "python tests/benchmarks/two_four.py", {"rows": rows})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    plans = ON_GPU if options.device.startswith("cuda") else ON_CPU
    if options.networks is None:
        packing()
    for name in options.networks or plans:
        model = mp.load_model(name, pretrained=name.startswith("fashion"))
        bench(
            model, **plans[name], device=options.device, name=name,
            out=record.FOLDER / "two-four", progress=lambda _, words, name=name: print(name, words, flush=True),
        )  # fmt: skip


torch.set_num_threads(1)

if __name__ == "__main__":
    main()
