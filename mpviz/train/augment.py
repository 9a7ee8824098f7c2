"""Augmentation whose randomness is a function of (seed, epoch, sample) or (seed, step): nothing to save or resume."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, Subset

from mpviz.errors import DataError, TrainingError
from mpviz.nets.data import ImageArrays
from mpviz.nets.image_files import StrictImages, data_config
from mpviz.nets.timm_import import import_timm, mend_posterize

BatchTransform = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class FlipShift:
    """For images in memory: mirror at random, shift by up to `shift` pixels (zero padding)."""

    flip: bool = True
    shift: int = 2

    def draws(self, samples: int, seed: int, epoch: int) -> Tensor:
        """Int["samples 3"], for each training image of the epoch: mirrored?, rows and columns to shift by."""
        rng = np.random.default_rng([seed, epoch, 1])
        mirrored = rng.integers(0, 2, samples) if self.flip else np.zeros(samples, dtype=np.int64)
        moved = rng.integers(0, 2 * self.shift + 1, (2, samples))
        return torch.from_numpy(np.stack([mirrored, *moved], axis=1))

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        """Float["n c h w"], each image changed by its own row of `draws`."""
        _, _, height, width = images.shape
        images = torch.where(draws[:, 0, None, None, None].bool(), images.flip(-1), images)
        if not self.shift:
            return images
        padded = F.pad(images, [self.shift] * 4).permute(0, 2, 3, 1)
        rows = draws[:, 1, None] + torch.arange(height)
        cols = draws[:, 2, None] + torch.arange(width)
        sample = torch.arange(len(images))[:, None, None]
        return padded[sample, rows[:, :, None], cols[:, None, :]].permute(0, 3, 1, 2)


@dataclass(frozen=True)
class TimmTransform:
    """For image files: timm's training transform at the student's input size and normalisation.

    options: keyword arguments of ``timm.data.create_transform``, e.g. {"auto_augment": "rand-m9-mstd0.5-inc1",
    "re_prob": 0.25}; random crops and mirroring are its defaults.
    """

    options: dict[str, Any] = field(default_factory=dict)

    def build(self, model: nn.Module) -> Callable[[Any], Tensor]:
        """The transform of one image. Raises DataError for options that timm does not take."""
        timm = import_timm()
        config = data_config(model)
        config.pop("crop_pct", None), config.pop("crop_mode", None)
        try:
            return mend_posterize(timm.data.create_transform(**{**config, **self.options}, is_training=True))
        except (TypeError, ValueError, AssertionError, KeyError) as error:
            raise DataError(
                f"timm makes no training transform of {self.options} ({error}); check the options"
            ) from error


Augment = FlipShift | TimmTransform | BatchTransform


def in_memory(dataset: Dataset) -> bool:
    """Whether the images are arrays, also as a part of a larger set."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return isinstance(dataset, ImageArrays)


def with_transform(dataset: Dataset, transform: Callable[[Any], Tensor]) -> Dataset:
    """The same images read through another transform; `dataset` stays as it is. Raises DataError when it has none."""
    if isinstance(dataset, Subset):
        return Subset(with_transform(dataset.dataset, transform), dataset.indices)
    if isinstance(dataset, StrictImages):
        return StrictImages(with_transform(dataset.inner, transform))
    if not hasattr(dataset, "transform"):
        raise DataError(f"{type(dataset).__name__} has no transform to replace; use augment=FlipShift() or a function")
    changed = copy.copy(dataset)
    changed.transform = transform
    return changed


class SeededImages(Dataset):
    """Images whose random transforms depend on (seed, epoch, number) alone, whoever reads them and in which order."""

    def __init__(self, inner: Dataset, seed: int) -> None:
        self.inner, self.seed, self.epoch = inner, seed, 0

    def __len__(self) -> int:
        return len(self.inner)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        with seeded(self.seed, self.epoch, index):
            return self.inner[index]


@contextlib.contextmanager
def seeded(*key: int) -> Iterator[None]:
    """The global generators of Python, numpy and torch (CPU) set from `key`, and given back as they were."""
    python, arrays, tensors = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        seed = int(np.random.SeedSequence(key).generate_state(1)[0])
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)
        torch.set_rng_state(tensors)


class Mixing:
    """timm's mixup and cutmix, drawn by (seed, step): every part of a global batch is mixed in the same way."""

    def __init__(self, mixup: float, cutmix: float, classes: int, seed: int) -> None:
        self.seed, self.classes = seed, classes
        self._mix = import_timm().data.Mixup(
            mixup_alpha=mixup, cutmix_alpha=cutmix, label_smoothing=0.0, num_classes=classes
        )

    def __call__(self, images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Mixed images and class shares Float["b classes"] of a part whose reverse are its partners (`deal`)."""
        odd = len(images) % 2
        middle = len(images) // 2
        if odd:  # its own partner; timm wants pairs, so it stands twice for a moment
            images = torch.cat([images[: middle + 1], images[middle:]])
            labels = torch.cat([labels[: middle + 1], labels[middle:]])
        with seeded(self.seed, step, 2):
            images, shares = self._mix(images.clone(), labels)
        if odd:
            kept = torch.arange(len(images)) != middle
            images, shares = images[kept], shares[kept]
        return images, shares


def describe(augment: Augment | None) -> Any:
    """What of an augmentation goes into the record of a run, as JSON data."""
    if augment is None:
        return None
    if isinstance(augment, FlipShift | TimmTransform):
        return {"kind": type(augment).__name__, **asdict(augment)}
    if not callable(augment):
        raise TrainingError(f"augment is a {type(augment).__name__}; give FlipShift, TimmTransform or a function")
    return {"kind": "function", "name": f"{augment.__module__}.{getattr(augment, '__qualname__', type(augment))}"}
