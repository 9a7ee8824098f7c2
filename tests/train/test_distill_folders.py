"""Recovery on image files: timm's transforms, reading in other processes, and images that cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import mpviz as mp
from mpviz.errors import DataError
from mpviz.nets.forward import pruned_copy
from mpviz.train.augment import FlipShift, TimmTransform
from mpviz.train.batches import Order
from mpviz.train.distill import Recovery, distill
from mpviz.train.select import movement_of
from tests.train.recovery_case import digest

pytestmark = pytest.mark.usefixtures("no_wait_for_workers")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """24 noisy images in two classes, two thirds for training."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 4)):
        for shade, name in ((60, "dark"), (200, "light")):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(rng.normal(shade, 20, (40, 40, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / name / f"{i}.png")
    return tmp_path


def network() -> nn.Module:
    torch.manual_seed(0)
    model = mp.load_model("test_vit", pretrained=False, num_classes=2)
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, 32, 32), "fixed_input_size": False}
    model.set_input_size(img_size=32)
    return model


def recover(folder: Path, **more: Any) -> Recovery:
    model = network()
    data = mp.load_data(str(folder), model=model)
    options = {"epochs": 2, "batch": 4, "learning_rate": 1e-3, "device": "cpu"}
    return distill(model, None, data.train, **(options | more))


def test_random_transforms_are_the_same_whoever_reads(folder: Path, tmp_path: Path) -> None:
    transform = TimmTransform({"auto_augment": "rand-m5-inc1", "re_prob": 0.5})
    here = recover(folder, augment=transform)
    there = recover(folder, augment=transform, workers=2)
    assert digest(here.model) == digest(there.model)
    plain = recover(folder)
    assert plain.curve["loss"].tolist() != here.curve["loss"].tolist()
    assert len(plain.curve) == 2 * 4 and np.isfinite(here.curve["loss"]).all()


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "original", "augmix-m5-w1-d1-b1"])
def test_posterizing_to_no_bits_gives_black_and_stops_nothing(folder: Path, policy: str) -> None:
    """timm asks for 0 bits, which some versions of Pillow refuse."""
    transform = TimmTransform({"auto_augment": policy}).build(network())
    chosen = next(step for step in transform.transforms if hasattr(step, "ops") or hasattr(step, "policy"))  # type: ignore[attr-defined]
    found = [chosen.ops] if hasattr(chosen, "ops") else chosen.policy
    operations = [one for policy in found for one in policy if one.name.startswith("Posterize")]
    image = Image.open(folder / "val" / "light" / "0.png")
    grey = np.asarray(image)
    assert operations
    for one in operations:
        for bits in (-1, 0, 1, 8):
            expected = grey & (256 - 2 ** (8 - bits) if bits > 0 else 0)
            assert np.array_equal(np.asarray(one.aug_fn(image, bits, **one.kwargs)), expected)


def test_the_strongest_random_transforms_reach_the_end(folder: Path) -> None:
    run = recover(folder, augment=TimmTransform({"auto_augment": "rand-m10-n8-mstd0.5-inc1", "re_prob": 0.25}))
    assert len(run.curve) == 8 and np.isfinite(run.curve["loss"]).all()


def test_augmentation_must_fit_the_images(folder: Path) -> None:
    with pytest.raises(DataError, match="images in memory"):
        recover(folder, augment=FlipShift())
    with pytest.raises(DataError, match="check the options"):
        recover(folder, augment=TimmTransform({"no_such_option": 1}))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("name", ["", "torch/image_folder", "image_folder/"])
@pytest.mark.parametrize("augment", [None, TimmTransform()])
def test_an_image_that_cannot_be_read_is_named_and_the_checkpoint_kept(
    folder: Path, tmp_path: Path, workers: int, name: str, augment: TimmTransform | None
) -> None:
    model = network()
    data = mp.load_data(name, folder=folder, model=model) if name else mp.load_data(str(folder), model=model)
    path = folder / "train" / "dark" / "3.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError) as caught:
        distill(
            model, None, data.train, epochs=2, batch=2, every=1, out=tmp_path / "run", device="cpu", workers=workers,
            augment=augment,
        )  # fmt: skip
    assert "dark/3.png" in str(caught.value) and "stopped at step" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(max((tmp_path / "run").glob("step-*.safetensors"))) in str(caught.value)


def test_a_selection_names_the_image_too_and_keeps_its_checkpoint(folder: Path, tmp_path: Path) -> None:
    model = network()
    data = mp.load_data("torch/image_folder", folder=folder, model=model)
    masks = mp.magnitude_masks(model, 0.5)
    options = {"epochs": 1, "batch": 2, "every": 1, "device": "cpu", "out": tmp_path / "run"}
    paths = data.train.dataset.dataset.files()  # type: ignore[attr-defined]
    last = Order(len(data.train), 2, 0).batches(0)[-1][0]
    path = Path(paths[data.train.dataset.indices[last]])  # type: ignore[attr-defined]
    path.write_bytes(path.read_bytes()[:200])
    open_ = {name: ~mask for name, mask in masks.items()}
    with pytest.raises(DataError) as caught:
        movement_of(pruned_copy(model, masks), open_, data.train, **options)
    words, kept = str(caught.value), sorted((tmp_path / "run").glob("step-*.safetensors"))
    assert words.startswith(f"cannot read the image {path} (") and "the selection stopped at step " in words
    assert kept and words.endswith(f"the last good checkpoint is {kept[-1]}")
