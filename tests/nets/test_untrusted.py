"""Checkpoints from somebody unknown: each of these was made to do harm, and none of them is opened."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import mpviz as mp
from mpviz.errors import CheckpointError, ModelError, MpvizError
from mpviz.nets.header import LARGEST_HEADER, check_header
from mpviz.nets.store import FORMAT
from mpviz.nets.untrusted import check_checkpoint


class Evil:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.mark}'",)


def raw(header: Any, body: bytes = b"") -> bytes:
    words = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(words)) + words + body


def claims(source: Any, tensors: dict[str, Any] | None = None, body: bytes = b"", **more: Any) -> bytes:
    header = {"source": source, "tome": [], "recipe": None, "results": None, "pattern": None, **more}
    return raw({"__metadata__": {"format": FORMAT, "mpviz": json.dumps(header)}, **(tensors or {})}, body)


def pickles(mark: Path) -> dict[str, bytes]:
    plain, torch_file, old = pickle.dumps(Evil(mark)), io.BytesIO(), io.BytesIO()
    torch.save(Evil(mark), torch_file)
    torch.save(Evil(mark), old, _use_new_zipfile_serialization=False)
    return {"plain": plain, "torch": torch_file.getvalue(), "old torch": old.getvalue()}


ONE = {"model/x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".bin"])
@pytest.mark.parametrize("kind", ["plain", "torch", "old torch"])
def test_no_pickle_runs_under_any_name(tmp_path: Path, kind: str, suffix: str) -> None:
    path, mark = tmp_path / f"net{suffix}", tmp_path / "was-here"
    path.write_bytes(pickles(mark)[kind])
    for opens in (check_checkpoint, mp.load_model, mp.analyze, mp.load):
        with pytest.raises(MpvizError):
            opens(path if opens is check_checkpoint else str(path))
    with pytest.raises(CheckpointError, match="only safetensors files are taken"):
        check_checkpoint(path)
    assert not mark.exists()


HARMFUL = {
    "empty": b"",
    "zeros": bytes(100),
    "header of 4 GB": struct.pack("<Q", 2**32) + b"{}",
    "header of 2⁶³": struct.pack("<Q", 2**63) + b"{}",
    "no JSON": raw(b"{" * 100),
    "deep JSON": raw(b"[" * 200_000 + b"]" * 200_000),
    "deep JSON in the metadata": raw(
        {"__metadata__": {"format": FORMAT, "mpviz": '{"source":' + "[" * 100_000}, **ONE}, bytes(4)
    ),
    "no metadata": raw(ONE, bytes(4)),
    "a list": raw([]),
    "cut short": claims({"name": "fashion-mlp", "options": {}}, {"model/x": {
        "dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}),
    "negative shape": claims({"name": "fashion-mlp"}, {"model/x": {
        "dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, bytes(4)),
    "a pickle as number type": claims({"name": "fashion-mlp"}, {"model/x": {
        "dtype": "PICKLE", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
    "a file to read": claims({"name": "resnet18", "options": {"checkpoint_path": "/etc/passwd"}}, ONE, bytes(4)),
    "a hub to ask": claims({"name": "resnet18", "options": {"pretrained_cfg": {"hf_hub_id": "a/b"}}}, ONE, bytes(4)),
    "pretrained": claims({"name": "resnet18", "options": {"pretrained": True}}, ONE, bytes(4)),
    "a name of the hub": claims({"name": "hf-hub:a/b", "options": {}}, ONE, bytes(4)),
    "a folder's name": claims({"name": "local-dir:/etc", "options": {}}, ONE, bytes(4)),
    "a path": claims({"name": "../../x.safetensors", "options": {}}, ONE, bytes(4)),
    "4 billion weights": claims({"name": "eva02_enormous_patch14_clip_224", "options": {}}, ONE, bytes(4)),
    "a class as option": claims({"name": "resnet18", "options": {"global_pool": "__import__('os')"}}, ONE, bytes(4)),
    "a billion classes": claims({"name": "resnet18", "options": {"num_classes": 10**9}}, ONE, bytes(4)),
    "true classes": claims({"name": "resnet18", "options": {"num_classes": True}}, ONE, bytes(4)),
    "a vast stack": claims({"name": "vit_tiny_patch16_224", "options": {"depth": 10**7}}, ONE, bytes(4)),
    "no options": claims({"name": "fashion-mlp", "options": 3}, ONE, bytes(4)),
    "no name": claims({"name": None, "options": {}}, ONE, bytes(4)),
    "no source": claims(None, ONE, bytes(4)),
    "a list as source": claims(["fashion-mlp"], ONE, bytes(4)),
    "merges without end": claims({"name": "fashion-vit", "options": {}}, ONE, bytes(4), tome=[1] * 10**5),
    "ranks": claims({"name": "fashion-mlp", "options": {}}, ONE, bytes(4), ranks={"features.fc1": 10**9}),
    "other weights": claims({"name": "fashion-mlp", "options": {}}, ONE, bytes(4)),
    "a script as layer": claims({"name": "fashion-mlp", "options": {}}, {"model/<script>alert(1)</script>": {
        "dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
}  # fmt: skip


@pytest.mark.parametrize("what", HARMFUL)
def test_what_was_made_to_harm_is_refused_in_a_sentence(tmp_path: Path, what: str) -> None:
    path = tmp_path / "net.safetensors"
    path.write_bytes(HARMFUL[what])
    with pytest.raises((CheckpointError, ModelError)) as refused:
        check_checkpoint(path)
    assert len(str(refused.value)) < 400 and "\n" not in str(refused.value)


def test_an_oversized_header_is_refused_by_its_length_alone() -> None:
    with pytest.raises(CheckpointError, match="the header of this file has 90 MB"):
        check_header(struct.pack("<Q", 90_000_000), 200_000_000)
    check_header(struct.pack("<Q", LARGEST_HEADER), 200_000_000)


def test_a_checkpoint_of_ours_is_taken(tmp_path: Path) -> None:
    model = mp.load_model("fashion-mlp")
    check_checkpoint(mp.save(tmp_path / "a", model))
    masks = mp.magnitude_masks(model, 0.5)
    with mp.apply_masks(mp.load_model("fashion-mlp"), masks) as pruned:
        check_checkpoint(mp.save(tmp_path / "b", pruned, masks=masks, recipe={"a": 1}))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_weights_of_another_kind_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    path = mp.save(tmp_path / "net", mp.load_model("fashion-mlp"))
    with safe_open(path, "pt") as file:
        about, tensors = file.metadata(), {key: file.get_tensor(key).to(dtype) for key in file.keys()}  # noqa: SIM118
    save_file(tensors, path, metadata=about)
    with pytest.raises(ModelError, match="do not fit fashion-mlp"):
        check_checkpoint(path)


def test_a_header_that_recurses_is_no_crash_of_load(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    path.write_bytes(HARMFUL["deep JSON in the metadata"])
    with pytest.raises(CheckpointError, match=r"header of .* is damaged"):
        mp.load(path)
