"""Layers stored as two: the same answers, fewer numbers, and back from a file bit by bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import mpviz as mp
from mpviz.errors import CheckpointError, ModelError
from mpviz.nets.factors import TwoFactors, factored, of_factors, ranks_of, rebuild, replace_layer
from mpviz.nets.forward import logits


def low_rank(layer: nn.Module, rank: int) -> nn.Module:
    """The layer with a weight of that rank."""
    torch.manual_seed(1)
    with torch.no_grad():
        matrix = torch.randn(len(layer.weight), rank) @ torch.randn(rank, layer.weight[0].numel())
        layer.weight.copy_(matrix.reshape(layer.weight.shape))
    return layer.eval()


LAYERS = {
    "linear": (nn.Linear(40, 30), torch.randn(7, 40)),
    "linear without bias": (nn.Linear(40, 30, bias=False), torch.randn(2, 7, 40)),
    "convolution": (nn.Conv2d(6, 20, 3, stride=2, padding=1, dilation=1), torch.randn(4, 6, 9, 9)),
    "same": (nn.Conv2d(6, 20, 3, padding="same", padding_mode="reflect", bias=False), torch.randn(4, 6, 9, 9)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_two_layers_do_what_the_one_did(kind: str) -> None:
    layer, x = low_rank(LAYERS[kind][0], 4), LAYERS[kind][1]
    two = factored(layer)
    assert isinstance(two, TwoFactors) and two.rank == 4
    torch.testing.assert_close(two(x), layer(x), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(two.weight, layer.weight, atol=1e-4, rtol=1e-4)
    assert (two.bias is None) == (layer.bias is None)
    assert sum(p.numel() for p in two.parameters()) < sum(p.numel() for p in layer.parameters())


def test_what_is_not_smaller_or_no_plain_layer_stays_whole() -> None:
    full = nn.Linear(20, 30)
    assert factored(full) is full
    assert of_factors(full, torch.ones(30, 12), torch.ones(12, 20)) is full  # 12 · 50 = 20 · 30
    assert isinstance(of_factors(full, torch.ones(30, 11), torch.ones(11, 20)), TwoFactors)
    for other in (nn.Conv2d(4, 4, 3, groups=2), nn.BatchNorm2d(3), nn.MultiheadAttention(8, 2).out_proj):
        with pytest.raises(ModelError, match="cannot be stored as two"):
            factored(other)


def test_making_factors_draws_nothing() -> None:
    layer = low_rank(nn.Linear(40, 30), 3)
    state = torch.get_rng_state()
    factored(layer)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_layer_is_replaced_wherever_it_stands() -> None:
    shared = low_rank(nn.Linear(20, 20), 2)
    model = nn.Sequential(shared, nn.Sequential(nn.ReLU(), shared))
    replace_layer(model, "0", factored(shared))
    assert model[0] is model[1][1] and ranks_of(model) == {"0": 2, "1.1": 2}


def vit() -> nn.Module:
    """A network by name, one of whose linear layers and one of whose convolutions are two."""
    model = mp.load_model("fashion-vit")
    for name in ("blocks.1.mlp.fc1", "blocks.4.attn.qkv", "patch_embed.proj.3"):
        replace_layer(model, name, factored(low_rank(model.get_submodule(name), 8)))
    return model.eval()


def images() -> Tensor:
    return torch.randn(16, 1, 28, 28, generator=torch.Generator().manual_seed(1))


def test_a_fresh_process_rebuilds_them_bit_by_bit(tmp_path: Path) -> None:
    model = vit()
    path = mp.save(tmp_path / "a", model)
    assert ranks_of(mp.load(path).model) == {"blocks.1.mlp.fc1": 8, "blocks.4.attn.qkv": 8, "patch_embed.proj.3": 8}
    assert path.stat().st_size < 0.9 * mp.save(tmp_path / "dense", mp.load_model("fashion-vit")).stat().st_size
    save_file({"images": images()}, tmp_path / "images")
    program = (
        "import sys, torch, mpviz as mp; from safetensors.torch import load_file, save_file\n"
        "from mpviz.nets.forward import logits\n"
        "torch.set_num_threads(1)\n"
        "save_file({'z': logits(mp.load(sys.argv[1]).model, load_file(sys.argv[2])['images'])}, sys.argv[3])"
    )
    arguments = [str(path), str(tmp_path / "images"), str(tmp_path / "logits")]
    subprocess.run([sys.executable, "-c", program, *arguments], check=True, timeout=120)
    torch.set_num_threads(1)
    assert torch.equal(load_file(tmp_path / "logits")["z"], logits(model, images()))


def test_a_network_of_ones_own_is_passed_whole_or_in_factors(tmp_path: Path) -> None:
    def own() -> nn.Sequential:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 10)).eval()

    model = own()
    replace_layer(model, "1", factored(low_rank(model[1], 3)))
    path, x = mp.save(tmp_path / "a", model.double()), images()[:, :, :8, :8].double()
    whole = own()
    assert torch.equal(logits(mp.load(path, whole).model, x), logits(model, x))
    assert isinstance(whole[1], nn.Linear), "the caller's network stays as it is"
    assert torch.equal(logits(mp.load(path, model).model, x), logits(model, x))
    with pytest.raises(ModelError, match=r"no layer 1.*give its architecture"):
        mp.load(path, nn.Linear(64, 10))
    with pytest.raises(ModelError, match="cannot be stored as two"):
        rebuild(own(), {"2": 3})


@pytest.mark.parametrize("ranks", [{"1": 4}, {"1": "many"}, {"0": 1}, {"1": 10**12}, [3]])
def test_a_damaged_rank_is_an_error_of_the_file(tmp_path: Path, ranks: object) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 40), nn.Linear(40, 10)).eval()
    replace_layer(model, "1", factored(low_rank(model[1], 3)))
    path = mp.save(tmp_path / "a", model)
    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
    header = json.loads(metadata["mpviz"])
    assert header["ranks"] == {"1": 3}
    metadata["mpviz"] = json.dumps(header | {"ranks": ranks})
    save_file(load_file(path), path, metadata=metadata)
    with pytest.raises(CheckpointError, match="header of"):
        mp.load(path, model)
