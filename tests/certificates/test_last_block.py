"""The last block of a vision transformer: GELU and LayerNorm rules, and nothing claimed before it."""

from __future__ import annotations

import attacks
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mpviz.certificates import bounds, boxes, families, smooth, walk
from mpviz.errors import ModelError
from mpviz.nets.architectures import fashion_vit
from mpviz.nets.last_block import last_block
from mpviz.nets.timm_import import import_timm

PARTS = ("attn.proj", "mlp.fc1", "mlp.fc2")


def vit(seed: int) -> nn.Module:
    """A small transformer with weights large enough for curved activations."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = fashion_vit(width=16, depth=2, heads=2).eval()
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.mul_(8.0) if "weight" in name and p.ndim == 2 else None
                if p.ndim == 1 and "norm" in name:
                    p.add_(0.2 * torch.randn_like(p))
            model.head.weight.copy_(torch.randn_like(model.head.weight))
    return model


def masks_of(model: nn.Module, sparsity: float) -> dict[str, Tensor]:
    names = [f"blocks.1.{part}.weight" for part in PARTS]
    weights = {name: model.get_parameter(name).detach().abs() for name in names}
    return {name: w >= w.double().quantile(sparsity) for name, w in weights.items()}


def tokens(n: int, seed: int) -> Tensor:
    return torch.randn((n, 1, 28, 28), generator=torch.Generator().manual_seed(seed))


def test_the_tail_gives_the_models_own_logits() -> None:
    model, x = vit(0), tokens(5, 0)
    with torch.no_grad():
        whole = attacks.double(model)(x.double())
    assert torch.allclose(walk.centre_logits(last_block(model), x), whole, atol=1e-10)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), sparsity=st.floats(0.02, 0.9), path=st.booleans())
def test_no_member_breaks_the_bound(seed: int, sparsity: float, path: bool) -> None:
    model, x = vit(seed), tokens(3, seed)
    network = last_block(model)
    masks = masks_of(model, sparsity)
    pruned = {name: model.get_parameter(name).detach() * mask for name, mask in masks.items()}
    family = families.path(model, pruned, 0.2, 0.9) if path else families.sub_masks(model, masks)
    target = walk.centre_logits(network, x).argmax(dim=1)
    lower = torch.from_numpy(bounds.margin_bound(network, family, x, target).lower)
    model64, generator = attacks.double(model), torch.Generator().manual_seed(seed)
    members = [attacks.random_member(family, generator, corners) for corners in (True, False) * 3]
    run = attacks.evaluator(model64)
    if not path:
        for rival in (0, 5):
            members += attacks.worst_members(run, family, x, target, torch.full_like(target, rival), 3)
    for member in members:
        assert attacks.broken(attacks.logits(model64, member, x), target, lower)[0] == 0


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.floats(1e-3, 3.0))
def test_the_smooth_rules_hold_inside_their_boxes(seed: int, size: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    centre, low, high = 2 * draw(4, 12), -size * draw(4, 12).abs(), size * draw(4, 12).abs()
    x = boxes.State(centre, low, high)
    v = draw(4, 5, 12)
    norm = nn.LayerNorm(12).double()
    with torch.no_grad():
        norm.weight.copy_(draw(12))
        norm.bias.copy_(draw(12))
    box = smooth.gelu_box(centre, low, high)
    out = smooth.layernorm_forward(norm, x, 2.0**-53)
    assert out.low is not None
    assert out.high is not None
    rows = {"gelu": smooth.gelu_backward(v, x), "layernorm": smooth.layernorm_backward(norm, v, x)}
    gelu = torch.nn.functional.gelu
    for trial in range(40):
        share = torch.rand((4, 12), generator=generator, dtype=torch.float64)
        share = share.round() if trial % 2 else share
        d = low + share * (high - low)
        moved = {"gelu": gelu(centre + d) - gelu(centre)}
        moved["layernorm"] = smooth.layernorm(norm, centre + d) - smooth.layernorm(norm, centre)
        assert (moved["gelu"] >= box[0] - 1e-12).all()
        assert (moved["gelu"] <= box[1] + 1e-12).all()
        assert (moved["layernorm"] >= out.low).all()
        assert (moved["layernorm"] <= out.high).all()
        for name, (back, constant) in rows.items():
            bound = torch.einsum("nkf,nf->nk", back, d) + constant
            assert (torch.einsum("nkf,nf->nk", v, moved[name]) >= bound - 1e-10).all(), name


def test_a_weight_before_the_last_attention_is_refused_by_name() -> None:
    model, x = vit(0), tokens(2, 0)
    masks = {"blocks.0.mlp.fc1.weight": torch.rand_like(model.get_parameter("blocks.0.mlp.fc1.weight")) > 0.5}
    with pytest.raises(ModelError, match=r"blocks\.0\.mlp\.fc1\.weight changes in this set .*no bound is proved"):
        bounds.margin_bound(last_block(model), families.sub_masks(model, masks), x, torch.tensor([0, 0]))


def test_other_transformers_are_refused_with_the_reason() -> None:
    with pytest.raises(ModelError, match="no plain vision transformer"):
        last_block(nn.Sequential(nn.Linear(2, 2)).eval())
    model = vit(0)
    model.global_pool = "avg"
    with pytest.raises(ModelError, match=r"only a class token.*measured, population and estimate tiers remain"):
        last_block(model)
    model = vit(0)
    model.blocks[-1].mlp.act = nn.SiLU().eval()
    with pytest.raises(ModelError, match="another activation"):
        last_block(model)


def test_a_second_head_is_not_overlooked() -> None:
    timm = import_timm()
    settings = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 4}
    model = timm.models.deit.VisionTransformerDistilled(**settings).eval()
    with pytest.raises(ModelError, match="no plain vision transformer"):
        last_block(model)
