"""Every position of a slider, each of its masks run: an answer for any network, with no rule for any operation."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mpviz.certificates.cross_entropy import check_logits
from mpviz.errors import BudgetError, Cancelled, DataError
from mpviz.nets.forward import pruned_copy

Masks = Mapping[str, Tensor]
Step = Mapping[str, Tensor]  # layer → flat indices of the entries that go together
PROBES = 16  # positions that are always looked at, however alike both ends are
TRIALS = 3  # timed passes of an estimate


@dataclass(frozen=True, eq=False)
class EveryPosition:
    """What running every mask of a stretch has shown.

    target: Int["n"], the dense predictions. lower: Float64["n"], the least margin of them over the masks that were run;
    a sample whose margin falls to 0 is run no further. at: Float64["n"], the sparsity at which that was. masks: how
    many different ones the stretch holds; a certified sample was run under all of them. start, stop: its ends,
    sparsities. seconds: of running them, and of finding them where that was asked for as well.
    """

    target: np.ndarray
    lower: np.ndarray
    at: np.ndarray
    masks: int
    start: float
    stop: float
    seconds: float

    @property
    def certified(self) -> np.ndarray:
        """Bool["n"]: the prediction is the dense one under each of the masks; a tie of logits does not count."""
        return self.lower > 0

    @property
    def coverage(self) -> float:
        """Share of samples whose prediction no mask of the stretch changes."""
        return float(self.certified.mean())

    @property
    def about(self) -> str:
        """The set, and how it is known, in words."""
        count = f"{self.masks:,}".replace(",", "\u202f")
        return f"each of the {count} masks of the slider from {100 * self.start:.4g} % to {100 * self.stop:.4g} %, run"


@dataclass(frozen=True)
class Stretch:
    """The different masks of a stretch, in order: those at `start`, then `steps` that remove a few entries each.

    positions: the sparsity at which each step has happened.
    """

    start: float
    stop: float
    first: Masks
    steps: tuple[Step, ...]
    positions: tuple[float, ...]

    @property
    def masks(self) -> int:
        """How many different masks there are."""
        return 1 + len(self.steps)


def stretch(
    masks_at: Callable[[float], Masks],
    start: float,
    stop: float,
    cancelled: Callable[[], bool] | None = None,
) -> Stretch:
    """All different masks of a nested family between two sparsities.

    masks_at: sparsity in [0, 1) → {parameter name: Bool, True = kept}, a deterministic function; nested: what is
    removed at one position is removed at every later one, which is checked wherever the function is called. Raises
    BudgetError where it is not, which names the layer, Cancelled.

    Proof that none is left out. Let two positions a < b be known. Nested masks between them lie between those of a and
    of b, so if these are equal all are; if they differ in one entry, there are two masks, both known. Else the middle
    of a and b is looked at, and both halves, until no float lies between them: then no position is left either. (The
    rounded middle of two floats is one of them only when they are neighbours.) Where a family that is not nested
    shows this only at positions that were not looked at, it goes unnoticed: nested is the caller's promise.
    """
    _check_ends(start, stop)
    first, last = masks_at(start), masks_at(stop)
    for inner in np.linspace(start, stop, PROBES + 2)[1:-1].tolist():
        middle = masks_at(inner)
        _between(first, middle)
        _between(middle, last)
    steps, positions = [], []
    for step, position in _steps(masks_at, start, first, stop, last, cancelled):
        steps.append(step)
        positions.append(position)
    return Stretch(start, stop, first, tuple(steps), tuple(positions))


def most_masks(masks_at: Callable[[float], Masks], start: float, stop: float) -> int:
    """At most so many different masks are in a stretch: one more than the entries that go in it.

    Two looks at the family, where `stretch` takes one for each mask: for an estimate before anything starts. They are
    as many where entries go one by one. Raises BudgetError as `stretch`.
    """
    _check_ends(start, stop)
    return 1 + sum(len(indices) for indices in _between(masks_at(start), masks_at(stop)).values())


def _check_ends(start: float, stop: float) -> None:
    if not 0 <= start <= stop < 1:
        raise BudgetError(f"a stretch runs from a sparsity to a later one, both in [0, 1); got {start} to {stop}")


def _steps(
    masks_at: Callable[[float], Masks],
    a: float,
    at_a: Masks,
    b: float,
    at_b: Masks,
    cancelled: Callable[[], bool] | None,
) -> Iterator[tuple[Step, float]]:
    """What goes between two positions, one mask after the other."""
    todo = [(a, at_a, b, at_b, _between(at_a, at_b))]
    while todo:
        if cancelled is not None and cancelled():
            raise Cancelled("the search for all masks was cancelled")
        a, at_a, b, at_b, gone = todo.pop()
        size = sum(len(indices) for indices in gone.values())
        if size == 0:
            continue
        middle = 0.5 * (a + b)
        if size == 1 or not a < middle < b:
            yield gone, b
            continue
        at_middle = masks_at(middle)
        todo.append((middle, at_middle, b, at_b, _between(at_middle, at_b)))
        todo.append((a, at_a, middle, at_middle, _between(at_a, at_middle)))


def _between(denser: Masks, sparser: Masks) -> Step:
    """The entries that `sparser` removes and `denser` keeps. Raises BudgetError when one comes back."""
    if set(denser) != set(sparser):
        other = sorted(set(denser) ^ set(sparser))[0]
        raise BudgetError(f"{other} has a mask at some positions of the slider only; give the same layers everywhere")
    gone = {}
    for name, kept in denser.items():
        if kept.shape != sparser[name].shape or kept.dtype != torch.bool or sparser[name].dtype != torch.bool:
            raise BudgetError(f"the masks of {name} are no bool tensors of one shape along the slider")
        changed = kept != sparser[name]
        if bool((changed & ~kept).any()):
            raise BudgetError(
                f"the masks of {name} are not nested along the slider: an entry comes back; freeze the layer weights "
                "at one sparsity and make all masks with them"
            )
        where = changed.flatten().nonzero().flatten()
        if len(where):
            gone[name] = where
    return gone


@torch.inference_mode()
def every_position(
    model: nn.Module,
    masks_at: Callable[[float], Masks] | Stretch,
    start: float,
    stop: float,
    images: Tensor,
    target: Tensor,
    batch: int = 256,
    progress: Callable[[float], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> EveryPosition:
    """Run the network under every mask of a nested family between two sparsities, and keep each sample's least margin.

    A slider's masks change only where one more entry goes, so within one percent of P prunable entries there are at
    most P / 100 + 1 of them: few enough to run all, one entry after the other on a private copy. That settles the
    question for any network, and where bounds are loose as well. The model is left as it is.

    masks_at: the family, or what `stretch` found of it between the same ends. images: Float["n ..."]; target: Int["n"],
    the dense predictions. A statement about the network as this machine computes it, in the model's own precision and
    at these batch sizes: measured, mask by mask, not a bound in exact arithmetic. Raises BudgetError for masks that do
    not fit or are not nested, DataError for no samples or logits that are not finite, Cancelled.
    """
    if len(images) == 0 or len(images) != len(target):
        raise DataError(f"{len(images)} images and {len(target)} predictions; give one for each, and one at least")
    if isinstance(masks_at, Stretch) and (masks_at.start, masks_at.stop) != (start, stop):
        raise BudgetError(
            f"the masks are those from {masks_at.start} to {masks_at.stop}, asked about is {start} to {stop}; "
            "find the masks between the same ends"
        )
    began = time.monotonic()
    found = masks_at if isinstance(masks_at, Stretch) else stretch(masks_at, start, stop, cancelled)
    network = pruned_copy(model, found.first).eval()
    parameters = dict(network.named_parameters())
    device = next(network.parameters()).device
    images, target = images.to(device), target.to(device)
    lower = torch.full((len(images),), torch.inf, dtype=torch.float64)
    at = torch.full((len(images),), found.start, dtype=torch.float64)
    alive = torch.arange(len(images))
    for number, position in enumerate((found.start, *found.positions)):
        if cancelled is not None and cancelled():
            raise Cancelled("running every mask was cancelled")
        if number:
            for name, indices in found.steps[number - 1].items():
                weight = parameters[name]
                weight[torch.unravel_index(indices.to(device), weight.shape)] = 0
        margin = torch.cat([_margins(network, images[some], target[some]) for some in alive.split(batch)])
        less = margin < lower[alive]
        lower[alive] = torch.where(less, margin, lower[alive])
        at[alive] = torch.where(less, position, at[alive])
        alive = alive[margin > 0]
        if progress is not None:
            progress((number + 1) / found.masks)
        if not len(alive):
            break
    return EveryPosition(
        target.cpu().numpy(), lower.numpy(), at.numpy(), found.masks, found.start, found.stop, time.monotonic() - began
    )


def _margins(network: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    """Float64["n"] on the CPU: the logit of the target minus the best other."""
    z = check_logits(network(images), "pruned")
    own = z.gather(1, target[:, None].cpu())
    rival = z.scatter(1, target[:, None].cpu(), -torch.inf).amax(dim=1, keepdim=True)
    return (own - rival).squeeze(1)


@torch.inference_mode()
def seconds_for(model: nn.Module, masks: int, images: Tensor, batch: int = 256) -> float:
    """An estimate of how long running `masks` masks takes: a pass over the images, timed, times their number.

    masks: of `most_masks`, or of a `Stretch`. Too high where samples flip early; finding the masks is not in it. The
    pass is one of a private copy in eval mode, so the model is left as it is. Raises DataError for no images.
    """
    if len(images) == 0:
        raise DataError("there are no images to time a pass over; give one at least")
    network = copy.deepcopy(model).eval()
    device = next(network.parameters()).device
    times = []
    for _ in range(TRIALS):
        began = time.monotonic()
        for some in images.split(batch):
            network(some.to(device)).cpu()  # a GPU answers before it is done
        times.append(time.monotonic() - began)
    return masks * min(times)
