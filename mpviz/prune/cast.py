"""CAST: k:n patterns chosen by the certificate. Projection of a whole network in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from mpviz.errors import DataError, PatternError
from mpviz.nets.batch_norms import norm_inputs, renew_batch_norms
from mpviz.nets.calibrate import IMAGES, drawn
from mpviz.nets.data import Split
from mpviz.nets.kn_pattern import KN
from mpviz.nets.tome import Schedule, merge_tokens, schedule_of, settled_schedule, unmerge_tokens
from mpviz.prune.cast_job import Chosen, Job, Plan, Tell, Told
from mpviz.prune.cast_source import chosen_layers, source_masks_of, source_network, source_values
from mpviz.prune.kn import MEMORY
from mpviz.prune.pattern import check_legal


@dataclass(frozen=True, eq=False)
class Projected:
    """A network whose layers keep k of every n inputs.

    model: a pruned copy in eval mode, merging tokens where asked for. masks: {parameter name: Bool like it, True =
    kept}, in the original order. permutations: {parameter name: Int["units"]}, the input that stands at each place
    when groups are formed (see `mpviz.prune.pattern.layout`); none where the order is the layer's own. tome: pairs of
    tokens merged in each block. cost: one row a layer: role, rows, cols, groups, cost (mean squared contribution of
    what is removed to the outputs, summed over rows and groups), left (of it, after a repair), power (Σ w² E h², what
    removing all of it would cost if inputs were uncorrelated), share (left / power), exact (proved: no masks of the
    pattern cost less, the prior included; False for other criteria and with damping), restored and dropped (entries
    kept, removed against the source masks), order (the rule it came from), permuted (cost of the scores
    relative to the old order), why (a layer stayed dense).
    """

    model: nn.Module
    masks: dict[str, Tensor]
    permutations: dict[str, Tensor]
    cost: pd.DataFrame
    pattern: KN
    conv: str = "flattened"
    tome: tuple[int, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def saved_as(self) -> dict[str, Any]:
        """What `mp.save` takes beside path and model: ``mp.save(path, found.model, **found.saved_as)``."""
        about = {"pattern": str(self.pattern), "conv": self.conv}
        return {"masks": self.masks, "permutations": self.permutations, "pattern": about}

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
    layers: Sequence[str] | str | None = None, *, criterion: str = "cast", damping: float = 0.0, repair: bool = False,
    renew: bool = False, foldable: bool = False, prior: str = "text", method: str = "auto",
    images: int | None = IMAGES, seed: int = 0, memory: int = MEMORY, threads: int | None = None,
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
    layers: parameter names or roles ("mlp"); None takes all prunable ones, "fitting" those whose width n divides.
    method: of `search`. criterion: "cast"; as baselines "wanda", which takes C for diagonal (|w|·‖h‖₂), and
    "magnitude", |w| alone; the table's cost is that of the whole C for all three. damping: patterns are chosen by
    C + damping · (mean input power of the layer) · I; 0 is the paper's cost, a large one ends at magnitude. repair:
    what is kept takes over what went (see `repaired`). renew: batch norms are told how the projection changed what
    enters them, measured on the same images (see `renew_batch_norms`).

    The model is left as it is. Source: arXiv:2606.02608, which samples the patterns of 8:16.
    Raises PatternError for a pattern or width that do not fit, with all such layers; DataError for calibration that is
    missing, empty, of the test split or not finite; ModelError for images or merges that do not fit; BudgetError for
    source masks that do not fit; Cancelled.
    """
    plan = Plan(
        KN.parse(pattern), conv=conv, permute=permute, foldable=foldable, criterion=criterion, damping=damping,
        repair=repair, renew=renew, prior=prior, alpha=alpha_ser, method=method, seed=seed, memory=memory,
        threads=threads, cancelled=cancelled,
    )  # fmt: skip
    infos, left_out = chosen_layers(model, plan.pattern, conv, layers)
    if calibration is None:
        raise DataError("projection looks at the inputs of each layer; give calibration=data.calibration, or images")
    kept = source_masks_of(model, source, source_masks)
    network, seen = _merging(model, source_network(model, source), tome), drawn(calibration, images, seed)
    values = source_values(model, network, kept, list(infos), free_restoration)
    told = Told(progress)
    before = norm_inputs(network, seen, cancelled=cancelled) if renew else []
    chosen, orders, rows = Job(network, infos, values, kept, plan, told).run(seen)
    _put(network, chosen)
    if renew:
        told.tell(0.99, "batch norms")
        renew_batch_norms(network, before, norm_inputs(network, seen, cancelled=cancelled))
    told.tell(1.0, "done")
    masks = {name: one.mask for name, one in chosen.items()}
    permutations = {name: order.order for name, order in orders.items() if order.rule != "none"}
    table = pd.DataFrame([*rows, *left_out]).set_index("layer")
    about = {"source": "dense" if source == "dense" else "pruned", "images": len(seen)}
    settings = plan.settings() | about | {"free_restoration": free_restoration}
    return Projected(network, masks, permutations, table, plan.pattern, conv, schedule_of(network), settings)


@torch.no_grad()
def _put(network: nn.Module, chosen: Mapping[str, Chosen]) -> None:
    for name, one in chosen.items():
        network.get_parameter(name).copy_(one.weight)


def _merging(model: nn.Module, network: nn.Module, tome: Schedule) -> nn.Module:
    """The network with the tokens merged that it, or the model, merges already, or that are asked for."""
    schedule = settled_schedule(network if schedule_of(network) else model, tome)
    return merge_tokens(unmerge_tokens(network), schedule or 0)
