"""A safetensors file read one tensor at a time, without mapping or loading the rest."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpviz.errors import CheckpointError, nearest

_LARGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors format
_TYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
    "U16": "uint16", "U32": "uint32", "U64": "uint64", "C64": "complex64",
}  # fmt: skip


@dataclass(frozen=True)
class Slot:
    """Where a tensor lies: bytes [start, stop) of the file. dtype: as torch calls it."""

    shape: tuple[int, ...]
    dtype: str
    start: int
    stop: int


class TensorFile:
    """Names, shapes and places of the tensors; `read` brings one into memory, safe from several threads.

    slots: by name, in the order of their bytes. broken: {name: why} of the tensors that cannot be read as the header
    describes them. A file that was cut short opens; the tensors behind its end fail on reading.
    Raises CheckpointError when the file is missing, its header is none of a safetensors file, or all are broken.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        header, base = _header(self.path)
        metadata = header.pop("__metadata__", None)
        self.metadata: dict[str, Any] = metadata if isinstance(metadata, dict) else {}
        self.broken: dict[str, str] = {}
        slots: dict[str, Slot] = {}
        for name, entry in header.items():
            try:
                slots[name] = _slot(self.path, name, entry, base)
            except CheckpointError as problem:
                self.broken[name] = str(problem)
        self.broken |= _overlaps(self.path, slots)
        if self.broken and not slots.keys() - self.broken.keys():
            raise CheckpointError(next(iter(self.broken.values())))
        whole = [one for one in slots.items() if one[0] not in self.broken]
        self.slots = dict(sorted(whole, key=lambda one: one[1].start))

    def read(self, name: str) -> Tensor:
        """The tensor of that name, in memory of its own. Raises CheckpointError when it is not whole."""
        if name not in self.slots:
            raise CheckpointError(f"{self.path} holds no tensor '{name}'; {nearest(name, self.slots)}")
        slot = self.slots[name]
        try:
            there = self.path.stat().st_size - slot.start  # asked first: a damaged header may want any amount of memory
            buffer = np.empty(min(slot.stop - slot.start, max(there, 0)), dtype=np.uint8)
            got = _fill(self.path, buffer, slot.start) if len(buffer) else 0
        except OSError as error:
            raise CheckpointError(f"{name} cannot be read from {self.path} ({error})") from error
        wanted = slot.stop - slot.start
        if got < wanted:
            raise CheckpointError(
                f"{self.path} ends inside {name} ({got} of {wanted} bytes are there); copy the file again"
            )
        return torch.from_numpy(buffer).view(getattr(torch, slot.dtype)).reshape(slot.shape)


def _fill(path: Path, buffer: np.ndarray, start: int) -> int:
    """Read into the buffer what the file has; one call reads 2 GB at most."""
    view, got = buffer.data, 0
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        while got < len(buffer):
            more = file.readinto(view[got:])
            if not more:
                break
            got += more
    return got


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The header's JSON, and where the tensors begin."""
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; give the path of a .safetensors file in it")
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            first = file.read(8)
            length = int.from_bytes(first, "little")
            if len(first) < 8 or not 2 <= length <= min(_LARGEST_HEADER, size - 8):
                raise _no_safetensors(path, first)
            header = json.loads(file.read(length), object_pairs_hook=_object)
    except FileNotFoundError as error:
        raise CheckpointError(f"no file {path}; for a model by name give mp.load_model('{path}')") from error
    except OSError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} cannot be read ({error})") from error
    except (ValueError, RecursionError) as error:
        raise _no_safetensors(path, first) from error
    if not isinstance(header, dict):
        raise _no_safetensors(path, first)
    return header, 8 + length


def _no_safetensors(path: Path, first: bytes) -> CheckpointError:
    if first[:2] in (b"PK", b"\x80\x02"):
        return CheckpointError(
            f"{path} is a pickle of torch.save, which runs code when it is read; load it yourself with "
            "torch.load(…, weights_only=True) and pass the state dict"
        )
    return CheckpointError(f"{path} is no safetensors file, or was cut short in its header; copy or save it again")


def _slot(path: Path, name: str, entry: Any, base: int) -> Slot:
    """A header entry, checked against itself. Raises CheckpointError for one that makes no sense."""
    again = "copy or save it again"
    shape, offsets, word = (_of(entry, key) for key in ("shape", "data_offsets", "dtype"))
    if not _whole(shape) or not _whole(offsets) or len(offsets) != 2 or not isinstance(word, str):
        raise CheckpointError(f"the header of {path} is damaged at {name!r}; {again}")
    if entry.get(_TWICE):
        raise CheckpointError(f"the header of {path} holds {name!r} twice; {again}")
    start, stop = offsets
    if start > stop:
        raise CheckpointError(f"the header of {path} is damaged at {name!r}; {again}")
    if word not in _TYPES:
        raise CheckpointError(f"{name!r} in {path} has numbers of type {word!r}; store it as F16, BF16 or F32 instead")
    dtype = _TYPES[word]
    if stop - start != math.prod(shape) * getattr(torch, dtype).itemsize:
        raise CheckpointError(
            f"the header of {path} is damaged: {name!r} of shape {tuple(shape)} has {stop - start} bytes; {again}"
        )
    return Slot(tuple(shape), dtype, base + start, base + stop)


def _of(entry: Any, key: str) -> Any:
    return entry.get(key) if isinstance(entry, dict) else None


def _whole(numbers: Any) -> bool:
    """Whether this is a list of whole numbers, none below zero; true and false are no numbers."""
    return isinstance(numbers, list) and all(type(one) is int and one >= 0 for one in numbers)


_TWICE = "\0twice"  # marks an entry whose name came before; JSON from a file can hold it only on purpose


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of names that come twice the entry is marked."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        found[name] = {**value, _TWICE: True} if name in found and isinstance(value, dict) else value
    return found


def _overlaps(path: Path, slots: dict[str, Slot]) -> dict[str, str]:
    """{name: why} of the tensors whose bytes are also another's: which of the two is right cannot be told."""
    found: dict[str, str] = {}
    last = ""
    for name, slot in sorted(slots.items(), key=lambda one: (one[1].start, one[1].stop)):
        if slot.start == slot.stop:
            continue
        if last and slot.start < slots[last].stop:
            for one, other in ((name, last), (last, name)):
                found[one] = f"{one!r} and {other!r} share bytes of {path}; copy or save it again"
        if not last or slot.stop > slots[last].stop:
            last = name
    return found
