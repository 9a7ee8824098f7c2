"""Reading and writing the IDX files of the MNIST family (big-endian header, raw bytes; .gz and .xz too)."""

from __future__ import annotations

import gzip
import lzma
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from mpviz.errors import DataError

_OPENERS: dict[str, Any] = {".gz": gzip.open, ".xz": lzma.open}


def read_idx(path: Path) -> np.ndarray:
    """The array of an IDX file of unsigned bytes: UInt8["samples rows cols"] or UInt8["samples"].

    Raises DataError when the file is missing, truncated or not IDX.
    """
    opener = _OPENERS.get(path.suffix, open)
    try:
        with opener(path, "rb") as file:
            raw = file.read()
    except FileNotFoundError:
        raise DataError(f"no data file at {path}; give the folder that holds the IDX files") from None
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}; fetch the file again") from error
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08":
        raise DataError(f"{path} is not an IDX file of unsigned bytes; expected the format of the MNIST family")
    n_dims = raw[3]
    header = 4 + 4 * n_dims
    if len(raw) < header:
        raise DataError(f"{path} ends inside its header; fetch the file again")
    shape = struct.unpack(f">{n_dims}I", raw[4:header])
    if len(raw) - header != math.prod(shape):
        raise DataError(
            f"{path} holds {len(raw) - header} bytes where {shape} needs {math.prod(shape)}; fetch it again"
        )
    return np.frombuffer(raw, dtype=np.uint8, offset=header).reshape(shape)


def write_idx(path: Path, array: np.ndarray) -> None:
    """Write unsigned bytes as IDX, compressed by the path's suffix; equal arrays give equal files."""
    header = b"\x00\x00\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    raw = header + np.ascontiguousarray(array, dtype=np.uint8).tobytes()
    if path.suffix == ".xz":
        raw = lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME)
    elif path.suffix == ".gz":
        raw = gzip.compress(raw, 9, mtime=0)
    path.write_bytes(raw)
