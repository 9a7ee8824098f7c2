"""Weights from modules, state dicts and files: what is taken, what is left out and why, and what is not even read."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import mpviz as mp
from mpviz.errors import CheckpointError, ModelError
from mpviz.nets.layers import list_layers
from mpviz.nets.tensorfile import TensorFile
from mpviz.nets.weights import open_weights

GENERATOR = torch.Generator().manual_seed(0)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=GENERATOR)


# --- what is no matrix ----------------------------------------------------------------------------------------------

NO_MATRICES = {
    "cls_token": (normal(1, 1, 24), "token"),
    "pos_embed": (normal(1, 10, 24), "position embedding"),
    "layers.0.relative_position_bias_table": (normal(49, 3), "table"),
    "layers.0.relative_position_index": (torch.zeros(49, 49, dtype=torch.int64), "int64"),
    "layers.0.attn_mask": (normal(4, 49, 49), "mask"),
    "layers.0.norm.weight": (normal(24), "1-D"),
    "layers.0.norm.num_batches_tracked": (torch.tensor(3), "int64"),
    "logit_scale": (torch.tensor(2.5), "single number"),
    "embeddings.word_embeddings.weight": (normal(100, 24), "embedding"),
    "wte.weight": (normal(100, 24), "embedding"),
    "quantised.weight": (torch.zeros(24, 24, dtype=torch.int8), "int8"),
    "spectral.weight": (torch.zeros(24, 24, dtype=torch.complex64), "complex"),
    "empty.weight": (torch.zeros(0, 24), "no entries"),
    "experts": (normal(4, 24, 24), "no convolution"),
}
MATRICES = {
    "patch_embed.proj.weight": normal(24, 3, 4, 4),
    "layers.0.attn.qkv.weight": normal(72, 24),
    "layers.0.rel_pos.mlp.fc1.weight": normal(32, 24),
    "layers.0.mix.weight": normal(24, 1, 3, 3),
    "text_projection": normal(24, 12),
    "head.weight": normal(10, 24),
}


@pytest.mark.parametrize("stored", ["mapping", "file"])
def test_a_state_dict_with_tensors_that_are_no_matrices(stored, tmp_path):
    state = MATRICES | {name: tensor for name, (tensor, _) in NO_MATRICES.items()}
    if stored == "file":
        save_file(state, tmp_path / "mixed.safetensors")
        state = tmp_path / "mixed.safetensors"
    table = mp.analyze(state)
    assert set(table.index) == set(MATRICES)
    skipped = table.attrs["skipped"]
    assert set(skipped) == set(NO_MATRICES)
    for name, (_, word) in NO_MATRICES.items():
        assert word in skipped[name], name
    roles = {name.removesuffix(".weight"): role for name, role in table["role"].items()}
    assert roles == {
        "patch_embed.proj": "stem", "layers.0.attn.qkv": "attention", "layers.0.rel_pos.mlp.fc1": "mlp",
        "layers.0.mix": "depthwise", "text_projection": "mlp", "head": "head",
    }  # fmt: skip
    assert table["role"].iloc[0] == "stem" and table["role"].iloc[-1] == "head"


def test_what_a_module_leaves_out_has_a_reason_too():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(50, 16)
            self.mixing = nn.Parameter(normal(16, 16))
            self.body = nn.Linear(16, 16)
            self.tied = nn.Linear(16, 16)
            self.tied.weight = self.body.weight
            self.lazy = nn.LazyLinear(4)
            self.register_buffer("steps", torch.zeros(16, 16, dtype=torch.int64))

    source = open_weights(Net())
    assert [one.name for one in source.matrices] == ["body.weight"]
    assert source.skipped.keys() == {
        *("words.weight", "mixing", "body.bias", "tied.weight", "tied.bias", "lazy.weight", "lazy.bias", "steps")
    }
    assert "looked up" in source.skipped["words.weight"] and "no Linear" in source.skipped["mixing"]
    assert source.skipped["tied.weight"] == "the same tensor as body.weight"
    assert "not initialised" in source.skipped["lazy.weight"] and "int64" in source.skipped["steps"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "the state dict has no weight matrix .it is empty"),
        ({"a.bias": torch.zeros(3)}, "a.bias: 1-D"),
        ({"epoch": 3}, "no weight matrix"),
        (nn.Sequential(nn.ReLU(), nn.LayerNorm(8)), "Sequential has no Linear or Conv2d weight"),
        (7, "a int holds no weights"),
        (normal(3, 3), "a Tensor holds no weights"),
    ],
)
def test_nothing_to_look_at(given, words):
    with pytest.raises(ModelError, match=words):
        mp.analyze(given)


def test_arrays_of_numpy_are_taken_without_a_model_around_them():
    rng = np.random.default_rng(0)
    fixed = rng.normal(size=(40, 30))
    fixed.setflags(write=False)
    arrays = {"fixed": fixed, "big-endian": rng.normal(size=(30, 30)).astype(">f8"), "half": fixed.astype(np.float16)}
    table = mp.analyze(arrays)
    for name in arrays:
        expected = mp.spectrum(arrays[name].astype(np.float64))
        assert table.loc[name, "spectral"] == pytest.approx(np.sqrt(len(arrays[name]) * expected[-1])), name


# --- files ----------------------------------------------------------------------------------------------------------


def test_a_file_of_mp_save_gives_the_rows_of_the_model(tmp_path):
    model = mp.load_model("fashion-vit")
    masks = mp.magnitude_masks(model, 0.3)
    with mp.apply_masks(model, masks):
        mp.save(tmp_path / "pruned", model, masks=masks)
        here = mp.analyze(model)
    there = mp.analyze(tmp_path / "pruned.safetensors")
    assert set(there.index) == set(here.index)
    columns = [name for name in here.columns if name != "kind"]
    assert there.loc[here.index, columns].equals(here[columns])
    assert all("mask" in there.attrs["skipped"][f"mask/{name}"] for name in masks)
    assert there.index[0].startswith("patch_embed") and there.index[-1] == "head.weight"
    blocks = [name.split(".")[1] for name in there.index if name.startswith("blocks.")]
    assert blocks == sorted(blocks, key=int), "block 10 does not come before block 2"


def test_only_what_is_asked_for_is_read(tmp_path, monkeypatch):
    save_file(MATRICES, tmp_path / "some.safetensors")
    read = []
    monkeypatch.setattr(TensorFile, "read", lambda self, name: read.append(name) or MATRICES[name])
    assert len(list_layers(tmp_path / "some.safetensors")) == len(MATRICES) and read == []
    assert len(mp.analyze(str(tmp_path / "some.safetensors"), layers=["head", "layers.0.attn.qkv"])) == 2
    assert sorted(read) == ["head.weight", "layers.0.attn.qkv.weight"]


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_tensors_come_back_bit_by_bit(kind, tmp_path):
    tensors = {"a": normal(5, 7).to(kind), "b": normal(3).to(kind), "c": torch.arange(4), "d": torch.tensor(True)}
    save_file(tensors, tmp_path / "all.safetensors")
    file = TensorFile(tmp_path / "all.safetensors")
    assert set(file.slots) == set(tensors)
    for name, tensor in tensors.items():
        found = file.read(name)
        assert found.dtype == tensor.dtype and found.shape == tensor.shape
        assert found.reshape(-1).view(torch.uint8).tolist() == tensor.reshape(-1).view(torch.uint8).tolist()


def test_a_file_in_the_order_of_the_network_keeps_it(tmp_path):
    names, data = ["z.weight", "m.weight", "a.weight"], normal(3, 8, 8)
    header = {
        name: {"dtype": "F32", "shape": [8, 8], "data_offsets": [256 * i, 256 * i + 256]}
        for i, name in enumerate(names)
    }
    words = json.dumps(header).encode()
    (tmp_path / "own.safetensors").write_bytes(len(words).to_bytes(8, "little") + words + data.numpy().tobytes())
    infos = list_layers(tmp_path / "own.safetensors")
    assert [info.name for info in infos] == names and infos[-1].role == "head"
    assert torch.equal(open_weights(tmp_path / "own.safetensors").read("m.weight"), data[1])


def _broken(header: object) -> bytes:
    words = json.dumps(header).encode()
    return len(words).to_bytes(8, "little") + words + bytes(64)


BROKEN = {
    "empty": (b"", "no safetensors file"),
    "text": (b"layer,value\n1,2\n" * 9, "no safetensors file"),
    "pickle": (b"PK\x03\x04" + bytes(99), "torch.load.*weights_only=True.* pass the state dict"),
    "cut header": ((1000).to_bytes(8, "little") + b'{"a": ', "no safetensors file"),
    "no object": (_broken([1, 2]), "no safetensors file"),
    "no offsets": (_broken({"a.weight": {"dtype": "F32", "shape": [4, 4]}}), "damaged at 'a.weight'"),
    "wrong size": (
        _broken({"a.weight": {"dtype": "F32", "shape": [4, 5], "data_offsets": [0, 64]}}),
        r"'a.weight' of shape \(4, 5\) has 64 bytes",
    ),
    "backwards": (_broken({"a.weight": {"dtype": "F32", "shape": [4, 4], "data_offsets": [64, 0]}}), "damaged"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_files_that_are_no_safetensors(case, tmp_path):
    content, words = BROKEN[case]
    path = tmp_path / "odd.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=words) as caught:
        mp.analyze(path)
    assert "odd.safetensors" in str(caught.value)


def test_a_path_that_leads_nowhere(tmp_path):
    with pytest.raises(CheckpointError, match=r"no file .*gone; for a model by name give mp\.load_model"):
        mp.analyze(tmp_path / "gone")
    with pytest.raises(CheckpointError, match="is a folder; give the path of a"):
        mp.analyze(tmp_path)


def test_of_a_file_that_was_cut_short_the_whole_layers_are_analysed(tmp_path):
    tensors = {f"block.{i}.weight": normal(64, 48) for i in range(6)}
    save_file(tensors, tmp_path / "whole.safetensors")
    content = (tmp_path / "whole.safetensors").read_bytes()
    path = tmp_path / "cut.safetensors"
    path.write_bytes(content[: len(content) - 2 * 64 * 48 * 4 - 1000])
    table = mp.analyze(path)
    lost = table[table["sigma_plus"].isna()]
    assert list(lost.index) == ["block.3.weight", "block.4.weight", "block.5.weight"]
    for name, verdict in lost["verdict"].items():
        assert name in verdict and "cut.safetensors ends inside" in verdict and "copy the file again" in verdict
    assert not lost["mp_like"].any() and (lost["reason"] == "no spectrum").all()
    rest = table.drop(index=lost.index)
    assert rest["mp_like"].all() and rest.equals(mp.analyze(tensors).loc[rest.index])


# --- headers that are not what they should be ------------------------------------------------------------------------


def _entry(start: int, shape: tuple[int, ...] = (48, 32), dtype: str = "F32", size: int = 4) -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, start + size * int(np.prod(shape))]}


ROOM = 48 * 32 * 4
ODD = {
    "float4": ({"dtype": "F4", "shape": [48, 32], "data_offsets": [ROOM, ROOM + 768]}, "type 'F4'; store it as F16"),
    "unknown": (_entry(ROOM, dtype="float32"), "numbers of type 'float32'"),
    "overlap": (_entry(ROOM + 4), "'odd.weight' and 'twin.weight' share bytes"),
    "negative": ({"dtype": "F32", "shape": [-48, -32], "data_offsets": [ROOM, 2 * ROOM]}, "damaged at 'odd.weight'"),
    "infinite": ({"dtype": "F32", "shape": [float("inf"), 1], "data_offsets": [0, 4]}, "damaged at 'odd.weight'"),
    "words": ({"dtype": "F32", "shape": "48", "data_offsets": [0, 4]}, "damaged at 'odd.weight'"),
    "list": ([1, 2], "damaged at 'odd.weight'"),
    "no type": ({"dtype": 7, "shape": [2], "data_offsets": [0, 8]}, "damaged at 'odd.weight'"),
}


@pytest.mark.parametrize("case", ODD)
def test_one_odd_tensor_leaves_the_others_of_the_file(case, tmp_path):
    entry, words = ODD[case]
    header = {"a.weight": _entry(0), "odd.weight": entry, "__metadata__": [1]}
    if case == "overlap":
        header["twin.weight"] = _entry(ROOM)
    text, data = json.dumps(header).encode(), np.random.default_rng(0).normal(size=3 * 48 * 32).astype(np.float32)
    path = tmp_path / "odd.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + data.tobytes())
    table = mp.analyze(path)
    assert list(table.index) == ["a.weight"] and table["sigma_plus"].notna().all()
    why = table.attrs["skipped"]["odd.weight"]
    assert words in why and "odd.safetensors" in why and ("again" in why or "store it" in why)


def test_a_name_that_comes_twice_is_left_out(tmp_path):
    entry = json.dumps(_entry(0))
    text = f'{{"a.weight": {entry}, "b.weight": {json.dumps(_entry(ROOM))}, "a.weight": {entry}}}'.encode()
    path = tmp_path / "twice.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + np.ones(2 * 48 * 32, np.float32).tobytes())
    table = mp.analyze(path)
    assert list(table.index) == ["b.weight"] and "'a.weight' twice; copy" in table.attrs["skipped"]["a.weight"]


def test_a_header_that_promises_more_than_there_is_takes_no_memory(tmp_path):
    side = 2**20
    text = json.dumps({"a.weight": _entry(0), "b.weight": _entry(ROOM, (side, side))}).encode()
    path = tmp_path / "short.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + normal(48, 32).numpy().tobytes())
    table = mp.analyze(path)
    assert "ends inside b.weight (0 of 4398046511104 bytes" in table.loc["b.weight", "verdict"]
    assert table.loc["a.weight", "sigma_plus"] > 0


def test_mutated_headers_raise_nothing_but_errors_of_this_package(tmp_path):
    draws = np.random.default_rng(0)
    whole = json.dumps({"__metadata__": {"format": "pt"}, "a.weight": _entry(0), "b.weight": _entry(ROOM)}).encode()
    data, path = draws.normal(size=2 * 48 * 32).astype(np.float32).tobytes(), tmp_path / "mutated.safetensors"
    letters = b'{}[]:,"0123456789-.eE\\/abFIxNn \xff\x00'
    outcomes = {"read": 0, "refused": 0}
    for _ in range(600):
        header = bytearray(whole)
        for _ in range(draws.integers(1, 4)):
            at = int(draws.integers(len(header)))
            kind = draws.integers(3)
            if kind == 0:
                header[at] = letters[draws.integers(len(letters))]
            elif kind == 1:
                del header[at : at + int(draws.integers(1, 9))]
            else:
                header[at:at] = bytes([letters[draws.integers(len(letters))]])
        length = len(header) if draws.uniform() < 0.9 else int(draws.integers(0, 2**16))
        path.write_bytes(length.to_bytes(8, "little") + bytes(header) + data[: draws.integers(len(data) + 1)])
        try:
            table = mp.analyze(path, cache=False)
        except mp.MpvizError as error:
            assert "mutated.safetensors" in str(error)
            outcomes["refused"] += 1
        else:
            assert table["verdict"].str.len().gt(0).all()
            outcomes["read"] += 1
    assert min(outcomes.values()) > 30


# --- modules that compute their weights, and transposed ones ---------------------------------------------------------


@pytest.mark.parametrize("wrap", ["spectral_norm", "weight_norm", "orthogonal"])
@pytest.mark.parametrize("training", [True, False])
def test_a_parametrised_module_stays_bit_by_bit(wrap, training):
    model = nn.Sequential(nn.Linear(24, 24), nn.Conv2d(3, 24, 3), nn.Linear(24, 10))
    parametrised = getattr(nn.utils.parametrizations, wrap)
    for i in (0, 1):
        parametrised(model[i])
    model.train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [part.training for part in model.modules()]
    table = mp.analyze(model, cache=False)
    source = open_weights(model)
    assert torch.equal(source.read("0.weight"), source.read("0.weight"))
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert [part.training for part in model.modules()] == modes
    assert "parametrisation" in table.loc["0.weight", "why"] and table.loc["0.weight", "sigma_plus"] > 0
    model.eval()
    assert table.loc["0.weight", "spectral"] == pytest.approx(
        float(torch.linalg.matrix_norm(model[0].weight.detach(), 2)), rel=1e-4
    )


@pytest.mark.parametrize("groups", [1, 2])
def test_the_advice_for_transposed_convolutions_works(groups):
    model = nn.Sequential(nn.Linear(8, 8), nn.ConvTranspose2d(24, 32, 3, groups=groups))
    why = mp.analyze(model).attrs["skipped"]["1.weight"]
    assert "ConvTranspose2d stores inputs first" in why
    words = why.partition("{name: ")[2].partition("}")[0]
    shown = eval(words, {"weight": model[1].weight, "i": 0})  # the advice itself, word for word
    assert shown.shape == (32 // groups, 24 // groups, 3, 3)
    row = mp.analyze({"up.weight": shown}).loc["up.weight"]
    assert (row["rows"], row["cols"]) == (32 // groups, 24 // groups * 9)


# --- fused q, k and v of which only the name is known ----------------------------------------------------------------


def test_thirds_are_taken_only_where_names_and_shapes_allow_and_are_said_to_be_assumed():
    state = {
        "blocks.0.attn.qkv.weight": normal(72, 24),
        "layer.in_proj_weight": normal(72, 24),
        "stages.0.blocks.0.attn_block.attn.qkv.weight": normal(72, 24),
        "stages.0.blocks.0.attn_grid.attn.qkv.weight": normal(72, 24),
        "stages.1.blocks.0.attn.qkv.weight": normal(72, 24),
        "stages.1.blocks.0.attn.attention_biases": normal(4, 49),
        "wide.attn.qkv.weight": normal(96, 24),
        "conv.attn.qkv.weight": normal(72, 24, 1, 1),
    }
    infos = list_layers(state, split=("qkv",))
    parts = {info.parameter for info in infos if info.part}
    assert parts == {"blocks.0.attn.qkv.weight", "layer.in_proj_weight"}
    assumed = {info.parameter for info in infos if "thirds assumed from name and shape" in info.why}
    assert assumed == {"blocks.0.attn.qkv.weight"}


def test_of_a_module_nothing_is_assumed():
    infos = list_layers(mp.load_model("fashion-vit", pretrained=False), split=("qkv",))
    assert any(info.part for info in infos) and not any("assumed" in info.why for info in infos)
