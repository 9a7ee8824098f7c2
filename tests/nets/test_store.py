"""Checkpoints: what comes back is what went in, bit by bit, and a failed save or a broken file harms nothing."""

from __future__ import annotations

import errno
import json
import pathlib
import pickle
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import mpviz as mp
from mpviz import files
from mpviz.errors import CheckpointError, ModelError
from mpviz.nets import store
from mpviz.nets.forward import logits, masked_copy

FULL = OSError(errno.ENOSPC, "No space left on device")
RECIPE = {"budget": {"sparsity": 0.6, "locked": ["a", "ß"]}, "seed": 3}
PATTERN = {"pattern": "2:4", "conv": "native"}
RESULTS = {"coverage": 0.8055, "tier": "measured", "budgets": {"features.fc1.weight": 1 / 3}}


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(64, 1, 28, 28, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def masked() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    model = mp.load_model("fashion-mlp")
    masks = mp.magnitude_masks(model, 0.6)
    return masked_copy(model, masks), masks


def small() -> nn.Module:
    """A model that no name leads to; its mask sizes are no multiples of 8."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [("one", nn.Linear(9, 13)), ("norm", nn.BatchNorm1d(13)), ("two", nn.Linear(13, 3))]
        return nn.Sequential(OrderedDict(layers)).eval()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- there and back -------------------------------------------------------------------------------------------------


def test_everything_comes_back(tmp_path, masked, images):
    model, masks = masked
    permutations = {"features.fc1.weight": torch.randperm(784, generator=torch.Generator().manual_seed(2))}
    path = mp.save(tmp_path / "runs" / "a", model, masks, permutations, recipe=RECIPE, results=RESULTS, pattern=PATTERN)
    assert path == tmp_path / "runs" / "a.safetensors"
    assert list(contents(tmp_path)) == ["runs/a.safetensors"]
    for name in (path, str(path), path.with_suffix("")):
        back = mp.load(name)
        assert torch.equal(logits(back.model, images), logits(model, images))
        assert back.masks.keys() == masks.keys()
        assert all(
            torch.equal(back.masks[key], mask) and back.masks[key].dtype == torch.bool for key, mask in masks.items()
        )
        assert torch.equal(back.permutations["features.fc1.weight"], permutations["features.fc1.weight"])
        assert (back.tome, back.recipe, back.results, back.pattern) == ((), RECIPE, RESULTS, PATTERN)
        assert not back.model.training


def test_a_fresh_process_gives_bit_identical_logits(tmp_path, masked, images):
    model, masks = masked
    path = mp.save(tmp_path / "a", model, masks)
    save_file({"images": images}, tmp_path / "images")
    program = (
        "import sys, mpviz as mp; from safetensors.torch import load_file, save_file\n"
        "from mpviz.nets.forward import logits\n"
        "model = mp.load_model(sys.argv[1])\n"
        "save_file({'z': logits(model, load_file(sys.argv[2])['images'])}, sys.argv[3])"
    )
    arguments = [str(path), str(tmp_path / "images"), str(tmp_path / "logits")]
    subprocess.run([sys.executable, "-c", program, *arguments], check=True, timeout=120)
    assert torch.equal(load_file(tmp_path / "logits")["z"], logits(model, images))


def test_masks_take_one_bit_an_entry(tmp_path, masked):
    path = mp.save(tmp_path / "a", *masked)
    with safe_open(path, "pt") as file:
        packed = {key: file.get_tensor(key) for key in file.keys() if key.startswith("mask/")}  # noqa: SIM118
    assert {key: (tensor.dtype, tensor.numel()) for key, tensor in packed.items()} == {
        "mask/features.fc1.weight": (torch.uint8, 784 * 512 // 8),
        "mask/features.fc2.weight": (torch.uint8, 512 * 512 // 8),
    }


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_number_types_survive(tmp_path, dtype):
    model = mp.load_model("fashion-mlp", pretrained=False).to(dtype)
    back = mp.load(mp.save(tmp_path / "a", model)).model
    for (name, one), (_, other) in zip(model.state_dict().items(), back.state_dict().items(), strict=True):
        assert one.dtype == other.dtype == dtype and torch.equal(one, other), name


def test_a_timm_model_is_built_again_with_its_options(tmp_path):
    model = mp.load_model("test_resnet", pretrained=False, num_classes=7, in_chans=1)
    x = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    path = mp.save(tmp_path / "a", model)
    assert torch.equal(logits(mp.load_model(path), x), logits(model, x))


def test_a_model_of_ones_own_is_passed_again_and_left_alone(tmp_path):
    model = small()
    masks = {"one.weight": torch.rand(13, 9, generator=torch.Generator().manual_seed(0)) < 0.5}
    pruned = masked_copy(model, masks)
    path = mp.save(tmp_path / "a", pruned, masks)
    with pytest.raises(CheckpointError, match=r"pass it: mp\.load"):
        mp.load(path)
    empty = nn.Sequential(OrderedDict(one=nn.Linear(9, 13), norm=nn.BatchNorm1d(13), two=nn.Linear(13, 3)))
    before = {key: value.clone() for key, value in empty.state_dict().items()}
    back = mp.load(path, model=empty)
    assert all(torch.equal(value, before[key]) for key, value in empty.state_dict().items())
    x = torch.randn(5, 9, generator=torch.Generator().manual_seed(0))
    assert torch.equal(back.model(x), pruned(x))
    assert torch.equal(back.masks["one.weight"], masks["one.weight"])


def test_tied_weights_stay_tied(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)
            self.two.weight = self.one.weight

    model = Tied()
    back = mp.load(mp.save(tmp_path / "a", model), model=Tied()).model
    assert back.one.weight is back.two.weight and torch.equal(back.one.weight, model.one.weight)


# --- what a save refuses --------------------------------------------------------------------------------------------


def test_masks_that_disagree_with_the_weights_are_refused(tmp_path, masked):
    _, masks = masked
    with pytest.raises(ModelError, match=r"mask of features\.fc1\.weight removes entries that the model still has"):
        mp.save(tmp_path / "a", mp.load_model("fashion-mlp"), masks)
    with pytest.raises(mp.MpvizError, match="names no parameter"):
        mp.save(tmp_path / "a", small(), {"three.weight": torch.ones(2, 2, dtype=torch.bool)})
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("what", ["recipe", "results"])
def test_what_json_cannot_hold_is_refused(tmp_path, what):
    with pytest.raises(CheckpointError, match="as JSON"):
        mp.save(tmp_path / "a", small(), **{what: {"weights": torch.ones(2)}})
    assert contents(tmp_path) == {}


def test_a_path_that_is_no_file_name_is_refused(tmp_path):
    (tmp_path / "taken.safetensors").mkdir()
    (tmp_path / "file").write_text("")
    for path in ("", tmp_path / "taken", tmp_path / "file" / "a"):
        with pytest.raises(CheckpointError):
            mp.save(path, small())
    assert contents(tmp_path) == {"file": b""}


# --- an OSError at each step of a save ------------------------------------------------------------------------------


def _raise(*_: object, **__: object) -> None:
    raise FULL


def _half_written(tensors: object, path: Path, **_: object) -> None:
    Path(path).write_bytes(b"\x10\x00\x00\x00")
    raise FULL


class _Without:
    """A module in which one function fails."""

    def __init__(self, module: object, name: str) -> None:
        self._module, self._name = module, name

    def __getattr__(self, name: str) -> object:
        return _raise if name == self._name else getattr(self._module, name)


BREAK = {
    "mkdir": lambda patch: patch.setattr(pathlib.Path, "mkdir", _raise),
    "mkstemp": lambda patch: patch.setattr(files, "tempfile", _Without(files.tempfile, "mkstemp")),
    "close": lambda patch: patch.setattr(files, "os", _Without(files.os, "close")),
    "save_file": lambda patch: patch.setattr(store, "save_file", _raise),
    "save_file, half-written": lambda patch: patch.setattr(store, "save_file", _half_written),
    "open": lambda patch: patch.setattr(files, "open", _raise, raising=False),
    "fsync": lambda patch: patch.setattr(files, "os", _Without(files.os, "fsync")),
    "chmod": lambda patch: patch.setattr(pathlib.Path, "chmod", _raise),
    "replace": lambda patch: patch.setattr(files, "os", _Without(files.os, "replace")),
}


@pytest.mark.parametrize("step", BREAK)
def test_a_save_that_fails_leaves_the_old_file(tmp_path, monkeypatch, step):
    mp.save(tmp_path / "a", small(), recipe={"run": 1})
    before = contents(tmp_path)
    BREAK[step](monkeypatch)
    with pytest.raises(CheckpointError, match=r"cannot write .*a\.safetensors.*No space left.*nothing was changed"):
        mp.save(tmp_path / "a", small(), recipe={"run": 2})
    monkeypatch.undo()
    assert contents(tmp_path) == before
    assert mp.load(tmp_path / "a", model=small()).recipe == {"run": 1}


@pytest.mark.parametrize("step", BREAK)
def test_a_save_that_fails_leaves_no_stray_file(tmp_path, monkeypatch, step):
    BREAK[step](monkeypatch)
    with pytest.raises(CheckpointError, match="No space left"):
        mp.save(tmp_path / "new" / "a", small())
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


# --- files that are not what they should be -------------------------------------------------------------------------


@pytest.fixture
def whole(tmp_path) -> bytes:
    masks = {"one.weight": torch.arange(13 * 9).reshape(13, 9) % 3 > 0}
    return mp.save(tmp_path / "whole", masked_copy(small(), masks), masks).read_bytes()


def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path, whole):
    header = int.from_bytes(whole[:8], "little")
    cuts = [0, 1, 7, 8, 9, 8 + header // 2, 8 + header - 1, 8 + header, 8 + header + 1, (8 + header + len(whole)) // 2]
    for cut in [*cuts, len(whole) - 1]:
        broken = tmp_path / "broken.safetensors"
        broken.write_bytes(whole[:cut])
        for read in (lambda path: mp.load(path, model=small()), mp.load_model):
            with pytest.raises(CheckpointError, match=r"broken\.safetensors is no whole safetensors file"):
                read(broken)


def test_a_pickle_is_refused_and_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.write_text, (tmp_path / "ran", "it ran")

    (tmp_path / "a.safetensors").write_bytes(pickle.dumps(Trap()))
    torch.save(small().state_dict(), tmp_path / "b.safetensors")
    for name in ("a", "b"):
        with pytest.raises(CheckpointError, match="no whole safetensors file"):
            mp.load(tmp_path / f"{name}.safetensors")
    assert not (tmp_path / "ran").exists()


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "nothing.safetensors", tmp_path):
        with pytest.raises(CheckpointError, match="no checkpoint at"):
            mp.load(path)


def test_a_foreign_safetensors_file_is_refused_with_a_remedy(tmp_path):
    save_file({"one.weight": torch.ones(2, 2)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"not written by mp\.save.*weights='a\.safetensors'"):
        mp.load(tmp_path / "a.safetensors")


REST = {"recipe": None, "results": None, "pattern": None}
HEADERS = {
    "no JSON": "{",
    "a list": "[]",
    "no source": json.dumps({"tome": [], **REST}),
    "no results": json.dumps({"source": None, "tome": [], "recipe": None, "pattern": None}),
    "a strange source": json.dumps({"source": {"name": "a", "code": "b"}, "tome": [], **REST}),
    "strange merges": json.dumps({"source": None, "tome": ["many"], **REST}),
}


@pytest.mark.parametrize("header", HEADERS)
def test_a_damaged_header_is_refused(tmp_path, header):
    path = tmp_path / "a.safetensors"
    save_file({"model/a": torch.ones(1)}, path, metadata={"format": store.FORMAT, "mpviz": HEADERS[header]})
    with pytest.raises(CheckpointError, match=r"header of .* is damaged"):
        mp.load(path, model=small())


@pytest.mark.parametrize("mask", ["three.weight", "one.weight"])
def test_a_mask_that_fits_nothing_is_refused(tmp_path, whole, mask):
    with safe_open(tmp_path / "whole.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    save_file({**tensors, f"mask/{mask}": torch.zeros(2, dtype=torch.uint8)}, tmp_path / "a.safetensors", metadata)
    with pytest.raises(CheckpointError, match=f"mask of {mask}"):
        mp.load(tmp_path / "a", model=small())


def test_a_model_that_does_not_fit_is_refused_and_left_alone(tmp_path, whole):
    other = nn.Sequential(OrderedDict(one=nn.Linear(9, 13), norm=nn.BatchNorm1d(13), two=nn.Linear(13, 4)))
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(ModelError, match=r"do not fit Sequential.*two\.weight"):
        mp.load(tmp_path / "whole", model=other)
    assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())
