"""Permutations that need no gather when the network runs: folded into the layers that write what is permuted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from mpviz.errors import PatternError
from mpviz.nets.channels import Site, along, channel_sites, reordered
from mpviz.nets.forward import masked_parameters
from mpviz.nets.kn_pattern import KN
from mpviz.prune.pattern import check_legal, units


@dataclass(frozen=True, eq=False)
class Folded:
    """A network whose groups stand side by side where that can be.

    model: a copy; its logits are those of the original up to the order of sums. masks: reordered with their weights.
    permutations: those that could not be folded, still to be gathered when kernels are packed. table: one row a
    permutation: layer, folded, why.
    """

    model: nn.Module
    masks: dict[str, Tensor]
    permutations: dict[str, Tensor]
    table: pd.DataFrame


def channel_order(order: Tensor, shape: tuple[int, ...], conv: str) -> Tensor | None:
    """Int["channels"] that orders whole input channels as `order` does; None when it tears a channel apart.

    order: Int["units"] of a weight of this shape, as in `Projected.permutations`.
    """
    pixels = math.prod(shape[2:])
    if conv == "native" or pixels == 1:
        return order
    whole = order.reshape(-1, pixels)
    channels = whole[:, 0] // pixels
    return channels if torch.equal(whole, column_order(channels, shape, "flattened").reshape(-1, pixels)) else None


def column_order(channels: Tensor, shape: tuple[int, ...], conv: str) -> Tensor:
    """Int["units"] of a weight of this shape that orders its input channels so: the inverse of `channel_order`."""
    if conv == "native":
        return channels
    pixels = math.prod(shape[2:])
    return (channels[:, None] * pixels + torch.arange(pixels)).reshape(-1)


def fold_permutations(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    permutations: Mapping[str, Tensor],
    pattern: str | KN = "2:4",
    conv: str = "flattened",
) -> Folded:
    """Fold each permutation into the layers before it, where the network's structure makes that exact.

    masks, permutations, pattern, conv: of `project`. A permutation stays a buffer when its channels have no rule (see
    `channel_sites`), when layers that read the same channels want different orders, when it leaves a head of an
    attention, or when it tears the channels of a flattened kernel apart; the table says which. Exact in real numbers,
    in floating point up to the order of sums. The model is left as it is.
    Raises BudgetError for masks that do not fit the model; PatternError for a permutation without its mask, and when
    masks and permutations do not keep the pattern.
    """
    kn = KN.parse(pattern)
    masked_parameters(model, masks)  # raises for the masks of another network
    for name in permutations:
        if name not in masks:
            raise PatternError(f"the order of '{name}' has no mask; give masks and permutations of one projection")
    for name, mask in masks.items():
        check_legal(name, mask, kn, conv, permutations.get(name))
    rows: list[dict[str, Any]] = []
    orders: list[tuple[Site, Tensor]] = []
    done: set[str] = set()
    for site in channel_sites(model):
        wanted = {name: permutations[name] for name in site.readers if name in permutations}
        if wanted:
            order, why = _common(site, wanted, masks, conv)
            if order is not None:
                orders.append((site, order))
                done |= wanted.keys()
            rows += [{"layer": name, "folded": order is not None, "why": why} for name in wanted]
    seen = {row["layer"] for row in rows}
    rows += [{"layer": name, "folded": False, "why": "no rule for the layers that write its inputs"}
             for name in permutations if name not in seen]  # fmt: skip
    new_masks = dict(masks)
    for site, order in orders:
        for place in site.places:
            if place.tensor in new_masks:
                new_masks[place.tensor] = along(new_masks[place.tensor], place, order)
    left = {name: order for name, order in permutations.items() if name not in done}
    for name, mask in new_masks.items():
        check_legal(name, mask, kn, conv, left.get(name))
    table = pd.DataFrame(rows, columns=["layer", "folded", "why"]).set_index("layer")
    return Folded(reordered(model, orders), new_masks, left, table)


def _common(
    site: Site, wanted: Mapping[str, Tensor], masks: Mapping[str, Tensor], conv: str
) -> tuple[Tensor | None, str]:
    """The one order of a site's channels that suits all who read them, and what it is folded into or why not."""
    orders = []
    for name, order in wanted.items():
        channels = channel_order(order, tuple(masks[name].shape), conv)
        if channels is None:
            return None, f"the order of {name} takes single pixels of a kernel apart from their channel"
        orders.append(channels)
    first, *others = orders
    unordered = [name for name in site.readers if name in masks and name not in wanted]
    if unordered or any(not torch.equal(first, other) for other in others):
        return None, f"the layers that read {site.name} want different orders"
    if not site.allows(first):
        return None, f"the order leaves the {site.blocks} heads of {site.name}"
    return first, f"folded into {site.name}"


def joint_sites(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[Site, list[str]]]:
    """Sites with the layers among `shapes` that read them: these must share one order of channels to be folded."""
    found = []
    for site in channel_sites(model):
        readers = [name for name in site.readers if name in shapes]
        if readers and all(units(shapes[name], "native") == site.size for name in readers):
            found.append((site, readers))
    return found
