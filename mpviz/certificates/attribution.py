"""Which layer moved a prediction: measured by pruning the layers one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from mpviz.certificates.budgets import DataPathBudget
from mpviz.certificates.cross_entropy import check_labels, check_logits, cross_entropy
from mpviz.errors import BudgetError, Cancelled, DataError
from mpviz.nets.forward import logits

Stop = Callable[[], bool]


@dataclass(frozen=True, eq=False)
class Attribution:
    """What each layer did to each sample, when the layers are pruned in `order`. All measured, Float64.

    layers: parameter names, in the order of the masks. orders: one order, or two whose effects were averaged.
    margin: ["n layers"], signed change of z_a − z_b, a and b the dense top two; rows sum to `margin_change`.
    step: ["n layers"], ‖change of the logits‖∞ of that step; rows sum to no less than `eta`.
    loss: ["layers"], change of the mean cross-entropy, nan without labels; it sums to `loss_change`.
    dense_margin, margin_change, eta: ["n"], z_a − z_b of the dense network, its change, ‖z_pruned − z_dense‖∞.
    """

    layers: tuple[str, ...]
    orders: tuple[tuple[str, ...], ...]
    margin: np.ndarray
    step: np.ndarray
    loss: np.ndarray
    dense_margin: np.ndarray
    margin_change: np.ndarray
    eta: np.ndarray
    loss_change: float
    tier: str = "measured"

    @property
    def least_budget(self) -> np.ndarray:
        """Float64["layers"]: 2 · mean step; no valid B_T of that step of the order can be smaller."""
        return 2.0 * self.step.mean(axis=0)

    @property
    def share(self) -> np.ndarray:
        """Float64["layers"]: each layer's part of the summed steps, an attribution of η; 0 where nothing moved."""
        total = self.step.sum()
        return self.step.sum(axis=0) / total if total > 0 else np.zeros(len(self.layers))

    def table(self, budgets: Sequence[DataPathBudget] = ()) -> pd.DataFrame:
        """One row a layer: mean_margin, mean_abs_margin, mean_step, share, least_budget, loss; with budgets B_T, too.

        budgets: of `ordered_budgets` in the same order; with two averaged orders there are none that fit.
        """
        table = pd.DataFrame(
            {
                "mean_margin": self.margin.mean(axis=0),
                "mean_abs_margin": np.abs(self.margin).mean(axis=0),
                "mean_step": self.step.mean(axis=0),
                "share": self.share,
                "least_budget": self.least_budget,
                "loss": self.loss,
            },
            index=pd.Index(self.layers, name="layer"),
        )
        if budgets:
            if [tuple(one.weight for one in budgets)] != list(self.orders):
                raise BudgetError("the budgets were taken in another order; pass the order of this attribution to them")
            by_name = {one.weight: one.budget for one in budgets}
            table["budget"] = [by_name[name] for name in self.layers]
            table["perfect"] = [next(one.perfect for one in budgets if one.weight == name) for name in self.layers]
        return table


def attribute(
    model: nn.Module,
    images: Tensor,
    masks: Mapping[str, Tensor],
    labels: Tensor | None = None,
    order: Sequence[str] | None = None,
    symmetric: bool = False,
    batch: int = 250,
    progress: Callable[[float], None] | None = None,
    cancelled: Stop | None = None,
) -> Attribution:
    """Prune the layers in turn and measure the logits after each: effects add up to the whole, exactly.

    masks: {parameter name: bool, True = kept}. order: in which layers are pruned, that of the masks when None.
    symmetric: average the order with its reverse, so that neither the first nor the last is favoured; between two
    layers this is the Shapley value, beyond two a cheap stand-in for it. One pass over the images a layer and order.

    Proof sketch. With z_k the logits after k layers, Σ_k (z_k − z_{k−1}) = z_K − z_0 telescopes, and so does any linear
    function of it, such as z_a − z_b, and the mean cross-entropy; an average of orders keeps every sum. Norms do not
    telescope: ‖z_K − z_0‖∞ ≤ Σ_k ‖z_k − z_{k−1}‖∞. Each share is that of an order, not a property of a layer alone.
    """
    names = tuple(masks)
    first = names if order is None else tuple(order)
    if not names:
        raise BudgetError("there are no masks, so there is nothing to attribute; give one at least")
    if sorted(first) != sorted(names):
        raise BudgetError("the order does not name each masked layer once; give the keys of the masks")
    orders = (first, first[::-1]) if symmetric and len(first) > 1 else (first,)
    total, done = 2 + sum(len(one) - 1 for one in orders), 0

    def run(some: Mapping[str, Tensor]) -> Tensor:
        nonlocal done
        if cancelled is not None and cancelled():
            raise Cancelled("the attribution was cancelled")
        found = check_logits(logits(model, images, some or None, batch, cancelled=cancelled), "network's")
        done += 1
        if progress is not None:
            progress(done / total)
        return found

    dense, pruned = run({}), run(masks)
    top = dense.topk(2, dim=1).indices
    known = None if labels is None else check_labels(labels, dense.shape)
    parts = [_along(run, one, names, masks, dense, pruned, top, known) for one in orders]
    margin, step, loss = (np.mean(columns, axis=0) for columns in zip(*parts, strict=True))
    gap = _gap(dense, top)
    return Attribution(
        layers=names,
        orders=orders,
        margin=margin,
        step=step,
        loss=loss,
        dense_margin=gap.numpy(),
        margin_change=(_gap(pruned, top) - gap).numpy(),
        eta=(pruned - dense).abs().amax(1).numpy(),
        loss_change=_loss(pruned, known) - _loss(dense, known),
    )


def _along(
    run: Callable[[Mapping[str, Tensor]], Tensor],
    order: Sequence[str],
    names: Sequence[str],
    masks: Mapping[str, Tensor],
    dense: Tensor,
    pruned: Tensor,
    top: Tensor,
    labels: Tensor | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Effects of one order, with columns in the order of `names`."""
    margin, step = (np.zeros((len(dense), len(names))) for _ in range(2))
    loss, before = np.zeros(len(names)), dense
    for k, name in enumerate(order, start=1):
        after = pruned if k == len(order) else run({one: masks[one] for one in order[:k]})
        column = names.index(name)
        margin[:, column] = (_gap(after, top) - _gap(before, top)).numpy()
        step[:, column] = (after - before).abs().amax(1).numpy()
        loss[column] = _loss(after, labels) - _loss(before, labels)
        before = after
    return margin, step, loss


def top_of(values: np.ndarray, count: int, largest: bool = True) -> np.ndarray:
    """Indices of the samples that a layer helped (largest) or hurt (smallest) most, from one column of `margin`."""
    if count < 1:
        raise DataError(f"asked for {count} samples; ask for one at least")
    order = np.argsort(values, kind="stable")
    return order[::-1][:count] if largest else order[:count]


def _gap(values: Tensor, top: Tensor) -> Tensor:
    """z_a − z_b, Float64["n"]."""
    pair = values.gather(1, top)
    return pair[:, 0] - pair[:, 1]


def _loss(values: Tensor, labels: Tensor | None) -> float:
    return float("nan") if labels is None else float(cross_entropy(values, labels).mean())


def zero_layers(found: Attribution) -> tuple[str, ...]:
    """Layers whose pruning moved no logit of any sample in this order: perfect pruning, as measured."""
    still = torch.from_numpy(found.step).eq(0).all(dim=0).tolist()
    return tuple(name for name, one in zip(found.layers, still, strict=True) if one)
