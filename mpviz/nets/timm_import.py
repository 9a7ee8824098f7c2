"""The one place that imports timm."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from PIL import Image

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_kept: list[torch.library.Library] = []  # a Library undoes its definitions when collected


def import_timm() -> ModuleType:
    """timm, also beside a torchvision wheel that was built for another torch.

    PyPI's torchvision is a CUDA build; beside a CPU torch its import stops at the missing operators
    ``torchvision::nms`` and ``qnms``. Declaring them lets the import pass; classification never calls them.
    """
    for operator in ("nms", "qnms"):
        try:
            getattr(torch.ops.torchvision, operator)
        except AttributeError:
            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define(operator + _SCHEMA)
            _kept.append(library)
    import timm
    import timm.data
    import timm.layers
    import timm.models

    return timm


def posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """timm's operation "Posterize" for every number of bits that its policies ask for: 0 and fewer leave black.

    timm asks for 0 bits at the highest magnitudes; Pillow made that black up to version 12, and refuses it since.
    """
    if bits < 1:
        return Image.new(image.mode, image.size)
    return import_timm().data.auto_augment.posterize(image, bits)


def mend_posterize(transform: Any) -> Any:
    """The same transform of timm, whose random operations take 0 bits; others are left as they are."""
    for step in getattr(transform, "transforms", ()):
        policies = getattr(step, "policy", None) or [getattr(step, "ops", None) or ()]
        for operation in (one for policy in policies for one in policy):
            if str(getattr(operation, "name", "")).startswith("Posterize"):
                operation.aug_fn = posterize
    return transform
