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
    """Where a tensor lies: bytes [start, stop) of the file. dtype: as torch calls it, or the file's word for it."""

    shape: tuple[int, ...]
    dtype: str
    start: int
    stop: int


class TensorFile:
    """Names, shapes and places of the tensors; `read` brings one into memory, safe from several threads.

    names: in the order of their bytes. A file that was cut short opens; the tensors behind its end fail on reading.
    Raises CheckpointError when the file is missing or its header is none of a safetensors file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        header, base = _header(self.path)
        self.metadata: dict[str, str] = header.pop("__metadata__", None) or {}
        slots = {name: _slot(self.path, name, entry, base) for name, entry in header.items()}
        self.slots = dict(sorted(slots.items(), key=lambda one: one[1].start))

    def read(self, name: str) -> Tensor:
        """The tensor of that name, in memory of its own. Raises CheckpointError when it is not whole."""
        if name not in self.slots:
            raise CheckpointError(f"{self.path} holds no tensor '{name}'; {nearest(name, self.slots)}")
        slot = self.slots[name]
        buffer = np.empty(slot.stop - slot.start, dtype=np.uint8)
        try:
            got = _fill(self.path, buffer, slot.start)
        except OSError as error:
            raise CheckpointError(f"{name} cannot be read from {self.path} ({error})") from error
        if got < len(buffer):
            raise CheckpointError(
                f"{self.path} ends inside {name} ({got} of {len(buffer)} bytes are there); copy the file again"
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
            header = json.loads(file.read(length))
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
    """A header entry, checked against itself."""
    try:
        shape = tuple(int(side) for side in entry["shape"])
        start, stop = (int(offset) for offset in entry["data_offsets"])
        word = str(entry["dtype"])
    except (LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"the header of {path} is damaged at {name!r}; copy or save it again") from error
    dtype = _TYPES.get(word, word)
    kind = getattr(torch, dtype, None)
    if min(shape, default=0) < 0 or not 0 <= start <= stop:
        raise CheckpointError(f"the header of {path} is damaged at {name!r}; copy or save it again")
    if isinstance(kind, torch.dtype) and stop - start != math.prod(shape) * kind.itemsize:
        raise CheckpointError(f"the header of {path} is damaged: {name!r} of shape {shape} has {stop - start} bytes")
    return Slot(shape, dtype, base + start, base + stop)
