"""How much pruning can raise the cross-entropy: exactly, by ‖change of the logits‖∞, and weighted by the softmax.

Throughout z are the dense logits of a sample, z + d those after pruning, c its label, p = softmax(z), and
CE = log Σ_j exp(z_j − z_c), in nats. With e_j = d_j − d_c (so e_c = 0):

    CE(z + d) − CE(z) = log Σ_j p_j exp(e_j)                                                          (identity)

since Σ_j exp(z_j − z_c + e_j) / Σ_k exp(z_k − z_c) = Σ_j p_j exp(e_j).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mpviz.errors import DataError, MpvizError

ETA_KINDS = ("path", "endpoint")


@dataclass(frozen=True, eq=False)
class CrossEntropyChange:
    """Measured. dense, pruned: cross-entropy per sample in nats, Float64["n"]; change: pruned − dense."""

    dense: np.ndarray
    pruned: np.ndarray
    change: np.ndarray
    tier: str = "measured"

    @property
    def mean(self) -> float:
        """Mean change over the samples: the rise of the cross-entropy on this set."""
        return float(self.change.mean())


@dataclass(frozen=True, eq=False)
class CrossEntropyBound:
    """lower ≤ CE(pruned) − CE(dense) ≤ upper per sample, Float64["n"] in nats. method: how; tier: as its input's."""

    lower: np.ndarray
    upper: np.ndarray
    method: str
    tier: str = "bound"

    @property
    def mean_upper(self) -> float:
        """Bound of the rise of the mean cross-entropy over the samples."""
        return float(self.upper.mean())

    @property
    def mean_lower(self) -> float:
        """Lower bound of the change of the mean cross-entropy over the samples."""
        return float(self.lower.mean())


def check_logits(values: Tensor, name: str) -> Tensor:
    """Float64["n classes"]. Raises DataError for other shapes, too few classes, no samples, NaN or infinite values."""
    if values.ndim != 2:
        raise DataError(f"the {name} logits have shape {tuple(values.shape)}; give (samples, classes)")
    if len(values) == 0:
        raise DataError(f"there are no {name} logits; give one sample at least")
    if values.shape[1] < 2:
        raise DataError(f"the {name} logits have one class; a cross-entropy needs two at least")
    if not torch.isfinite(values).all():
        raise DataError(f"the {name} network gives NaN or infinite logits; nothing can be bounded")
    return values.detach().double().cpu()


def check_labels(labels: Tensor, shape: torch.Size) -> Tensor:
    """Int64["n"]. Raises DataError when there is not one label a sample, or a label outside the classes."""
    labels = torch.as_tensor(labels)
    if labels.is_floating_point() or labels.dtype == torch.bool or labels.shape != shape[:1]:
        raise DataError(f"labels of {labels.dtype} and shape {tuple(labels.shape)} do not fit {shape[0]} samples")
    if not (0 <= int(labels.min()) and int(labels.max()) < shape[1]):
        raise DataError(
            f"labels run from {int(labels.min())} to {int(labels.max())}, the network has {shape[1]} classes; "
            "give the labels of this data set"
        )
    return labels.long().cpu()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """−log softmax(z)_c per sample in nats, Float64["n"]. Equals `torch.nn.functional.cross_entropy` unreduced."""
    logits = check_logits(logits, "given")
    labels = check_labels(labels, logits.shape)
    return -torch.log_softmax(logits, dim=1).gather(1, labels[:, None]).squeeze(1)


def exact_change(dense: Tensor, pruned: Tensor, labels: Tensor) -> CrossEntropyChange:
    """What pruning did to the cross-entropy of each sample, from both networks' logits Float["n classes"].

    The change is taken from the identity above rather than as a difference, which would lose the digits of a small one.
    """
    dense, pruned = check_logits(dense, "dense"), check_logits(pruned, "pruned")
    if dense.shape != pruned.shape:
        raise DataError(
            f"dense logits {tuple(dense.shape)} and pruned logits {tuple(pruned.shape)} do not fit; "
            "evaluate two versions of one network on the same samples"
        )
    labels = check_labels(labels, dense.shape)
    change = _log_mean_exp(dense, _relative(pruned - dense, labels))
    return CrossEntropyChange(
        dense=cross_entropy(dense, labels).numpy(),
        pruned=cross_entropy(pruned, labels).numpy(),
        change=change.numpy(),
    )


def loss_path_bound(eta: Tensor, theta: float = 0.0, kind: str = "path", tier: str = "bound") -> CrossEntropyBound:
    """|CE(A_θ) − CE(A)| ≤ (1 − θ)·2η per sample, on the path A_θ = S + θR (arXiv:2606.02608).

    eta: Float["n"]. kind "path": η_x = L_x‖Rψ₁(x)‖∞ with L_x valid on the whole segment. kind "endpoint": any
    η_x ≥ ‖z(A_0) − z(A)‖∞, such as the measured one; it says nothing of what lies between, so only θ = 0 is allowed.

    Proof sketch. ‖∇_z CE‖₁ = ‖p − e_c‖₁ = 2(1 − p_c) ≤ 2, so CE is 2-Lipschitz in ‖·‖∞ of the logits. On the path
    ‖z(A_θ) − z(A)‖∞ ≤ L_x‖(1 − θ)Rψ₁(x)‖∞ = (1 − θ)η_x. The mean of 2η over the data is the budget B_T(R).

    >>> loss_path_bound(torch.tensor([0.5]), theta=0.5).upper.tolist()
    [0.5]
    """
    if kind not in ETA_KINDS:
        raise MpvizError(f"an eta is known on the 'path' or at its 'endpoint'; got '{kind}'")
    if not 0.0 <= theta <= 1.0:
        raise MpvizError(f"theta runs from 0 (all removed) to 1 (dense); got {theta}")
    if kind == "endpoint" and theta != 0.0:
        raise MpvizError(
            "the measured change of the pruned network says nothing about networks between it and the dense one; "
            "use theta=0, or an eta that is valid on the whole path"
        )
    values = check_eta(eta)
    bound = ((1.0 - theta) * 2.0 * values).numpy()
    return CrossEntropyBound(lower=-bound, upper=bound, method="2 · eta", tier=tier)


def check_eta(eta: Tensor) -> Tensor:
    """Float64["n"], at least 0; +inf where nothing is known. Raises DataError for anything else."""
    values = torch.as_tensor(eta).detach().double().cpu()
    if values.ndim != 1 or len(values) == 0:
        raise DataError(f"eta has shape {tuple(values.shape)}; give one number a sample, for one sample at least")
    if not (values >= 0).all():  # false for NaN as well
        raise DataError("eta holds NaN or negative numbers; it bounds an absolute change of the logits")
    return values


def softmax_bound(
    dense: Tensor, labels: Tensor, rise: Tensor, fall: Tensor | None = None, tier: str = "bound"
) -> CrossEntropyBound:
    """log Σ_j p_j exp(fall_j) ≤ ΔCE ≤ log Σ_j p_j exp(rise_j), from bounds of every logit relative to the label's.

    dense: logits Float["n classes"]. rise, fall: Float["n classes"] with fall_j ≤ change of (z_j − z_c) ≤ rise_j and
    0 at the label; ±inf where nothing is known. Without `fall` the lower bound is log p_c, what is left when all other
    logits sink to −∞. tier: that of rise and fall; measured changes make a measured bound.

    Proof sketch. The identity at the top holds with e_j, and its right-hand side rises with each e_j, as p_j ≥ 0.
    With rise_j = 2η for j ≠ c it is log(p_c + (1 − p_c)e^{2η}) ≤ 2η: never worse than the path bound at θ = 0.

    Arithmetic is float64, and both sides are moved outwards by 16·u·(classes + 2·max|z| + largest finite |rise|),
    u = 2⁻⁵³: twice the classical rounding bound of log-softmax and of the sum, about 1e-13 for usual logits.
    """
    logits = check_logits(dense, "dense")
    labels = check_labels(labels, logits.shape)
    up = _check_change(rise, labels, logits.shape, "rise")
    down = torch.full_like(up, -torch.inf).scatter(1, labels[:, None], 0.0)
    if fall is not None:
        down = _check_change(fall, labels, logits.shape, "fall")
        if (down > up).any():
            raise DataError("fall exceeds rise somewhere; they bound the same change from below and from above")
    return CrossEntropyBound(
        lower=(_log_mean_exp(logits, down) - rounding(logits, down)).numpy(),
        upper=(_log_mean_exp(logits, up) + rounding(logits, up)).numpy(),
        method="softmax-weighted",
        tier=tier,
    )


def softmax_bound_of_eta(dense: Tensor, labels: Tensor, eta: Tensor, tier: str = "bound") -> CrossEntropyBound:
    """`softmax_bound` from η ≥ ‖change of the logits‖∞ alone: relative to the label's each moves by at most 2η."""
    logits = check_logits(dense, "dense")
    labels = check_labels(labels, logits.shape)
    values = check_eta(eta)
    if len(values) != len(logits):
        raise DataError(f"{len(values)} etas do not fit {len(logits)} samples; give one a sample")
    rise = (2.0 * values)[:, None].repeat(1, logits.shape[1]).scatter(1, labels[:, None], 0.0)
    return softmax_bound(logits, labels, rise, -rise, tier)


def measured_change(dense: Tensor, pruned: Tensor, labels: Tensor) -> Tensor:
    """Change of z_j − z_c, Float64["n classes"], 0 at the label: the sharpest rise and fall there are, by measuring."""
    dense, pruned = check_logits(dense, "dense"), check_logits(pruned, "pruned")
    if dense.shape != pruned.shape:
        raise DataError(f"dense logits {tuple(dense.shape)} and pruned logits {tuple(pruned.shape)} do not fit")
    return _relative(pruned - dense, check_labels(labels, dense.shape))


def rounding(logits: Tensor, change: Tensor) -> Tensor:
    """Float64["n"]: by how much a softmax-weighted bound is moved outwards, in nats."""
    size = torch.where(torch.isfinite(change), change.abs(), 0.0).amax(1) + 2 * logits.abs().amax(1)
    return 16 * 2.0**-53 * (logits.shape[1] + size)


def _relative(change: Tensor, labels: Tensor) -> Tensor:
    """d_j − d_c."""
    return change - change.gather(1, labels[:, None])


def _log_mean_exp(logits: Tensor, change: Tensor) -> Tensor:
    """log Σ_j p_j exp(e_j), Float64["n"]; through expm1 where all changes are small, to keep the digits."""
    small = change.abs().amax(1) < 0.5
    p = torch.softmax(logits, dim=1)
    near = torch.log1p((p * torch.expm1(change.clamp(-0.5, 0.5))).sum(1))
    far = torch.logsumexp(torch.log_softmax(logits, dim=1) + change, dim=1)
    return torch.where(small, near, far)


def _check_change(change: Tensor, labels: Tensor, shape: torch.Size, name: str) -> Tensor:
    values = torch.as_tensor(change).detach().double().cpu()
    if values.shape != shape:
        raise DataError(f"{name} has shape {tuple(values.shape)}, the logits {tuple(shape)}; give one number a logit")
    if torch.isnan(values).any():
        raise DataError(f"{name} holds NaN; write inf where nothing is known")
    if (values.gather(1, labels[:, None]) != 0).any():
        raise DataError(f"{name} is not 0 at the label, whose change relative to itself is 0; subtract the label's")
    return values
