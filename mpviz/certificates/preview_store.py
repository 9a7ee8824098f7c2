"""Tables of an anchored preview on disk, found by the content of everything they depend on."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor, nn

from mpviz.files import replacing
from mpviz.nets import cache, forward

DISK_LIMIT = 256 * 2**20  # bytes of tables kept on disk
_CODE = (
    *(Path(__file__).with_name(f"{name}.py") for name in ("anchored", "anchors", "lookup", "resume", "margins")),
    Path(str(forward.__file__)),
)
_LEFTOVER = 3600  # seconds after which a half-written file belongs to no living process


class Content:
    """A running hash of 128 bits over named values; two contents that differ in one bit differ in their key."""

    def __init__(self) -> None:
        self._hash = xxhash.xxh3_128(f"{torch.__version__} {np.__version__}".encode())
        for code in _CODE:  # another version of it never meets the tables of this one
            with contextlib.suppress(OSError):  # a frozen application has no source
                self._hash.update(code.read_bytes())

    def text(self, value: object) -> None:
        """Add a value by its text."""
        self._hash.update(f"{value!r}\n".encode())

    def tensor(self, name: str, values: Tensor) -> None:
        """Add a tensor by its bytes, number type and shape."""
        flat = values.detach().cpu().contiguous()
        self.text((name, str(flat.dtype), tuple(flat.shape)))
        if flat.numel():
            self._hash.update(flat.reshape(-1).view(torch.uint8).numpy().data)

    def network(self, model: nn.Module) -> None:
        """Add a network: its modules' description, every parameter and every buffer."""
        self.text((type(model).__module__, type(model).__qualname__, repr(model)))
        for name, values in (*model.named_parameters(), *model.named_buffers()):
            self.tensor(name, values)

    def key(self) -> str:
        """The hash so far."""
        return self._hash.hexdigest()


def _path(key: str) -> Path | None:
    place = cache.folder()
    return None if place is None else place / "previews" / key[:2] / f"{key}.safetensors"


def load(key: str) -> dict[str, np.ndarray] | None:
    """The arrays kept under the key, if they are whole; a missing or damaged file is None."""
    path = _path(key)
    try:
        if path is None or not path.is_file():
            return None
        with safe_open(path, framework="np") as file:
            metadata, arrays = dict(file.metadata() or {}), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata["key"] != key or metadata["sum"] != _sum(arrays):
            return None
        path.touch()  # the size limit drops what was not read for longest
    except (OSError, SafetensorError, LookupError, TypeError, ValueError):
        return None
    return arrays


def store(key: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Keep the arrays, all or none of them; a folder that cannot be written is no error."""
    path = _path(key)
    if path is None:
        return
    whole = {name: np.ascontiguousarray(values) for name, values in arrays.items()}
    with contextlib.suppress(OSError, SafetensorError):
        with replacing(path) as temporary:
            save_file(whole, temporary, {"key": key, "sum": _sum(whole)})
        _cut_back(path.parent.parent)


def _sum(arrays: Mapping[str, np.ndarray]) -> str:
    digest = xxhash.xxh3_128()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()


def _cut_back(top: Path) -> None:
    """Drop what was not used for longest beyond the limit, and what killed processes left half-written."""
    kept = []
    for path in top.glob("*/*"):
        with contextlib.suppress(OSError):  # another process may have dropped it
            status = path.stat()
            if path.suffix != ".part":
                kept.append((status.st_mtime, status.st_size, path))
            elif status.st_mtime < time.time() - _LEFTOVER:
                path.unlink()
    total = sum(size for _, size, _ in kept)
    for _, size, path in sorted(kept):
        if total <= DISK_LIMIT:
            break
        with contextlib.suppress(OSError):
            path.unlink()
            total -= size
