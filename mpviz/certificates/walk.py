"""Walking forwards along a network: exact logits, boxes of deviations, and parts whose beginning is fixed."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mpviz.certificates import rules
from mpviz.certificates.boxes import ROUNDOFF, State, affine
from mpviz.certificates.families import Family, Weights
from mpviz.errors import ModelError
from mpviz.nets.graph import Network, Node

ENDS = ("low", "high")


@dataclass(frozen=True, eq=False)
class Start:
    """What a network whose first part is fixed starts from: a state for each of its input nodes, "n …" each.

    Made by `prepare`; it stands where images stand.
    """

    states: Mapping[str, State]

    def __len__(self) -> int:
        return len(next(iter(self.states.values())).centre)

    def __getitem__(self, which: Any) -> Start:
        def part(state: State) -> State:
            if state.low is None or state.high is None:
                return State(state.centre[which])
            return State(state.centre[which], state.low[which], state.high[which])

        return Start({name: part(state) for name, state in self.states.items()})


Inputs = Tensor | Start


def prepare(
    network: Network, layers: Iterable[str], images: Tensor, arithmetic: str = "float64", batch: int = 64
) -> tuple[Network, Start]:
    """The part of a network from the first of some weight layers on, and what it starts from.

    What comes before is evaluated once; its rounding stays inside the boxes. Bounds of sets that change these layers
    alone are the same as those of the whole network, at the cost of the part.
    """
    layers = set(layers)
    moving: set[str] = set()
    for node in network:
        if node.weight in layers or moving & set(node.inputs):
            moving.add(node.name)
    cut = {name for node in network if node.name in moving for name in node.inputs if name not in moving}
    parts: list[dict[str, State]] = []
    before = [node for node in network if node.name not in moving]
    with torch.no_grad():
        for start in range(0, len(images), batch):
            states = forward(before, network, Family("as it is"), images[start : start + batch], ROUNDOFF[arithmetic])
            parts.append({name: states[name] for name in cut})

    def joined(name: str) -> State:
        centre = torch.cat([part[name].centre for part in parts])
        lows, highs = ([end for part in parts if (end := getattr(part[name], side)) is not None] for side in ENDS)
        return State(centre, torch.cat(lows), torch.cat(highs)) if lows else State(centre)

    nodes = [Node(node.name, "input", ()) for node in network if node.name in cut]
    nodes += [node for node in network if node.name in moving]
    return Network(network.model, tuple(nodes), network.part), Start({name: joined(name) for name in cut})


def centre_logits(network: Network, images: Inputs, weights: Weights | None = None) -> Tensor:
    """Float64["n classes"] in double precision, with some weights replaced."""
    family = Family("one network", weights or {})
    values: dict[str, Tensor] = {}
    for node in network:
        if node.op == "input":
            values[node.name] = images.states[node.name].centre if isinstance(images, Start) else network.start(images)
        elif node.weight:
            x = values[node.inputs[0]]
            values[node.name] = affine(network, node, x, family, 0.0).value(x)
        else:
            values[node.name] = rules.value(network, node, [values[name] for name in node.inputs])
    return values[network.output]


def check_faithful(
    network: Network, images: Tensor, weights: Weights | None = None, model: nn.Module | None = None, batch: int = 64
) -> None:
    """Run a model and the list of operations on all images, both in double precision: what Python does unseen shows.

    model: the network's own, or one that claims to be it with these `weights`. Raises ModelError where their logits
    differ by more than double precision explains, and for buffers that a forward pass changes.
    """
    kind = type(network.model).__name__
    own = copy.deepcopy(network.model if model is None else model).double()
    before = {name: value.clone() for name, value in own.named_buffers()}
    device = next(own.parameters()).device
    with torch.no_grad():
        for start in range(0, len(images), batch):
            few = images[start : start + batch]
            said = own(few.to(device).double())
            read = centre_logits(network, few, weights)
            near = 1e-7 * float(read.abs().max())
            same = isinstance(said, Tensor) and said.shape == read.shape
            if not same or not torch.allclose(said.to(read), read, rtol=1e-7, atol=near):
                which = "its logits" if model is None else "the logits of the pruned network"
                raise ModelError(
                    f"the operations read from {kind} do not give {which}, so nothing is proved about it; look for "
                    "another forward pass, or values that are overwritten in place; the measured, population and "
                    "estimate tiers remain"
                )
    for name, value in own.named_buffers():
        if not torch.equal(value, before[name]):
            raise ModelError(
                f"a forward pass of {kind} changes the buffer {name}, so nothing is proved about it; the measured, "
                "population and estimate tiers remain"
            )


def forward(nodes: Iterable[Node], network: Network, family: Family, images: Inputs, unit: float) -> dict[str, State]:
    """The state of every node: centre, box, and what rounding and moving weights cost.

    nodes: those of the network that are walked. unit: the unit roundoff that the boxes must cover.
    """
    states: dict[str, State] = {}
    for node in nodes:
        if node.op == "input" and isinstance(images, Start):
            states[node.name] = images.states[node.name]
        elif node.op == "input":
            assert isinstance(images, Tensor)
            x = network.start(images)
            reach = torch.full_like(x, family.ball) if family.ball else None
            states[node.name] = State(x, None if reach is None else -reach, reach)
        elif node.weight:
            x_state = states[node.inputs[0]]
            states[node.name] = affine(network, node, x_state.centre, family, unit).forward(x_state)
        else:
            states[node.name] = rules.forward(network, node, [states[name] for name in node.inputs], unit)
    return states
