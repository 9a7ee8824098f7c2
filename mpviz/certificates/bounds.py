"""The bound tier: margins that hold for every network and input of a named set, by linear bounds with weight boxes.

Forwards, a box of deviations for every value in the network; backwards from the difference of two logits, a linear
lower bound of its deviation (the method of CROWN, Zhang et al. 2018, arXiv:1811.00866, with weights that move as well).
Both are told relative to the network at the centre of the set, which is evaluated exactly, so that a small set costs
little. Proof sketch: every rule of `boxes` and `rules` is an inequality that holds for all deviations inside the box of
its input; composing them from the logits to the inputs keeps the direction of the inequality, as positive and negative
parts of each row are bounded each from its own side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mpviz.certificates import rules
from mpviz.certificates.boxes import ROUNDOFF, State, affine
from mpviz.certificates.families import Family, Masks, Weights, bracket, check_nested, path
from mpviz.certificates.walk import Inputs, Start, forward
from mpviz.errors import Cancelled, DataError, ModelError, MpvizError
from mpviz.nets.graph import Network

ARITHMETIC = tuple(ROUNDOFF)
PROBES = 16  # positions inside a stretch at which a slider is looked at before anything is proved
_HOPELESS = 1e4  # a bound that gives this many logits away is not mended by halving its set


@dataclass(frozen=True, eq=False)
class MarginBound:
    """Per sample and class: z_target − z_class is at least `lower` for every member of the set.

    lower: Float64["n classes"], +inf at the target itself. centre: the same difference at the centre. rounding:
    Float64["n"], by how much arithmetic alone lowered the worst of a sample's bounds. name: the set.
    """

    name: str
    target: np.ndarray
    lower: np.ndarray
    centre: np.ndarray
    rounding: np.ndarray

    @property
    def margin(self) -> np.ndarray:
        """Float64["n"]: the least margin of the target over the set, at least."""
        return self.lower.min(axis=1)

    @property
    def certified(self) -> np.ndarray:
        """Bool["n"]: every member of the set predicts the target."""
        return self.margin > 0

    @property
    def coverage(self) -> float:
        """Share of samples that are certified."""
        return float(self.certified.mean())


def _rows(logits: Tensor, target: Tensor) -> Tensor:
    """The rows e_target − e_class: Float64["n classes classes"]."""
    classes = logits.shape[1]
    eye = torch.eye(classes, dtype=logits.dtype, device=logits.device)
    return eye[target][:, None] - eye[None]


def _charge(v: Tensor, cost: Tensor | None) -> Tensor:
    if cost is None:
        return v.new_zeros(v.shape[:2])
    return torch.einsum("nkf,nf->nk", v.abs().flatten(2), cost.flatten(1))


def _backward(
    network: Network, family: Family, states: dict[str, State], v: Tensor, unit: float
) -> tuple[Tensor, Tensor]:
    """A lower bound of v·(deviation of the logits), Float64["n k"], and the part of it that rounding took."""
    rows = {network.output: v}
    total, along, spent = (v.new_zeros(v.shape[:2]) for _ in range(3))
    for node in reversed(network.nodes):
        if node.name not in rows:  # nothing after it reads it, or nothing before a moving layer moves
            continue
        v = rows.pop(node.name)
        state = states[node.name]
        if node.op == "input":
            if state.low is not None and state.high is not None:
                total -= _charge(v, state.high)
            continue
        total -= _charge(v, state.cost)
        spent += _charge(v, state.rounding)
        inputs = [states[name] for name in node.inputs]
        if node.weight:
            if state.first is not None:
                along += torch.einsum("nkf,nf->nk", v.flatten(2), state.first.flatten(1))
            if inputs[0].low is None:
                continue  # nothing before this layer moves
            rule = affine(network, node, inputs[0].centre, family, unit)
            parts, constant = [rule.pull(v, inputs[0].centre.shape[1:])], torch.zeros_like(total)
        else:
            parts, constant = rules.backward(network, node, v, inputs, state)
        total = total + constant
        for name, part in zip(node.inputs, parts, strict=True):
            rows[name] = rows[name] + part if name in rows else part
    return total - family.half * along.abs(), spent


def margin_bound(
    network: Network,
    family: Family,
    images: Inputs,
    target: Tensor,
    arithmetic: str = "float64",
    batch: int = 64,
    progress: Callable[[float], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> MarginBound:
    """Least z_target − z_class over all members of `family` and the inputs of its ball.

    images: Float["n ..."]; target: Int["n"], usually the dense prediction. arithmetic: the bound holds for members
    evaluated exactly or in float64 ("float64"), or in float32 as well ("float32"), by plain sums of products in any
    order; Winograd or FFT convolutions and TF32 round otherwise and are not covered.
    Raises DataError for an empty sample set, labels outside the classes or logits that are not finite, Cancelled.
    """
    if arithmetic not in ROUNDOFF:
        raise MpvizError(f"unknown arithmetic '{arithmetic}'; give one of {', '.join(ARITHMETIC)}")
    if len(images) == 0:
        raise DataError("no samples to bound; give at least one")
    if len(images) != len(target):
        raise DataError(f"{len(images)} samples and {len(target)} targets do not fit; give one target a sample")
    outside = sorted((set(family.centre) | set(family.radius) | set(family.direction)) - set(network.weights))
    if outside:
        raise ModelError(
            f"{outside[0]} changes in this set but is no weight of {network.part}, so no bound is proved; "
            "leave it as it is in the base network, or use the measured, population and estimate tiers"
        )
    if family.ball and isinstance(images, Start):
        raise MpvizError("a ball of inputs needs the images themselves, not what a part of the network starts from")
    unit = ROUNDOFF[arithmetic]
    parts = []
    with torch.no_grad():
        for start in range(0, len(images), batch):
            if cancelled is not None and cancelled():
                raise Cancelled("the bound was cancelled")
            stop = start + batch
            parts.append(_bound_batch(network, family, images[start:stop], target[start:stop], unit))
            if progress is not None:
                progress(min(1.0, stop / len(images)))
    lower, centre, rounding = (torch.cat(columns).cpu().numpy() for columns in zip(*parts, strict=True))
    return MarginBound(family.name, target.cpu().numpy(), lower, centre, rounding)


def _bound_batch(
    network: Network, family: Family, images: Inputs, target: Tensor, unit: float
) -> tuple[Tensor, Tensor, Tensor]:
    states = forward(network, network, family, images, unit)
    logits = states[network.output].centre
    if logits.ndim != 2 or not bool(torch.isfinite(logits).all()):
        raise DataError("the network gives NaN or infinite logits, or none of shape (n, classes); nothing is proved")
    if int(target.min()) < 0 or int(target.max()) >= logits.shape[1]:
        raise DataError(
            f"targets run from {int(target.min())} to {int(target.max())}, the network has {logits.shape[1]} classes"
        )
    rows = _rows(logits, target)
    moved, spent = _backward(network, family, states, rows, unit)
    centre = torch.einsum("nkc,nc->nk", rows, logits)
    # a box may overflow where it is hopeless: nothing is proved there, which −inf says and NaN would not
    lower = torch.nan_to_num(centre + moved, nan=-torch.inf, neginf=-torch.inf)
    own = torch.nn.functional.one_hot(target, logits.shape[1]).bool()
    worst = lower.masked_fill(own, torch.inf).argmin(dim=1, keepdim=True)
    return lower.masked_fill(own, torch.inf), centre, spent.gather(1, worst).squeeze(1)


@dataclass(frozen=True)
class Options:
    """How a bound is computed. arithmetic: as for `margin_bound`; pieces: most parts that a set is cut into."""

    pieces: int = 16
    arithmetic: str = "float64"
    batch: int = 64
    progress: Callable[[float], None] | None = None
    cancelled: Callable[[], bool] | None = None

    def __post_init__(self) -> None:
        if self.pieces < 1 or self.batch < 1:
            raise MpvizError(f"pieces and batch are at least 1; got {self.pieces} and {self.batch}")


def cover(
    network: Network,
    part: Callable[[float, float], Family],
    ends: tuple[float, float],
    images: Inputs,
    target: Tensor,
    name: str,
    options: Options | None = None,
) -> MarginBound:
    """Least margin over a set with one parameter, cut in two where one part does not prove it.

    part: (from, to) → a family that holds every member between the two. Each sample's range is halved until all its
    parts are certified, or until the network in the middle of one predicts something else, a bound is hopeless, or
    the parts are a `pieces`-th of the whole. Proof: the parts cover the set, so the least of their bounds holds for
    all of it.
    """
    options = options or Options()
    lower, centre = np.full((len(images), 1), np.inf), np.zeros(0)
    rounding = np.zeros(len(images))
    smallest = (ends[1] - ends[0]) / options.pieces * (1 + 1e-9)
    todo = [(*ends, np.arange(len(images)))]
    settled = 0.0
    while todo:
        start, stop, which = todo.pop()
        bound = margin_bound(
            network, part(start, stop), images[which], target[which], options.arithmetic, options.batch,
            cancelled=options.cancelled,
        )  # fmt: skip
        if len(centre) == 0:
            lower, centre = np.full_like(bound.lower, np.inf), bound.centre
        changed = np.where(np.isinf(bound.lower) & (bound.lower > 0), np.inf, bound.centre).min(axis=1) <= 0
        far = np.where(np.isfinite(bound.lower), bound.centre - bound.lower, 0.0).max(axis=1) > _HOPELESS
        again = ~bound.certified & ~changed & ~far & (stop - start > smallest)
        lower[which[~again]] = np.minimum(lower[which[~again]], bound.lower[~again])
        rounding[which[~again]] = np.maximum(rounding[which[~again]], bound.rounding[~again])
        # a sample that is lost in one part is lost: its other parts need no work, and nothing is said of them
        lost = which[~again][lower[which[~again]].min(axis=1) <= 0]
        for _, _, rest in todo:
            lower[np.intersect1d(rest, lost)] = -np.inf
        todo = [(a, b, np.setdiff1d(rest, lost)) for a, b, rest in todo]
        todo = [entry for entry in todo if len(entry[2])]
        settled += (stop - start) * float((~again).sum())
        if again.any():
            middle = 0.5 * (start + stop)
            todo += [(middle, stop, which[again]), (start, middle, which[again])]
        if options.progress is not None:
            whole = (ends[1] - ends[0]) * len(images)
            options.progress(min(1.0, settled / whole) if whole > 0 else 1.0)
    return MarginBound(name, target.cpu().numpy(), lower, centre, rounding)


def path_bound(
    network: Network, pruned: Weights, images: Inputs, target: Tensor, options: Options | None = None
) -> MarginBound:
    """Least margin over every θ of the path S + θR from pruned to dense, all layers together."""
    return cover(
        network,
        lambda start, stop: path(network.model, pruned, start, stop),
        (0.0, 1.0),
        images,
        target,
        "every θ of the path",
        options,
    )


def slider_bound(
    network: Network,
    masks_at: Callable[[float], Masks],
    ends: tuple[float, float],
    images: Inputs,
    target: Tensor,
    options: Options | None = None,
) -> MarginBound:
    """Least margin over every position of a slider between two sparsities.

    masks_at: sparsity → masks of a nested family: layer weights frozen at one sparsity. Every mask of the family
    between two of its positions keeps what the later keeps and removes what the earlier removes, so it lies in their
    bracket. Raises BudgetError when positions are not nested, as far as they are looked at: at least 16 inside.
    """
    known: dict[float, Masks] = {}

    def at(sparsity: float) -> Masks:
        if sparsity not in known:
            known[sparsity] = masks_at(sparsity)
        return known[sparsity]

    for inner in np.linspace(*ends, PROBES + 2)[1:-1].tolist():
        check_nested(at(ends[0]), at(inner))
        check_nested(at(inner), at(ends[1]))
    return cover(
        network,
        lambda start, stop: bracket(network.model, at(start), at(stop)),
        ends,
        images,
        target,
        f"every slider position from {100 * ends[0]:.4g} % to {100 * ends[1]:.4g} %",
        options,
    )
