"""What to expect at most: Amdahl's law over the multiply–adds of a network, and the roofline of each layer.

Both are estimates. The first takes all multiply–adds for equally fast; the second compares with rates that were
measured on other products.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pandas as pd
import torch
import torch.nn.functional as F

from mpviz.benchmark.endpoints import sparse_weight
from mpviz.benchmark.machine import Rates
from mpviz.benchmark.packing import SIDES, best_two
from mpviz.benchmark.timing import time_arms
from mpviz.nets.macs import Macs

GAIN = 2.0  # a 2:4 product has half of the operations
OVERHEAD = 0.5  # a layer that reaches less of its limit spends its time on neither


def amdahl(macs: Macs, layers: Sequence[str]) -> float:
    """How many times faster a network is when these layers do half of their multiply–adds and all take the same time.

    >>> from mpviz.nets.macs import count_macs
    >>> from mpviz.nets.zoo import load_model
    >>> round(amdahl(count_macs(load_model("fashion-mlp", pretrained=False)), ["features.fc2.weight"]), 3)
    1.244
    """
    # What is merged is counted as it runs; a pattern would be counted twice, so densities are taken out.
    ran = macs.table["sparse"] / macs.table["density"]
    share = float(ran.reindex(list(layers)).fillna(0).sum() / ran.sum())
    return 1 / (1 - share + share / GAIN)


def products(macs: Macs, layers: pd.DataFrame, batch: int) -> pd.DataFrame:
    """The matrix products of a network's layers, one row a shape, the largest first.

    layers: rows and cols by parameter name, as `packable` gives them. Columns: out, in, rows (places × batch),
    operations (2 · out · in · rows), numbers (weights, inputs and outputs), packs, layers (how many have this shape),
    names.
    """
    known = layers.loc[[name for name in layers.index if name in macs.table.index]]
    shapes = known.assign(out=known["rows"], many=macs.table.loc[known.index, "places"].astype(int) * batch)
    rows = []
    for key, group in shapes.groupby(["out", "cols", "many"], sort=False):
        out, inside, many = (int(str(one)) for one in key)
        rows.append(
            {"out": out, "in": inside, "rows": many, "operations": 2 * out * inside * many,
             "numbers": out * inside + many * (out + inside), "packs": bool(group["packs"].all()),
             "layers": len(group), "names": ", ".join(map(str, group.index))}
        )  # fmt: skip
    columns = ("out", "in", "rows", "operations", "numbers", "packs", "layers", "names")
    return pd.DataFrame(rows, columns=columns).sort_values("operations", ascending=False, ignore_index=True)


@torch.inference_mode()
def roofline(shapes: pd.DataFrame, found: Rates, device: str | torch.device = "cpu", rounds: int = 7) -> pd.DataFrame:
    """Each shape of `products` by itself beside its limits, measured on values drawn by seed 0.

    Adds: dense_s (median of F.linear), sparse_s (the 2:4 product, on a GPU that has one and where the shape packs),
    compute_s (operations at the rate of a square product), memory_s (bytes at the rate of a copy), bound ("compute",
    "memory" or, where not even half of the larger limit is reached, "overhead"), of_limit (larger limit / dense_s),
    speedup (dense_s / sparse_s). On a CPU both 2:4 columns are NaN.
    """
    place, rows = torch.device(device), []
    dtype: torch.dtype = getattr(torch, found.dtype)
    for one in shapes.to_dict("records"):
        draws = torch.Generator().manual_seed(0)
        weight = torch.randn(one["out"], one["in"], generator=draws).to(place, dtype)
        inputs = torch.randn(one["rows"], one["in"], generator=draws).to(place, dtype)
        arms = {"dense": partial(F.linear, inputs, weight)}
        if place.type == "cuda" and one["packs"] and dtype in SIDES:
            sparse = sparse_weight(weight * best_two(weight), inputs)
            arms["sparse"] = partial(F.linear, inputs, sparse)
        timed = time_arms(arms, rounds, 1, place).arms
        dense = timed["dense"].median if "dense" in timed else float("nan")
        half = timed["sparse"].median if "sparse" in timed else float("nan")
        compute, memory = one["operations"] / found.operations, one["numbers"] * weight.element_size() / found.bytes
        limit = max(compute, memory)
        bound = "compute" if compute >= memory else "memory"
        rows.append(
            {**one, "dense_s": dense, "sparse_s": half, "compute_s": compute, "memory_s": memory,
             "of_limit": limit / dense, "bound": bound if limit / dense >= OVERHEAD else "overhead",
             "speedup": dense / half}
        )  # fmt: skip
    return pd.DataFrame(rows)


def winners(table: pd.DataFrame) -> list[str]:
    """Layers whose 2:4 product was faster than the dense one by itself, from `roofline`."""
    won = table[table["speedup"] > 1]
    return [name for names in won["names"] for name in names.split(", ")]
