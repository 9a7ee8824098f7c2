"""One projection at work: orders are settled, every group's mask is chosen, kept weights take over what went."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mpviz.errors import PatternError, nearest
from mpviz.nets.calibrate import BlockMoments, block_moments
from mpviz.nets.kn_pattern import KN
from mpviz.nets.layers import LayerInfo
from mpviz.prune.kn import Found, search
from mpviz.prune.orders import BEST, Choice, choices
from mpviz.prune.pattern import CONV, Layout, layout
from mpviz.prune.permute import RULES, Order
from mpviz.prune.repair import repaired

PRIORS = ("text", "code")
CRITERIA = ("cast", "wanda", "magnitude")
Tell = Callable[[float, str], None]
_JUDGED = 100  # patterns up to which orders are compared by the search that is asked for, else by swaps
_NO_ORDER = Order("none", torch.empty(0, dtype=torch.int64), 1.0)


@dataclass(frozen=True)
class Plan:
    """The settings of one projection, checked; see `project`."""

    pattern: KN
    conv: str
    permute: str
    foldable: bool
    criterion: str
    damping: float
    repair: bool
    renew: bool
    prior: str
    alpha: float
    method: str
    seed: int
    memory: int
    threads: int | None
    cancelled: Callable[[], bool] | None

    def __post_init__(self) -> None:
        named = (("permutation", self.permute, (*RULES, BEST)), ("prior", self.prior, PRIORS),
                 ("criterion", self.criterion, CRITERIA),
                 ("way to group a convolution", self.conv, CONV))  # fmt: skip
        for what, name, known in named:
            if name not in known:
                raise PatternError(f"unknown {what} '{name}'; {nearest(str(name), known)}")
        if not _at_least_0(self.alpha):
            raise PatternError(f"alpha_ser is a strength of at least 0; got {self.alpha!r}")
        if not _at_least_0(self.damping):
            raise PatternError(f"damping is a share of the mean input power, at least 0; got {self.damping!r}")
        if not _at_least_0(self.seed, numbers.Integral):
            raise PatternError(f"seed is a whole number, at least 0; got {self.seed!r}")

    def settings(self) -> dict[str, Any]:
        """What decides the outcome beside networks and images, for `Projected.settings`."""
        names = ("criterion", "damping", "permute", "foldable", "repair", "renew", "prior", "method", "seed")
        return {name: getattr(self, name) for name in names} | {"alpha_ser": self.alpha}


def _at_least_0(value: Any, kind: Any = numbers.Real) -> bool:
    """Of Python or of numpy; settings come from notebooks, whatever their types say."""
    return isinstance(value, kind) and math.isfinite(value) and value >= 0


class Told:
    """Progress in parts of one whole."""

    def __init__(self, progress: Tell | None) -> None:
        self.tell: Tell = progress or (lambda share, words: None)

    def part(self, start: float, stop: float, words: str) -> Callable[[float], None]:
        """What tells the progress of the part from `start` to `stop`."""
        return lambda share: self.tell(start + (stop - start) * share, words)


@dataclass(frozen=True, eq=False)
class Chosen:
    """A layer's mask, its new weight, zero where removed, and the numbers of its row."""

    mask: Tensor
    weight: Tensor
    numbers: dict[str, Any]


@dataclass(frozen=True)
class Job:
    """Masks for the layers of one network. values: what entries are kept with; kept: source masks."""

    network: nn.Module
    infos: Mapping[str, LayerInfo]
    values: Mapping[str, Tensor]
    kept: Mapping[str, Tensor]
    plan: Plan
    told: Told

    def run(self, images: Tensor) -> tuple[dict[str, Chosen], dict[str, Order], list[dict[str, Any]]]:
        """What is chosen, orders and rows of the table. One pass over the images, one more where orders are sought."""
        plan, told = self.plan, self.told
        streamed: dict[str, Any] = {"cancelled": plan.cancelled}
        open_: list[Choice] = []
        if plan.permute != "none":
            alone = {name: torch.empty(0, 1, dtype=torch.int64) for name in self.infos}
            tell = told.part(0.0, 0.2, "calibration")
            moments = block_moments(self.network, images, alone, progress=tell, **streamed)
            tell = told.part(0.2, 0.4, "order of inputs")
            open_ = choices(
                self.network, self.values, moments, plan.permute, plan.pattern, plan.conv, plan.foldable,
                plan.damping, plan.seed, tell, plan.cancelled,
            )  # fmt: skip
        layouts = self._layouts(open_)
        columns = {name: torch.cat([one.columns for one in some]) for name, some in layouts.items()}
        tell = told.part(0.4, 0.6, "calibration")
        found = block_moments(self.network, images, columns, progress=tell, **streamed)
        settled = self._settle(open_, layouts, found)
        chosen, orders, rows = {}, {}, []
        for i, (name, info) in enumerate(self.infos.items()):
            told.tell(0.6 + 0.4 * i / len(self.infos), name)
            at, order = settled.get(name, (0, _NO_ORDER))
            chosen[name] = self._choose(name, layouts[name][at], found[name], at, len(layouts[name]))
            numbers = chosen[name].numbers
            rows.append({"layer": name, "role": info.role, "rows": info.rows, "cols": info.cols, **numbers,
                         "order": order.rule, "permuted": order.cost, "why": ""})  # fmt: skip
            orders[name] = order
        return chosen, orders, rows

    def _layouts(self, open_: Sequence[Choice]) -> dict[str, list[Layout]]:
        """The groups of each layer under every order that it may get."""
        shapes = {name: tuple(weight.shape) for name, weight in self.values.items()}
        pattern, conv = self.plan.pattern, self.plan.conv
        found = {name: [layout(name, shape, pattern, conv)] for name, shape in shapes.items()}
        for choice in open_:
            for name in choice.readers:
                orders = [candidate[name].order for candidate in choice.candidates]
                found[name] = [layout(name, shapes[name], pattern, conv, order) for order in orders]
        return found

    def _settle(
        self, open_: Sequence[Choice], layouts: Mapping[str, list[Layout]], found: Mapping[str, BlockMoments]
    ) -> dict[str, tuple[int, Order]]:
        """Number and order of the best candidate of each layer, by its cost on the calibration images."""
        method = "local" if self.plan.pattern.count > _JUDGED else self.plan.method
        chosen: dict[str, tuple[int, Order]] = {}
        for choice in open_:
            costs = [0.0] * len(choice.candidates)
            for name in choice.readers if len(costs) > 1 else ():
                for i, (where, blocks) in enumerate(zip(layouts[name], _each(found[name], len(costs)), strict=True)):
                    cells = where.cells(self.values[name])
                    costs[i] += float(self._search(cells, blocks, None, method).cost.sum())
            best = costs.index(min(costs))
            chosen |= {name: (best, choice.candidates[best][name]) for name in choice.readers}
        return chosen

    def _search(self, cells: Tensor, blocks: Tensor, penalty: Tensor | None, method: str) -> Found:
        """The masks by the criterion, what they cost under the whole covariance, and whether that is proved least."""
        plan, seen = self.plan, blocks.to(cells.device)
        if plan.criterion == "wanda":
            seen = torch.diag_embed(seen.diagonal(dim1=1, dim2=2))
        elif plan.criterion == "magnitude":
            seen = torch.eye(plan.pattern.n, dtype=seen.dtype, device=seen.device).expand_as(seen)
        elif plan.damping:
            power = seen.diagonal(dim1=1, dim2=2).mean()
            seen = seen + plan.damping * power * torch.eye(plan.pattern.n, dtype=seen.dtype, device=seen.device)
        found = search(cells, seen, plan.pattern, penalty, method, plan.memory, plan.threads, plan.cancelled)
        if plan.criterion == "cast" and not plan.damping:
            return found
        # what was proved to be least is another cost than the one that is told
        return replace(found, cost=change(cells * ~found.masks, blocks), exact=False)

    def _choose(self, name: str, where: Layout, moments: BlockMoments, at: int, candidates: int) -> Chosen:
        weight, kept = self.values[name], self.kept.get(name)
        cells = where.cells(weight)
        blocks = _each(moments, candidates)[at].to(cells.device)
        penalty = None
        if kept is not None and self.plan.alpha > 0:
            agree = 2.0 * where.cells(kept.to(cells.device)) - 1.0  # to remove what was kept costs, all else saves
            penalty = self.plan.alpha * pattern_unit(cells, blocks, self.plan.pattern, self.plan.prior) * agree
        found = self._search(cells, blocks, penalty, self.plan.method)
        mask, cost = where.weight(found.masks).cpu(), float(found.cost.sum())
        power = float((weight.flatten(1).double().square() @ moments.power.to(weight.device)).sum())
        new, left = torch.where(found.masks, cells, torch.zeros_like(cells)), cost
        if self.plan.repair:
            new = repaired(cells, found.masks, blocks)
            left = float(change(cells - new, blocks).sum())
        before = mask if kept is None else kept.cpu()
        return Chosen(mask, where.weight(new), {
            "groups": found.cost.numel(), "cost": cost, "left": left, "power": power,
            "share": left / power if power > 0 else 0.0, "exact": found.exact,
            "restored": int((mask & ~before).sum()), "dropped": int((~mask & before).sum()),
        })  # fmt: skip


def change(difference: Tensor, blocks: Tensor) -> Tensor:
    """rᵀCr of each cell, Float64["rows groups"], for differences Float["rows groups n"] of the values."""
    r = difference.double()
    return (torch.einsum("rga,gab->rgb", r, blocks.to(r)) * r).sum(dim=2)


def _each(moments: BlockMoments, candidates: int) -> tuple[Tensor, ...]:
    """The covariances under each candidate order, Float64["groups n n"]."""
    return moments.blocks.chunk(candidates)


def pattern_unit(cells: Tensor, blocks: Tensor, pattern: KN, prior: str) -> Tensor:
    """c̄ of each cell, Float64["rows groups 1"]: what one entry that differs from the source costs at alpha_ser = 1.

    prior: "text", mean over rows and inputs of a group of u² E h²; "code", the mean cost of the cell's patterns.
    """
    u, power = cells.double(), blocks.diagonal(dim1=1, dim2=2)
    own = (u.square() * power).sum(dim=2)
    n, gone = pattern.n, pattern.removed
    if prior == "text":
        return (own / n).mean(dim=0, keepdim=True).expand_as(own)[..., None]
    # mean over patterns: an entry goes with probability gone / n, a pair with gone(gone − 1) / n(n − 1)
    both = gone * (gone - 1) / (n * (n - 1)) if n > 1 else 0.0
    return (gone / n * own + both * (change(cells, blocks) - own))[..., None]
