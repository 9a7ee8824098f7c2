"""Global magnitude masks with layer weights, exact to one entry, and putting masks on and off a model."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from mpviz.errors import BudgetError, nearest
from mpviz.nets.forward import masked_parameters
from mpviz.nets.layers import list_layers, weight_of
from mpviz.prune.allocate import check_sparsity


class Ranking:
    """Each prunable layer's entries sorted by magnitude, once; every budget after that is a look-up.

    Within a layer the order does not depend on the layer's weight, so a mask is told by how many entries it removes
    from each layer. Raises BudgetError for a model without prunable layers or with weights that are not finite.
    """

    def __init__(self, model: nn.Module) -> None:
        layers = [info for info in list_layers(model) if info.prunable]
        if not layers:
            raise BudgetError(f"{type(model).__name__} has no prunable layer; `mp.analyze` says why for each")
        self.names = [info.name for info in layers]
        self.shapes = {info.name: tuple(weight_of(model, info.name).shape) for info in layers}
        self._sorted: list[np.ndarray] = []
        self._order: dict[str, Tensor] = {}
        for name in self.names:
            magnitudes = weight_of(model, name).abs().double().cpu().reshape(-1)
            if not torch.isfinite(magnitudes).all():
                raise BudgetError(f"{name} has NaN or infinite weights; load the model again or repair them")
            # stable: equal magnitudes keep the order of their index
            values, order = torch.sort(magnitudes, stable=True)
            self._sorted.append(values.numpy())
            self._order[name] = order
        self.sizes = np.array([len(values) for values in self._sorted])

    @property
    def total(self) -> int:
        """Number of prunable entries."""
        return int(self.sizes.sum())

    def counts(self, sparsity: float, weights: Mapping[str, float] | pd.Series | None = None) -> dict[str, int]:
        """Entries removed from each layer when the round(s·total) smallest |W|/w go.

        weights: {parameter name: w}, 0.0 for a locked layer; layers not named have weight 1. Ties are broken by layer
        order, then index. Raises BudgetError when the unlocked layers hold fewer entries than must go.
        """
        target = round(check_sparsity(sparsity) * self.total)
        factors = self._factors(weights)
        open_layers = np.flatnonzero(factors > 0)
        available = int(self.sizes[open_layers].sum())
        if target > available:
            wanted, there = (f"{number:,}".replace(",", "\u202f") for number in (target, available))  # thin spaces
            raise BudgetError(
                f"sparsity {sparsity:.6g} removes {wanted} entries but the unlocked layers hold {there}; "
                "unlock a layer or lower the sparsity"
            )
        removed = np.zeros(len(self.names), dtype=int)
        removed[open_layers] = _smallest([self._sorted[i] for i in open_layers], factors[open_layers], target)
        return dict(zip(self.names, removed.tolist(), strict=True))

    def _factors(self, weights: Mapping[str, float] | pd.Series | None) -> np.ndarray:
        given = {} if weights is None else {str(name): float(w) for name, w in weights.items()}
        for name, weight in given.items():
            if name not in self._order:
                raise BudgetError(f"'{name}' is no prunable layer of this model; {nearest(name, self.names)}")
            if not (np.isfinite(weight) and weight >= 0):
                raise BudgetError(f"the weight of {name} is {weight}; give a finite number, 0 locks the layer")
        return np.array([given.get(name, 1.0) for name in self.names])

    def masks(self, counts: Mapping[str, int]) -> dict[str, Tensor]:
        """The masks that remove `counts[name]` smallest entries of each layer; True = kept."""
        masks = {}
        for name in self.names:
            flat = torch.ones(len(self._order[name]), dtype=torch.bool)
            flat[self._order[name][: counts[name]]] = False
            masks[name] = flat.reshape(self.shapes[name])
        return masks


def _smallest(layers: list[np.ndarray], factors: np.ndarray, target: int) -> np.ndarray:
    """How many of the `target` smallest keys value/factor lie in each sorted layer."""
    if target == 0:
        return np.zeros(len(layers), dtype=int)
    sizes = np.array([len(values) for values in layers])
    low, high = 0.0, max(values[-1] / w for values, w in zip(layers, factors, strict=True))

    def below(key: float) -> np.ndarray:  # entries surely below the key, up to rounding of key·w
        return np.array([np.searchsorted(v, key * w) for v, w in zip(layers, factors, strict=True)])

    lower, upper = np.zeros(len(layers), dtype=int), sizes
    for _ in range(60):
        middle = 0.5 * (low + high)
        counts = below(middle)
        if counts.sum() <= target:
            low, lower = middle, counts
        else:
            high, upper = middle, counts
        if upper.sum() - lower.sum() <= 256:
            break
    return _settle(layers, factors, target, low * (1 - 1e-12), high * (1 + 1e-12))


def _settle(layers: list[np.ndarray], factors: np.ndarray, target: int, low: float, high: float) -> np.ndarray:
    """The exact answer among the few keys in [low, high]: by key, then layer, then position."""
    starts = np.array([np.searchsorted(v, low * w, "left") for v, w in zip(layers, factors, strict=True)])
    stops = np.array([np.searchsorted(v, high * w, "right") for v, w in zip(layers, factors, strict=True)])
    keys = np.concatenate([v[a:b] / w for v, w, a, b in zip(layers, factors, starts, stops, strict=True)])
    owners = np.repeat(np.arange(len(layers)), stops - starts)
    # a stable sort keeps layer order, and position within a layer, among equal keys
    chosen = owners[np.argsort(keys, kind="stable")[: target - int(starts.sum())]]
    return starts + np.bincount(chosen, minlength=len(layers))


def magnitude_masks(
    model: nn.Module, sparsity: float, weights: Mapping[str, float] | pd.Series | None = None
) -> dict[str, Tensor]:
    """Masks that remove exactly round(s·n) of the n prunable entries: those of smallest |W|/w over all layers.

    weights: SEB weights of `mp.allocate`, 1 for all when None (plain global magnitude pruning); 0.0 locks a layer.
    Returns {parameter name: bool tensor shaped like it, True = kept}. Ties: layer order, then index.
    Raises BudgetError for a sparsity outside [0, 1), unknown layers, or too many locked ones.
    """
    ranking = Ranking(model)
    return ranking.masks(ranking.counts(sparsity, weights))


# what is on each model, the latest last
_applied: WeakKeyDictionary[nn.Module, list[AppliedMasks]] = WeakKeyDictionary()


class AppliedMasks:
    """Masks that are on a model; leaving the `with` block or `.remove()` brings every removed weight back."""

    def __init__(self, model: nn.Module, dense: dict[str, Tensor]) -> None:
        self.model = model
        self._dense = dense
        self._on = True
        _applied.setdefault(model, []).append(self)

    @torch.no_grad()
    def remove(self) -> None:
        """Restore the weights as they were, bit by bit. A second call does nothing.

        Raises BudgetError when other masks were put on later: they must come off first.
        """
        if not self._on:
            return
        if _applied[self.model][-1] is not self:
            raise BudgetError("other masks were put on this model later; take those off first")
        _applied[self.model].pop()
        parameters = dict(self.model.named_parameters())
        for name, values in self._dense.items():
            parameters[name].copy_(values)
        self._dense, self._on = {}, False

    def __enter__(self) -> nn.Module:
        return self.model

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


@torch.no_grad()
def apply_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> AppliedMasks:
    """Set the removed weights of `model` to zero, in place, until the masks are taken off again.

    Usable as ``with mp.apply_masks(model, masks) as pruned:`` or kept for its ``.remove()``.
    Raises BudgetError for masks that do not fit; the model is then untouched.
    """
    masked = masked_parameters(model, masks)  # all checks come before the first change
    parameters = dict(model.named_parameters())
    dense = {name: parameters[name].detach().clone() for name in masked}
    for name, values in masked.items():
        parameters[name].copy_(values)
    return AppliedMasks(model, dense)
