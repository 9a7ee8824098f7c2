"""Second moments of what enters each layer, streamed over calibration images, for methods that look at data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpviz.errors import Cancelled, DataError, ModelError, nearest
from mpviz.nets.data import Split
from mpviz.nets.layers import list_layers

IMAGES = 256  # of a split, when nothing else is asked for
MEMORY = 2**30  # bytes of moments that are held while one pass runs


@dataclass(frozen=True, eq=False)
class Moments:
    """gram: Float64["in in"], the mean of h hᵀ over images and tokens or pixels; count: how many h there were.

    For a convolution h is a patch, unfolded as the rows of its weight, C_in·kh·kw.
    """

    gram: Tensor
    count: int

    @property
    def norms(self) -> Tensor:
        """Float64["in"]: ‖h_j‖₂ over all h, √(count · E h_j²)."""
        return (self.count * self.gram.diagonal()).clamp(min=0).sqrt()


def second_moments(
    model: nn.Module,
    images: Tensor | Split,
    layers: Sequence[str] | None = None,
    n: int | None = IMAGES,
    seed: int = 0,
    batch: int = 32,
    memory: int = MEMORY,
    progress: Callable[[float], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> dict[str, Moments]:
    """E[h hᵀ] of each layer's inputs, in float64.

    images: Float["n c h w"], or a split of which `n` are drawn by `seed`. layers: parameter names; all prunable ones
    when None. One pass where all moments fit into `memory` bytes, else one a group of layers. The model must be in eval
    mode and is left as it is, its hooks taken off whatever happens. Raises DataError for the test split, which only
    measures, for no images, and for inputs that are not finite; ModelError for unknown layers; Cancelled.
    """
    x = _drawn(images, n, seed)
    if any(module.training for module in model.modules()):
        raise ModelError(f"{type(model).__name__} is in training mode; call .eval() before calibrating")
    groups = _groups(_modules(model, layers), memory)
    found: dict[str, Moments] = {}
    for done, group in enumerate(groups):
        tell = None if progress is None else lambda f, done=done: progress((done + f) / len(groups))
        found |= _one_pass(model, group, x, batch, tell, cancelled)
    return found


def _drawn(images: Tensor | Split, n: int | None, seed: int) -> Tensor:
    if isinstance(images, Split):
        if images.name == "test":
            raise DataError("the test split only measures; calibrate on data.calibration or data.train")
        return images.sample(n, seed)[0]
    if len(images) == 0:
        raise DataError("no images to calibrate on; give one at least")
    return images


def _modules(model: nn.Module, layers: Sequence[str] | None) -> dict[str, Any]:
    """The module of each weight."""
    infos = {info.name: info for info in list_layers(model)}
    names = [name for name, info in infos.items() if info.prunable] if layers is None else list(layers)
    known = {f"{path}.weight" if path else "weight": module for path, module in model.named_modules()
             if isinstance(module, (nn.Linear, nn.Conv2d))}  # fmt: skip
    for name in names:
        if name not in known:
            raise ModelError(f"'{name}' is not the weight of a Linear or Conv2d layer; {nearest(name, known)}")
        if getattr(known[name], "groups", 1) != 1:
            raise ModelError(f"{name} is a grouped convolution; calibrate whole convolutions only")
    return {name: known[name] for name in names}


def _groups(modules: dict[str, Any], memory: int) -> list[dict[str, Any]]:
    """Layers whose moments fit into memory together, in the order of the network."""
    groups: list[dict[str, Any]] = []
    left = 0.0
    for name, module in modules.items():
        size = 8.0 * math.prod(module.weight.shape[1:]) ** 2
        if not groups or size > left:
            groups.append({})
            left = float(memory)
        groups[-1][name] = module
        left -= size
    return groups


@torch.no_grad()
def _one_pass(
    model: nn.Module,
    modules: dict[str, Any],
    images: Tensor,
    batch: int,
    progress: Callable[[float], None] | None,
    cancelled: Callable[[], bool] | None,
) -> dict[str, Moments]:
    sums: dict[str, Tensor] = {}
    counts = dict.fromkeys(modules, 0)

    def look(name: str) -> Callable[..., None]:
        def hook(module: Any, inputs: tuple[Tensor, ...]) -> None:
            h = rows_of(module, inputs[0]).double()
            counts[name] += len(h)
            sums[name] = h.T @ h if name not in sums else sums[name].addmm_(h.T, h)

        return hook

    handles = [module.register_forward_pre_hook(look(name)) for name, module in modules.items()]
    device = next(model.parameters()).device
    try:
        for start in _starts(len(images), batch, progress):
            if cancelled is not None and cancelled():
                raise Cancelled("the calibration was cancelled")
            model(images[start : start + batch].to(device))
    finally:
        for handle in handles:
            handle.remove()
    for name in modules:
        if name not in sums:
            raise ModelError(f"{name} is not used by its own module, so what enters it cannot be seen")
        if not torch.isfinite(sums[name]).all():
            raise DataError(f"NaN or infinite values enter {name}; look at the images and the weights before it")
    return {name: Moments((sums[name] / counts[name]).cpu(), counts[name]) for name in modules}


def _starts(total: int, batch: int, progress: Callable[[float], None] | None) -> Iterable[int]:
    for start in range(0, total, batch):
        yield start
        if progress is not None:
            progress(min(1.0, (start + batch) / total))


def rows_of(module: Any, x: Tensor) -> Tensor:
    """What multiplies the rows of the weight, Float["n in"]: tokens of a Linear, patches of a convolution."""
    if isinstance(module, nn.Linear):
        return x.reshape(-1, x.shape[-1])
    if type(module).__name__ == "Conv2dSame":  # of timm: pads in its own forward, by what the image needs
        x, around = F.pad(x, _same(module, x.shape[-2:])), (0, 0)
    elif module.padding_mode != "zeros" or isinstance(module.padding, str):
        padding = module._reversed_padding_repeated_twice  # as the module itself pads
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x, around = F.pad(x, padding, mode=mode), (0, 0)
    else:
        around = module.padding
    patches = F.unfold(x, module.kernel_size, module.dilation, around, module.stride)
    return patches.transpose(1, 2).reshape(-1, patches.shape[1])


def _same(module: Any, size: Sequence[int]) -> list[int]:
    """Padding left, right, top, bottom with which an output has ⌈size / stride⌉ places, the odd pixel at the end."""
    pads: list[int] = []
    shape = zip(size, module.kernel_size, module.stride, module.dilation, strict=True)
    for length, kernel, stride, dilation in reversed(list(shape)):
        whole = max((math.ceil(length / stride) - 1) * stride + (kernel - 1) * dilation + 1 - length, 0)
        pads += [whole // 2, whole - whole // 2]
    return pads
