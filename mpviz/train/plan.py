"""What a recovery run depends on, beside networks and data: checked once, recorded, and compared before a resume."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor, nn
from torch.utils.data import Subset

from mpviz.errors import CheckpointError, TrainingError, nearest
from mpviz.nets.data import ImageArrays, Split
from mpviz.nets.image_files import StrictImages, StrictSamples
from mpviz.prune.options import misfit
from mpviz.train.augment import Augment, describe
from mpviz.train.optimizers import OPTIMIZERS

PRECISIONS = ("no", "bf16", "fp16")
# learning rate, weight decay and batch of arXiv:2606.02608: AdamW for its ViTs, SGD for its ResNets
_DEFAULTS = {"adamw": (1e-5, 0.01, 32), "sgd": (1e-3, 1e-4, 256)}


def check_count(name: str, value: Any) -> None:
    """Raises TrainingError for what is no whole number from 0 on."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise TrainingError(f"{name} = {value!r}; give a whole number from 0 on")


@dataclass(frozen=True)
class RecoveryPlan:
    """The schedule of a recovery.

    epochs: whole ones and a part. weight: a, the teacher's share of the loss. temperature: τ. smoothing: of the labels.
    learning_rate, weight_decay, batch: None takes those of the paper for the optimizer (adamw 1e-5, 0.01, 32; sgd
    1e-3, 1e-4, 256). batch: images of one optimiser step over all processes; accumulate: micro-batches that each
    process makes of its share: they add up to the same step, but for batch norms, which see one micro-batch at a time.
    warmup: share of the steps. clip: largest gradient norm, 0 for none. precision: "no" (float32), "bf16" or "fp16".
    mixup, cutmix: α of their Beta distributions, 0 for off. augment: FlipShift, TimmTransform, or a function (images
    Float["b c h w"], generator) -> images, which is called with the part of a batch that a process holds.
    """

    epochs: float = 3
    temperature: float = 2.0
    weight: float = 0.5
    optimizer: str = "adamw"
    seed: int = 0
    smoothing: float = 0.1
    learning_rate: float | None = None
    weight_decay: float | None = None
    batch: int | None = None
    accumulate: int = 1
    warmup: float = 0.1
    momentum: float = 0.9
    clip: float = 0.0
    precision: str = "no"
    mixup: float = 0.0
    cutmix: float = 0.0
    augment: Augment | None = None

    @property
    def rate(self) -> float:
        """The peak learning rate."""
        return _DEFAULTS[self.optimizer][0] if self.learning_rate is None else self.learning_rate

    @property
    def decay(self) -> float:
        """The weight decay."""
        return _DEFAULTS[self.optimizer][1] if self.weight_decay is None else self.weight_decay

    @property
    def size(self) -> int:
        """Images of one optimiser step."""
        return _DEFAULTS[self.optimizer][2] if self.batch is None else self.batch

    def checked(self) -> RecoveryPlan:
        """The plan with automatic values filled in. Raises TrainingError that names the value and what it may be."""
        describe(self.augment)
        wrong = misfit(self)
        if wrong is not None:
            raise TrainingError(f"recovery cannot take {wrong}")
        if self.optimizer not in OPTIMIZERS:
            raise TrainingError(f"unknown optimizer '{self.optimizer}'; {nearest(self.optimizer, OPTIMIZERS)}")
        if self.precision not in PRECISIONS:
            raise TrainingError(f"unknown precision '{self.precision}'; {nearest(self.precision, PRECISIONS)}")
        for name in ("batch", "accumulate"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise TrainingError(f"{name} = {value!r}; give a whole number of at least 1")
        check_count("seed", self.seed)
        bounds = {
            "epochs": (0.0, None, "above 0"),
            "temperature": (0.0, None, "above 0"),
            "rate": (0.0, None, "above 0"),
            "weight": (0.0, 1.0, "between 0 and 1"),
            "smoothing": (0.0, 1.0, "between 0 and 1"),
            "warmup": (0.0, 1.0, "between 0 and 1"),
            "momentum": (0.0, 1.0, "between 0 and 1"),
            **dict.fromkeys(("decay", "clip", "mixup", "cutmix"), (0.0, None, "0 or more")),
        }
        for name, (low, high, words) in bounds.items():
            value = getattr(self, name)
            good = np.isfinite(value) and value >= low and (high is None or value <= high)
            if not good or (words == "above 0" and value == 0):
                raise TrainingError(f"{name} = {value!r}; it must be {words}")
        return replace(self, learning_rate=self.rate, weight_decay=self.decay, batch=self.size)

    def record(self) -> dict[str, Any]:
        """The plan as JSON data."""
        flat = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "augment"}
        return flat | {"augment": describe(self.augment)}


def make_plan(**options: Any) -> RecoveryPlan:
    """A checked plan. Raises TrainingError for an unknown option, with the nearest known one."""
    known = [field.name for field in fields(RecoveryPlan)]
    for name in options:
        if name not in known:
            raise TrainingError(f"recovery has no option '{name}'; {nearest(name, known)}")
    return RecoveryPlan(**options).checked()


def identity(
    plan: RecoveryPlan, student: nn.Module, teacher: nn.Module | None, masks: Mapping[str, Tensor], data: Split
) -> dict[str, Any]:
    """All that decides the outcome, as JSON data: the plan, and short digests of networks, masks and data."""
    return plan.record() | {
        "student": digest(student.state_dict()),
        "teacher": None if teacher is None else digest(teacher.state_dict()),
        "masks": digest(masks),
        "data": data_digest(data),
    }


def compare(asked: Mapping[str, Any], found: Mapping[str, Any], folder: object, what: str = "recovery") -> None:
    """Refuse to go on with another run than the one in the folder. Raises CheckpointError naming what differs."""
    different = [key for key in {**found, **asked} if asked.get(key) != found.get(key)]
    if different:
        shown = "; ".join(f"{key}: {found.get(key)!r} there, {asked.get(key)!r} asked" for key in different[:4])
        raise CheckpointError(
            f"{folder} holds another {what} ({shown}); give the settings it was started with, or another folder"
        )


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Of names, shapes, types and every bit of some tensors."""
    state = xxhash.xxh3_128()
    for name, tensor in tensors.items():
        state.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        state.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def data_digest(data: Split) -> str:
    """Of pixels and labels in memory; of image files the names and some sizes; else how many there are, and classes."""
    state, dataset = xxhash.xxh3_128(f"{data.name} {len(data)} {data.classes}".encode()), data.dataset
    while isinstance(dataset, Subset):
        state.update(np.asarray(dataset.indices, dtype=np.int64).data)
        dataset = dataset.dataset
    if isinstance(dataset, ImageArrays):
        state.update(dataset.images.numpy().data)
        state.update(dataset.labels.numpy().data)
    if isinstance(dataset, StrictImages | StrictSamples):
        paths = dataset.files()
        state.update("\n".join(dataset.files(absolute=False)).encode())
        state.update(str([_size(path) for path in paths[:: 1 + len(paths) // 1000]]).encode())
    return state.hexdigest()


def _size(path: str) -> int:
    """Bytes of a file; −1 where there is none of that name, as inside an archive."""
    try:
        return os.stat(path).st_size
    except OSError:
        return -1
