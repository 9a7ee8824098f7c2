"""Data sets of image files, opened by timm; an image that cannot be read is an error that names it."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from PIL import Image
from torch import nn
from torch.utils.data import Dataset, IterableDataset

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
        except (OSError, ValueError) as error:
            name = self.reader.filename(index, absolute=True)
            raise DataError(f"cannot read the image {name} ({error}); repair it or take it out") from error
        return self._transformed(pixels, index), label

    def _transformed(self, pixels: Any, index: int) -> Any:
        """What the transform makes of the pixels. Raises DataError that names the image and the step that failed."""
        whole = self.inner.transform
        steps = whole.transforms if isinstance(getattr(whole, "transforms", None), list) else [whole]
        for step in steps:
            try:
                pixels = step(pixels)
            except MpvizError:
                raise
            except Exception as error:  # a transform is anybody's code, and each fails in its own way
                what = getattr(step, "__name__", type(step).__name__)
                name = self.reader.filename(index, absolute=True)
                raise DataError(
                    f"the transform {what} fails on the image {name} ({type(error).__name__}: {error}); "
                    "choose other transforms, or take the image out"
                ) from error
        return pixels


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
    if isinstance(dataset, timm.data.ImageDataset):
        dataset = StrictImages(dataset)
    if isinstance(dataset, IterableDataset):
        raise DataError(f"the data set '{name}' is a stream, and samples are drawn by number; use its copy on disk")
    return dataset
