"""What the proofs of a plan are, as plain data that any face can draw."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

DELTA = 0.05  # chance that a statement about unseen data, or about Gaussian weights, is wrong


@dataclass(frozen=True, eq=False)
class TierCurve:
    """One tier along the slider. coverage: Float64["positions"], shares; NaN where nothing is proved: see `why`.

    tier: how it is known (measured, bound, population); about: the set or the population in words. For the population
    tier, `coverage` is the lower limit.
    """

    name: str
    tier: str
    about: str
    coverage: np.ndarray
    why: str = ""


@dataclass(frozen=True, eq=False)
class SampleView:
    """The samples one by one. index: Int["n"] in the split; label: Int["n"]; dense_top, pruned_top: Int["n 2"] classes;
    margin, pruned_margin (of the dense prediction), eta: Float64["n"]. lower: {tier: Float64["n"]}, least margin over
    the set. layers, steps: names and Float64["n layers"], change of the dense top-2 margin by each layer in turn.
    pictures: {row: UInt8["h w"] or UInt8["h w 3"]} of those that flip or nearly flip.
    """

    index: np.ndarray
    label: np.ndarray
    dense_top: np.ndarray
    pruned_top: np.ndarray
    margin: np.ndarray
    pruned_margin: np.ndarray
    eta: np.ndarray
    lower: Mapping[str, np.ndarray]
    layers: tuple[str, ...]
    steps: np.ndarray
    pictures: Mapping[int, np.ndarray]

    def __len__(self) -> int:
        return len(self.index)

    @property
    def changed(self) -> np.ndarray:
        """Bool["n"]: another prediction after pruning."""
        return self.dense_top[:, 0] != self.pruned_top[:, 0]

    @property
    def certified(self) -> np.ndarray:
        """Bool["n"], measured: margin > 2η."""
        return self.margin > 2 * self.eta


@dataclass(frozen=True, eq=False)
class CertificateView:
    """Everything the certificate figures draw. sparsity: of the plan; positions: Float64["positions"] of the curves.

    here: {tier: share at the plan itself}; about: {tier: its set in words}; why: {tier: why nothing is proved}.
    attribution: {layer: mean |change| of the top-2 margin}; eta_share: {layer: its share of the logit steps}.
    scope: the layers whose masks the bounds speak about, all others dense, and scope_why, why not all. delta: the
    population tier's chance to fail. violations: certified predictions that changed; any but 0 disproves a bound.
    """

    model: str
    split: str
    classes: tuple[str, ...]
    sparsity: float
    positions: np.ndarray
    curves: Mapping[str, TierCurve]
    here: Mapping[str, float]
    about: Mapping[str, str]
    why: Mapping[str, str]
    samples: SampleView
    attribution: Mapping[str, float]
    eta_share: Mapping[str, float]
    violations: int
    scope: str = "all layers"
    scope_why: str = ""
    delta: float = DELTA

    def summary(self) -> dict[str, Any]:
        """What is known at the plan, as JSON can hold it: {tier: its share, or why there is none}, and about what."""
        tiers: dict[str, dict[str, Any]] = {}
        for name, curve in self.curves.items():
            found: dict[str, Any] = {"tier": curve.tier, "about": self.about.get(name) or curve.about}
            share = self.here.get(name, math.nan)
            found |= {"share": share} if math.isfinite(share) else {"why": self.why.get(name) or curve.why}
            tiers[name] = found
        return {
            "sparsity": self.sparsity, "split": self.split, "samples": len(self.samples),
            "bounds_speak_about": self.scope, "because": self.scope_why, "tiers": tiers,
        }  # fmt: skip
