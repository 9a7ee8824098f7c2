"""What a k:n projection did, as numbers for tables and pictures: a layer's groups, and what restoring is worth."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from mpviz.certificates.budgets import data_path_budget
from mpviz.certificates.layer_input import removed_part
from mpviz.certificates.objective import Penalty, restore_test
from mpviz.errors import ModelError, MpvizError, PatternError, nearest
from mpviz.nets.calibrate import block_moments
from mpviz.nets.data import Split, load_data
from mpviz.nets.forward import logits, masked_copy
from mpviz.nets.layers import list_layers, weight_of
from mpviz.nets.macs import count_macs
from mpviz.nets.paths import data_root
from mpviz.nets.tome import merging
from mpviz.nets.zoo import load_model
from mpviz.prune.cast import Projected, project
from mpviz.prune.cast_job import change
from mpviz.prune.kn import search
from mpviz.prune.pattern import Layout, layout


@dataclass(frozen=True, eq=False)
class Groups:
    """A layer's groups in one order of its inputs.

    rule: of the order. columns: Int["groups n"], of the unfolded weight. score: Float["rows groups n"], |w|·rms(h),
    what an entry alone contributes to its output. kept: Bool like it. cost: Float["groups"], mean squared change of the
    outputs, summed over all rows of the layer.
    """

    rule: str
    columns: np.ndarray
    score: np.ndarray
    kept: np.ndarray
    cost: np.ndarray


@dataclass(frozen=True, eq=False)
class PatternView:
    """One projected layer: `before` in its own order, `after` in the order that was chosen (the same where none was).

    rows: Int["rows"], which outputs are shown. power: Σ w² E h² of the whole layer. All measured on calibration images.
    """

    layer: str
    pattern: str
    rows: np.ndarray
    before: Groups
    after: Groups
    power: float


def pattern_view(
    model: nn.Module,
    projected: Projected,
    calibration: Tensor | Split,
    layer: str,
    rows: int = 16,
    images: int | None = 64,
    seed: int = 0,
) -> PatternView:
    """Look into one layer of a projection; the dense model's weights are what its groups choose from.

    rows: outputs that are shown, evenly spaced. images: of a split, drawn by `seed`.
    Raises PatternError for a layer that was not projected, and the errors of `block_moments`.
    """
    full = layer if layer in projected.masks else f"{layer}.weight"
    if full not in projected.masks:
        raise PatternError(f"'{layer}' was not projected; {nearest(layer, projected.masks)}")
    weight, mask, order = weight_of(model, full), projected.masks[full], projected.permutations.get(full)
    shape, kn, conv = tuple(weight.shape), projected.pattern, projected.conv
    sides = [layout(full, shape, kn, conv), layout(full, shape, kn, conv, order)]
    columns = {full: torch.cat([side.columns for side in sides])}
    with merging(model, projected.tome or 0):
        moments = block_moments(model, calibration, columns, n=images, seed=seed)[full]
    first, second = moments.blocks.chunk(2)
    own = mask if order is None else sides[0].weight(search(sides[0].cells(weight), first, kn).masks)
    shown = np.unique(np.linspace(0, shape[0] - 1, min(rows, shape[0])).round().astype(int))
    rule = str(projected.cost.loc[full, "order"])
    rms = moments.power.sqrt().to(weight.device)
    return PatternView(
        layer=full,
        pattern=str(kn),
        rows=shown,
        before=_groups("none", sides[0], weight, own, first, rms, shown),
        after=_groups(rule, sides[1], weight, mask, second, rms, shown),
        power=float((weight.flatten(1).double().square() @ moments.power.to(weight.device)).sum()),
    )


def _groups(
    rule: str, where: Layout, weight: Tensor, mask: Tensor, blocks: Tensor, rms: Tensor, shown: np.ndarray
) -> Groups:
    cells, kept = where.cells(weight), where.cells(mask.to(weight.device))
    score = where.cells((weight.flatten(1).abs() * rms.to(weight)).reshape(weight.shape))
    cost = change(cells * ~kept, blocks).sum(dim=0)
    return Groups(
        rule, where.columns.numpy(), score[shown].cpu().numpy(), kept[shown].cpu().numpy(), cost.cpu().numpy()
    )


def restore_certificates(
    model: nn.Module,
    projected: Projected,
    other: Mapping[str, Tensor],
    images: Tensor,
    penalty: Penalty,
    lipschitz: str = "segment",
) -> pd.DataFrame:
    """Was it worth to restore? The prune–restore certificate of each projected layer, one row each.

    other: masks of an earlier pruning, such as the SER source's. Q is what they removed and the pattern keeps, P what
    the pattern removes. Columns: restored (entries of Q), budget_with (B_T(Q + P)), budget_without (B_T(P)), drop,
    price (λ₂‖Q‖_F² + λ₁‖Q‖₁), restore (the bound of the objective is lower with Q back), moved (largest change of an
    entry that the projection keeps), tier, why. Each layer is taken by itself, in the dense network and with the dense
    values: where a repair or a trained source moved what is kept, that is said in `why`. Where no valid Lipschitz
    constant is known the budgets are twice the mean measured change of the logits, which no budget can be below: tier
    "measured", and `restore` is empty: that proves nothing.
    Source: arXiv:2606.02608. Raises ModelError for a layer that `other` lacks, and what `data_path_budget` refuses.
    """
    rows = []
    for name, mask in projected.masks.items():
        if name not in other:
            raise ModelError(f"the other masks have none for {name}; give masks for all projected layers")
        returned = mask & ~other[name].to(mask.device)
        kept, q, alone = (removed_part(model, name, ~part) for part in (mask & ~returned, returned, ~mask))
        both = q + alone
        moved = _moved(model, projected, name)
        about = f"holds for the dense values; the projection moved what it keeps by up to {moved:.2g}" if moved else ""
        row = {"layer": name, "restored": int(returned.sum()), "moved": moved}
        try:
            budgets = [data_path_budget(model, name, removed, images, lipschitz) for removed in (both, alone)]
            found = restore_test(kept, q, alone, budgets[0].budget, budgets[1].budget, penalty)
            values = [one.budget for one in budgets]
            rows.append({**row, **_budgets(values), "price": found.price, "restore": found.restore, "tier": "bound",
                         "why": about})  # fmt: skip
        except ModelError as error:
            values = [2.0 * _change(model, name, removed, images) for removed in (both, alone)]
            rows.append({**row, **_budgets(values), "price": penalty.of(q), "restore": None, "tier": "measured",
                         "why": "; ".join(filter(None, (str(error), about)))})  # fmt: skip
    return pd.DataFrame(rows).set_index("layer")


def _moved(model: nn.Module, projected: Projected, name: str) -> float:
    """Largest difference between the kept weights of a projected layer and the model's."""
    mask = projected.masks[name]
    now, dense = weight_of(projected.model, name), weight_of(model, name)
    return float((now.to(dense) - dense)[mask.to(dense.device)].abs().amax()) if mask.any() else 0.0


def _budgets(values: list[float]) -> dict[str, float]:
    return {"budget_with": values[0], "budget_without": values[1], "drop": values[0] - values[1]}


@torch.no_grad()
def _change(model: nn.Module, name: str, removed: Tensor, images: Tensor) -> float:
    """Mean over images of the largest change of a logit when one layer loses `removed`."""
    weight = weight_of(model, name)
    without = masked_copy(model, {name: torch.ones_like(weight, dtype=torch.bool)})
    without.get_parameter(name).data = weight - removed.to(weight)
    difference = logits(without, images) - logits(model, images)
    if not torch.isfinite(difference).all():
        raise MpvizError(f"the logits are not finite when {name} is pruned; look at the images")
    return float(difference.abs().amax(dim=1).mean())


def pattern_layers(network: str) -> tuple[str, ...]:
    """Parameter names of a bundled network's layers that a pattern can be looked at in. Raises ModelError."""
    return tuple(info.name for info in list_layers(load_model(network)) if info.prunable)


def explore(network: str, pattern: str, order: str, layer: str, images: int = 64) -> PatternView:
    """One layer of a bundled network, projected on images of its calibration split. Errors: `project`."""
    model, data = load_model(network), load_data("fashion-mnist", folder="bundled")
    found = project(model, pattern, data.calibration, permute=order, layers=[layer], images=images)
    return pattern_view(model, found, data.calibration, layer, images=images)


def mac_stages(network: str, pattern: str, tome: int = 0) -> list[tuple[str, pd.DataFrame]]:
    """Multiply–adds of a bundled network by type of layer: dense, with `tome` pairs merged, with the pattern too."""
    model = load_model(network)
    stages = [("dense", count_macs(model).by_role())]
    if tome:
        stages.append((f"merging {tome}", count_macs(model, tome=tome).by_role()))
    return [*stages, (pattern, count_macs(model, pattern=pattern, tome=tome, layers="fitting").by_role())]


def committed_cells() -> pd.DataFrame:
    """The cells of the grid of patterns that comes with mpviz, one row each; no rows where the record is missing."""
    path = data_root() / "benchmarks" / "structured-grid.json"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"] if path.is_file() else []
    return pd.DataFrame(cells, columns=None if cells else ["network", "epochs", "tome", "renew"])
