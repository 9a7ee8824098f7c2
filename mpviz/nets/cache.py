"""Spectra that were computed before, found by the content of the weights: in memory and on disk, never by name."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from mpviz.files import replacing
from mpviz.nets import engine
from mpviz.rmt import entries as entries_module
from mpviz.rmt.entries import EntryStats

MEMORY_LIMIT = 128 * 2**20  # bytes of results kept in memory
DISK_LIMIT = 512 * 2**20  # bytes of results kept on disk
_SMALL_PARTS = 8 * 2**10  # bytes that a result takes beside its arrays, about
_LEFTOVER = 3600  # seconds after which a half-written file belongs to no living process


@dataclass(frozen=True)
class Measured:
    """What the engine found: eigenvalues Float64["matrices p"] ascending, how, and the statistics of the entries.

    entries: one a matrix, None for one that is all zero; empty where nobody asked.
    """

    eigenvalues: np.ndarray
    engine: str
    entries: tuple[EntryStats | None, ...] = ()


def _fingerprint() -> str:
    """Of the code whose results are kept: another version of it never meets the results of this one."""
    digest = xxhash.xxh3_128(f"{sys.byteorder} {torch.__version__} {np.__version__}".encode())
    for module in (engine, entries_module):
        with contextlib.suppress(OSError, TypeError):
            digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()


_VERSION = _fingerprint()


def content_key(stack: Tensor) -> str:
    """128 bits of the weights' bytes, with their number type and shape. Float["matrices rows cols"], 30 GB/s."""
    flat = stack.detach().cpu().contiguous()
    digest = xxhash.xxh3_128_hexdigest(flat.view(torch.uint8).numpy().data) if flat.numel() else "empty"
    return f"{digest}-{str(flat.dtype).removeprefix('torch.')}-{'x'.join(map(str, flat.shape))}"


def measured_key(content: str, precision: str, seed: int | None = None) -> str:
    """Key of what the engine finds; seed: of the shuffled entries."""
    return xxhash.xxh3_128_hexdigest(f"{content} {precision} {seed} {_VERSION}".encode())


# --- memory ---------------------------------------------------------------------------------------------------------


class Memory:
    """The latest results of this process, bounded in bytes; the one that was not used for longest goes first."""

    def __init__(self, limit: int = MEMORY_LIMIT) -> None:
        self.limit = limit
        self._kept: OrderedDict[object, tuple[Any, int]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: object) -> Any:
        """The result, or None."""
        with self._lock:
            if key not in self._kept:
                return None
            self._kept.move_to_end(key)
            return self._kept[key][0]

    def put(self, key: object, result: Any, size: int) -> None:
        """Keep a result whose arrays take `size` bytes."""
        size += _SMALL_PARTS
        with self._lock:
            if key in self._kept or size > self.limit:
                return
            self._kept[key] = (result, size)
            self._bytes += size
            while self._bytes > self.limit:
                _, (_, freed) = self._kept.popitem(last=False)
                self._bytes -= freed

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._kept.clear()
            self._bytes = 0


memory = Memory()


# --- disk -----------------------------------------------------------------------------------------------------------


def folder() -> Path | None:
    """Where results are kept: $MPVIZ_CACHE, else mpviz/ in $XDG_CACHE_HOME or ~/.cache; None when there is no place.

    MPVIZ_CACHE=off keeps results in memory only.
    """
    asked = os.environ.get("MPVIZ_CACHE")
    if asked:
        return None if asked == "off" else Path(asked)
    shared = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(shared):
        return Path(shared) / "mpviz"
    try:
        return Path.home() / ".cache" / "mpviz"
    except RuntimeError:  # a process without a home
        return None


def _path(key: str) -> Path | None:
    place = folder()
    return None if place is None else place / "spectra" / key[:2] / f"{key}.safetensors"


def load(key: str, shape: tuple[int, int]) -> Measured | None:
    """What was kept under the key, if it is whole: eigenvalues of (matrices, p). A damaged or missing file is None."""
    path = _path(key)
    try:
        if path is None or not path.is_file():
            return None
        with safe_open(path, framework="np") as file:
            metadata, arrays = dict(file.metadata() or {}), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        found = Measured(
            _frozen(arrays["eigenvalues"]), metadata["engine"], tuple(_entry(row) for row in arrays["entries"])
        )
        if metadata["key"] != key or metadata["sum"] != _sum(arrays) or found.eigenvalues.shape != shape:
            return None
    except (OSError, SafetensorError, LookupError, TypeError, ValueError):
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # the size limit drops what was not read for longest
    return found


def store(key: str, measured: Measured) -> None:
    """Keep it, whole or not at all; a folder that cannot be written is no error."""
    path = _path(key)
    if path is None:
        return
    width = len(fields(EntryStats))
    rows = [[np.nan] * width if one is None else list(astuple(one)) for one in measured.entries]
    arrays = {
        "eigenvalues": np.ascontiguousarray(measured.eigenvalues),
        "entries": np.array(rows, dtype=np.float64).reshape(len(rows), width),
    }
    try:
        with replacing(path) as temporary:
            save_file(arrays, temporary, {"key": key, "sum": _sum(arrays), "engine": measured.engine})
        _usage.add(path)
    except (OSError, SafetensorError):
        return


def _entry(row: np.ndarray) -> EntryStats | None:
    return None if np.isnan(row).all() else EntryStats(*row.tolist())


def _frozen(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array


def _sum(arrays: dict[str, np.ndarray]) -> str:
    digest = xxhash.xxh3_128()
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()


class _Usage:
    """How much is kept below a folder; counted once a process, then followed, and cut back when it is too much."""

    def __init__(self) -> None:
        self._bytes: dict[Path, int] = {}
        self._lock = threading.Lock()

    def add(self, path: Path) -> None:
        top = path.parent.parent
        with self._lock:
            if top not in self._bytes:
                self._bytes[top] = sum(size for _, size, _ in _files(top))
            else:
                self._bytes[top] += path.stat().st_size
            if self._bytes[top] > DISK_LIMIT:
                self._bytes[top] = _cut_back(top, DISK_LIMIT * 4 // 5)


def _files(top: Path) -> Iterator[tuple[float, int, Path]]:
    """(time of last use, bytes, path) of every file below the folder."""
    for path in top.glob("*/*"):
        with contextlib.suppress(OSError):  # another process may have dropped it
            status = path.stat()
            yield status.st_mtime, status.st_size, path


def _cut_back(top: Path, goal: int) -> int:
    """Drop what was not used for longest until `goal` bytes are left, and what killed processes left half-written."""
    total, kept = 0, []
    for used, size, path in _files(top):
        if path.suffix == ".part":
            if used < time.time() - _LEFTOVER:
                path.unlink(missing_ok=True)
        else:
            total += size
            kept.append((used, size, path))
    for _, size, path in sorted(kept):
        if total <= goal:
            break
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
            total -= size
    return total


_usage = _Usage()
