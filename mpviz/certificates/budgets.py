"""The data-path budget of a layer, B_T(R) = (2/|T|) Σ_x L_x‖Rψ₁(x)‖∞, with constants that are proved.

A = S + R is the layer's weight, R what pruning takes, ψ₁(x) what enters the layer. All is computed in float64, on a
float64 copy of the network: statements are about the network as a function, with ψ₁(x) as float64 gives it and the
rounding of what follows added to each bound. The same network run in float32 differs by float32's own rounding.
Source: arXiv:2606.02608, which left L_x open.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mpviz.certificates.layer_input import Masks, check_images, float64_copy, layer_module, record, removed_part
from mpviz.certificates.lipschitz import finite, global_lipschitz, tail_jacobian
from mpviz.certificates.objective import LayerTerm, Penalty
from mpviz.errors import BudgetError, Cancelled, DataError, MpvizError, nearest
from mpviz.nets.graph import trace

LIPSCHITZ = ("segment", "norms")
PROXY_LABEL = "paper's proxy, not a bound"


@dataclass(frozen=True, eq=False)
class DataPathBudget:
    """The budget of one layer on some samples; Float64["n"] each.

    before: layers that were already pruned. method: where `lipschitz` comes from: "segment" (interval Jacobian over the
    path), "norms" (product of norms, valid everywhere) or "given", whose tier is "estimate", as nobody checked it.
    eta: lipschitz · moved, so ‖z(A_θ) − z(A)‖∞ ≤ (1 − θ)·eta. eta_measured: ‖z_S − z_A‖∞, which no valid eta can
    be below.
    row_sums, row_lengths: ‖R‖∞‖ψ₁‖∞ and max_i‖R_i‖₂·‖ψ₁‖₂, coarser bounds of `moved`. proxy: ‖R‖₂ · mean ‖ψ₁‖∞, the
    paper's proxy, not a bound. perfect: R meets only zeros in all samples: nothing changes at all.
    """

    weight: str
    before: tuple[str, ...]
    method: str
    lipschitz: np.ndarray
    moved: np.ndarray
    eta: np.ndarray
    eta_measured: np.ndarray
    row_sums: np.ndarray
    row_lengths: np.ndarray
    proxy: float
    perfect: bool
    tier: str = "bound"

    @property
    def budget(self) -> float:
        """B_T(R) = 2 · mean eta: the cross-entropy moves by no more on these samples."""
        return 2.0 * float(self.eta.mean())

    @property
    def least_budget(self) -> float:
        """2 · mean measured eta: no Lipschitz constant, however sharp, gives a smaller budget."""
        return 2.0 * float(self.eta_measured.mean())

    @property
    def slack(self) -> np.ndarray:
        """Float64["n"]: eta − eta_measured, at least 0."""
        return self.eta - self.eta_measured

    def certified(self, margin: np.ndarray) -> np.ndarray:
        """Bool["n"]: the label cannot change anywhere on the path, as margin > 2 eta. margin: of the network with A."""
        if np.shape(margin) != self.eta.shape:
            raise DataError(
                f"margins of shape {np.shape(margin)} do not fit {len(self.eta)} samples; give one a sample"
            )
        return np.asarray(margin) > 2.0 * self.eta

    def term(self, gain: float) -> LayerTerm:
        """This layer as a term of an ordered certificate. gain: what the penalties fall by, `Penalty.of(R)`."""
        return LayerTerm(self.weight, self.budget, float(self.eta.mean()), gain, self.before)


@torch.no_grad()
def data_path_budget(
    model: nn.Module,
    weight: str,
    removed: Tensor,
    images: Tensor,
    lipschitz: str | Tensor = "segment",
    before: Masks | None = None,
    batch: int = 16,
    pieces: int = 4,
) -> DataPathBudget:
    """B_T(R) of one layer with a valid constant per sample.

    removed: R, a mask's (`removed_part`) or any other. lipschitz: "segment", sharp, for ReLU networks; "norms", valid
    everywhere, for teaching; or L_x that you can prove, Float["n"]. before: masks of layers that are pruned already.
    pieces: into how many the path is cut for "segment"; more are sharper and cost in proportion.
    A given constant that a measurement refutes is refused; one that it does not refute remains an estimate.

    Proof sketch. On A_θ = S + θR the layer's output moves by (1 − θ)Rψ₁(x) from the dense one, inside the segment on
    which L_x holds (the largest of its pieces: along a straight path lengths add), so the logits move by at most
    (1 − θ)L_x‖Rψ₁(x)‖∞ = (1 − θ)η_x; the cross-entropy is 2-Lipschitz in them.
    """
    images = check_images(images, model)
    network = float64_copy(model, before)
    if before and weight in before:
        raise BudgetError(f"{weight} is among the layers that were pruned before; leave it out of `before`")
    removed = removed.detach().double().to(images.device)
    entering = record(network, weight, removed, images, batch)
    constants, method = _constants(network, weight, removed, images, lipschitz, batch, _pieces(pieces))
    measured = _measured(network, weight, removed, images, batch)
    eta = constants * entering.moved
    if method == "given" and (eta * (1 + 1e-9) + 1e-12 < measured).any():
        worst = int(np.argmax(measured - eta))
        raise DataError(
            f"the given constants are refuted: sample {worst} moved by {measured[worst]:.6g}, L·‖Rψ‖∞ allows "
            f"{eta[worst]:.6g}; use lipschitz='segment'"
        )
    matrix = removed.flatten(1)
    return DataPathBudget(
        weight=weight,
        before=tuple(before or ()),
        method=method,
        lipschitz=constants,
        moved=entering.moved,
        eta=eta,
        eta_measured=measured,
        row_sums=float(matrix.abs().sum(1).amax()) * entering.largest,
        row_lengths=float(matrix.norm(dim=1).amax()) * entering.lengths.max(axis=1),
        proxy=float(torch.linalg.matrix_norm(matrix, 2)) * float(entering.largest.mean()),
        perfect=bool(entering.untouched.all()),
        tier="estimate" if method == "given" else "bound",
    )


def ordered_budgets(
    model: nn.Module,
    masks: Masks,
    images: Tensor,
    lipschitz: str = "segment",
    order: Sequence[str] | None = None,
    batch: int = 16,
    pieces: int = 4,
    progress: Callable[[float, str], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> list[DataPathBudget]:
    """The budget of each layer in the network in which the earlier layers are already pruned; they add up.

    order: names in which the layers are pruned, that of `masks` when None. Any order is sound. progress is told after
    each layer. Raises Cancelled when asked to stop.
    """
    names = list(masks) if order is None else list(order)
    if sorted(names) != sorted(masks):
        raise BudgetError("the order does not name each masked layer once; give the keys of the masks")
    budgets, before = [], dict[str, Tensor]()
    for name in names:
        if cancelled is not None and cancelled():
            raise Cancelled("the budgets were cancelled")
        removed = removed_part(model, name, masks[name])
        budgets.append(data_path_budget(model, name, removed, images, lipschitz, dict(before), batch, pieces))
        before[name] = masks[name]
        if progress is not None:
            progress(len(before) / len(names), name)
    return budgets


def gain_of(model: nn.Module, weight: str, mask: Tensor, penalty: Penalty) -> float:
    """λ₂‖R‖_F² + λ₁‖R‖₁ of what the mask removes."""
    return penalty.of(removed_part(model, weight, mask))


@torch.no_grad()
def segment_change(
    model: nn.Module,
    weight: str,
    removed: Tensor,
    images: Tensor,
    labels: Tensor,
    before: Masks | None = None,
    batch: int = 16,
    pieces: int = 4,
) -> tuple[Tensor, Tensor]:
    """Bounds of the change of z_j − z_label when R is removed, (fall, rise), Float64["n classes"], 0 at the label.

    For `cross_entropy.softmax_bound`: sharper than eta, as direction and difference are kept instead of norms.
    Proof sketch: `tail_jacobian` with the rows e_j − e_label, applied to the step −Rψ₁(x) piece by piece: what happens
    along the path is the sum of what happens along its pieces.
    """
    images = check_images(images, model)
    if len(labels) != len(images):
        raise DataError(f"{len(labels)} labels do not fit {len(images)} samples; give one a sample")
    network, removed = trace(float64_copy(model, before)), removed.detach().double().to(images.device)
    falls, rises = [], []
    for start in range(0, len(images), batch):
        x, y = images[start : start + batch], labels[start : start + batch].long().to(images.device)
        classes = network.model(x).shape[1]
        if not (0 <= int(y.min()) and int(y.max()) < classes):
            raise DataError(f"labels run from {int(y.min())} to {int(y.max())}, the network has {classes} classes")
        eye = torch.eye(classes, dtype=torch.float64, device=x.device)
        seeds = eye[None] - eye[y][:, None]
        parts = [tail_jacobian(network, weight, removed, x, seeds, piece).change() for piece in _pieces(pieces)]
        low, high = (torch.stack(part).sum(0) for part in zip(*parts, strict=True))
        room = 4 * pieces * 2.0**-53 * torch.stack([a.abs() + b.abs() for a, b in parts]).sum(0)
        low, high = low - room, high + room
        own = torch.nn.functional.one_hot(y, classes).bool()
        falls.append(low.masked_fill(own, 0.0).cpu())
        rises.append(high.masked_fill(own, 0.0).cpu())
    return torch.cat(falls), torch.cat(rises)


def _pieces(count: int) -> list[tuple[float, float]]:
    if count < 1:
        raise MpvizError(f"a path in {count} pieces; cut it into 1 at least")
    return [(k / count, (k + 1) / count) for k in range(count)]


def _constants(
    network: nn.Module,
    weight: str,
    removed: Tensor,
    images: Tensor,
    lipschitz: str | Tensor,
    batch: int,
    pieces: Sequence[tuple[float, float]],
) -> tuple[np.ndarray, str]:
    if isinstance(lipschitz, str):
        if lipschitz not in LIPSCHITZ:
            raise MpvizError(f"unknown Lipschitz constants '{lipschitz}'; {nearest(lipschitz, LIPSCHITZ)}")
        graph = trace(network)
        if lipschitz == "norms":
            return np.full(len(images), finite(global_lipschitz(graph, weight))), "norms"
        parts = []
        for start in range(0, len(images), batch):
            x = images[start : start + batch]
            each = [tail_jacobian(graph, weight, removed, x, None, piece).lipschitz() for piece in pieces]
            parts.append(torch.stack(each).amax(0).cpu())
        return torch.cat(parts).numpy(), "segment"
    values = torch.as_tensor(lipschitz).detach().double().cpu().numpy()
    if values.shape != (len(images),) or not (np.isfinite(values) & (values >= 0)).all():
        raise DataError(f"Lipschitz constants of shape {values.shape}; give {len(images)} finite ones, at least 0")
    return values, "given"


def _measured(network: nn.Module, weight: str, removed: Tensor, images: Tensor, batch: int) -> np.ndarray:
    """‖z_S − z_A‖∞ per sample; the network is a copy of our own, and gets its weight back."""
    parameter = layer_module(network, weight).weight
    parts: list[list[Tensor]] = [[], []]
    kept = parameter.detach() - removed.to(parameter)
    dense = parameter.detach().clone()
    for values, part in zip((dense, kept), parts, strict=True):
        parameter.copy_(values)
        part.extend(network(images[start : start + batch]).cpu() for start in range(0, len(images), batch))
    parameter.copy_(dense)
    before, after = (torch.cat(part) for part in parts)
    if not (torch.isfinite(before).all() and torch.isfinite(after).all()):
        raise DataError("the network gives NaN or infinite logits; nothing can be measured")
    return (after - before).abs().amax(1).numpy()
