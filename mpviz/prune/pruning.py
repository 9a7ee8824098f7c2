"""What every pruning method takes and gives: a mask for each layer, new weights where it makes any, and its log."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from mpviz.errors import BudgetError, Cancelled
from mpviz.nets.calibrate import Moments
from mpviz.nets.factors import of_factors, ranks_of, replace_layer, splits
from mpviz.nets.forward import masked_parameters
from mpviz.nets.layers import list_layers, weight_of
from mpviz.prune.masks import Ranking


def _go_on() -> bool:
    return False


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a method may need beside network and sparsity.

    table: of `mp.analyze`, for methods that look at spectra. calibration: second moments of the layers' inputs, for
    those that look at data. seed: for those that draw.
    """

    table: pd.DataFrame | None = None
    calibration: Mapping[str, Moments] | None = None
    seed: int = 0
    cancelled: Callable[[], bool] = _go_on

    def check(self) -> None:
        """Raises Cancelled when asked to stop."""
        if self.cancelled():
            raise Cancelled("pruning was cancelled; the network is as it was")

    def spectra(self, method: str, model: nn.Module) -> pd.DataFrame:
        """The table. Raises BudgetError when there is none, or it lacks a prunable layer of this network."""
        if not isinstance(self.table, pd.DataFrame):
            raise BudgetError(f"the method '{method}' looks at spectra; give table=mp.analyze(model)")
        for info in list_layers(model):
            known = info.name in self.table.index
            if info.prunable and not (known and self.table.loc[info.name].get("params", info.params) == info.params):
                raise BudgetError(
                    f"the table has no row for {info.name}, or one of another size; give table=mp.analyze(model)"
                )
        return self.table

    def moments(self, method: str, names: list[str]) -> Mapping[str, Moments]:
        """The second moments of these layers' inputs. Raises BudgetError when one is missing."""
        known = self.calibration or {}
        if not isinstance(known, Mapping):
            raise BudgetError(
                f"calibration is a {type(known).__name__}; give mp.second_moments(model, data.calibration)"
            )
        missing = [name for name in names if name not in known]
        if missing:
            raise BudgetError(
                f"the method '{method}' looks at the inputs of {missing[0]}; "
                "give calibration=second_moments(model, data.calibration)"
            )
        return known


@dataclass(frozen=True, eq=False)
class Pruning:
    """What a method decided.

    masks: {parameter name: Bool like it, True = kept}, one for each prunable layer. values: {name: Float like it}, the
    new values of parameters and buffers that a method changes, zero where removed; empty where what is kept keeps its
    value. factors: {parameter name: (Float["out r"], Float["r in"])} of methods that store two factors where these are
    smaller, before small entries were removed. log: one row a step and layer: step, layer, role, params, removed,
    sparsity, and what the step went by. certificates: what was measured of the network on samples, by phase (of
    `mpviz.certificates`): "pruned", as the last step pruned it, and "recovered", after the training that followed;
    empty where no samples were given.
    """

    method: str
    options: Mapping[str, Any]
    sparsity: float
    masks: Mapping[str, Tensor]
    log: pd.DataFrame
    values: Mapping[str, Tensor] = field(default_factory=dict)
    factors: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    certificates: Mapping[str, Any] = field(default_factory=dict)

    @property
    def removed(self) -> int:
        """Entries that are removed."""
        return sum(int((~mask).sum()) for mask in self.masks.values())

    def of(self, model: nn.Module, factored: bool = False) -> nn.Module:
        """A pruned copy of the model. Raises BudgetError when masks or values do not fit it.

        factored: layers whose two `factors` hold fewer numbers than their weight become two layers
        (`mpviz.nets.factors`), as they were before small entries were removed; the others are as without.
        """
        pruned = copy.deepcopy(model)
        parameters = dict(pruned.named_parameters())
        tensors = parameters | dict(pruned.named_buffers())
        with torch.no_grad():
            for name, values in self.values.items():
                if name not in tensors or tensors[name].shape != values.shape:
                    raise BudgetError(f"the new values of {name} do not fit this model; prune the model at hand")
                tensors[name].copy_(values)
            for name, values in masked_parameters(pruned, self.masks).items():
                parameters[name].copy_(values)
        for name, (left, right) in (self.factors if factored else {}).items():
            layer, _, kind = name.rpartition(".")
            if kind == "weight" and splits(pruned.get_submodule(layer)):
                replace_layer(pruned, layer, of_factors(pruned.get_submodule(layer), left, right))
        return pruned

    def masks_in(self, network: nn.Module) -> dict[str, Tensor]:
        """The masks that hold in a copy of `of`, by the names of its parameters.

        Those of the layers that are whole in it, and of those that are two the zeros of their factors.
        """
        masks = dict(self.masks)
        for name in ranks_of(network):
            if masks.pop(f"{name}.weight", None) is not None:
                for part in ("first", "second"):
                    factor = network.get_parameter(f"{name}.{part}.weight").detach()
                    masks[f"{name}.{part}.weight"] = (factor != 0).cpu()
        return masks


class Method(Protocol):
    """A method of pruning: a frozen dataclass of its options."""

    def prune(self, model: nn.Module, sparsity: float, inputs: Inputs) -> Pruning:
        """What goes at this sparsity. The model is left as it is."""
        ...


def log_of(
    step: str, ranking: Ranking, masks: Mapping[str, Tensor], roles: Mapping[str, str], **more: Mapping[str, float]
) -> pd.DataFrame:
    """One row a layer. more: columns of what the step went by, {layer: number}."""
    rows = []
    for name, size in zip(ranking.names, ranking.sizes.tolist(), strict=True):
        gone = int((~masks[name]).sum())
        row = {"step": step, "layer": name, "role": roles.get(name, ""), "params": size, "removed": gone,
               "sparsity": gone / size}  # fmt: skip
        rows.append(row | {key: values.get(name, float("nan")) for key, values in more.items()})
    return pd.DataFrame(rows)


def smallest(scores: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Masks that remove the `count` entries of least score over all layers; ties by layer order, then index.

    scores: {parameter name: Float like it}. Raises BudgetError for scores that are not finite, or more than there are.
    """
    flat = torch.cat([values.detach().double().flatten().cpu() for values in scores.values()])
    if not torch.isfinite(flat).all():
        bad = next(name for name, values in scores.items() if not torch.isfinite(values).all())
        raise BudgetError(f"the scores of {bad} hold NaN or infinite values; look at its weights and calibration")
    if not 0 <= count <= len(flat):
        raise BudgetError(f"{count} entries cannot be removed from {len(flat)}")
    keep = torch.ones(len(flat), dtype=torch.bool)
    if count:  # a partition, not a sort: that of hundreds of millions of scores takes their memory three times
        limit = float(np.partition(flat.numpy(), count - 1)[count - 1])
        torch.ge(flat, limit, out=keep)
        ties = (flat == limit).nonzero().flatten()
        keep[ties[: count - int((~keep).sum())]] = False
    parts = keep.split([values.numel() for values in scores.values()])
    return {name: part.reshape(scores[name].shape) for name, part in zip(scores, parts, strict=True)}


def weights_of(model: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """The weights of these layers, detached."""
    return {name: weight_of(model, name) for name in names}
