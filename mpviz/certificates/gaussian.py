"""The gaussian tier: what holds with probability 1 − δ if the removed part of a layer is Gaussian noise.

Hypotheses, all of them the caller's: R has independent N(0, g/n) entries (n rows, m columns; g = n × the variance of
an entry, e.g. n·σ̂² of a bulk fit); the samples' inputs v_x = ψ₁(x) and the constants L_x do not depend on R.
The second excludes Lipschitz constants taken over the segment {A_θψ₁(x)}, which R moves: only constants of the part of
the network behind the layer that hold everywhere, such as products of norms, may be used. On trained networks R is what
a mask removed and not Gaussian, so these are statements about a model of R, never about the network at hand.
Source: the Gaussian corollaries of arXiv:2606.02608.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpviz.certificates.population import check_delta
from mpviz.errors import DataError, MpvizError

Floats = NDArray[np.float64]
LIPSCHITZ_KINDS = ("global", "segment")
HYPOTHESES = (
    "the removed weights are independent N(0, g/n)",
    "they are independent of the layer's inputs",
    "they are independent of the Lipschitz constants, which hold everywhere behind the layer",
    "g is known, not estimated from the same weights",
)


@dataclass(frozen=True, eq=False)
class GaussianBudget:
    """With probability ≥ 1 − delta over R: η_x ≤ eta for all samples at once, and B_T(R) ≤ budget.

    eta: Float64["n"], L_x · size_x. size: Float64["n"], bound of ‖R v_x‖∞. budget: 2 · mean of eta. events: how many
    Gaussian numbers the union bound covers. hypotheses: what must be true for it.
    """

    delta: float
    eta: Floats
    size: Floats
    events: int
    tier: str = "gaussian"
    hypotheses: tuple[str, ...] = HYPOTHESES

    @property
    def budget(self) -> float:
        """(2/|T|) Σ_x L_x · size_x."""
        return 2.0 * float(self.eta.mean())

    def certified(self, margin: ArrayLike) -> NDArray[np.bool_]:
        """Bool["n"]: margin > 2 eta. With probability ≥ 1 − delta none of these labels changes.

        margin: Float["n"], top logit minus the runner-up, of the network with R or of the one without: on the event
        that all η hold, which does not look at margins, either implies that both predict the same label.
        """
        values = np.asarray(margin, dtype=np.float64)
        if values.shape != self.eta.shape or np.isnan(values).any():
            raise DataError(f"margins of shape {values.shape} do not fit {len(self.eta)} samples, or hold NaN")
        return values > 2.0 * self.eta


def gaussian_budget(
    norms: ArrayLike,
    lipschitz: ArrayLike | float,
    g: float,
    rows: int,
    delta: float = 0.05,
    kappa: float = 0.5,
    lipschitz_kind: str = "global",
) -> GaussianBudget:
    """B_T(R) ≤ (2/|T|) Σ_x L_x‖v_x‖₂ √((2g/n) log(2n|T|/δ)) with probability ≥ 1 − δ.

    norms: ‖v_x‖₂, Float["n"]; for a convolution of every patch it sees, Float["n patches"]. lipschitz: L_x, Float["n"]
    or one for all. g: n × the variance of an entry. rows: n, the outputs. kappa: ½ for Gaussian entries; else the
    sub-Gaussian constant of P(|R_i·v| > t) ≤ 2 exp(−κ n t² / (g‖v‖₂²)). lipschitz_kind: "segment" is refused.

    Proof sketch. Given v, each R_i·v is N(0, (g/n)‖v‖₂²), so P(|R_i·v| > t) ≤ 2 exp(−n t²/(2g‖v‖₂²)). With
    t = ‖v‖₂√((2g/n) log(2N/δ)) this is δ/N; N is the number of pairs (row, vector): n|T|, times the patches for a
    convolution, whose rows meet them all. The union bound needs no independence between the pairs. On the remaining
    event ‖R v_x‖∞ ≤ max over the patches of t for all x at once; L_x and v_x were fixed before R was drawn.
    """
    check_independent(lipschitz_kind)
    vectors, constants = _check(norms, lipschitz)
    for name, value in (("g", g), ("kappa", kappa)):
        if not (math.isfinite(value) and value >= 0) or (name == "kappa" and value == 0):
            raise MpvizError(
                f"{name} is {value}; give a finite number{' above 0' if name == 'kappa' else ', at least 0'}"
            )
    if rows < 1:
        raise MpvizError(f"a layer with {rows} rows; give the number of its outputs")
    events = int(rows) * vectors.size
    factor = math.sqrt(g / (kappa * rows) * math.log(2 * events / check_delta(delta))) * (1 + 1e-12)
    size = factor * vectors.reshape(len(vectors), -1).max(axis=1)
    return GaussianBudget(delta=float(delta), eta=constants * size, size=size, events=events)


def gaussian_budget_of_edge(
    norms: ArrayLike,
    lipschitz: ArrayLike | float,
    sigma_plus: float,
    shape: tuple[int, int],
    delta: float = 0.05,
    lipschitz_kind: str = "global",
) -> GaussianBudget:
    """The same from the upper edge: √g = σ₊ / (1 + √(m/n)), as σ₊ = √(g/n)(√n + √m).

    sigma_plus: the Marchenko–Pastur edge of R as a singular value. shape: (n, m) of R.
    """
    rows, cols = shape
    if min(rows, cols) < 1 or not (math.isfinite(sigma_plus) and sigma_plus >= 0):
        raise MpvizError(f"an edge of {sigma_plus} for a {rows} x {cols} layer; give a finite edge and its shape")
    root = sigma_plus / (1.0 + math.sqrt(cols / rows))
    return gaussian_budget(norms, lipschitz, root**2, rows, delta, lipschitz_kind=lipschitz_kind)


@dataclass(frozen=True, eq=False)
class GaussianLayer:
    """One layer of several. norms: of its inputs in the network in which the earlier layers are already pruned."""

    name: str
    norms: ArrayLike
    lipschitz: ArrayLike | float
    g: float
    rows: int
    lipschitz_kind: str = "global"


def gaussian_budget_of_layers(layers: Sequence[GaussianLayer], delta: float = 0.05) -> GaussianBudget:
    """Several layers, pruned in the order given: δ is split evenly, sizes and η add up.

    Proof sketch. Layer k's inputs come from layers 1 … k−1 without their R, and its L from the layers behind it, with
    theirs. The R are independent of one another, so given all others the one-layer statement holds with δ/K; the union
    bound adds up the failures, the triangle inequality along the steps the η. `size` is the sum of the layers' sizes.
    """
    if not layers:
        raise MpvizError("no layer was given; give one at least")
    share = check_delta(delta) / len(layers)
    parts = [
        gaussian_budget(one.norms, one.lipschitz, one.g, one.rows, share, lipschitz_kind=one.lipschitz_kind)
        for one in layers
    ]
    if len({len(part.eta) for part in parts}) > 1:
        raise DataError("the layers were given different numbers of samples; record all on the same samples")
    return GaussianBudget(
        delta=float(delta),
        eta=np.sum([part.eta for part in parts], axis=0),
        size=np.sum([part.size for part in parts], axis=0),
        events=sum(part.events for part in parts),
        hypotheses=(*HYPOTHESES, "the removed weights of different layers are independent of one another"),
    )


def check_independent(lipschitz_kind: str) -> None:
    """Refuse Lipschitz constants that depend on R."""
    if lipschitz_kind == "segment":
        raise MpvizError(
            "a Lipschitz constant of the segment between the pruned and the dense values depends on the removed "
            "weights, which the Gaussian statement does not allow; use the global product of norms"
        )
    if lipschitz_kind not in LIPSCHITZ_KINDS:
        raise MpvizError(f"unknown kind of Lipschitz constant '{lipschitz_kind}'; known: {', '.join(LIPSCHITZ_KINDS)}")


def _check(norms: ArrayLike, lipschitz: ArrayLike | float) -> tuple[Floats, Floats]:
    vectors = np.asarray(norms, dtype=np.float64)
    if vectors.ndim not in (1, 2) or vectors.size == 0:
        raise DataError(
            f"norms of shape {vectors.shape}; give one a sample, or one a sample and patch, for one at least"
        )
    constants = np.asarray(lipschitz, dtype=np.float64)
    if constants.ndim == 0:
        constants = np.full(len(vectors), float(constants))
    if constants.shape != (len(vectors),):
        raise DataError(f"{constants.shape} Lipschitz constants do not fit {len(vectors)} samples; give one a sample")
    for name, values in (("norms", vectors), ("Lipschitz constants", constants)):
        if not (np.isfinite(values) & (values >= 0)).all():
            raise DataError(f"the {name} hold NaN, infinite or negative numbers; nothing follows from them")
    return vectors, constants
