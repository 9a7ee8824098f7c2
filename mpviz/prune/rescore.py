"""Literal ‖R ψ‖∞ instead of its mean square, for the groups that decide it: an option after a projection.

The certificate's budget holds the largest change of any output of a layer on an image, max over tokens and rows of
|R_i h|; the search minimises mean squares. Here single rows that reach the largest change are taken one by one, and for
each of their groups the patterns of least squared cost are tried: one that lowers the mean over images of the largest
change takes the place of what was there. Source of the wish: arXiv:2606.02608, which names it as missing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import pandas as pd
import torch
from torch import Tensor, nn

from mpviz.errors import Cancelled, PatternError
from mpviz.nets.batch_norms import batch_norms, norm_inputs, renew_batch_norms
from mpviz.nets.calibrate import layer_inputs
from mpviz.nets.data import Split
from mpviz.nets.layers import weight_of
from mpviz.nets.tome import merging
from mpviz.prune.cast import Projected
from mpviz.prune.kn import EXACT
from mpviz.prune.pattern import Layout, layout


@dataclass(frozen=True, eq=False)
class Rescored:
    """projected: with new masks and weights; its `cost` is still that of the search. table: one row a layer.

    before and after are means over the calibration images of ‖Rψ‖∞; changed counts choices of another pattern, of
    which a group may have had several.
    """

    projected: Projected
    table: pd.DataFrame


def rescore(
    model: nn.Module,
    projected: Projected,
    calibration: Tensor | Split,
    images: int | None = 64,
    steps: int = 200,
    patterns: int = 32,
    seed: int = 0,
    cancelled: Callable[[], bool] | None = None,
) -> Rescored:
    """Lower the mean of ‖Rψ‖∞ over calibration images, layer by layer, each behind the dense layers before it.

    model: the network that was projected, with its dense weights. steps: rows that are taken up in each layer.
    patterns: how many of a group's patterns are tried, those of least squared cost first. Raises PatternError for a
    projection that was repaired, whose weights are no longer those of the model, or pruned from another source, and
    for n > 16; the errors of `block_moments`; Cancelled.
    """
    if projected.settings.get("repair") or projected.settings.get("source") != "dense":
        raise PatternError("only plain projections of a dense model are scored again; leave repair and source alone")
    if projected.pattern.n > EXACT:
        raise PatternError(f"{projected.pattern} has too many patterns to try; score projections of n ≤ {EXACT} again")
    network, masks, rows = copy.deepcopy(projected.model), dict(projected.masks), []
    for name, mask in projected.masks.items():
        if cancelled is not None and cancelled():
            raise Cancelled("the rescoring was cancelled; nothing was changed")
        weight = weight_of(model, name).cpu()
        with merging(model, projected.tome or 0):  # what enters the layer where it will run
            inputs = layer_inputs(model, name, calibration, images, seed)
        where = layout(name, tuple(weight.shape), projected.pattern, projected.conv, projected.permutations.get(name))
        job = _Layer(where, weight, mask, inputs)
        before = job.worst()
        changed = job.lower(steps, projected.pattern.masks(), patterns)
        masks[name] = where.weight(job.kept)
        rows.append({"layer": name, "before": before, "after": job.worst(), "changed": changed})
        with torch.no_grad():
            network.get_parameter(name).copy_(torch.where(masks[name], weight, torch.zeros_like(weight)))
    if projected.settings.get("renew"):
        for old, new in zip(batch_norms(model), batch_norms(network), strict=True):
            new.load_state_dict(old.state_dict())
        with merging(model, projected.tome or 0):
            seen = norm_inputs(model, calibration, images, seed, cancelled=cancelled)
        renew_batch_norms(network, seen, norm_inputs(network, calibration, images, seed, cancelled=cancelled))
    found = replace(projected, model=network, masks=masks)
    return Rescored(found, pd.DataFrame(rows).set_index("layer"))


class _Layer:
    """One layer's removed part on the calibration images. inputs: Float["images tokens in"]."""

    def __init__(self, where: Layout, weight: Tensor, mask: Tensor, inputs: Tensor) -> None:
        self.cells, self.kept = where.cells(weight).double(), where.cells(mask)
        self.inputs = inputs.double()[:, :, where.columns]  # images, tokens, groups, n
        gone = self.cells * ~self.kept
        # what each row loses: images, tokens, rows
        self.lost = torch.einsum("btga,rga->btr", self.inputs, gone)
        self.blocks = torch.einsum("btga,btgc->gac", self.inputs, self.inputs) / self.inputs[..., 0, 0].numel()
        self.peaks = self.lost.abs().amax(dim=1)  # images, rows

    def worst(self) -> float:
        """Mean over images of the largest change of any output."""
        return float(self.peaks.amax(dim=1).mean())

    def lower(self, steps: int, masks: Tensor, tried: int) -> int:
        """Take up the rows that reach the largest change, those that do so on most images first; groups changed."""
        changed, done = 0, set[int]()
        for _ in range(steps):
            counts = torch.bincount(self.peaks.argmax(dim=1), minlength=self.peaks.shape[1])
            counts[list(done)] = 0
            row = int(counts.argmax())
            if counts[row] == 0:
                break
            better = self._improve(row, masks, tried)
            changed += better
            done.add(row)
            if better:
                done = {row}
        return changed

    def _improve(self, row: int, masks: Tensor, tried: int) -> int:
        """The best pattern for each group of a row in turn, the others of the row held."""
        others = self.peaks.clone()
        others[:, row] = 0.0
        floor, changed = others.amax(dim=1), 0
        for group in range(self.cells.shape[1]):
            values, h = self.cells[row, group], self.inputs[:, :, group]
            gone = values * ~masks
            costs = ((gone @ self.blocks[group]) * gone).sum(dim=1)
            some = costs.topk(min(tried, len(costs)), largest=False).indices
            rest = self.lost[:, :, row] - h @ (values * ~self.kept[row, group])
            moved = rest[..., None] + h @ gone[some].T  # images, tokens, patterns
            score = torch.maximum(moved.abs().amax(dim=1), floor[:, None]).mean(dim=0)
            best = int(score.argmin())
            now = torch.maximum(self.peaks[:, row], floor).mean()
            if score[best] < now * (1 - 1e-9):
                self.kept[row, group] = masks[some[best]]
                self.lost[:, :, row] = moved[..., best]
                self.peaks[:, row] = moved[..., best].abs().amax(dim=1)
                changed += 1
        return changed
