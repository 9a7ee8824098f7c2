"""The measured tier: margins of the dense network against the change that pruning made to its logits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mpviz.errors import DataError


@dataclass(frozen=True, eq=False)
class TierResult:
    """What one tier says about the same samples.

    name: "path", "bracket", …; tier: how it is known ("bound", "population"); about: the set, or the population, in
    words. certified: Bool["n"] and lower: Float64["n"], the least margin over the set, for bounds; rounding:
    Float64["n"], by how much arithmetic lowered it. low, high: limits of a share of the population. why: for what
    reason nothing is proved, "" where something is.
    """

    name: str
    tier: str
    about: str
    certified: np.ndarray | None = None
    lower: np.ndarray | None = None
    rounding: np.ndarray | None = None
    low: float = math.nan
    high: float = math.nan
    why: str = ""

    @property
    def coverage(self) -> float:
        """Share of samples that are certified; NaN where nothing is proved: that is not 0 %."""
        return math.nan if self.certified is None else float(self.certified.mean())


@dataclass(frozen=True, eq=False)
class Certificate:
    """Per sample, Float64["n"] or Bool["n"], in the order of `indices`.

    margin: top dense logit minus the runner-up. eta: ‖z_pruned − z_dense‖∞. certified: margin > 2·eta, so that the
    predicted label cannot have changed. changed: the predicted label did change. slack: 2·eta minus what the margin
    lost, never negative. tier: how these numbers are known. tiers: what other tiers say, by name.
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
    tiers: Mapping[str, TierResult] = field(default_factory=dict)

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
        """Samples that a tier certifies and that changed all the same; any but 0 disproves a certificate.

        The pruned network belongs to the set of every bound, so each of them is put to the test here.
        """
        claims = [self.certified, *(t.certified for t in self.tiers.values() if t.certified is not None)]
        return int((np.logical_or.reduce(claims) & self.changed).sum())

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
        """One row a sample: index in the split, label, both predictions, margin, eta, certified, changed, slack.

        A column more for each proved tier, named by it: the least margin over its set.
        """
        columns = ("labels", "dense_prediction", "pruned_prediction", "margin", "eta", "certified", "changed", "slack")
        values = {name: getattr(self, name) for name in columns}
        values |= {name: tier.lower for name, tier in self.tiers.items() if tier.lower is not None}
        return pd.DataFrame(values, index=pd.Index(self.indices, name="sample"))


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
