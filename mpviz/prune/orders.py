"""Which orders of inputs a projection may choose from, for each layer or for all layers that read the same channels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mpviz.nets.calibrate import BlockMoments
from mpviz.nets.kn_pattern import KN
from mpviz.prune.fold import column_order, joint_sites
from mpviz.prune.permute import Order, find_order

BEST = "best"
CANDIDATES = ("none", "snake", "hungarian")  # what "best" chooses from


@dataclass(frozen=True, eq=False)
class Choice:
    """Layers that share one order of channels, and the orders to choose from: {layer: order} each."""

    readers: tuple[str, ...]
    candidates: tuple[Mapping[str, Order], ...]


def choices(
    network: nn.Module,
    values: Mapping[str, Tensor],
    moments: Mapping[str, BlockMoments],
    rule: str,
    pattern: KN,
    conv: str,
    foldable: bool = False,
    damping: float = 0.0,
    seed: int = 0,
    tell: Callable[[float], None] = lambda share: None,
    cancelled: Callable[[], bool] | None = None,
) -> list[Choice]:
    """The orders that a rule gives each layer; "best" gives those of several rules.

    values: {parameter name: weight}, of the layers; moments: of their inputs; damping: of `project`. foldable: orders
    of whole channels, common to all layers that read these, within the heads of an attention; layers whose channels
    have no rule in `channel_sites` are not among the choices. Errors: `find_order`.
    """
    shapes = {name: tuple(weight.shape) for name, weight in values.items()}
    tasks: list[tuple[Sequence[str], str, int]] = [([name], conv, 1) for name in values]
    if foldable:
        tasks = [(readers, "native", site.blocks) for site, readers in joint_sites(network, shapes)
                 if site.size % (site.blocks * pattern.n) == 0]  # fmt: skip
    found = []
    for i, (readers, grouping, blocks) in enumerate(tasks):
        tell(i / len(tasks))
        parts = [_scores(values[name], moments[name], grouping, damping) for name in readers]
        scores = torch.cat([one for one, _ in parts])
        importance = torch.stack([one for _, one in parts]).sum(dim=0)
        candidates = []
        for each in CANDIDATES if rule == BEST else (rule,):
            order = find_order(each, scores, importance, pattern, blocks, seed, cancelled)
            candidates.append({name: _of_layer(order, shapes[name], grouping, conv) for name in readers})
        found.append(Choice(tuple(readers), tuple(candidates)))
    return found


def _of_layer(order: Order, shape: tuple[int, ...], grouping: str, conv: str) -> Order:
    """An order of channels as the order of units that the layer's groups are made of."""
    return order if grouping == conv else replace(order, order=column_order(order.order, shape, conv))


def _scores(weight: Tensor, moments: BlockMoments, grouping: str, damping: float) -> tuple[Tensor, Tensor]:
    """Scores Float["rows units"] and importances Float["units"] of a layer, for `find_order`."""
    flat = weight.reshape(len(weight), -1)
    scores = flat.square() * (moments.power + damping * moments.power.mean()).to(flat)
    importance = flat.abs().sum(dim=0) * moments.mean_abs.to(flat)
    if grouping == "native" and weight.ndim > 2:  # a row for each pixel of the kernel
        channels = weight.shape[1]
        scores = scores.reshape(len(weight), channels, -1).transpose(1, 2).reshape(-1, channels)
        importance = importance.reshape(channels, -1).sum(dim=1)
    return scores, importance
