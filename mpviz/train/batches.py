"""The order of the data in recovery: a function of (seed, epoch), dealt out the same way to one process or many."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from mpviz.errors import DataError
from mpviz.nets.image_files import PlainLoader


@dataclass(frozen=True)
class Order:
    """Global batches over `samples` training images, reshuffled in every epoch; the last one may be smaller."""

    samples: int
    batch: int
    seed: int

    @property
    def steps(self) -> int:
        """Optimiser steps of an epoch."""
        return -(-self.samples // self.batch)

    def batches(self, epoch: int, start: int = 0) -> list[np.ndarray]:
        """Int["b"] sample numbers of the global batches `start`, start + 1, … of an epoch (from 0).

        Nothing is remembered between calls, so a resumed run skips what it has seen by naming `start`.
        """
        shuffled = np.random.default_rng([self.seed, epoch]).permutation(self.samples)
        return [shuffled[i * self.batch : (i + 1) * self.batch] for i in range(start, self.steps)]


def deal(size: int, slots: int, paired: bool = False) -> list[np.ndarray]:
    """Positions 0 … size − 1 of a global batch for each of `slots` = processes × micro-batches; some may be empty.

    paired: position i and its mirror image size − 1 − i go to one slot, in an order in which turning the slot around
    exchanges them. Mixup and cutmix mix a batch with its reverse, and so give each sample the partner it has in the
    global batch.

    >>> [part.tolist() for part in deal(5, 2)], [part.tolist() for part in deal(5, 2, paired=True)]
    ([[0, 2, 4], [1, 3]], [[0, 2, 4], [1, 3]])
    >>> [part.tolist() for part in deal(6, 2, paired=True)]
    [[0, 2, 3, 5], [1, 4]]
    """
    if not paired:
        return [np.arange(slot, size, slots) for slot in range(slots)]
    parts = []
    for slot in range(slots):
        front = np.arange(slot, (size + 1) // 2, slots)
        back = (size - 1 - front)[::-1]
        parts.append(np.concatenate([front, back[np.isin(back, front, invert=True)]]))
    return parts


def _collate(batch: Any) -> Any:
    return batch if isinstance(batch, tuple) else default_collate(batch)  # arrays in memory come as whole batches


class _Ready(Sequence):
    """Lists of sample numbers, made when they are asked for."""

    def __init__(self, chosen: list[np.ndarray]) -> None:
        self.chosen = chosen

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: Any) -> Any:
        return self.chosen[index].tolist()


def read(dataset: Dataset, chosen: list[np.ndarray], classes: int, workers: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Images Float["b c h w"] and labels Int["b"] for each array of sample numbers, in this order.

    workers: processes that decode image files. Raises DataError for an image that cannot be read or a label that the
    model has no class for.
    """
    loader = PlainLoader(
        dataset,
        batch_sampler=_Ready(chosen),
        num_workers=workers,
        collate_fn=_collate,
        generator=torch.Generator(),  # else each loader draws from the global one, and a resumed run draws once more
    )
    for images, labels in loader:
        labels = torch.as_tensor(labels).long()
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            wrong = int(labels.max() if int(labels.max()) >= classes else labels.min())
            raise DataError(
                f"the training data have the label {wrong}, the student {classes} classes; "
                "take a student with a class for each label"
            )
        yield images, labels
