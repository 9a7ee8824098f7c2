"""Damaged image files: whatever a decoder makes of them, the error names the image."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mpviz as mp
from mpviz.errors import DataError
from mpviz.nets.image_files import open_images

pytestmark = pytest.mark.usefixtures("no_wait_for_workers")


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


def classes(path: Path, parts: tuple[str, ...], names: tuple[str, ...] = ("a", "b")) -> Path:
    """Eight images of each class in each part, and where one of the first part lies."""
    for part in parts:
        for name in names:
            (path / part / name).mkdir(parents=True)
            for number in range(8):
                (path / part / name / f"{number}.png").write_bytes(saved("PNG"))
    return path / parts[0] / names[0] / "3.png"


SPECIES = tuple(f"0000{i}_Animalia_Chordata_Aves_Order_Family_Genus_species{i}" for i in range(2))
OPENED = {
    "torch/image_folder": lambda path: classes(path, ("train", "validation")),
    "torch/folder": lambda path: classes(path, ("train", "validation")),
    "image_folder/": lambda path: classes(path, ("train", "validation")),
    "torch/inaturalist": lambda path: classes(path, ("2021_train", "2021_valid"), SPECIES),
}


@pytest.mark.parametrize("name", OPENED)
@pytest.mark.parametrize(("workers", "left"), [(0, 0), (0, 60), (0, 200), (2, 60)])
def test_an_image_of_a_data_set_that_timm_names_is_told_by_its_path(
    tmp_path: Path, name: str, workers: int, left: int
) -> None:
    damaged = OPENED[name](tmp_path)
    damaged.write_bytes(damaged.read_bytes()[:left])
    data = mp.load_data(name, folder=tmp_path)
    whole = data.train.dataset.dataset  # type: ignore[attr-defined]
    split = dataclasses.replace(data.train, dataset=whole)  # the one set aside for calibration may be the damaged one
    with pytest.raises(DataError) as caught:
        list(split.loader(4, workers=workers))
    assert re.fullmatch(
        rf"cannot read the image {re.escape(str(damaged))} \(.+\); repair it or take it out", str(caught.value)
    )
    assert len(whole.files()) == 16 and str(damaged) in whole.files()
    assert str(damaged.relative_to(tmp_path)).endswith(whole.files(absolute=False)[whole.files().index(str(damaged))])


def test_an_archive_and_a_table_of_images_name_the_image_as_they_can(tmp_path: Path) -> None:
    damaged = classes(tmp_path / "loose", ("train",))
    damaged.write_bytes(damaged.read_bytes()[:60])
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        archive.add(tmp_path / "loose" / "train", "train")
    images = open_images("", tmp_path / "images.tar", lambda image: image)
    with pytest.raises(DataError, match=r"cannot read the image .*a/3\.png \(.+\); repair it or take it out"):
        list(images)

    class Table:
        """As timm reads a table of Hugging Face: bytes without a path."""

        def __getitem__(self, index: int) -> tuple[io.BytesIO, int]:
            return io.BytesIO(bytes(saved("PNG")[:60])), 0

        def filename(self, index: int, absolute: bool) -> None:
            return None

    images.reader = Table()  # type: ignore[attr-defined]
    with pytest.raises(DataError, match=r"cannot read the image number 5 of Table \(.+\); repair it or take it out"):
        images[5]


def test_a_transform_that_fails_names_itself_and_the_image(tmp_path: Path) -> None:
    folder(tmp_path)

    def halve(image: Image.Image) -> Image.Image:
        raise RuntimeError("odd sides")

    images = open_images("", tmp_path, halve)
    with pytest.raises(DataError, match=r"the transform halve fails on the image .*1\.png \(RuntimeError: odd sides\)"):
        images[1]
    classes(tmp_path / "more", ("train", "validation"))
    images = open_images("torch/image_folder", tmp_path / "more", halve, split="train")
    with pytest.raises(DataError, match=r"the transform halve fails on the image .*0\.png \(RuntimeError: odd sides\)"):
        images[0]
