"""Reordered channels leave a network's function alone: every rule, on networks with nothing symmetric about them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mpviz as mp
from mpviz.errors import ModelError
from mpviz.nets.channels import channel_sites, reordered
from mpviz.nets.tome import merge_tokens, unmerge_tokens

CASES: list[tuple[str, tuple[int, ...], dict[str, Any], int]] = [  # name, image, options, sites at least
    ("fashion-mlp", (1, 28, 28), {}, 2),
    ("fashion-vit", (1, 28, 28), {}, 13),
    ("fashion-resnet", (1, 28, 28), {}, 18),
    ("vit_tiny_patch16_224", (3, 32, 32), {"depth": 2, "img_size": 32}, 5),
    ("deit_tiny_distilled_patch16_224", (3, 32, 32), {"depth": 2, "img_size": 32}, 5),
    ("vit_small_patch14_reg4_dinov2", (3, 28, 28), {"depth": 2, "img_size": 28, "num_classes": 7}, 5),
    (
        "vit_small_patch14_reg4_dinov2",
        (3, 28, 28),
        {"depth": 2, "img_size": 28},
        4,
    ),  # no head: its stream is the output
    ("vit_base_patch16_siglip_224", (3, 32, 32), {"depth": 1, "img_size": 32, "embed_dim": 192, "num_heads": 3}, 3),
    ("vit_tiny_patch16_224", (3, 32, 32), {"depth": 1, "img_size": 32, "pre_norm": True}, 3),  # norm before its blocks
    ("vit_tiny_r_s16_p8_224", (3, 64, 64), {"depth": 2, "img_size": 64}, 5),  # patches of a convolutional network
    ("resnet18", (3, 48, 48), {}, 12),
    ("resnet18", (3, 48, 48), {"global_pool": "catavgmax"}, 11),
    ("resnet26d", (3, 48, 48), {}, 18),
    ("convnextv2_atto", (3, 32, 32), {}, 12),
    ("swin_tiny_patch4_window7_224", (3, 224, 224), {"depths": (1, 1, 1, 1)}, 4),
]


def asymmetric(name: str, options: dict[str, Any]) -> nn.Module:
    """In double precision, with random statistics of batch norms and random scales, biases and tokens."""
    model = mp.load_model(name, pretrained=False, **options).double()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=draw))
                module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=draw))
        for parameter in model.parameters():
            if parameter.ndim == 1 or parameter.ndim == 3:
                parameter.copy_(1 + 0.3 * torch.randn(parameter.shape, generator=draw))
    return model


def shuffled(size: int, blocks: int, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    width = size // blocks
    return torch.cat([torch.randperm(width, generator=draw) + block * width for block in range(blocks)])


@pytest.mark.parametrize(("name", "image", "options", "least"), CASES, ids=lambda one: one if type(one) is str else "")
def test_every_site_by_itself_and_all_together(
    name: str, image: tuple[int, ...], options: dict[str, Any], least: int
) -> None:
    model = asymmetric(name, options)
    x = torch.randn(2, *image, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    sites = channel_sites(model)
    assert len(sites) >= least
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        expected = model(x)
        scale = expected.abs().max()
        orders = [(site, shuffled(site.size, site.blocks, i)) for i, site in enumerate(sites)]
        for site, order in orders:
            assert (reordered(model, [(site, order)])(x) - expected).abs().max() < 1e-12 * scale, site.name
        together = reordered(model, orders)
        assert (together(x) - expected).abs().max() < 1e-12 * scale
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    moved = [key for key, value in together.state_dict().items() if not torch.equal(value, before[key])]
    assert {place.tensor for site in sites for place in site.places} == set(moved)


def test_a_site_without_one_of_its_places_would_be_wrong() -> None:
    """The test above can fail: each place that a rule names is needed."""
    from dataclasses import replace

    model = asymmetric("resnet26d", {})
    x = torch.randn(2, 3, 48, 48, dtype=torch.float64)
    site = channel_sites(model)[0]
    order = shuffled(site.size, site.blocks, 0)
    with torch.no_grad():
        expected = model(x)
        for i in range(len(site.places)):
            less = replace(site, places=(*site.places[:i], *site.places[i + 1 :]))
            assert (reordered(model, [(less, order)])(x) - expected).abs().max() > 1e-6


def test_a_network_that_merges_tokens_has_the_sites_that_it_has_without() -> None:
    model = asymmetric("vit_tiny_patch16_224", {"depth": 3, "img_size": 32, "patch_size": 8})
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    sites = channel_sites(model)
    assert len(sites) == 7
    with torch.no_grad():
        plain = model(x)
        assert channel_sites(merge_tokens(model, 2)) == sites
        expected = model(x)
        scale = expected.abs().max()
        assert (expected - plain).abs().max() > 1e-6 * scale  # tokens did merge
        orders = [(site, shuffled(site.size, site.blocks, i)) for i, site in enumerate(sites)]
        for some in (*([one] for one in orders), orders):
            assert (reordered(model, some)(x) - expected).abs().max() < 1e-12 * scale
    assert channel_sites(unmerge_tokens(model)) == sites


def test_a_head_that_reads_the_stream_more_than_once_has_no_site() -> None:
    plain, twice = (
        channel_sites(mp.load_model("resnet18", pretrained=False, global_pool=pool)) for pool in ("avg", "catavgmax")
    )
    assert [site for site in plain if "fc.weight" not in site.readers] == twice and len(twice) == len(plain) - 1
    vit = mp.load_model("vit_tiny_patch16_224", pretrained=False, depth=1)
    assert any("head.weight" in site.readers for site in channel_sites(vit))
    vit.head = nn.Linear(2 * 192, 10)
    assert [site.name for site in channel_sites(vit)] == ["values of blocks.0.attn", "hidden units of blocks.0.mlp"]


def test_a_norm_of_groups_of_channels_keeps_a_stream_in_order() -> None:
    vit = mp.load_model("vit_tiny_patch16_224", pretrained=False, depth=1)
    assert len(channel_sites(vit)) == 3
    vit.fc_norm = nn.GroupNorm(4, 192)
    assert [site.name for site in channel_sites(vit)] == ["values of blocks.0.attn", "hidden units of blocks.0.mlp"]


def test_what_has_no_rule_is_left_alone() -> None:
    assert channel_sites(mp.load_model("seresnet50", pretrained=False)) == []
    shared = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    assert len(channel_sites(shared)) == 1
    shared[2].weight = shared[0].weight
    assert channel_sites(shared) == []
    mixed = nn.Sequential(nn.Linear(4, 4), nn.Softmax(1), nn.Linear(4, 4))
    assert channel_sites(mixed) == []


def test_an_order_that_leaves_its_blocks_or_repeats_a_channel_is_refused() -> None:
    model = mp.load_model("fashion-vit", pretrained=False)
    site = next(site for site in channel_sites(model) if site.blocks > 1)
    with pytest.raises(ModelError, match="no permutation of its 128 channels within blocks"):
        reordered(model, [(site, torch.arange(127, -1, -1))])
    with pytest.raises(ModelError, match="no permutation"):
        reordered(model, [(site, torch.zeros(128, dtype=torch.int64))])
