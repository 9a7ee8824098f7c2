"""Data sets as three splits: train and calibration may shape masks, test only measures."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from mpviz.errors import DataError, nearest
from mpviz.nets.idx import read_idx
from mpviz.nets.image_files import PlainLoader, eval_transform, open_images
from mpviz.nets.paths import data_root

FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
FASHION_MEAN, FASHION_STD = 0.2860, 0.3530  # of the 60 000 training images on [0, 1]
BUNDLED = ("fashion-mnist", "digits")
_DEBIAN = Path("/usr/share/datasets/fashion-mnist")


class ImageArrays(Dataset):
    """Grey images in memory, normalised when they are read: UInt8["n h w"] and Int["n"]."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, mean: float, std: float, full_scale: float) -> None:
        self.images, self.labels = torch.from_numpy(images.copy()), torch.from_numpy(labels.astype(np.int64))
        self.mean, self.std, self.full_scale = mean, std, full_scale

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Any) -> tuple[Tensor, Tensor]:
        pixels = self.images[index].float() / self.full_scale
        return ((pixels - self.mean) / self.std).unsqueeze(-3), self.labels[index]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        return self[torch.as_tensor(indices)]


def _as_it_is(batch: Any) -> Any:
    return batch


@dataclass(frozen=True)
class Split:
    """One part of a data set. name: "train", "calibration" or "test"; items are (image, label)."""

    name: str
    dataset: Dataset
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    @property
    def grey_level(self) -> float | None:
        """One step of a pixel (1/255 of full white for 8 bits) in input units; None where it is unknown."""
        data = self.dataset
        return 1 / (data.full_scale * data.std) if isinstance(data, ImageArrays) else None

    def loader(self, batch: int = 250, seed: int | None = None, workers: int = 0) -> DataLoader:
        """Batches (Float["b c h w"], Int["b"]); shuffled by `seed`, in order when it is None."""
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        whole = self.dataset
        while isinstance(whole, Subset):
            whole = whole.dataset
        in_memory = isinstance(whole, ImageArrays)
        return PlainLoader(
            self.dataset,
            batch_size=batch,
            shuffle=seed is not None,
            generator=generator,
            num_workers=workers,
            collate_fn=_as_it_is if in_memory else None,
        )

    def indices(self, n: int | None, seed: int = 0) -> np.ndarray:
        """Which samples `sample` takes: n of them without repetition, ascending; all when n is None."""
        if n is None or n >= len(self):
            return np.arange(len(self))
        if n < 1:
            raise DataError(f"asked for {n} samples of the {self.name} split; ask for at least 1")
        return np.sort(np.random.default_rng(seed).choice(len(self), n, replace=False))

    def sample(self, n: int | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
        """n images Float["n c h w"] and labels Int["n"], drawn once by `seed`; the whole split when n is None."""
        if len(self) == 0:
            raise DataError(f"the {self.name} split is empty")
        indices = self.indices(n, seed).tolist()
        if isinstance(self.dataset, ImageArrays):
            return self.dataset.__getitems__(indices)
        pairs = [self.dataset[i] for i in indices]
        return torch.stack([image for image, _ in pairs]), torch.tensor([int(label) for _, label in pairs])


@dataclass(frozen=True)
class Splits:
    """Train, calibration and test; `source` says in words where they came from."""

    train: Split
    calibration: Split
    test: Split
    source: str

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the labels."""
        return self.test.classes

    @property
    def whole_train(self) -> Split:
        """All training images: those of `train`, and then those that are set aside for calibration."""
        train, held = self.train.dataset, self.calibration.dataset
        if isinstance(train, ImageArrays) and isinstance(held, ImageArrays):
            arrays = copy.copy(train)
            arrays.images = torch.cat([train.images, held.images])
            arrays.labels = torch.cat([train.labels, held.labels])
            return replace(self.train, dataset=arrays)
        assert isinstance(train, Subset) and isinstance(held, Subset)  # of one set of files, by `load_data`
        return replace(self.train, dataset=Subset(train.dataset, [*train.indices, *held.indices]))


def load_data(
    name: str = "fashion-mnist",
    folder: str | Path | None = None,
    model: nn.Module | None = None,
    calibration: int = 1000,
    seed: int = 0,
) -> Splits:
    """A data set by name.

    name: "fashion-mnist" (bundled: test 10 000, training 10 000 balanced; all 60 000 when `folder` or Debian's
    package dataset-fashion-mnist has them; folder="bundled" keeps to the 10 000), "digits" (8×8, bundled), the path
    of an image folder (train/ and val/ or test/ with a folder a class, or folders of classes alone, split 80/20 by
    `seed`), or a name that ``timm.data.create_dataset`` knows, such as "torch/cifar10" or "hfds/…", with `folder` as
    its root.
    model: takes image size and normalisation from it (image folders and timm data sets).
    calibration: how many training images are set aside, at most a tenth for image folders.
    Raises DataError for an unknown name or a missing folder.
    """
    name = str(name)
    if calibration < 1:
        raise DataError(f"asked for {calibration} calibration images; ask for at least 1")
    if name == "fashion-mnist":
        return _fashion_mnist(folder, calibration)
    if name == "digits":
        if folder is not None:
            raise DataError(f"the data set 'digits' is bundled and takes no folder; got {folder}")
        return _digits(calibration, seed)
    if folder is None and name and _looks_like_path(name):
        return _image_folder(Path(name).expanduser(), model, calibration, seed)
    if "/" in name:
        return _timm_data(name, folder, model, calibration, seed)
    raise DataError(
        f"unknown data set '{name}'; {nearest(name, BUNDLED)}, or give a folder of images or a timm data set"
    )


def _looks_like_path(name: str) -> bool:
    return Path(name).expanduser().is_dir() or name.startswith((".", "/", "~"))


def _balanced(labels: np.ndarray, per_class: int) -> np.ndarray:
    """The first `per_class` samples of each class, in their order in the file."""
    return np.sort(np.concatenate([np.flatnonzero(labels == c)[:per_class] for c in np.unique(labels)]))


def _set_aside(labels: np.ndarray, calibration: int) -> tuple[np.ndarray, np.ndarray]:
    per_class = calibration // len(np.unique(labels))
    if per_class < 1 or calibration >= len(labels):
        raise DataError(
            f"a calibration split of {calibration} of {len(labels)} training images; take fewer, one a class at least"
        )
    held = _balanced(labels, per_class)
    return np.setdiff1d(np.arange(len(labels)), held), held


def full_fashion_mnist(folder: str | Path | None) -> Path | None:
    """The folder with all 60 000 training images: `folder`, else Debian's package, else None."""
    if folder is not None:
        folder = Path(folder).expanduser()
        if not (folder / "train-images-idx3-ubyte.gz").is_file():
            raise DataError(
                f"no train-images-idx3-ubyte.gz in {folder}; give the folder of the four Fashion-MNIST files"
            )
        return folder
    return _DEBIAN if (_DEBIAN / "train-images-idx3-ubyte.gz").is_file() else None


def _unpacked(path: Path) -> np.ndarray:
    """A file that comes with mpviz, unpacked once a process: that takes most of a second. The array is read-only."""
    about = path.stat() if path.exists() else None
    return _read_once(path, *((about.st_size, about.st_mtime_ns) if about else (0, 0)))


@lru_cache(maxsize=6)  # all of them: 16 MB
def _read_once(path: Path, size: int, changed: int) -> np.ndarray:
    return read_idx(path)


def _fashion_mnist(folder: str | Path | None, calibration: int) -> Splits:
    bundled = data_root() / "fashion-mnist"
    full = None if folder == "bundled" else full_fashion_mnist(folder)
    if full is None:
        images, labels = _unpacked(bundled / "train10k-images.idx.xz"), _unpacked(bundled / "train10k-labels.idx.xz")
        source = "Fashion-MNIST (Zalando, MIT), a balanced 10 000 of the training images and the full test set"
    else:
        images, labels = (read_idx(full / f"train-{part}-ubyte.gz") for part in ("images-idx3", "labels-idx1"))
        source = f"Fashion-MNIST (Zalando, MIT), all 60 000 training images from {full}"
    if images.ndim != 3 or len(images) != len(labels):
        raise DataError(
            f"{len(labels)} labels do not fit images of shape {images.shape} in {source}; fetch both files again"
        )
    train, held = _set_aside(labels, calibration)
    test_images, test_labels = _unpacked(bundled / "test-images.idx.xz"), _unpacked(bundled / "test-labels.idx.xz")

    def split(name: str, x: np.ndarray, y: np.ndarray) -> Split:
        return Split(name, ImageArrays(x, y, FASHION_MEAN, FASHION_STD, 255.0), FASHION_CLASSES)

    return Splits(
        split("train", images[train], labels[train]),
        split("calibration", images[held], labels[held]),
        split("test", test_images, test_labels),
        source,
    )


def _digits(calibration: int, seed: int) -> Splits:
    folder = data_root() / "digits"
    images, labels = _unpacked(folder / "images.idx.xz"), _unpacked(folder / "labels.idx.xz")
    order = np.random.default_rng(seed).permutation(len(labels))
    rest, test = order[:1297], order[1297:]
    train, held = _set_aside(labels[rest], min(calibration, 200))
    classes = tuple(str(c) for c in range(10))

    def split(name: str, chosen: np.ndarray) -> Split:
        return Split(name, ImageArrays(images[chosen], labels[chosen], 0.305, 0.376, 16.0), classes)

    return Splits(
        split("train", rest[train]),
        split("calibration", rest[held]),
        split("test", test),
        "Optical recognition of handwritten digits (UCI), 8×8",
    )


def _class_names(dataset: Dataset, given: Sequence[str] | None) -> tuple[str, ...]:
    if given:
        return tuple(given)
    reader = getattr(dataset, "reader", None)
    mapping = getattr(reader, "class_to_idx", None) or getattr(dataset, "class_to_idx", None)
    if mapping:
        return tuple(sorted(mapping, key=mapping.get))
    classes = getattr(dataset, "classes", None)
    return tuple(map(str, classes)) if classes else ()


def _with_calibration(
    train: Dataset, test: Dataset, classes: tuple[str, ...], n: int, seed: int, source: str
) -> Splits:
    total = len(train)  # type: ignore[arg-type]
    n = min(n, max(1, total // 10))
    if total < 2:
        raise DataError(f"{source} has {total} training images; at least 2 are needed to set calibration images aside")
    order = np.random.default_rng(seed).permutation(total)
    return Splits(
        Split("train", Subset(train, np.sort(order[n:]).tolist()), classes),
        Split("calibration", Subset(train, np.sort(order[:n]).tolist()), classes),
        Split("test", test, classes),
        source,
    )


def _image_folder(root: Path, model: nn.Module | None, calibration: int, seed: int) -> Splits:
    if not root.is_dir():
        raise DataError(f"no image folder at {root}; give a folder with one sub-folder a class, or train/ and val/")
    transform = eval_transform(model)
    evaluation = next((root / part for part in ("test", "val", "validation") if (root / part).is_dir()), None)
    source = f"images of {root}"
    if (root / "train").is_dir() and evaluation is not None:
        train, test = open_images("", root / "train", transform), open_images("", evaluation, transform)
        classes = _class_names(train, None)
        if classes != _class_names(test, None):
            raise DataError(f"{root / 'train'} and {evaluation} have different class folders; make them the same")
        return _with_calibration(train, test, classes, calibration, seed, source)
    whole = open_images("", root, transform)
    order = np.random.default_rng(seed).permutation(len(whole))  # type: ignore[arg-type]
    cut = max(1, len(order) // 5)
    train, test = Subset(whole, np.sort(order[cut:]).tolist()), Subset(whole, np.sort(order[:cut]).tolist())
    return _with_calibration(
        train, test, _class_names(whole, None), calibration, seed, f"{source}, split 80/20 by seed {seed}"
    )


def _timm_data(name: str, folder: str | Path | None, model: nn.Module | None, calibration: int, seed: int) -> Splits:
    transform = eval_transform(model)
    train = open_images(name, folder, transform, split="train", is_training=False)
    test = open_images(name, folder, transform, split="validation", is_training=False)
    classes = _class_names(train, None)
    return _with_calibration(train, test, classes, calibration, seed, f"timm data set {name}")
