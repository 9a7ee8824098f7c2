"""Which weights are found, what they are called and which may be pruned."""

import pytest
import torch
from torch import nn

from mpviz.errors import ModelError
from mpviz.nets.layers import as_matrix, list_layers, weight_of
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
    if roles is not None:
        assert found == roles
    parameters = dict(model.named_parameters())
    for info in infos:
        assert parameters[info.name].numel() == info.params == info.rows * info.cols
        assert info.prunable == (info.why == "")
        assert info.prunable == (info.role in ("attention", "mlp", "conv"))
    assert [info.depth for info in infos] == list(range(len(infos)))


def test_depthwise_and_distilled_heads_are_not_prunable():
    mobile = {info.name: info for info in list_layers(load_model("mobilenetv3_small_050", pretrained=False))}
    depthwise = [info for info in mobile.values() if info.role == "depthwise"]
    assert len(depthwise) == 11
    assert all("groups" in info.why for info in depthwise)
    deit = list_layers(load_model("deit_tiny_distilled_patch16_224", pretrained=False))
    assert sum(info.role == "head" for info in deit) == 2


def test_a_plain_module_and_shared_weights():
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    second.weight = first.weight
    infos = list_layers(nn.Sequential(first, nn.ReLU(), second, nn.Linear(8, 3)))
    assert [info.name for info in infos] == ["0.weight", "3.weight"]
    assert infos[-1].role == "head"


def test_convolutions_unfold_by_output():
    conv = nn.Conv2d(3, 5, 2)
    assert torch.equal(as_matrix(conv.weight)[4], conv.weight[4].reshape(-1))
    with pytest.raises(ModelError, match="not a matrix"):
        as_matrix(torch.zeros(4))


def test_unknown_names_suggest_the_nearest():
    model = load_model("fashion-mlp", pretrained=False)
    assert [info.name for info in list_layers(model, ["features.fc2"])] == ["features.fc2.weight"]
    with pytest.raises(ModelError, match=r"'features\.fc9\.weight'; did you mean 'features\.fc\d\.weight'"):
        list_layers(model, ["features.fc9.weight"])
    with pytest.raises(ModelError, match="unknown parameter"):
        weight_of(model, "nothing.weight")
    with pytest.raises(ModelError, match="no Linear or Conv2d"):
        list_layers(nn.ReLU())
