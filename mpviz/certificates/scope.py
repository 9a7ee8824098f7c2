"""Which layers a bound can speak about: all of them, or as many of the last ones as its boxes can bear."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mpviz.certificates.bounds import Options, path_bound
from mpviz.certificates.families import Masks
from mpviz.certificates.walk import centre_logits, check_faithful, prepare
from mpviz.errors import ModelError
from mpviz.nets.forward import masked_parameters
from mpviz.nets.graph import Network, trace
from mpviz.nets.last_block import last_block

PROBES = 4  # samples that a scope is tried on
ENOUGH = 0.5  # of which so many must be certified


@dataclass(frozen=True, eq=False)
class Scope:
    """The layers whose masks a bound covers, all others being dense. whole: these are all that the plan prunes.

    words: the scope in words. why: why it is empty, or smaller than the whole; "" when it is the whole.
    """

    network: Network | None
    layers: tuple[str, ...]
    whole: bool
    words: str = ""
    why: str = ""

    def of(self, masks: Masks) -> dict[str, Tensor]:
        """The masks of the scope."""
        return {name: masks[name] for name in self.layers}


def find_scope(model: nn.Module, masks: Masks, images: Tensor, options: Options | None = None) -> Scope:
    """The longest run of last layers for which something is proved on a few samples: all, half, a quarter, …, one.

    Boxes grow by a factor at every layer that they cross, so in a deep network nothing is proved about its first
    layers: to say so costs a few probes, where trying all samples would cost minutes and end with 0 %.
    """
    try:
        network = trace(model)
    except ModelError as error:
        if any(module.training for module in model.modules()):
            raise
        try:
            network = last_block(model)
        except ModelError:
            return Scope(None, (), False, why=str(error))
    check_faithful(network, images)
    moving = [name for name in network.weights if name in masks and not bool(masks[name].all())]
    every = [name for name, mask in masks.items() if not bool(mask.all())]
    if not moving:
        return Scope(network, (), not every, "no layer", "" if not every else f"nothing is pruned in {network.part}")
    probes = images[:PROBES]
    count = len(moving)
    while count:
        layers = tuple(moving[-count:])
        if _proves(network, {name: masks[name] for name in layers}, probes, options):
            return _scope(network, layers, every)
        count //= 2
    return Scope(None, (), False, why=f"its boxes outgrow the margins even for {moving[-1]} alone")


def _proves(network: Network, masks: Masks, images: Tensor, options: Options | None) -> bool:
    with torch.no_grad():
        target = centre_logits(network, images).argmax(dim=1)
    stop = None if options is None else options.cancelled
    few = Options(pieces=4, cancelled=stop)
    part, start = prepare(network, masks, images)
    return path_bound(part, masked_parameters(network.model, masks), start, target, few).coverage >= ENOUGH


def _scope(network: Network, layers: tuple[str, ...], every: list[str]) -> Scope:
    if len(layers) == len(every):
        return Scope(network, layers, True, "all layers")
    words = f"{layers[0]} alone" if len(layers) == 1 else f"the last {len(layers)} of {len(every)} layers alone"
    why = "" if network.entry is None else f"bounds reach back to the last attention only ({network.part})"
    return Scope(network, layers, False, words, why or "the boxes of bounds outgrow the margins in earlier layers")
