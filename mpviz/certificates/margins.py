"""The measured tier: margins of the dense network against the change that pruning made to its logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from mpviz.errors import DataError, MpvizError, nearest
from mpviz.nets.data import Split
from mpviz.nets.forward import logits

TIERS = ("measured",)


@dataclass(frozen=True, eq=False)
class Certificate:
    """Per sample, Float64["n"] or Bool["n"], in the order of `indices`.

    margin: top dense logit minus the runner-up. eta: ‖z_pruned − z_dense‖∞. certified: margin > 2·eta, so that the
    predicted label cannot have changed. changed: the predicted label did change. slack: 2·eta minus what the margin
    lost, never negative. tier: how these numbers are known.
    """

    tier: str
    split: str
    indices: np.ndarray
    labels: np.ndarray
    dense_prediction: np.ndarray
    pruned_prediction: np.ndarray
    margin: np.ndarray
    eta: np.ndarray
    slack: np.ndarray

    def __len__(self) -> int:
        return len(self.margin)

    @property
    def certified(self) -> np.ndarray:
        """Bool["n"]: strictly greater, since at equality the two top logits may meet."""
        return self.margin > 2 * self.eta

    @property
    def changed(self) -> np.ndarray:
        """Bool["n"]: the pruned network predicts another label than the dense one."""
        return self.dense_prediction != self.pruned_prediction

    @property
    def violations(self) -> int:
        """Samples that are certified and changed all the same; any but 0 disproves the certificate."""
        return int((self.certified & self.changed).sum())

    @property
    def coverage(self) -> float:
        """Share of samples whose prediction is certified."""
        return float(self.certified.mean())

    @property
    def unchanged(self) -> float:
        """Share of samples whose prediction is the same; never below the coverage."""
        # not 1 − the share of changes: that can round to below the coverage
        return float((self.dense_prediction == self.pruned_prediction).mean())

    @property
    def dense_accuracy(self) -> float:
        """Share of samples that the dense network gets right."""
        return float((self.dense_prediction == self.labels).mean())

    @property
    def accuracy(self) -> float:
        """Share of samples that the pruned network gets right."""
        return float((self.pruned_prediction == self.labels).mean())

    def table(self) -> pd.DataFrame:
        """One row a sample: index in the split, label, both predictions, margin, eta, certified, changed, slack."""
        columns = ("labels", "dense_prediction", "pruned_prediction", "margin", "eta", "certified", "changed", "slack")
        return pd.DataFrame(
            {name: getattr(self, name) for name in columns}, index=pd.Index(self.indices, name="sample")
        )


def top_margin(values: Tensor) -> Tensor:
    """Top logit minus the runner-up: Float64["n"] from Float["n classes"]. float64 differences of float32 are exact."""
    if values.shape[1] < 2:
        raise DataError("a margin needs two classes at least")
    top = values.double().topk(2, dim=1).values
    return top[:, 0] - top[:, 1]


def compare_logits(
    dense: Tensor, pruned: Tensor, labels: Tensor, split: str = "", indices: np.ndarray | None = None
) -> Certificate:
    """The measured certificate from logits Float["n classes"] of both networks on the same samples.

    margin > 2·‖z_pruned − z_dense‖∞ implies equal predicted labels: the runner-up gains at most eta, the top loses at
    most eta (arXiv:2606.02608, margin certificate). Raises DataError when shapes or labels do not fit or a logit is
    not finite.
    """
    if dense.shape != pruned.shape or len(dense) != len(labels):
        raise DataError(
            f"dense logits {tuple(dense.shape)}, pruned logits {tuple(pruned.shape)} and {len(labels)} labels "
            "do not fit; evaluate both networks on the same samples"
        )
    for name, values in (("dense", dense), ("pruned", pruned)):
        if not torch.isfinite(values).all():
            raise DataError(f"the {name} network gives NaN or infinite logits; no margin can be measured")
    if len(labels) and not (0 <= int(labels.min()) and int(labels.max()) < dense.shape[1]):
        raise DataError(
            f"labels run from {int(labels.min())} to {int(labels.max())}, the network has {dense.shape[1]} classes"
        )
    margin = top_margin(dense)
    eta = (pruned.double() - dense.double()).abs().amax(dim=1)
    top = dense.argmax(dim=1)
    left = pruned.double().gather(1, top[:, None]).squeeze(1)
    others = pruned.double().scatter(1, top[:, None], -torch.inf).amax(dim=1)
    return Certificate(
        tier="measured",
        split=split,
        indices=np.arange(len(labels)) if indices is None else indices,
        labels=labels.numpy(),
        dense_prediction=top.numpy(),
        pruned_prediction=pruned.argmax(dim=1).numpy(),
        margin=margin.numpy(),
        eta=eta.numpy(),
        slack=(2 * eta - (margin - (left - others))).numpy(),
    )


def certify(
    dense: nn.Module,
    pruned: nn.Module,
    split: Split,
    tiers: Sequence[str] = ("measured",),
    delta: float = 0.05,
    samples: int | None = None,
    seed: int = 0,
) -> Certificate:
    """Which predictions on `split` pruning has certainly left alone.

    tiers: only "measured" so far: this mask, these samples, exact. delta: for statements about unseen data; the
    measured tier makes none and needs none. samples: take a sample by `seed` instead of the whole split.
    Raises DataError for an empty split or logits that are not finite, MpvizError for unknown tiers.
    """
    tiers = [tiers] if isinstance(tiers, str) else list(tiers)
    for tier in tiers:
        if tier not in TIERS:
            raise MpvizError(f"unknown tier '{tier}'; {nearest(tier, TIERS)}")
    if not tiers:
        raise MpvizError("no tier was asked for; give tiers=('measured',)")
    if not 0.0 < delta < 1.0:
        raise MpvizError(f"delta is a probability of failure, between 0 and 1; got {delta}")
    images, labels = split.sample(samples, seed)
    return compare_logits(
        logits(dense, images), logits(pruned, images), labels, split.name, split.indices(samples, seed)
    )
