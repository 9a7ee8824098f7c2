"""The one place that imports timm."""

from __future__ import annotations

from types import ModuleType

import torch

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
