"""Multiply–adds: against published numbers, PyTorch's own counter and arithmetic by hand."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import mpviz as mp
from mpviz.errors import BudgetError, ModelError, PatternError
from mpviz.nets.kn_pattern import KN
from mpviz.nets.layers import list_layers
from mpviz.nets.macs import Macs, count_macs
from mpviz.nets.timm_import import import_timm
from mpviz.nets.tome import merge_tokens, mlp_token_counts, schedule_of, token_counts

timm = import_timm()


def build(name: str, **options: Any) -> nn.Module:
    """Without values: counting looks at shapes only."""
    with torch.device("meta"):
        return mp.load_model(name, pretrained=False, **options)


# billions of MACs, and the per cent that 2:4 saves, at 224 × 224
DENSE = {
    "vit_base_patch16_224": (17.564, 47.63),
    "deit_base_patch16_224": (17.564, 47.63),
    "vit_large_patch16_224": (61.555, 48.32),
    "deit_small_patch16_224": (4.599, 45.48),
    "deit_tiny_patch16_224": (1.254, 41.71),
    "resnet50": (4.089, 48.53),
    "resnet50d": (4.329, 49.85),
    "resnet101d": (8.041, None),
    "resnet152d": (11.753, None),
    "convnextv2_base": (15.355, 49.19),
}


@pytest.mark.parametrize("name", DENSE)
def test_networks_of_the_paper(name: str) -> None:
    found, (dense, reduction) = count_macs(build(name), 224, "2:4"), DENSE[name]
    assert round(found.dense / 1e9, 3) == dense
    if reduction is not None:
        assert round(100 * found.reduction, 2) == reduction


@pytest.mark.parametrize(("pattern", "reduction"), [("2:4", 48.19), ("12:16", 24.09)])
def test_the_paper_leaves_the_convolutions_of_convnext_dense(pattern: str, reduction: float) -> None:
    model = build("convnextv2_base")
    linear = [info.name for info in list_layers(model) if info.prunable and info.kind == "Linear"]
    for layers in (linear, ["mlp"], "mlp"):  # by name, and by the role that these have
        assert round(100 * count_macs(model, 224, pattern, layers=layers).reduction, 2) == reduction


def test_roles_are_taken_as_projections_take_them() -> None:
    vit = mp.load_model("fashion-vit", pretrained=False)
    table = count_macs(vit, pattern="2:4", layers=["mlp", "blocks.0.attn.qkv"]).table
    pruned = [name for name, density in table["density"].items() if density == 0.5]
    assert pruned == [name for name in table.index if ".mlp." in name or name == "blocks.0.attn.qkv.weight"]
    assert count_macs(vit, pattern="2:4", layers=["mlp", "attention"]).sparse == count_macs(vit, pattern="2:4").sparse
    fitting = [count_macs(vit, pattern="2:4", layers=one).sparse for one in ("fitting", ["fitting"])]
    assert fitting == [count_macs(vit, pattern="2:4").sparse] * 2
    refused(vit, PatternError, "has no prunable layer of the role 'depthwise'", pattern="2:4", layers=["depthwise"])
    refused(vit, ModelError, "unknown layer 'mpl'", pattern="2:4", layers=["mlp", "mpl"])


# executed and by the paper's convention, per cent saved by 2:4 and r = 8
MERGED = {
    "vit_base_patch16_224": (61.097, 59.807),
    "deit_small_patch16_224": (59.80, 58.57),
    "deit_tiny_patch16_224": (57.53, 56.40),
    "vit_large_patch16_224": (74.16, None),
}


@pytest.mark.parametrize("name", MERGED)
def test_merged_networks_of_the_paper(name: str) -> None:
    model = build(name)
    executed, paper = (count_macs(model, 224, "2:4", 8, convention) for convention in ("executed", "paper"))
    assert 100 * executed.reduction == pytest.approx(MERGED[name][0], abs=0.005)
    if MERGED[name][1] is not None:
        assert 100 * paper.reduction == pytest.approx(MERGED[name][1], abs=0.005)
    assert executed.dense == paper.dense and schedule_of(model) == ()


def test_the_headline_number() -> None:
    model = build("vit_base_patch16_224")
    executed = count_macs(model, 224, "2:4", 8)
    assert round(executed.sparse / 1e9, 3) == 6.833 and round(100 * executed.reduction, 2) == 61.10
    assert round(count_macs(model, 224, "2:4", 8, "paper").sparse / 1e9, 4) == 7.0594
    assert round(100 * count_macs(model, 224, tome=8).reduction, 2) == 25.39
    assert executed.schedule == (8,) * 12 and executed.input_size == (3, 224, 224)
    places = executed.table["places"]
    for part, counts in (("attn.qkv", token_counts(model, 8)), ("mlp.fc2", mlp_token_counts(model, 8))):
        assert tuple(places[f"blocks.{i}.{part}.weight"] for i in range(12)) == counts
    assert tuple(places[f"blocks.{i}.attn (QKᵀ, AV)"] for i in range(12)) == token_counts(model, 8)
    paper = count_macs(model, tome=8, convention="paper").table["places"]
    assert tuple(paper[f"blocks.{i}.mlp.fc1.weight"] for i in range(12)) == token_counts(model, 8)


ORACLES = {
    "vit_tiny_patch16_224": 224,
    "deit_tiny_distilled_patch16_224": 224,
    "vit_base_patch16_siglip_224": 224,  # pools by attention, with a learned query
    "eva02_tiny_patch14_224": 224,  # reads its weights without calling the Linear layers
    "swin_tiny_patch4_window7_224": 224,
    "swinv2_cr_tiny_ns_224": 224,
    "convnext_atto": 192,
    "efficientnet_b0": 224,
    "maxvit_pico_rw_256": 256,
    "coatnet_nano_rw_224": 224,
    "mobilevit_xxs": 256,
    "xcit_nano_12_p16_224": 224,
    "levit_128s": 224,
    "mixer_s32_224": 224,
    "resnet18": 288,
    "resnetv2_50x1_bit": 128,  # standardises its weights before each convolution
    "regnetx_002": 224,  # grouped convolutions
}


@pytest.mark.parametrize("name", ORACLES)
def test_against_the_counter_of_pytorch(name: str) -> None:
    model, size = build(name).requires_grad_(False), ORACLES[name]
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    with FlopCounterMode(display=False) as oracle, torch.no_grad():
        model(torch.empty(1, 3, size, size, device="meta"))
    found = count_macs(model, size)
    assert 2 * found.dense == oracle.get_total_flops()
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = True
    fused = count_macs(model, size)
    assert fused.dense == found.dense
    named = {info.name for info in list_layers(model)}
    products = [name for name in found.table.index if name.endswith(")")]
    assert set(found.table.index) - set(products) == named
    assert all(" (" in name and found.table["role"][name] == "attention" for name in products)


def test_the_merged_graph_against_the_counter_of_pytorch() -> None:
    model, r = build("deit_tiny_distilled_patch16_224").requires_grad_(False), [0, 8, 20, 0, 0, 30, 1, 2, 3, 4, 5, 6]
    found = count_macs(model, tome=r)
    merge_tokens(model, r)
    with FlopCounterMode(display=False) as oracle:
        model(torch.empty(1, 3, 224, 224, device="meta"))
    pairs = zip(token_counts(model, r), r, strict=True)
    matching = sum((tokens - 1) // 2 * ((tokens - 2) // 2) * 64 for tokens, merges in pairs if merges)
    assert 2 * (found.sparse + matching) == oracle.get_total_flops()
    assert matching < 0.01 * found.sparse


def test_fused_attention_on_a_real_pass() -> None:
    """What PyTorch's counter drops on the CPU."""

    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vit = timm.models.VisionTransformer(img_size=32, embed_dim=48, depth=2, num_heads=3, num_classes=4)

        def forward(self, x: Tensor) -> Tensor:
            return self.vit(x) if float(x.sum()) == 0 else x  # has no answer without values

    model = Looks().eval()
    hidden, seen = count_macs(model, (3, 32, 32)), count_macs(model.vit)
    assert hidden.dense == seen.dense
    assert list(hidden.table["dense"]) == list(seen.table["dense"])
    assert "vit.blocks.0.attn (QKᵀ, AV)" in hidden.table.index


def by_hand(table: pd.DataFrame, name: str) -> tuple[int, int, int]:
    return tuple(int(table.loc[name, column]) for column in ("dense", "places", "params"))  # type: ignore[return-value]


def test_arithmetic_by_hand() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(2, 8, 3, stride=2, padding=1)
            self.groups = nn.Conv2d(8, 12, (3, 1), groups=4, padding="same")
            self.up = nn.ConvTranspose2d(12, 4, 2, stride=2)
            self.fc = nn.Linear(4, 6)
            self.head = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            tokens = F.relu(self.up(self.groups(self.stem(x)))).flatten(2).transpose(1, 2)
            tokens = F.linear(tokens, self.fc.weight, self.fc.bias) + self.fc(tokens)
            mixed = torch.einsum("bij,bkj->bik", tokens, tokens).softmax(-1) @ tokens
            return self.head(mixed.mean(1))

    counted = count_macs(Net().eval(), (2, 8, 10))
    table = counted.table
    assert by_hand(table, "stem.weight") == (4 * 5 * 8 * 2 * 9, 20, 144)
    assert by_hand(table, "groups.weight") == (4 * 5 * 12 * 2 * 3, 20, 72)
    assert by_hand(table, "up.weight") == (4 * 5 * 12 * 4 * 4, 20, 192)
    assert by_hand(table, "fc.weight") == (2 * 80 * 24, 160, 24)
    assert by_hand(table, "(QKᵀ, AV)") == (2 * 80 * 80 * 6, 80, 0)
    assert by_hand(table, "head.weight") == (18, 1, 18)
    assert str(replace(counted, sparse=counted.dense // 4)).startswith("75.00\u202f% of ")
    assert table["bytes_dense"].equals(4 * table["params"])


def test_bundled_networks_need_no_size() -> None:
    for name, size in (("fashion-mlp", (1, 28, 28)), ("fashion-vit", (1, 28, 28)), ("fashion-resnet", (1, 28, 28))):
        assert count_macs(mp.load_model(name, pretrained=False)).input_size == size
    assert count_macs(build("swin_tiny_patch4_window7_224", img_size=448, in_chans=1)).input_size == (1, 448, 448)
    assert count_macs(build("resnet101d")).input_size == (3, 256, 256)
    assert count_macs(build("resnet101d"), 224).input_size == (3, 224, 224)


def test_bytes_and_roles() -> None:
    model = mp.load_model("fashion-vit", pretrained=False).half()
    for pattern, bits in (("2:4", 2), ("4:8", 3), ("12:16", 4)):
        found = count_macs(model, pattern=pattern)
        row = found.table.loc["blocks.0.mlp.fc1.weight"]
        k, n = KN.parse(pattern).k, KN.parse(pattern).n
        kept = 512 * 128 * k // n
        assert row["bytes_dense"] == 2 * 512 * 128 and row["bytes_kept"] == 2 * kept + kept * bits // 8
        assert row["density"] == k / n and row["sparse"] == row["dense"] * k // n
        assert found.table.loc["head.weight", "density"] == 1
    roles = found.by_role()
    assert list(roles.index) == ["stem", "attention", "mlp", "head"]
    assert roles["dense"].sum() == found.dense and roles["sparse"].sum() == found.sparse
    assert roles.loc["mlp", "reduction"] == 0.25 and roles.loc["stem", "reduction"] == 0


def test_masks_count_what_they_keep() -> None:
    model = mp.load_model("fashion-resnet", pretrained=False)
    masks = mp.magnitude_masks(model, 0.7)
    found = count_macs(model, masks=masks)
    saved = 0
    for name, mask in masks.items():
        row = found.table.loc[name]
        assert row["sparse"] == row["places"] * int(mask.sum())
        assert row["density"] == pytest.approx(float(mask.float().mean()))
        assert row["bytes_kept"] == 4 * int(mask.sum()) + -(-mask.numel() // 8)
        saved += row["dense"] - row["sparse"]
    assert found.dense - found.sparse == saved


def test_a_model_that_merges_is_counted_as_it_merges() -> None:
    model = build("deit_tiny_patch16_224")
    expected = count_macs(model, tome=16)
    merge_tokens(model, 16)
    found = count_macs(model)
    assert (found.dense, found.sparse, found.schedule) == (expected.dense, expected.sparse, (16,) * 11 + (10,))
    assert count_macs(model, tome=16).sparse == found.sparse
    with pytest.raises(ModelError, match="already; leave tome at 0"):
        count_macs(model, tome=8)
    assert schedule_of(model) == found.schedule


def test_the_model_is_only_read() -> None:
    model, calls = mp.load_model("fashion-vit", pretrained=False).train(), []
    model.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    model.running = torch.zeros(2, requires_grad=True) * 1  # which a plain deep copy refuses
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kinds = [type(module) for module in model.modules()]
    results: list[Macs] = []
    threads = [threading.Thread(target=lambda r=r: results.append(count_macs(model, tome=r))) for r in (0, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with pytest.raises(ModelError):
        count_macs(model, 30)
    assert len({found.dense for found in results}) == 1 and len({found.sparse for found in results}) == 2
    assert not calls and all(module.training for module in model.modules())
    assert [type(module) for module in model.modules()] == kinds and len(model.blocks[0]._forward_hooks) == 1
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_fused_layers_of_pytorch_are_counted_or_refused() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.Sequential(nn.Flatten(2), nn.Linear(16, 16), layer).eval()
    table = count_macs(model, (5, 4, 4)).table  # 5 tokens
    assert by_hand(table, "2.self_attn.in_proj_weight") == (5 * 48 * 16, 5, 48 * 16)
    assert by_hand(table, "2.self_attn.out_proj.weight") == (5 * 16 * 16, 5, 256)
    assert by_hand(table, "2.self_attn (QKᵀ, AV)")[0] == 2 * 5 * 5 * 16


def test_patterns() -> None:
    for wrong in ("2/4", "4:2", "0:4", "-2:4", "2:4:8", "", "²:4", None, 24):
        with pytest.raises(PatternError, match="is no k:n pattern"):
            KN.parse(wrong)  # type: ignore[arg-type]
    mlp = mp.load_model("fashion-mlp", pretrained=False)
    one = count_macs(mlp, pattern="2:4", layers=["features.fc2", "head.weight"])
    assert list(one.table["density"]) == [1, 0.5, 0.5]
    everything = count_macs(mlp, pattern="4:4")
    assert everything.reduction == 0 and everything.table["bytes_kept"].equals(everything.table["bytes_dense"])


def refused(model: nn.Module, kind: type[Exception], words: str, **options: Any) -> None:
    with pytest.raises(kind, match=words) as caught:
        count_macs(model, **options)
    assert "\n" not in str(caught.value)


def test_what_is_refused() -> None:
    mlp, vit = mp.load_model("fashion-mlp", pretrained=False), build("vit_large_patch16_224")
    mask = {"features.fc1.weight": torch.ones(512, 784, dtype=torch.bool)}
    refused(mlp, BudgetError, "unknown convention 'papers'; did you mean 'paper'", convention="papers")
    refused(mlp, PatternError, "is no k:n pattern; write 2:4", pattern="4:2")
    refused(vit, PatternError, r"6:12 .* blocks.0.attn.qkv.weight has 1024, .* and 93 more", pattern="6:12")
    refused(mlp, ModelError, "unknown layer 'features.fc9'; did you mean", pattern="2:4", layers=["features.fc9"])
    refused(mlp, BudgetError, "give pattern= as well", layers=["features.fc1"])
    refused(mlp, BudgetError, "leave out pattern=", masks=mask, pattern="2:4")
    refused(mlp, BudgetError, "names no parameter", masks={"features.fc9.weight": mask["features.fc1.weight"]})
    refused(mlp, BudgetError, "has shape", masks={"features.fc2.weight": mask["features.fc1.weight"]})
    refused(mlp, ModelError, "no VisionTransformer of timm", tome=4)
    refused(vit, ModelError, "more merges than tokens", tome=99)
    refused(vit, ModelError, r"cannot take an image of shape \(3, 200, 200\)", input_size=200)
    refused(mlp, ModelError, "cannot take an image", input_size=(1, 20, 20))
    for size in (0, -3, 2.5, (28, 28), "224"):
        refused(mlp, ModelError, "give the side of a square image", input_size=size)
    resnet = build("regnetx_002")
    grouped = next(info.name for info in list_layers(resnet) if info.groups > 1)
    refused(resnet, PatternError, "is a grouped convolution", pattern="2:4", layers=[grouped])
    refused(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), ModelError, "does not say how large its images are")
