"""Token merging: against a slow account of it, one token at a time; and that it leaves networks as they were."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mpviz as mp
from mpviz.errors import ModelError
from mpviz.nets.timm_import import import_timm
from mpviz.nets.tome import (
    merge_tokens,
    merged_tokens,
    merging,
    mlp_token_counts,
    schedule_of,
    token_counts,
    unmerge_tokens,
)

timm = import_timm()
SIZES = {"img_size": 24, "patch_size": 4, "in_chans": 2, "num_classes": 5, "embed_dim": 24, "depth": 4, "num_heads": 3}


def vit(kind: Any = None, seed: int = 0, **options: Any) -> Any:
    """A tiny network, in float64 and with keys that differ enough for a matching without near ties."""
    torch.manual_seed(seed)
    model = (kind or timm.models.VisionTransformer)(**SIZES | options).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("qkv.weight") or "token" in name or name == "pos_embed":
                parameter.normal_(std=0.5)
            if name.endswith("gamma"):
                parameter.uniform_(0.5, 1.5)
    return model


NETWORKS: dict[str, Callable[[], Any]] = {
    "class token": vit,
    "mean of places": lambda: vit(class_token=False, global_pool="avg"),
    "mean beside a class token": lambda: vit(global_pool="avg"),
    "attention pooling": lambda: vit(class_token=False, global_pool="map"),
    "distilled": lambda: vit(timm.models.deit.VisionTransformerDistilled),
    "registers": lambda: vit(reg_tokens=3, no_embed_class=True),
    "norms and scales": lambda: vit(qk_norm=True, scale_attn_norm=True, init_values=0.5, pre_norm=True),
}
SCHEDULES = {"int": (4, [4, 4, 4, 4]), "sequence": ([0, 7, 0, 3], [0, 7, 0, 3]), "to the end": (17, [17, 9, 5, 2])}


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 2, 24, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


# A token is [values, how many places it stands for, those places].


def _heads(attn: Any, tokens: list[list[Any]]) -> tuple[list[list[Tensor]], list[list[Tensor]], list[list[Tensor]]]:
    queries, keys, values = [], [], []
    for vector, _, _ in tokens:
        parts = attn.qkv(vector).chunk(3)
        queries.append([attn.q_norm(h) for h in parts[0].chunk(attn.num_heads)])
        keys.append([attn.k_norm(h) for h in parts[1].chunk(attn.num_heads)])
        values.append(list(parts[2].chunk(attn.num_heads)))
    return queries, keys, values


def _attend(attn: Any, tokens: list[list[Any]]) -> tuple[list[Tensor], list[Tensor]]:
    """What attention adds to each token, with each token counted `size` times; and each token's mean key."""
    queries, keys, values = _heads(attn, tokens)
    out = []
    for query in queries:
        heads = []
        for h in range(attn.num_heads):
            weights = [
                size * math.exp(float(query[h] @ key[h]) / math.sqrt(len(key[h])))
                for key, (_, size, _) in zip(keys, tokens, strict=True)
            ]
            heads.append(sum(w * value[h] for w, value in zip(weights, values, strict=True)) / sum(weights))
        out.append(attn.proj(attn.norm(torch.cat(heads))))
    return out, [torch.stack(key).mean(0) for key in keys]


def _merge(tokens: list[list[Any]], keys: list[Tensor], r: int, prefix: int) -> list[list[Any]]:
    if not r:
        return tokens
    numbers = range(prefix, len(tokens))
    even, odd = [i for i in numbers if i % 2 == 0], [i for i in numbers if i % 2]

    def angle(i: int, j: int) -> float:
        return float(keys[i] @ keys[j] / keys[i].norm() / keys[j].norm())

    best = {i: max(odd, key=lambda j: angle(i, j)) for i in even} if odd else {}
    merged = sorted(best, key=lambda i: -angle(i, best[i]))[:r]
    new = {j: [tokens[j]] + [tokens[i] for i in merged if best[i] == j] for j in odd}
    out = [*tokens[:prefix], *(tokens[i] for i in even if i not in merged)]
    for group in (new[j] for j in odd):
        size = sum(token[1] for token in group)
        out.append([sum(v * s for v, s, _ in group) / size, size, [place for _, _, ps in group for place in ps]])
    return out


@torch.no_grad()
def slow_features(model: Any, image: Tensor, schedule: list[int]) -> Tensor:
    """Behind the blocks and the last norm, Float["places d"]."""
    start = model.norm_pre(model._pos_embed(model.patch_embed(image[None])))[0]
    tokens: list[list[Any]] = [[vector, 1, [i]] for i, vector in enumerate(start)]
    for block, r in zip(model.blocks, schedule, strict=True):
        added, keys = _attend(block.attn, [[block.norm1(v), s, p] for v, s, p in tokens])
        tokens = [[v + block.ls1(a), s, p] for (v, s, p), a in zip(tokens, added, strict=True)]
        tokens = _merge(tokens, keys, r, model.num_prefix_tokens)
        tokens = [[v + block.ls2(block.mlp(block.norm2(v))), s, p] for v, s, p in tokens]
    places = {place: vector for vector, _, members in tokens for place in members}
    return model.norm(torch.stack([places[i] for i in range(len(start))]))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("plan", SCHEDULES)
@pytest.mark.parametrize("name", NETWORKS)
def test_merging_is_what_a_slow_account_says(name: str, plan: str, fused: bool, images: Tensor) -> None:
    model, (r, schedule) = NETWORKS[name](), SCHEDULES[plan]
    expected = torch.stack([slow_features(model, image, schedule) for image in images])
    for block in model.blocks:
        block.attn.fused_attn = fused
    dense = model(images)
    with merged_tokens(model, r), torch.no_grad():
        features = model.forward_features(images)
        torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)
        logits = model(images)
    torch.testing.assert_close(logits, model.forward_head(expected), atol=1e-5, rtol=1e-5)
    assert (logits - dense).abs().max() > 1e-4
    if name == "class token":
        torch.testing.assert_close(logits, model.head(expected[:, 0]), atol=1e-5, rtol=1e-5)
    if name == "mean of places":  # the size-weighted mean over tokens
        torch.testing.assert_close(logits, model.head(model.fc_norm(expected.mean(1))), atol=1e-5, rtol=1e-5)


def test_a_network_is_as_it_was_even_after_an_error(images: Tensor) -> None:
    model = vit()
    before, kinds, state = model(images), [type(m) for m in model.modules()], list(model.state_dict())
    attributes = set(vars(model.blocks))
    with pytest.raises(ZeroDivisionError), merged_tokens(model, 4) as merging:
        assert merging is model and schedule_of(model) == (4,) * 4
        assert list(model.state_dict()) == state
        assert not torch.equal(model(images), before)
        raise ZeroDivisionError
    assert schedule_of(model) == ()
    assert [type(m) for m in model.modules()] == kinds and set(vars(model.blocks)) == attributes
    assert torch.equal(model(images), before)
    handle = merged_tokens(model, [1, 0, 0, 0])
    handle.remove()
    later = merged_tokens(model, 2)
    handle.remove()  # a second time: it does not take off what others put on
    assert schedule_of(model) == (2,) * 4
    later.remove()
    assert torch.equal(model(images), before)


def test_nothing_merged_gives_the_same_bits(images: Tensor) -> None:
    model = vit().float()
    images = images.float()
    before, seen = model(images), []
    for r in (0, [0, 0, 0, 0]):
        with merged_tokens(model, r):
            assert schedule_of(model) == () and torch.equal(model(images), before)
    hook = model.blocks[1].register_forward_hook(lambda _, args, out: seen.append(out))
    model(images)
    with merged_tokens(model, [0, 0, 3, 0]):
        model(images)
    hook.remove()
    assert torch.equal(seen[0], seen[1])
    resnet = mp.load_model("fashion-resnet", pretrained=False)
    with merged_tokens(resnet, 0) as same:
        assert same is resnet


def test_a_copy_merges_too_and_weights_load_into_it(images: Tensor) -> None:
    model = vit()
    with merged_tokens(model, 5):
        copied, expected = copy.deepcopy(model), model(images)
    assert schedule_of(copied) == (5,) * 4 and schedule_of(model) == ()
    assert torch.equal(copied(images), expected)
    other = vit(seed=3)
    copied.load_state_dict(other.state_dict(), strict=True)
    assert torch.equal(copied(images), merge_tokens(other, 5)(images))
    assert torch.equal(unmerge_tokens(copied)(images), unmerge_tokens(other)(images))
    assert type(copied.blocks) is nn.Sequential


def test_a_pickle_merges_too(images: Tensor) -> None:
    model = merge_tokens(vit(), 5)
    back = pickle.loads(pickle.dumps(model))
    assert schedule_of(back) == (5,) * 4 and type(back.blocks[0]) is type(model.blocks[0])
    assert torch.equal(back(images), model(images))
    assert torch.equal(unmerge_tokens(back)(images), unmerge_tokens(model)(images))


def test_merging_for_a_while_goes_back_to_what_was(images: Tensor) -> None:
    model = merge_tokens(vit(), 5)
    expected = model(images)
    with merging(model, 3) as other:
        assert other is model and schedule_of(model) == (3,) * 4
    with pytest.raises(RuntimeError), merging(model, 0):
        assert schedule_of(model) == ()
        raise RuntimeError
    with pytest.raises(ModelError), merging(model, [1, 2]):
        pass
    assert schedule_of(model) == (5,) * 4 and torch.equal(model(images), expected)


def test_threads_do_not_meet(images: Tensor) -> None:
    model = merge_tokens(vit(), 6)
    batches = [images * (1 + 0.1 * i) for i in range(12)]
    with torch.no_grad():
        expected = [model(batch) for batch in batches]

    def run(i: int) -> bool:
        with torch.no_grad():
            return all(torch.equal(model(batches[j]), expected[j]) for j in range(i, 12, 2) for _ in range(5))

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(run, [0, 1]))


def test_an_image_alone_is_the_image_in_a_batch(images: Tensor) -> None:
    model = merge_tokens(vit(), 7)
    together = model(images)
    for i in range(len(images)):
        torch.testing.assert_close(model(images[i : i + 1])[0], together[i])


def test_merging_tokens_that_are_the_same_changes_nothing(images: Tensor) -> None:
    """One counts as two in the softmax, so that a pair of equals is as good as both."""
    model = vit(pos_embed="none")
    patches = images[:, :, :, ::8].repeat_interleave(8, dim=3)  # constant along rows of two patches, even beside odd
    with torch.no_grad():
        dense = model.forward_features(patches)
        assert torch.allclose(dense[:, 1::2], dense[:, 2::2]) and not torch.allclose(dense[:, 1], dense[:, 3])
        for r in (1, 9, 18):
            with merged_tokens(model, [r, 0, 0, 0]):
                torch.testing.assert_close(model.forward_features(patches), dense, atol=1e-9, rtol=1e-9)


def test_training_goes_through_the_merged_graph(images: Tensor) -> None:
    model = merge_tokens(vit(drop_path_rate=0.2, attn_drop_rate=0.1), 5).train()
    model(images).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert any(p.grad.abs().max() > 0 for n, p in model.named_parameters() if n.startswith("blocks.0.attn.qkv"))
    model, x = merge_tokens(vit(depth=2), 5), images[:1, :, :, :].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(x)[0, 0], x)  # piecewise smooth: the pairs stay near an image
    step, direction = 1e-6, torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        change = model(x + step * direction)[0, 0] - model(x - step * direction)[0, 0]
    assert float((gradient * direction).sum()) == pytest.approx(float(change) / (2 * step), rel=1e-5)


def test_halves_and_autocast_keep_their_types(images: Tensor) -> None:
    model = vit().bfloat16()
    with merged_tokens(model, 9), torch.no_grad():
        assert model(images.bfloat16()).dtype == torch.bfloat16
    with merged_tokens(model.float(), 9), torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(images.float()).dtype == torch.bfloat16


def test_token_counts() -> None:
    with torch.device("meta"):
        base = mp.load_model("vit_base_patch16_224", pretrained=False)
        distilled = mp.load_model("deit_tiny_distilled_patch16_224", pretrained=False)
    assert token_counts(base, 8) == tuple(range(197, 108, -8))
    assert mlp_token_counts(base, 8) == tuple(range(189, 100, -8))
    assert token_counts(base, 16) == (197, 181, 165, 149, 133, 117, 101, 85, 69, 53, 37, 21)
    assert mlp_token_counts(base, 16)[-1] == 11
    assert token_counts(base, 0) == mlp_token_counts(base, 0) == (197,) * 12
    assert token_counts(base, [98, *[0] * 11]) == (197, *[99] * 11)
    assert token_counts(base, 50, tokens=101) == (101, 51, 26, 14, 8, 5, 3, 2, 2, 2, 2, 2)
    assert token_counts(distilled, 8)[:2] == (198, 190)
    assert schedule_of(merge_tokens(base, 16)) == (16,) * 11 + (10,)
    assert token_counts(base, schedule_of(base)) == token_counts(base, 16)


def test_tokens_that_enter_the_layers(images: Tensor) -> None:
    model, seen = merge_tokens(vit(), [3, 0, 16, 1]), []
    for block in model.blocks:
        block.attn.qkv.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
        block.mlp.fc1.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    model(images)
    pairs = zip(token_counts(model, schedule_of(model)), mlp_token_counts(model, schedule_of(model)), strict=True)
    assert seen == [count for pair in pairs for count in pair]


def test_other_image_sizes_merge_what_they_can() -> None:
    model = merge_tokens(vit(dynamic_img_size=True), 16)
    assert model(torch.randn(1, 2, 16, 16, dtype=torch.float64)).shape == (1, 5)  # 16 places
    assert model(torch.randn(1, 2, 4, 4, dtype=torch.float64)).shape == (1, 5)  # one


def test_blocks_that_timm_cuts_off(images: Tensor) -> None:
    model = merge_tokens(vit(), 4)
    model.prune_intermediate_layers([1])
    assert schedule_of(model) == (4, 4) and model(images).shape[0] == 3
    assert type(unmerge_tokens(model).blocks) is nn.Sequential


REFUSED: dict[str, tuple[Callable[[], Any], Any, str]] = {
    "a ResNet": (lambda: mp.load_model("fashion-resnet", pretrained=False), 4, "no VisionTransformer of timm"),
    "an MLP": (lambda: mp.load_model("fashion-mlp", pretrained=False), 4, "no VisionTransformer of timm"),
    "Swin": (lambda: timm.create_model("swin_tiny_patch4_window7_224"), 4, "no VisionTransformer of timm"),
    "EVA": (lambda: timm.create_model("eva02_tiny_patch14_224"), 4, "no VisionTransformer of timm"),
    "other blocks": (
        lambda: vit(block_fn=timm.models.vision_transformer.ResPostBlock),
        4,
        "blocks.0 of .* is ResPostBlock with Attention; ",
    ),
    "other attention": (lambda: vit(attn_layer="diff"), 4, "Block with DiffAttention; .* with Attention only"),
    "a negative number": (vit, -1, "give 0 or more"),
    "a negative entry": (vit, [1, -2, 0, 0], "r = -2"),
    "a fraction": (vit, 2.5, "whole number"),
    "a word": (vit, "8", "whole number"),
    "a short schedule": (vit, [4, 4], "2 numbers and VisionTransformer 4 blocks"),
    "too many": (vit, 19, "r = 19 are more merges than tokens: block 0 can merge 18 of 37"),
    "too many later": (vit, [18, 10, 0, 0], "block 1 can merge 9 of 19"),
    "merging already": (lambda: merge_tokens(vit(), 2), 2, r"merges tokens already.*unmerge_tokens"),
    "nothing on top of merging": (lambda: merge_tokens(vit(), 2), 0, "merges tokens already"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str) -> None:
    build, r, words = REFUSED[case]
    with torch.device("meta"):
        model = build()
    kinds, schedule = [type(module) for module in model.modules()], schedule_of(model)
    for form in (merge_tokens, merged_tokens):
        with pytest.raises(ModelError, match=words) as caught:
            form(model, r)
        assert str(caught.value).count(". ") == 0
    assert [type(module) for module in model.modules()] == kinds and schedule_of(model) == schedule


def test_gradient_checkpointing_and_blocks_alone_are_refused(images: Tensor) -> None:
    model = vit()
    model.set_grad_checkpointing()
    with pytest.raises(ModelError, match="set_grad_checkpointing"):
        merge_tokens(model, 2)
    model.set_grad_checkpointing(False)
    merge_tokens(model, 2)
    for lonely in (
        lambda: model.forward_intermediates(images),
        lambda: model(images, attn_mask=torch.zeros(37, 37)),
        lambda: model.blocks[0].attn(torch.zeros(1, 37, 24, dtype=torch.float64)),
    ):
        with pytest.raises(ModelError, match="called by itself or with a mask"):
            lonely()
    model.set_grad_checkpointing()
    with pytest.raises(ModelError, match="called by itself or with a mask"):
        model.train()(images)


def test_a_network_for_any_size_is_asked_for_its_tokens() -> None:
    model = vit()
    model.patch_embed.num_patches = None
    with pytest.raises(ModelError, match="say how many tokens"):
        token_counts(model, 2)
    assert token_counts(model, 2, tokens=37) == (37, 35, 33, 31)
