"""The 2:4 weights that are timed: where they come from, and whether they pack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor, nn

from mpviz.benchmark.packing import best_two, broken_groups, pack, packable
from mpviz.errors import PatternError, nearest
from mpviz.nets.layers import as_matrix, list_layers, weight_of


def packed_layers(
    model: nn.Module, orders: Mapping[str, Tensor], prune: bool
) -> tuple[pd.DataFrame, dict[str, Tensor]]:
    """The table of `packable` in the layers' orders, each packed and unpacked, and the 2:4 masks of those that pack.

    Raises PatternError where nothing packs, and for weights that are not 2:4 and may not be pruned.
    """
    table, infos = packable(model), {info.name: info for info in list_layers(model)}
    for name, order in orders.items():
        if name not in table.index:
            raise PatternError(f"the order of '{name}' belongs to no layer; {nearest(name, table.index)}")
        table.loc[name, "broken"] = broken_groups(as_matrix(weight_of(model, name))[:, order.cpu()])
        if infos[name].kind != "Linear":
            table.loc[name, ["packs", "why"]] = False, "only Linear layers gather inputs in another order"
    for name, info in infos.items():
        if table.loc[name, "packs"] and not info.prunable:
            table.loc[name, ["packs", "why"]] = False, f"{info.why}; stays dense"
    packs = table[table["packs"]]
    if not len(packs):
        why = "; ".join(f"{name}: {one}" for name, one in table["why"].head(3).items())
        raise PatternError(f"no layer of {type(model).__name__} packs as 2:4 ({why})")
    if not prune and packs["broken"].any():
        broken = packs[packs["broken"] > 0]
        first = ", ".join(f"{name} has {count}" for name, count in broken["broken"].head(3).items())
        raise PatternError(
            f"{len(broken)} of {len(packs)} layers are not 2:4: {first} groups of four that keep more than two; "
            "project the model, or leave prune on for timings alone"
        )
    kept = two_of_four(model, list(packs.index), orders)
    for name in packs.index:
        matrix = as_matrix(torch.where(kept[name], weight_of(model, name), 0)).to(torch.bfloat16)
        matrix = matrix if name not in orders else matrix[:, orders[name].to(matrix.device)]
        packed = pack(matrix)
        table.loc[name, "exact"] = torch.equal(packed.dense(), matrix)
        table.loc[name, "bytes_dense"], table.loc[name, "bytes_packed"] = matrix.nbytes, packed.bytes
    return table, kept


def two_of_four(model: nn.Module, names: Sequence[str], orders: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Masks of the two largest of every four inputs, in the orders that are given."""
    masks = {}
    for name in names:
        weight = weight_of(model, name)
        matrix, order = as_matrix(weight), orders.get(name)
        if order is None:
            masks[name] = best_two(matrix).reshape(weight.shape)
        else:
            order = order.to(matrix.device).long()
            masks[name] = best_two(matrix[:, order])[:, order.argsort()].reshape(weight.shape)
    return masks


def told(table: pd.DataFrame) -> str:
    """Where the 2:4 weights come from, in a sentence."""
    packs = table[table["packs"]]
    broken = int((packs["broken"] > 0).sum())
    if not broken:
        return f"all {len(packs)} layers that pack were 2:4"
    return f"{broken} of {len(packs)} layers that pack were pruned to 2:4 for the timing; their answers mean nothing"
