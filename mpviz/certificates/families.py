"""Sets of networks and inputs that a bound speaks about: brackets, sub-masks, paths, input balls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mpviz.errors import BudgetError, nearest
from mpviz.nets.forward import masked_parameters

Masks = Mapping[str, Tensor]
Weights = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Family:
    """Weights W = centre + E, for each named parameter, on inputs within `ball` of the given ones.

    centre: {parameter name: Float64[...]}, the parameters that differ from the model's own. radius: for a box,
    |E| ≤ radius entrywise, every entry on its own. direction: for a path, E = t·direction with one |t| ≤ half for all
    layers. ball: ℓ∞ radius around each input, in the network's input units. name: the set in words.
    """

    name: str
    centre: Weights = field(default_factory=dict)
    radius: Weights = field(default_factory=dict)
    direction: Weights = field(default_factory=dict)
    half: float = 0.0
    ball: float = 0.0

    @property
    def is_path(self) -> bool:
        """One number moves all weights together."""
        return bool(self.direction)


def _under(model: nn.Module, masks: Masks) -> Weights:
    """The weights of `model` under `masks`, checked, in float64."""
    return {key: value.double() for key, value in masked_parameters(model, masks).items()}


def check_nested(denser: Masks, sparser: Masks) -> None:
    """Raises BudgetError, which names the layer, when `sparser` keeps an entry that `denser` removes."""
    if set(denser) != set(sparser):
        other = sorted(set(denser) ^ set(sparser))[0]
        raise BudgetError(f"{other} has a mask at one end of the bracket only; give masks of the same layers")
    for name in sparser:
        pair = denser[name], sparser[name]
        if any(mask.dtype != torch.bool for mask in pair):
            raise BudgetError(f"the mask of {name} is no bool tensor; give one, True = kept")
        if pair[0].shape == pair[1].shape and bool((pair[1] & ~pair[0]).any()):
            more = int((pair[1] & ~pair[0]).sum())
            raise BudgetError(
                f"the masks of {name} are not nested: {more} entries removed at the denser end are kept at the "
                "sparser one; freeze the layer weights at one sparsity and make both masks with them"
            )


def bracket(model: nn.Module, denser: Masks, sparser: Masks) -> Family:
    """Every mask between two, in any order: all that keep what `sparser` keeps and remove what `denser` removes.

    Those are many more than the masks of one slider between the two positions, which are among them when the slider's
    family is nested. Raises BudgetError when the two are not nested, which names the layer: SEB weights move with
    the sparsity, so freeze them at one sparsity before making both masks.
    """
    check_nested(denser, sparser)
    outer, inner = _under(model, denser), _under(model, sparser)
    return Family(
        name="every mask between the two, in any order",
        centre={name: 0.5 * (outer[name] + inner[name]) for name in outer},
        radius={name: 0.5 * (outer[name] - inner[name]).abs() for name in outer},
    )


def sub_masks(model: nn.Module, masks: Masks) -> Family:
    """Every mask that removes some of what `masks` removes, from nothing to all of it."""
    none = {name: torch.ones_like(mask) for name, mask in masks.items()}
    family = bracket(model, none, masks)
    return Family("every sub-mask of the budget", family.centre, family.radius)


def path(model: nn.Module, pruned: Weights, start: float = 0.0, stop: float = 1.0) -> Family:
    """The weights S + θR for θ from `start` to `stop`, all layers together: θ = 0 is pruned, θ = 1 dense.

    pruned: {parameter name: S}, the parameters that change. Raises BudgetError for a name or shape that does not fit.
    """
    if not 0.0 <= start <= stop <= 1.0:
        raise BudgetError(f"a path runs from 0 to 1; got {start} to {stop}")
    dense = dict(model.named_parameters())
    for name, values in pruned.items():
        if name not in dense:
            raise BudgetError(f"'{name}' names no parameter of the model; {nearest(name, dense)}")
        if values.shape != dense[name].shape:
            raise BudgetError(
                f"{name} has shape {tuple(values.shape)} in one network and {tuple(dense[name].shape)} in the other; "
                "compare two states of one architecture"
            )
    middle, half = 0.5 * (start + stop), 0.5 * (stop - start)
    step = {name: dense[name].detach().double() - values.detach().double() for name, values in pruned.items()}
    return Family(
        name=f"every θ from {start:g} to {stop:g} of the path",
        centre={name: pruned[name].detach().double() + middle * step[name] for name in step},
        direction=step,
        half=half,
    )


def ball(radius: float, weights: Weights | None = None) -> Family:
    """Every input within `radius` of the given ones in every coordinate (ℓ∞), for one network."""
    if not radius >= 0.0:
        raise BudgetError(f"the radius of an input ball is not negative; got {radius}")
    return Family(f"every input within ±{radius:g}", {k: v.double() for k, v in (weights or {}).items()}, ball=radius)
