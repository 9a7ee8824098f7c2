"""Second moments of what enters each layer, streamed over calibration images, for methods that look at data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpviz.errors import Cancelled, DataError, ModelError, nearest
from mpviz.nets.data import Split
from mpviz.nets.forward import run_checked
from mpviz.nets.layers import list_layers

IMAGES = 256  # of a split, when nothing else is asked for
MEMORY = 2**30  # bytes of moments that are held while one pass runs
_UNFOLDED = 2**26  # bytes of patches that are held at a time


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


@dataclass(frozen=True, eq=False)
class BlockMoments:
    """The parts of E[h hᵀ] that lie in blocks of inputs, and what each input is by itself.

    columns: Int["blocks m"], the inputs of each block. blocks: Float64["blocks m m"], E[h hᵀ] of these. power:
    Float64["in"], E h_j². mean_abs: Float64["in"], E |h_j|. count: how many h there were.
    """

    columns: Tensor
    blocks: Tensor
    power: Tensor
    mean_abs: Tensor
    count: int


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
    modules = _modules(model, layers)
    sums = {name: _Gram() for name in modules}
    sizes = {name: 8.0 * math.prod(module.weight.shape[1:]) ** 2 for name, module in modules.items()}
    _stream(model, drawn(images, n, seed), modules, sums, sizes, batch, memory, progress, cancelled)
    return {name: one.result() for name, one in sums.items()}


def block_moments(
    model: nn.Module,
    images: Tensor | Split,
    columns: Mapping[str, Tensor],
    n: int | None = IMAGES,
    seed: int = 0,
    batch: int = 32,
    memory: int = MEMORY,
    progress: Callable[[float], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> dict[str, BlockMoments]:
    """What `second_moments` gives, of blocks of each layer's inputs only: for small blocks far less work and memory.

    columns: {parameter name: Int["blocks m"]}, the inputs of each block, columns of the unfolded weight. Products are
    taken in the number type of the network and summed in float64. Other arguments and errors: `second_moments`.
    """
    modules = _modules(model, list(columns))
    sums = {name: _Blocks(columns[name]) for name in modules}
    sizes = {name: 8.0 * columns[name].numel() * columns[name].shape[1] for name in modules}
    _stream(model, drawn(images, n, seed), modules, sums, sizes, batch, memory, progress, cancelled)
    return {name: one.result() for name, one in sums.items()}


@torch.no_grad()
def layer_inputs(
    model: nn.Module, name: str, images: Tensor | Split, n: int | None = IMAGES, seed: int = 0, batch: int = 32
) -> Tensor:
    """What enters one layer, Float["images tokens in"]: tokens of a Linear, patches of a convolution.

    name: the weight's. Holds all of it in memory. Arguments and errors: `second_moments`.
    """
    module = _modules(model, [name])[name]
    check_mode(model)
    parts: list[Tensor] = []

    def hook(module: Any, inputs: tuple[Tensor, ...]) -> None:
        parts.append(rows_of(module, inputs[0]).reshape(len(inputs[0]), -1, math.prod(module.weight.shape[1:])).cpu())

    x, handle = drawn(images, n, seed), module.register_forward_pre_hook(hook)
    device = next(model.parameters()).device
    try:
        for start in range(0, len(x), batch):
            run_checked(model, x[start : start + batch].to(device))
    finally:
        handle.remove()
    _check_seen(name, len(parts), all(bool(torch.isfinite(part).all()) for part in parts))
    return torch.cat(parts)


def check_mode(model: nn.Module) -> None:
    """Raises ModelError for a network in training mode."""
    if any(module.training for module in model.modules()):
        raise ModelError(f"{type(model).__name__} is in training mode; call .eval() before calibrating")


def _check_seen(name: str, count: int, finite: bool) -> None:
    """Raises for a layer that nothing was seen to enter, or something that is not finite."""
    if not count:
        raise ModelError(f"{name} is not used by its own module, so what enters it cannot be seen")
    if not finite:
        raise DataError(f"NaN or infinite values enter {name}; look at the images and the weights before it")


class _Gram:
    """The sum of h hᵀ so far."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.count = 0

    def add(self, rows: Tensor) -> None:
        h = rows.double()
        self.count += len(h)
        self.total = h.T @ h if self.total is None else self.total.addmm_(h.T, h)

    def finite(self) -> bool:
        return self.total is None or bool(torch.isfinite(self.total).all())

    def result(self) -> Moments:
        assert self.total is not None
        return Moments((self.total / self.count).cpu(), self.count)


class _Blocks:
    """The sums of blocks of h hᵀ, of h² and of |h| so far."""

    def __init__(self, columns: Tensor) -> None:
        self.columns = columns
        self.total: Tensor | None = None
        self.count = 0

    def add(self, rows: Tensor) -> None:
        columns = self.columns.to(rows.device)
        h = rows[:, columns.reshape(-1)].reshape(len(rows), *columns.shape).permute(1, 2, 0)
        part = torch.bmm(h, h.transpose(1, 2)).double()
        power, size = rows.square().sum(dim=0).double(), rows.abs().sum(dim=0).double()
        self.count += len(rows)
        if self.total is None:
            self.total, self.power, self.size = part, power, size
        else:
            self.total += part
            self.power += power
            self.size += size

    def finite(self) -> bool:
        return self.total is None or bool(torch.isfinite(self.total).all() and torch.isfinite(self.power).all())

    def result(self) -> BlockMoments:
        assert self.total is not None
        blocks, power, size = ((one / self.count).cpu() for one in (self.total, self.power, self.size))
        return BlockMoments(self.columns.cpu(), blocks, power, size, self.count)


def drawn(images: Tensor | Split, n: int | None, seed: int) -> Tensor:
    """The images to calibrate on: n of a split, drawn by the seed, or all that are given."""
    if isinstance(images, Split):
        if images.name == "test":
            raise DataError("the test split only measures; calibrate on data.calibration or data.train")
        return images.sample(n, seed)[0]
    if not _are_images(images):
        raise DataError(
            f"images to calibrate on are a split, such as data.calibration, or a float tensor (images, channels, "
            f"height, width); got {_what(images)}"
        )
    if len(images) == 0:
        raise DataError("no images to calibrate on; give one at least")
    return images


def _are_images(given: object) -> bool:
    """Two axes are enough for networks of plain vectors."""
    return isinstance(given, Tensor) and given.is_floating_point() and given.ndim >= 2


def _what(given: object) -> str:
    """What was given, in a few words."""
    if isinstance(given, Tensor):
        return f"a tensor of {str(given.dtype).removeprefix('torch.')} of shape {tuple(given.shape)}"
    return f"an object of type {type(given).__name__}"


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


def _groups(sizes: Mapping[str, float], memory: int) -> list[list[str]]:
    """Layers whose moments fit into memory together, in the order of the network."""
    groups: list[list[str]] = []
    left = 0.0
    for name, size in sizes.items():
        if not groups or size > left:
            groups.append([])
            left = float(memory)
        groups[-1].append(name)
        left -= size
    return groups


def _stream(
    model: nn.Module,
    images: Tensor,
    modules: Mapping[str, Any],
    sums: Mapping[str, _Gram] | Mapping[str, _Blocks],
    sizes: Mapping[str, float],
    batch: int,
    memory: int,
    progress: Callable[[float], None] | None,
    cancelled: Callable[[], bool] | None,
) -> None:
    """Run the model on the images, once a group of layers, and add what enters each layer to its sums."""
    check_mode(model)
    groups = _groups(sizes, memory)
    for done, group in enumerate(groups):
        tell = None if progress is None else lambda f, done=done: progress((done + f) / len(groups))
        _one_pass(model, {name: modules[name] for name in group}, sums, images, batch, tell, cancelled)


@torch.no_grad()
def _one_pass(
    model: nn.Module,
    modules: Mapping[str, Any],
    sums: Mapping[str, Any],
    images: Tensor,
    batch: int,
    progress: Callable[[float], None] | None,
    cancelled: Callable[[], bool] | None,
) -> None:
    def look(name: str) -> Callable[..., None]:
        def hook(module: Any, inputs: tuple[Tensor, ...]) -> None:
            for part in inputs[0].split(_images_at_once(module, inputs[0])):
                sums[name].add(rows_of(module, part))

        return hook

    handles = [module.register_forward_pre_hook(look(name)) for name, module in modules.items()]
    device = next(model.parameters()).device
    try:
        for start in _starts(len(images), batch, progress):
            if cancelled is not None and cancelled():
                raise Cancelled("the calibration was cancelled")
            run_checked(model, images[start : start + batch].to(device))
    finally:
        for handle in handles:
            handle.remove()
    for name in modules:
        _check_seen(name, sums[name].count, sums[name].finite())


def _images_at_once(module: Any, x: Tensor) -> int:
    """How many images of a batch are unfolded at a time."""
    kernel = math.prod(getattr(module, "kernel_size", (1,)))
    return max(1, _UNFOLDED // max(1, 4 * kernel * x[0].numel()))


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
