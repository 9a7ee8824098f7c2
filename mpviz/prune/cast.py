"""CAST: k:n patterns chosen by the certificate. Projection of a whole network in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from mpviz.errors import DataError, PatternError, nearest
from mpviz.nets.calibrate import IMAGES, BlockMoments, block_moments
from mpviz.nets.data import Split
from mpviz.nets.kn_pattern import KN
from mpviz.nets.layers import LayerInfo
from mpviz.nets.tome import Schedule, merge_tokens, schedule_of
from mpviz.prune.cast_source import chosen_layers, source_masks_of, source_network, source_values
from mpviz.prune.kn import MEMORY, Found, search
from mpviz.prune.orders import BEST, Choice, choices
from mpviz.prune.pattern import Layout, check_legal, layout
from mpviz.prune.permute import RULES, Order

PRIORS = ("text", "code")
CRITERIA = ("cast", "wanda", "magnitude")
_JUDGED = 100  # patterns up to which orders are compared by the search that is asked for, else by swaps
Tell = Callable[[float, str], None]
_NO_ORDER = Order("none", torch.empty(0, dtype=torch.int64), 1.0)


@dataclass(frozen=True, eq=False)
class Projected:
    """A network whose layers keep k of every n inputs.

    model: a pruned copy in eval mode, merging tokens where asked for. masks: {parameter name: Bool like it, True =
    kept}, in the original order. permutations: {parameter name: Int["units"]}, the input that stands at each place
    when groups are formed (see `mpviz.prune.pattern.layout`); none where the order is the layer's own. tome: pairs of
    tokens merged in each block. cost: one row a layer: role, rows, cols, groups, cost (mean squared contribution of
    what is removed to the outputs, summed over rows and groups), power (Σ w² E h², what removing all of it would cost
    if inputs were uncorrelated), share (cost / power), exact, restored and dropped (entries kept, removed against the
    source masks), order (the rule it came from), permuted (cost of the scores relative to the old order), why (a layer
    stayed dense).
    """

    model: nn.Module
    masks: dict[str, Tensor]
    permutations: dict[str, Tensor]
    cost: pd.DataFrame
    pattern: KN
    conv: str = "flattened"
    tome: tuple[int, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def check(self, model: nn.Module) -> None:
        """Raises PatternError when a network has weights where the masks have none, or the masks break the pattern."""
        for name, mask in self.masks.items():
            check_legal(name, mask, self.pattern, self.conv, self.permutations.get(name))
            weight = model.get_parameter(name).detach()
            regrown = int((weight[~mask.to(weight.device)] != 0).sum())
            if regrown:
                raise PatternError(f"{name} has {regrown} weights outside its {self.pattern} pattern; apply its mask")


def project(
    model: nn.Module, pattern: str | KN = "2:4", calibration: Tensor | Split | None = None,
    source: str | nn.Module = "dense", source_masks: Mapping[str, Tensor] | None = None, permute: str = "none",
    alpha_ser: float = 0.0, free_restoration: bool = True, conv: str = "flattened", tome: Schedule = 0,
    layers: Sequence[str] | str | None = None, *, criterion: str = "cast", foldable: bool = False, prior: str = "text",
    method: str = "auto", images: int | None = IMAGES, seed: int = 0, memory: int = MEMORY, threads: int | None = None,
    progress: Tell | None = None, cancelled: Callable[[], bool] | None = None,
) -> Projected:  # fmt: skip
    """Choose, for each row and group of n inputs, the k entries whose removal changes the layer's outputs least.

    The cost of removing r is rᵀ C r, C the covariance E[h hᵀ] of the group's inputs over `calibration` (images
    Float["b c h w"], or a split of which `images` are drawn by `seed`, never the test split), taken on the network
    that is projected (the source), with its tokens merged when `tome` asks for that. The search is exact up to n = 16.

    source: "dense", or a pruned version of the model with its `source_masks` (SER); its values are used where its masks
    keep them, the model's own elsewhere when free_restoration is on, else 0. alpha_ser: what each entry costs that
    differs from the source masks, in units of c̄: prior="text", the group's mean of u² E h²; "code", the cell's mean
    pattern cost. permute: "none", "interleave" (the paper's), "snake", "greedy" or "hungarian" (see `find_order`), or
    "best": of none, snake and hungarian what costs each layer least on the calibration images. foldable: orders that
    `fold_permutations` can put into the layers before: of whole channels, values within heads, one order for all who
    read the same channels; layers without such a rule keep theirs. conv: "flattened" or "native" (see `layout`).
    layers: parameter names; None takes all prunable ones, "fitting" those whose width n divides. method: of `search`.
    criterion: "cast"; as baselines "wanda", which takes C for diagonal (|w|·‖h‖₂), and "magnitude", |w| alone; the
    table's cost is that of the whole C for all three.

    The model is left as it is. Source: arXiv:2606.02608, which samples the patterns of 8:16.
    Raises PatternError for a pattern or width that do not fit, with all such layers; DataError for calibration that is
    missing, empty, of the test split or not finite; ModelError for images or merges that do not fit; BudgetError for
    source masks that do not fit; Cancelled.
    """
    plan = _Plan(
        KN.parse(pattern),
        conv,
        permute,
        foldable,
        criterion,
        prior,
        alpha_ser,
        method,
        seed,
        memory,
        threads,
        cancelled,
    )
    infos, left_out = chosen_layers(model, plan.pattern, conv, layers)
    if calibration is None:
        raise DataError("projection looks at the inputs of each layer; give calibration=data.calibration, or images")
    kept = source_masks_of(model, source, source_masks)
    network = merge_tokens(source_network(model, source), tome)
    values = source_values(model, network, kept, list(infos), free_restoration)
    masks, orders, rows = _Job(network, infos, values, kept, plan, _Told(progress)).run(calibration, images)
    with torch.no_grad():
        for name, mask in masks.items():
            weight = network.get_parameter(name)
            weight.copy_(torch.where(mask.to(weight.device), values[name], torch.zeros_like(weight)))
    permutations = {name: order.order for name, order in orders.items() if order.rule != "none"}
    table = pd.DataFrame([*rows, *left_out]).set_index("layer")
    settings = plan.settings() | {"source": "dense" if source == "dense" else "pruned", "images": images}
    return Projected(network, masks, permutations, table, plan.pattern, conv, schedule_of(network), settings)


@dataclass(frozen=True)
class _Plan:
    """The settings of one projection, checked."""

    pattern: KN
    conv: str
    permute: str
    foldable: bool
    criterion: str
    prior: str
    alpha: float
    method: str
    seed: int
    memory: int
    threads: int | None
    cancelled: Callable[[], bool] | None

    def __post_init__(self) -> None:
        named = (("permutation", self.permute, (*RULES, BEST)), ("prior", self.prior, PRIORS),
                 ("criterion", self.criterion, CRITERIA))  # fmt: skip
        for what, name, known in named:
            if name not in known:
                raise PatternError(f"unknown {what} '{name}'; {nearest(str(name), known)}")
        if not (math.isfinite(self.alpha) and self.alpha >= 0):
            raise PatternError(f"alpha_ser is a strength of at least 0; got {self.alpha}")

    def settings(self) -> dict[str, Any]:
        """What decides the outcome beside networks and images, for `Projected.settings`."""
        return {"criterion": self.criterion, "permute": self.permute, "foldable": self.foldable, "prior": self.prior,
                "alpha_ser": self.alpha, "method": self.method, "seed": self.seed}  # fmt: skip


class _Told:
    """Progress in parts of one whole."""

    def __init__(self, progress: Tell | None) -> None:
        self.tell: Tell = progress or (lambda share, words: None)

    def part(self, start: float, stop: float, words: str) -> Callable[[float], None]:
        return lambda share: self.tell(start + (stop - start) * share, words)


@dataclass(frozen=True)
class _Job:
    """Masks for the layers of one network. values: what entries are kept with; kept: source masks."""

    network: nn.Module
    infos: Mapping[str, LayerInfo]
    values: Mapping[str, Tensor]
    kept: Mapping[str, Tensor]
    plan: _Plan
    told: _Told

    def run(
        self, calibration: Tensor | Split, images: int | None
    ) -> tuple[dict[str, Tensor], dict[str, Order], list[dict[str, Any]]]:
        """Masks, orders and rows of the table. One pass over the images, and one before it where orders are sought."""
        plan, told = self.plan, self.told
        streamed: dict[str, Any] = {"n": images, "seed": plan.seed, "cancelled": plan.cancelled}
        open_: list[Choice] = []
        if plan.permute != "none":
            alone = {name: torch.empty(0, 1, dtype=torch.int64) for name in self.infos}
            tell = told.part(0.0, 0.2, "calibration")
            moments = block_moments(self.network, calibration, alone, progress=tell, **streamed)
            tell = told.part(0.2, 0.4, "order of inputs")
            open_ = choices(
                self.network, self.values, moments, plan.permute, plan.pattern, plan.conv, plan.foldable, plan.seed,
                tell, plan.cancelled,
            )  # fmt: skip
        layouts = self._layouts(open_)
        columns = {name: torch.cat([one.columns for one in some]) for name, some in layouts.items()}
        tell = told.part(0.4, 0.6, "calibration")
        found = block_moments(self.network, calibration, columns, progress=tell, **streamed)
        settled = self._settle(open_, layouts, found)
        masks, orders, rows = {}, {}, []
        for i, (name, info) in enumerate(self.infos.items()):
            told.tell(0.6 + 0.4 * i / len(self.infos), name)
            at, order = settled.get(name, (0, _NO_ORDER))
            masks[name], numbers = self._choose(name, layouts[name][at], found[name], at, len(layouts[name]))
            rows.append({"layer": name, "role": info.role, "rows": info.rows, "cols": info.cols, **numbers,
                         "order": order.rule, "permuted": order.cost, "why": ""})  # fmt: skip
            orders[name] = order
        told.tell(1.0, "done")
        return masks, orders, rows

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
        """The masks by the criterion, and what they cost under the whole covariance."""
        plan, seen = self.plan, blocks.to(cells.device)
        if plan.criterion == "wanda":
            seen = torch.diag_embed(seen.diagonal(dim1=1, dim2=2))
        elif plan.criterion == "magnitude":
            seen = torch.eye(plan.pattern.n, dtype=seen.dtype, device=seen.device).expand_as(seen)
        found = search(cells, seen, plan.pattern, penalty, method, plan.memory, plan.threads, plan.cancelled)
        if plan.criterion == "cast":
            return found
        gone = (cells * ~found.masks).double()
        return replace(found, cost=(torch.einsum("rga,gab->rgb", gone, blocks.to(gone)) * gone).sum(dim=2))

    def _choose(
        self, name: str, where: Layout, moments: BlockMoments, at: int, candidates: int
    ) -> tuple[Tensor, dict[str, Any]]:
        """Mask and numbers of one layer."""
        weight, kept = self.values[name], self.kept.get(name)
        cells = where.cells(weight)
        blocks = _each(moments, candidates)[at].to(cells.device)
        penalty = None
        if kept is not None and self.plan.alpha > 0:
            agree = 2.0 * where.cells(kept.to(cells.device)) - 1.0  # to remove what was kept costs, all else saves
            penalty = self.plan.alpha * pattern_unit(cells, blocks, self.plan.pattern, self.plan.prior) * agree
        found = self._search(cells, blocks, penalty, self.plan.method)
        mask = where.weight(found.masks).cpu()
        power = float((weight.flatten(1).double().square() @ moments.power.to(weight.device)).sum())
        before, spent = mask if kept is None else kept.cpu(), float(found.cost.sum())
        return mask, {
            "groups": found.cost.numel(), "cost": spent, "power": power, "share": spent / power if power > 0 else 0.0,
            "exact": found.exact, "restored": int((mask & ~before).sum()), "dropped": int((~mask & before).sum()),
        }  # fmt: skip


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
    whole = (torch.einsum("rga,gab->rgb", u, blocks) * u).sum(dim=2)
    return (gone / n * own + both * (whole - own))[..., None]
