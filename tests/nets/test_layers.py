"""Which weights are found, what they are called and which may be pruned."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import mpviz as mp
from mpviz.errors import ModelError
from mpviz.nets.layers import as_matrix, group_infos, list_layers, part_of, weight_of
from mpviz.nets.roles import ROLES
from mpviz.nets.zoo import load_model


@pytest.mark.parametrize(
    ("name", "roles"),
    [
        ("fashion-mlp", {"mlp": 2, "head": 1}),
        ("fashion-vit", {"stem": 4, "attention": 12, "mlp": 12, "head": 1}),
        ("fashion-resnet", {"stem": 1, "conv": 24, "head": 1}),
        ("mobilenetv3_small_050", None),
        ("deit_tiny_distilled_patch16_224", None),
    ],
)
def test_roles_of_known_networks(name, roles):
    model = load_model(name, pretrained=False)
    infos = list_layers(model)
    found = {role: sum(info.role == role for info in infos) for role in {info.role for info in infos}}
    assert set(found) <= set(ROLES)
    if roles is not None:
        assert found == roles
    parameters = dict(model.named_parameters())
    for info in infos:
        assert parameters[info.name].numel() == info.params == info.rows * info.cols
        assert info.prunable == (info.why == "")
        assert info.prunable == (info.role in ("attention", "mlp", "conv"))
    assert [info.depth for info in infos] == list(range(len(infos)))


@pytest.mark.parametrize(
    "name",
    [
        *("fashion-mlp", "fashion-vit", "fashion-resnet", "mobilenetv3_small_050", "deit_tiny_distilled_patch16_224"),
        *("convnext_atto", "mixer_s32_224", "swinv2_cr_tiny_ns_224", "vit_relpos_small_patch16_rpn_224"),
    ],
)
def test_a_state_dict_tells_the_same_as_its_module(name):
    with torch.device("meta"):
        model = load_model(name, pretrained=False)
    kinds = {"NonDynamicallyQuantizableLinear": "Linear"}
    expected = [dataclasses.replace(info, kind=kinds.get(info.kind, info.kind)) for info in list_layers(model)]
    found = list_layers(model.state_dict())
    assert [dataclasses.replace(info, kind="") for info in found] == [
        dataclasses.replace(info, kind="") for info in expected
    ]
    assert {info.kind for info in found} <= {"Linear", "Conv2d"}
    # as a wrapped model saves it, the roles stay
    wrapped = list_layers({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}})
    assert [info.role for info in wrapped] == [info.role for info in found]


def test_depthwise_and_distilled_heads_are_not_prunable():
    mobile = {info.name: info for info in list_layers(load_model("mobilenetv3_small_050", pretrained=False))}
    depthwise = [info for info in mobile.values() if info.role == "depthwise"]
    assert len(depthwise) == 11
    assert all("groups" in info.why and info.groups == info.rows for info in depthwise)
    deit = list_layers(load_model("deit_tiny_distilled_patch16_224", pretrained=False))
    assert sum(info.role == "head" for info in deit) == 2


def test_a_plain_module_and_shared_weights():
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    second.weight = first.weight
    infos = list_layers(nn.Sequential(first, nn.ReLU(), second, nn.Linear(8, 3)))
    assert [info.name for info in infos] == ["0.weight", "3.weight"]
    assert infos[-1].role == "head"


def test_attention_of_torch_and_other_convolutions_are_found():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.line = nn.Conv1d(3, 8, 5)
            self.solid = nn.Conv3d(8, 12, 2)
            self.mha = nn.MultiheadAttention(24, 4)
            self.unlike = nn.MultiheadAttention(24, 4, kdim=10, vdim=12)
            self.out = nn.Linear(24, 2)

    infos = {info.name: info for info in list_layers(Net())}
    assert (infos["line.weight"].rows, infos["line.weight"].cols, infos["line.weight"].role) == (8, 15, "stem")
    assert (infos["solid.weight"].kind, infos["solid.weight"].cols) == ("Conv3d", 64)
    assert {name for name, info in infos.items() if info.role == "attention"} == {
        *("mha.in_proj_weight", "mha.out_proj.weight", "unlike.out_proj.weight"),
        *("unlike.q_proj_weight", "unlike.k_proj_weight", "unlike.v_proj_weight"),
    }
    assert [info.part for info in list_layers(Net(), ["mha.in_proj_weight"], split="qkv")] == ["q", "k", "v"]
    assert {info.name: info.role for info in list_layers(Net().state_dict())} == {n: i.role for n, i in infos.items()}


def test_a_weight_that_a_parametrisation_computes_is_seen_but_not_prunable():
    model = nn.Sequential(weight_norm(nn.Linear(16, 16)), weight_norm(nn.Linear(16, 16)), nn.Linear(16, 4))
    infos = list_layers(model)
    assert [info.name for info in infos] == ["0.weight", "1.weight", "2.weight"]
    assert [info.prunable for info in infos] == [False, False, False]
    assert all("parametrisation" in info.why for info in infos[:2])


# --- parts ----------------------------------------------------------------------------------------------------------


def test_fused_attention_splits_into_q_k_and_v():
    model = load_model("fashion-vit", pretrained=False)
    whole, parts = list_layers(model), list_layers(model, split=("qkv",))
    assert len(parts) == len(whole) + 2 * 6
    q, k, v = list_layers(model, ["blocks.2.attn.qkv"], split="qkv")
    assert [info.name for info in (q, k, v)] == [f"blocks.2.attn.qkv.weight[{part}]" for part in "qkv"]
    weight = weight_of(model, "blocks.2.attn.qkv.weight")
    assert torch.equal(torch.cat([part_of(weight, info)[0] for info in (q, k, v)]), weight)
    assert q.parameter == "blocks.2.attn.qkv.weight" and not q.prunable and "whole weight" in q.why
    assert {q.depth, k.depth, v.depth} == {next(i.depth for i in whole if i.name == q.parameter)}
    assert list_layers(model, ["blocks.2.attn.qkv.weight[k]"], split="qkv") == [k]
    with pytest.raises(ModelError, match=r"unknown layer 'blocks\.2\.attn\.qkv\.weight\[k\]'"):
        list_layers(model, ["blocks.2.attn.qkv.weight[k]"])
    with pytest.raises(ModelError, match="unknown split 'qvk'; did you mean 'qkv'"):
        list_layers(model, split=("qvk",))


def test_attention_that_keeps_its_heads_together_has_no_thirds():
    class Attention(nn.Module):
        head_first = True

        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(12, 36)

    def names(model):
        return [info.name for info in list_layers(model, split="qkv")]

    assert names(nn.Sequential(Attention(), nn.Linear(36, 2))) == ["0.qkv.weight", "1.weight"]
    Attention.head_first = False
    assert len(names(nn.Sequential(Attention(), nn.Linear(36, 2)))) == 4


def test_groups_are_matrices_of_their_own():
    model = nn.Sequential(nn.Conv2d(8, 16, 1), nn.Conv2d(16, 32, 3, groups=4), nn.Conv2d(32, 32, 3, groups=32))
    _, grouped, depthwise = list_layers(model)
    assert (grouped.rows, grouped.cols, grouped.groups, grouped.matrix) == (32, 36, 4, (8, 36))
    assert grouped.aspect == 36 / 8 and grouped.role == "depthwise" and not grouped.prunable
    parts = list_layers(model, ["1"], split=["groups", "qkv"])
    assert parts == group_infos(grouped) and len(parts) == 4
    assert (parts[2].name, parts[2].part, parts[2].groups) == ("1.weight[group 3]", "group 3 of 4", 1)
    assert torch.equal(part_of(model[1].weight, parts[2])[0], model[1].weight[16:24].reshape(8, -1))
    assert part_of(model[1].weight, grouped).shape == (4, 8, 36)
    assert list_layers(model, ["2"], split="groups") == [depthwise], "a thousand rows of one number tell nothing"


def test_convolutions_unfold_by_output():
    conv = nn.Conv2d(3, 5, 2)
    assert torch.equal(as_matrix(conv.weight)[4], conv.weight[4].reshape(-1))
    with pytest.raises(ModelError, match="not a matrix"):
        as_matrix(torch.zeros(4))


def test_unknown_names_suggest_the_nearest():
    model = load_model("fashion-mlp", pretrained=False)
    assert [info.name for info in list_layers(model, ["features.fc2"])] == ["features.fc2.weight"]
    for given in (model, model.state_dict()):
        with pytest.raises(ModelError, match=r"'features\.fc9\.weight'; did you mean 'features\.fc\d\.weight'"):
            list_layers(given, ["features.fc9.weight"])
        with pytest.raises(ModelError, match="unknown parameter"):
            weight_of(given, "nothing.weight")
        assert torch.equal(weight_of(given, "features.fc2.weight"), model.features.fc2.weight)
    with pytest.raises(ModelError, match="no Linear or Conv2d"):
        list_layers(nn.ReLU())


@pytest.mark.parametrize("name", ["tiny_vit_5m_224", "maxvit_rmlp_pico_rw_256", "lambda_resnet26t"])
def test_attention_that_is_not_stacked_in_thirds_is_not_split(name):
    model = mp.load_model(name, pretrained=False)
    found = [info for info in list_layers(model, split=("qkv",)) if "qkv" in info.name]
    assert found and not [info.name for info in found if info.part]
