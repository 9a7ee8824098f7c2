"""Speed, memory and exactness of the k:n search: python tests/benchmarks/kn_speed.py [--parts layer vit …].

Each measurement runs in a process of its own, on one thread, and tells its CPU seconds and how far its peak memory
rose above what it held before. `layer`: a seeded 768 × 3072 layer behind correlated GELU activations, every pattern, by
this search, by its preview and by a plain enumeration of the paper's formula (all patterns of each group multiplied
out, in float32 as the paper's code has it). `vit`, `resnet`: whole networks with random weights on random images,
calibration counted apart. `wide`: how far the swap search of n = 32 ends above the optimum, on cells small enough in
number for the exact search. `orders`: what each rule's order costs where scales of the inputs are log-normal (σ = 1).
Finished parts stay in data/benchmarks/kn-speed.json when others are run again.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import record
import torch
from torch import Tensor

NAME = "kn-speed"
PATTERNS = ("2:4", "4:8", "6:12", "8:16", "12:16")
ROWS, COLS = 768, 3072


def layer_case(rows: int = ROWS, cols: int = COLS, tokens: int = 3000) -> tuple[Tensor, Tensor]:
    """A weight and GELU activations behind a random layer, with log-normal scales."""
    torch.manual_seed(0)
    weight = torch.randn(rows, cols) * 0.02
    mixed = torch.randn(tokens, cols) @ (torch.randn(cols, cols) / cols**0.5) + 0.3 * torch.randn(cols)
    return weight, torch.nn.functional.gelu(mixed) * torch.exp(0.5 * torch.randn(cols))


@contextmanager
def kept_case(**sizes: int) -> Iterator[str]:
    """A file with the layer's case, made in another process: what measures must not have grown before it begins."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/case.pt"
        code = f"import torch, kn_speed; torch.save(kn_speed.layer_case(**{sizes}), {path!r})"
        subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)
        yield path


def covariances(inputs: Tensor, n: int) -> Tensor:
    h = inputs.reshape(len(inputs), -1, n).permute(1, 2, 0)
    return (h @ h.transpose(1, 2) / len(inputs)).double()


def enumerate_plainly(cells: Tensor, moment: Tensor, masks: Tensor) -> Tensor:
    """The paper's formula as it stands: r = (1 − m) ⊙ u for every pattern, rᵀCr, the least. Group by group."""
    best = torch.empty(cells.shape[:2], dtype=torch.int64)
    for group in range(cells.shape[1]):
        removed = cells[:, group, None, :] * (~masks)
        best[:, group] = ((removed @ moment[group].float()) * removed).sum(dim=2).argmin(dim=1)
    return best


def watched(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """Result, CPU seconds, and by how many MiB the peak memory rose."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    found = work()
    spent = time.process_time() - start
    return found, spent, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def layer(path: str, text: str, how: str) -> dict[str, Any]:
    from mpviz.nets.kn_pattern import KN
    from mpviz.prune.kn import search
    from mpviz.prune.pattern import layout

    pattern = KN.parse(text)
    weight, inputs = torch.load(path)
    where = layout("layer", (ROWS, COLS), pattern)
    cells, moment = where.cells(weight), covariances(inputs, pattern.n)
    del inputs
    if how == "plain":
        masks = pattern.masks()
        best, spent, memory = watched(lambda: enumerate_plainly(cells, moment, masks))
        gone = (cells * ~masks[best]).double()
        cost = float((torch.einsum("rga,gab->rgb", gone, moment) * gone).sum())
    else:
        found, spent, memory = watched(lambda: search(cells, moment, pattern, method=how, threads=1))
        cost = float(found.cost.sum())
    return {"pattern": text, "how": how, "cpu_s": round(spent, 3), "memory_mib": round(memory, 1), "cost": cost}


def network(name: str, text: str, images: int, size: int) -> dict[str, Any]:
    import mpviz as mp
    from mpviz.prune import cast, cast_job

    model = mp.load_model(name, pretrained=False)
    torch.manual_seed(0)
    x = torch.randn(images, 3, size, size)
    searching = [0.0]
    search = cast_job.search

    def timed(*arguments: Any) -> Any:
        start = time.process_time()
        found = search(*arguments)
        searching[0] += time.process_time() - start
        return found

    cast_job.search = timed
    found, spent, memory = watched(lambda: cast.project(model, text, x, threads=1))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "network": name, "pattern": text, "images": images, "layers": len(found.cost),
        "weights": int((found.cost["rows"] * found.cost["cols"]).sum()), "search_cpu_s": round(searching[0], 2),
        "whole_cpu_s": round(spent, 2), "memory_mib": round(memory, 1), "peak_of_process_mib": round(peak, 1),
        "exact": bool(found.cost["exact"].all()),
    }  # fmt: skip


def wide(cells: int) -> dict[str, Any]:
    """The gap of the swap search at n = 32, on the layer's first cells."""
    from mpviz.nets.kn_pattern import KN
    from mpviz.prune.kn import search

    weight, inputs = layer_case(rows=cells // 4, cols=128)
    groups, moment = weight.reshape(cells // 4, 4, 32), covariances(inputs, 32)
    found = {}
    for text in ("16:32", "8:32", "24:32"):
        pattern = KN.parse(text)
        exact, spent, _ = watched(lambda: search(groups, moment, pattern, method="exact", threads=1))  # noqa: B023
        local, quick, _ = watched(lambda: search(groups, moment, pattern, method="local", threads=1))  # noqa: B023
        over = local.cost / exact.cost - 1
        found[text] = {
            "cells": cells, "optimal_share": float((over < 1e-9).double().mean()), "mean_gap": float(over.mean()),
            "largest_gap": float(over.max()), "total_gap": float(local.cost.sum() / exact.cost.sum() - 1),
            "exact_cpu_s": round(spent, 2), "local_cpu_s": round(quick, 4),
        }  # fmt: skip
    return found


def orders(seed: int) -> dict[str, Any]:
    """Cost of the best 2:4 patterns under each rule's order, relative to none, with log-normal scales of the inputs."""
    from mpviz.nets.kn_pattern import KN
    from mpviz.prune.kn import search
    from mpviz.prune.pattern import layout
    from mpviz.prune.permute import RULES, find_order

    torch.manual_seed(seed)
    pattern, weight = KN(2, 4), torch.randn(ROWS, COLS) * 0.02
    inputs = torch.randn(2000, COLS) * torch.exp(torch.randn(COLS))
    gram = (inputs.T @ inputs / len(inputs)).double()
    scores, importance = (
        weight.square() * inputs.square().mean(dim=0),
        weight.abs().sum(dim=0) * inputs.abs().mean(dim=0),
    )
    found: dict[str, Any] = {"seed": seed}
    for rule in RULES:
        start = time.process_time()
        order = find_order(rule, scores, importance, pattern).order
        spent = time.process_time() - start
        where = layout("layer", (ROWS, COLS), pattern, order=order)
        cost = float(search(where.cells(weight), where.blocks(gram), pattern, threads=1).cost.sum())
        found[rule] = {"cost": cost, "cpu_s": round(spent, 2)}
    return found | {"relative": {rule: found[rule]["cost"] / found["none"]["cost"] for rule in RULES}}


def apart(call: str) -> Any:
    """What a call of this module gives in a process of its own."""
    code = f"import json, torch; torch.set_num_threads(1); import kn_speed; print(json.dumps(kn_speed.{call}))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parent)
    print(call, done.stdout.strip(), flush=True)
    return json.loads(done.stdout)


def all_layers() -> list[dict[str, Any]]:
    with kept_case() as path:
        return [
            apart(f"layer({path!r}, {text!r}, {how!r})") for text in PATTERNS for how in ("exact", "local", "plain")
        ]


PARTS: dict[str, Callable[[], Any]] = {
    "layer": all_layers,
    "vit": lambda: [apart(f"network('vit_base_patch16_224', '{text}', 8, 224)") for text in ("2:4", "4:8", "8:16")],
    "resnet": lambda: [apart(f"network('resnet152d', '{text}', 4, 256)") for text in ("2:4", "8:16")],
    "wide": lambda: apart("wide(64)"),
    "orders": lambda: [apart(f"orders({seed})") for seed in (0, 1, 2)],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    options = parser.parse_args()
    path = record.FOLDER / f"{NAME}.json"
    results = json.loads(path.read_text()).get("parts", {}) if path.exists() else {}
    for part in options.parts:
        results[part] = PARTS[part]()
        record.write(NAME, "python tests/benchmarks/kn_speed.py", {"parts": results})


if __name__ == "__main__":
    main()
