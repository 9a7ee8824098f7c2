"""The first bytes of a file that claims to be safetensors."""

from __future__ import annotations

from mpviz.errors import CheckpointError

LARGEST_HEADER = 8_000_000  # bytes: a hundred times that of a large network


def check_header(first: bytes, size: int) -> None:
    """Refuse a file by its first 8 bytes and its size: a pickle, a zip archive, or a header larger than any network's.

    first: the bytes there are, 8 or fewer. size: of the whole file in bytes. Raises CheckpointError.
    """
    length = int.from_bytes(first[:8], "little")
    if len(first) < 8 or not 2 <= length <= size - 8:
        kind = (
            "a pickle or an archive of torch.save" if first[:2] == b"PK" or first[:1] == b"\x80" else "something else"
        )
        raise CheckpointError(
            f"this is {kind}, and only safetensors files are taken; write one with mp.save(path, model) and upload that"
        )
    if length > LARGEST_HEADER:
        raise CheckpointError(
            f"the header of this file has {length / 1e6:.0f} MB, and up to {LARGEST_HEADER // 1_000_000} are taken; "
            "save it again without results"
        )
