"""What a projection starts from: which layers, and the values that their entries would be kept with."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mpviz.errors import BudgetError, PatternError
from mpviz.nets.forward import masked_parameters
from mpviz.nets.kn_pattern import KN
from mpviz.nets.layers import FITTING, LayerInfo, list_layers, named_layers, weight_of
from mpviz.prune.pattern import units


def chosen_layers(
    model: nn.Module, pattern: KN, conv: str, layers: Sequence[str] | str | None
) -> tuple[dict[str, LayerInfo], list[dict[str, Any]]]:
    """The layers to project, and rows of the table for those that do not fit, where `layers` is "fitting".

    layers: parameter names, or roles of layers such as "mlp", for the prunable ones of that role.
    Raises PatternError for layers that cannot be projected, all of whose widths it tells.
    """
    fitting = layers in (FITTING, [FITTING])
    if fitting or layers is None:
        infos = [info for info in list_layers(model) if info.prunable]
    else:
        infos = named_layers(model, layers)
    wrong = [info for info in infos if not info.prunable]
    if wrong:
        raise PatternError(f"{wrong[0].name} cannot be projected: {wrong[0].why}")
    widths = {info.name: units(tuple(weight_of(model, info.name).shape), conv) for info in infos}
    misfits = [info for info in infos if widths[info.name] % pattern.n]
    if misfits and not fitting:
        shown = ", ".join(f"{info.name} has {widths[info.name]}" for info in misfits[:3])
        more = f" and {len(misfits) - 3} more do not fit" if len(misfits) > 3 else ""
        raise PatternError(
            f"{pattern} needs a multiple of {pattern.n} inputs; {shown}{more}; layers='fitting' leaves them dense"
        )
    chosen = {info.name: info for info in infos if info not in misfits}
    if not chosen:
        raise PatternError(f"{type(model).__name__} has no layer that {pattern} fits")
    rows = [{"layer": info.name, "role": info.role, "rows": info.rows, "cols": info.cols,
             "why": f"{widths[info.name]} inputs, no multiple of {pattern.n}"} for info in misfits]  # fmt: skip
    return chosen, rows


def source_masks_of(model: nn.Module, source: str | nn.Module, masks: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """The masks of a pruned source, none of a dense one. Raises BudgetError when the two do not go together."""
    if isinstance(source, str):
        if source != "dense":
            raise BudgetError(f"source is 'dense' or a pruned network; got '{source}'")
        if masks is not None:
            raise BudgetError("source_masks belong to a pruned network; give it as source, or leave the masks out")
        return {}
    if not masks:
        raise BudgetError("a pruned source needs its masks; give source_masks={parameter name: bool tensor}")
    masked_parameters(model, masks)  # they fit, or a sentence
    return dict(masks)


def source_network(model: nn.Module, source: str | nn.Module) -> nn.Module:
    """A copy of the network that is projected, in eval mode.

    Raises BudgetError for a source of another architecture than the model.
    """
    if isinstance(source, str):
        return copy.deepcopy(model).eval()
    shapes, theirs = ({name: tensor.shape for name, tensor in one.state_dict().items()} for one in (model, source))
    if shapes != theirs:
        raise BudgetError("the source is of another architecture than the model; give a pruned version of the model")
    return copy.deepcopy(source).eval()


def source_values(
    model: nn.Module, network: nn.Module, kept: Mapping[str, Tensor], names: Sequence[str], free: bool
) -> dict[str, Tensor]:
    """The values that entries are kept with: those of the source where its masks keep them, else the model's or 0."""
    found = {}
    for name in names:
        weight = weight_of(network, name)
        if name in kept:
            back = weight_of(model, name).to(weight) if free else torch.zeros_like(weight)
            weight = torch.where(kept[name].to(weight.device), weight, back)
        found[name] = weight
    return found
