"""What can be folded, what cannot and why, on networks of timm that are built small and never trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mpviz as mp
from mpviz.errors import BudgetError, PatternError
from mpviz.nets.kn_pattern import KN
from mpviz.prune.cast import Projected, project
from mpviz.prune.fold import Folded, fold_permutations
from mpviz.prune.pattern import check_legal

VIT = {"depth": 2, "img_size": 32, "patch_size": 8, "num_classes": 10, "embed_dim": 48, "num_heads": 3}
RESNET = {"channels": (16, 16, 32, 32), "layers": (1, 1, 1, 2), "num_classes": 8}


def built(name: str, options: dict[str, Any]) -> nn.Module:
    """With random statistics of batch norms."""
    torch.manual_seed(0)
    model = mp.load_model(name, pretrained=False, **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0.0, 0.3)
            module.running_var.uniform_(0.5, 1.5)
    return model


def images(side: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(16, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=dtype)


def both(model: nn.Module, x: Tensor, **options: Any) -> tuple[Projected, Folded]:
    found = project(model, "2:4", x, permute="hungarian", layers="fitting", **options)
    return found, fold_permutations(found.model, found.masks, found.permutations, conv=found.conv)


def differ(one: nn.Module, other: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((one(x) - other(x)).abs().max() / other(x).abs().max())


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_a_network_that_merges_tokens_folds_all_that_it_folds_without(dtype: torch.dtype, bound: float) -> None:
    model, x = built("vit_tiny_patch16_224", VIT).to(dtype), images(32, dtype)
    _, plain = both(model, x, foldable=True)
    found, folded = both(model, x, foldable=True, tome=2)
    assert found.tome == (2, 2)
    assert bool(folded.table["folded"].all()) and folded.permutations == {}
    assert set(folded.table.index) == set(plain.table.index)
    assert "folded into residual stream of the transformer" in set(folded.table["why"])
    for name, mask in folded.masks.items():
        check_legal(name, mask, KN(2, 4))
    assert 0 < differ(folded.model, found.model, x) < bound


def test_a_hybrid_of_convolutions_and_attention_folds() -> None:
    options = {"depth": 1, "img_size": 64, "num_classes": 10}
    model, x = built("vit_tiny_r_s16_p8_224", options), images(64)
    found, folded = both(model, x, foldable=True)
    assert bool(folded.table["folded"].all()) and "blocks.0.attn.qkv.weight" in folded.table.index
    assert differ(folded.model, found.model, x) < 1e-5


def test_channels_of_which_the_head_reads_both_mean_and_maximum_keep_their_order() -> None:
    model, x = built("resnet18", {**RESNET, "global_pool": "catavgmax"}).double(), images(48, torch.float64)
    last = "layer4.1.conv1.weight"  # reads the same channels as the head
    found, folded = both(model, x, foldable=True, conv="native")
    assert last in found.masks and last not in found.permutations
    assert len(found.permutations) > 5 and bool(folded.table["folded"].all())
    assert differ(folded.model, found.model, x) < 1e-12
    free, folded = both(model, x, conv="native")
    assert folded.table.loc[last].to_dict() == {"folded": False, "why": "no rule for the layers that write its inputs"}
    assert last in folded.permutations and differ(folded.model, free.model, x) < 1e-12


def by_hand(model: nn.Module, *names: str) -> dict[str, Tensor]:
    """Masks that keep the first two of every four inputs."""
    return {name: (torch.arange(48) % 4 < 2).expand_as(model.get_parameter(name)).clone() for name in names}


def test_who_reads_the_same_channels_under_a_mask_in_their_old_order_keeps_the_others_from_folding() -> None:
    model = built("vit_tiny_patch16_224", VIT)
    qkv, fc1 = "blocks.0.attn.qkv.weight", "blocks.1.mlp.fc1.weight"
    order = torch.randperm(48, generator=torch.Generator().manual_seed(0))
    masks = by_hand(model, qkv, fc1)
    masks[qkv] = masks[qkv][:, order.argsort()]  # so that the groups of four are those of the order
    folded = fold_permutations(model, masks, {qkv: order})
    assert list(folded.table["folded"]) == [False]
    assert folded.table["why"][qkv] == "the layers that read residual stream of the transformer want different orders"
    assert torch.equal(folded.permutations[qkv], order) and torch.equal(folded.masks[fc1], masks[fc1])
    alone = fold_permutations(model, {qkv: masks[qkv]}, {qkv: order})  # who has no mask reads in any order
    assert list(alone.table["folded"]) == [True] and alone.permutations == {}


def test_masks_and_orders_of_something_else_are_refused() -> None:
    vit, resnet = built("vit_tiny_patch16_224", VIT), built("resnet18", RESNET)
    name = "blocks.0.mlp.fc1.weight"
    masks, order = by_hand(vit, name), {name: torch.arange(48)}
    with pytest.raises(PatternError, match=f"the order of '{name}' has no mask; give masks and permutations of one"):
        fold_permutations(vit, {}, order)
    with pytest.raises(PatternError, match="has no mask"):
        fold_permutations(resnet, {}, order)
    with pytest.raises(BudgetError, match=f"the mask '{name}' names no parameter of the model"):
        fold_permutations(resnet, masks, order)
    with pytest.raises(BudgetError, match=r"has shape \(4, 4\), the parameter"):
        fold_permutations(vit, {name: torch.ones(4, 4, dtype=torch.bool)}, order)
    with pytest.raises(PatternError, match="no permutation of its 48 inputs"):
        fold_permutations(vit, masks, {name: torch.arange(47)})
