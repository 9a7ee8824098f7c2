"""Data sets of image files, opened by timm; an image that cannot be read is an error that names it."""

from __future__ import annotations

import copy
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from mpviz.errors import DataError, MpvizError
from mpviz.nets.timm_import import import_timm

# what decoders make of damaged bytes, beside OSError and ValueError: each has a way of its own
_DAMAGE = (
    ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, RuntimeError, SyntaxError, TypeError,
    struct.error, Image.DecompressionBombError,
)  # fmt: skip


class StrictImages(Dataset):
    """timm's ImageDataset, but an image that cannot be read is an error; timm would take the next one in its place."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.reader = inner, inner.reader

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        try:
            file, label, *_ = self.reader[index]
            pixels = _decoded(file, self.inner.input_img_mode or "RGB")
        except (OSError, ValueError, *_DAMAGE) as error:
            raise _unreadable(self._name(index), error) from error
        return _transformed(self.inner.transform, pixels, lambda: self._name(index)), label

    def _name(self, index: int) -> str:
        # a data set in one file has bytes in place of paths
        return str(self.reader.filename(index, absolute=True) or f"number {index} of {type(self.reader).__name__}")

    def files(self, absolute: bool = True) -> list[str]:
        """The paths of the images, or those below the folder; inside an archive their names there."""
        return [str(path) for path in self.reader.filenames(absolute=absolute)]


class StrictSamples(Dataset):
    """A data set of torchvision, but an image that cannot be read is an error that names it."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.transform = copy.copy(inner), inner.transform
        self.inner.transform = None  # so that it is known what failed: the image, or what is made of it
        self.classes, self.class_to_idx = (getattr(inner, name, None) for name in ("classes", "class_to_idx"))

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        try:
            pixels, label = self.inner[index]
            if isinstance(pixels, Image.Image):
                pixels.load()  # some only open the file
        except (OSError, ValueError, *_DAMAGE) as error:
            raise _unreadable(self._name(index), error) from error
        return _transformed(self.transform, pixels, lambda: self._name(index)), label

    def _name(self, index: int) -> str:
        return self._file(index) or f"number {index} of {type(self.inner).__name__}"

    def _file(self, index: int) -> str:
        """Its path; "" where the data set keeps none, as those that lie in memory."""
        inner = self.inner
        rows = getattr(inner, "samples", None) or getattr(inner, "imgs", None)
        if rows:
            return str(rows[index][0])
        if hasattr(inner, "all_categories"):  # iNaturalist keeps a category and a name
            category, name = inner.index[index]
            return str(Path(inner.root) / inner.all_categories[category] / name)
        return ""

    def files(self, absolute: bool = True) -> list[str]:
        """The paths of the images, or those below the folder; none for what lies in memory."""
        paths = [file for file in map(self._file, range(len(self))) if file]
        return paths if absolute else [os.path.relpath(path, self.inner.root) for path in paths]


def _unreadable(name: str, error: Exception) -> DataError:
    why = " ".join(str(error).split()) or type(error).__name__
    return DataError(f"cannot read the image {name} ({why}); repair it or take it out")


def _transformed(transform: Any, pixels: Any, name: Callable[[], str]) -> Any:
    """What a transform makes of the pixels of an image. Raises DataError that names the image and the failing step."""
    steps = transform.transforms if isinstance(getattr(transform, "transforms", None), list) else [transform]
    for step in steps if transform is not None else ():
        try:
            pixels = step(pixels)
        except MpvizError:
            raise
        except Exception as error:  # a transform is anybody's code, and each fails in its own way
            what = getattr(step, "__name__", type(step).__name__)
            raise DataError(
                f"the transform {what} fails on the image {name()} ({type(error).__name__}: {error}); "
                "choose other transforms, or take the image out"
            ) from error
    return pixels


class PlainLoader(DataLoader):
    """torch's loader; an error of a worker process comes without the traceback that torch puts before its sentence."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        try:
            yield from super().__iter__()
        except DataError as error:
            raise DataError(str(error).rsplit("DataError: ", 1)[-1].strip()) from error


def _decoded(file: Any, mode: str) -> Image.Image:
    """The pixels of an open file, all of them: damage shows here. Raises OSError or ValueError."""
    try:
        with file, Image.open(file) as image:
            return image.convert(mode)
    except _DAMAGE as error:
        raise ValueError(str(error) or type(error).__name__) from error


def data_config(model: nn.Module) -> dict[str, Any]:
    """timm's size, normalisation and interpolation of a model's images; the size is the one that it was built for."""
    config: dict[str, Any] = import_timm().data.resolve_model_data_config(model)
    sides = getattr(getattr(model, "patch_embed", None), "img_size", None)  # timm keeps the published one beside it
    if sides is not None:
        config["input_size"] = (config["input_size"][0], *sides)
    return config


def eval_transform(model: nn.Module | None) -> Any:
    """timm's transform for evaluation, of one image; size and normalisation are the model's where there is one."""
    timm = import_timm()
    config = {} if model is None else data_config(model)
    return timm.data.create_transform(**config, is_training=False)


def open_images(name: str, root: Path | str | None, transform: Any, **options: Any) -> Dataset:
    """A data set by timm's name for it, "" for folders of classes. Raises DataError when timm cannot open it."""
    timm = import_timm()
    try:
        dataset = timm.data.create_dataset(name, root=str(root) if root else None, transform=transform, **options)
    except (ImportError, RuntimeError, ValueError, TypeError, AssertionError, OSError) as error:
        what = f"the data set '{name}'" if name else "the images"
        place = f"at {root}" if root else "without a folder; give the one that holds it"
        raise DataError(f"timm cannot open {what} {place} ({str(error) or type(error).__name__})") from error
    if isinstance(dataset, IterableDataset):
        raise DataError(f"the data set '{name}' is a stream, and samples are drawn by number; use its copy on disk")
    return StrictImages(dataset) if isinstance(dataset, timm.data.ImageDataset) else StrictSamples(dataset)
