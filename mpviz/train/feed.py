"""What each process is fed: its share of every global batch, read from memory or files and augmented."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from mpviz.errors import DataError
from mpviz.nets.data import Split, Splits
from mpviz.train.augment import FlipShift, SeededImages, TimmTransform, in_memory, with_transform
from mpviz.train.batches import Order, deal, read
from mpviz.train.plan import RecoveryPlan


def check_training_data(data: object, what: str = "recovery") -> None:
    """Raises DataError for anything but a training split with images. what: takes them, in words."""
    if isinstance(data, Splits):
        raise DataError(f"{what} takes the training data alone; give splits.train")
    if not isinstance(data, Split):
        raise DataError(f"{what} takes a Split, not a {type(data).__name__}; give splits.train of mp.load_data")
    if data.name != "train":
        raise DataError(f"{what} refuses the {data.name} split, which must only measure; give splits.train")
    if len(data) == 0:
        raise DataError("the train split is empty")


@dataclass(frozen=True)
class Part:
    """One pass of one process: images Float["b c h w"], labels Int["b"].

    silent: the process has no samples of its own in this batch, and goes along with one that must not count.
    """

    images: Tensor
    labels: Tensor
    silent: bool


class Feed:
    """The batches of process `rank` of `world`; each is a function of the seed, the epoch and the batch's number."""

    def __init__(
        self, data: Split, plan: RecoveryPlan, student: nn.Module, classes: int, workers: int, rank: int, world: int
    ) -> None:
        """Raises DataError for an augmentation that does not fit the images. student: TimmTransform asks its size."""
        self.plan, self.classes, self.workers, self.rank, self.world = plan, classes, workers, rank, world
        self.order = Order(len(data), plan.size, plan.seed)
        self._dataset = _dataset(data.dataset, plan, student)

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[list[Part], int]]:
        """The parts of each batch of an epoch from number `start` on, and how many images all processes see.

        Raises DataError for an image that cannot be read or a label without a class.
        """
        batches = self.order.batches(epoch, start)
        shares = [self._share(batch) for batch in batches]
        if isinstance(self._dataset, SeededImages):
            self._dataset.epoch = epoch
        draws = None
        if isinstance(self.plan.augment, FlipShift):
            draws = self.plan.augment.draws(self.order.samples, self.plan.seed, epoch)
        chosen = [numbers for share in shares for numbers, _ in share]
        pairs = read(self._dataset, chosen, self.classes, self.workers)
        for step, (batch, share) in enumerate(zip(batches, shares, strict=True), epoch * self.order.steps + start):
            parts = []
            for index, (numbers, silent) in enumerate(share):
                images, labels = next(pairs)
                parts.append(Part(self._augment(images, numbers, draws, (step, index)), labels, silent))
            yield parts, len(batch)

    def _share(self, batch: np.ndarray) -> list[tuple[np.ndarray, bool]]:
        """Sample numbers of the passes of this process; all processes make the same number of them."""
        mixing = self.plan.mixup > 0 or self.plan.cutmix > 0
        dealt = deal(len(batch), self.world * self.plan.accumulate, paired=mixing)
        share = []
        for first in range(0, len(dealt), self.world):
            if any(len(part) for part in dealt[first : first + self.world]):
                mine = batch[dealt[first + self.rank]]
                share.append((mine, False) if len(mine) else (batch[:1], True))
        return share

    def _augment(self, images: Tensor, numbers: np.ndarray, draws: Tensor | None, place: tuple[int, int]) -> Tensor:
        augment = self.plan.augment
        if isinstance(augment, FlipShift) and draws is not None:
            return augment.apply(images, draws[torch.from_numpy(numbers)])
        if augment is None or isinstance(augment, FlipShift | TimmTransform):
            return images
        key = np.random.SeedSequence([self.plan.seed, self.rank, *place]).generate_state(1)[0]
        return augment(images, torch.Generator().manual_seed(int(key)))


def _dataset(dataset: Dataset, plan: RecoveryPlan, student: nn.Module) -> Dataset:
    if isinstance(plan.augment, TimmTransform):
        dataset = with_transform(dataset, plan.augment.build(student))
    elif isinstance(plan.augment, FlipShift) and not in_memory(dataset):
        raise DataError("FlipShift is for images in memory; use augment=TimmTransform() for image files")
    return dataset if in_memory(dataset) else SeededImages(dataset, plan.seed)
