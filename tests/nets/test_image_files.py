"""Damaged image files: whatever a decoder makes of them, the error names the image."""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mpviz.errors import DataError
from mpviz.nets.image_files import open_images


def saved(kind: str) -> bytearray:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, kind)
    return bytearray(file.getvalue())


def enormous() -> bytes:
    """A bitmap that says it has 2 · 10¹² pixels: Pillow takes it for a bomb."""
    raw = saved("BMP")
    raw[18:26] = struct.pack("<ii", 2_000_000, 1_000_000)
    return bytes(raw)


def of_no_known_kind() -> bytes:
    """A DirectDraw surface without a pixel format."""
    raw = saved("DDS")
    raw[80:84] = bytes(4)
    return bytes(raw)


def folder(path: Path) -> Path:
    """Two images of one class, and where the second lies."""
    (path / "a").mkdir()
    for name in ("0.png", "1.png"):
        (path / "a" / name).write_bytes(saved("PNG"))
    return path / "a" / "1.png"


@pytest.mark.parametrize("damaged", [enormous, of_no_known_kind, bytes, lambda: bytes(saved("PNG")[:60])])
def test_whatever_a_decoder_makes_of_damage_the_image_is_named(tmp_path: Path, damaged: Callable[[], bytes]) -> None:
    folder(tmp_path).write_bytes(damaged())
    images = open_images("", tmp_path, lambda image: image)
    assert images[0][0].size == (24, 24)
    with pytest.raises(DataError, match=r"cannot read the image .*1\.png \(.+\); repair it or take it out"):
        images[1]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "DDS"])
@pytest.mark.filterwarnings("ignore")
def test_random_damage_raises_nothing_else(tmp_path: Path, kind: str) -> None:
    place, random, whole = folder(tmp_path), np.random.default_rng(0), saved(kind)
    images = open_images("", tmp_path, lambda image: image)
    for _ in range(150):
        raw = whole[: random.integers(len(whole) + 1)] if random.random() < 0.3 else whole[:]
        for at in random.integers(0, min(len(raw), 80) or 1, random.integers(0, 9)):
            raw[at : at + 1] = [random.choice([0, 255, random.integers(256)])]
        place.write_bytes(raw)
        with contextlib.suppress(DataError):
            images[1]


def test_a_transform_that_fails_names_itself_and_the_image(tmp_path: Path) -> None:
    folder(tmp_path)

    def halve(image: Image.Image) -> Image.Image:
        raise RuntimeError("odd sides")

    images = open_images("", tmp_path, halve)
    with pytest.raises(DataError, match=r"the transform halve fails on the image .*1\.png \(RuntimeError: odd sides\)"):
        images[1]
