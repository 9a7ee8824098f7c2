"""Channels that can stand in another order without changing what a network computes, and everything that goes along.

A set of channels is written by some layers (their rows), passes through what treats channels alike (activations, norms,
scales, pooling), and is read by others (their columns). Reordering all of it together is exact but for the order of
sums in floating point. What has no rule here is left alone.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mpviz.errors import ModelError
from mpviz.nets.architectures import MLP
from mpviz.nets.timm_import import import_timm
from mpviz.nets.tome import MergingAttention, MergingBlock

_ELEMENTWISE = {"ReLU", "GELU", "GELUTanh", "QuickGELU", "SiLU", "Mish", "Hardswish", "Tanh", "Sigmoid", "Identity",
                "Dropout", "ReLU6", "LeakyReLU", "ELU", "Softplus"}  # fmt: skip
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@dataclass(frozen=True)
class Along:
    """An axis of a tensor along which the channels lie, from `start` on. tensor: its name in the state dict."""

    tensor: str
    axis: int
    start: int = 0


@dataclass(frozen=True)
class Site:
    """A set of `size` channels. places: all that is reordered together; readers: weights that read the channels as
    inputs, by parameter name. blocks: equal stretches that channels must not leave, such as the heads of an attention.
    """

    name: str
    size: int
    places: tuple[Along, ...]
    readers: tuple[str, ...]
    blocks: int = 1

    def allows(self, order: Tensor) -> bool:
        """Whether an order Int["size"] keeps every channel in its block."""
        width = self.size // self.blocks
        return bool((order // width == torch.arange(self.size) // width).all())


def channel_sites(model: nn.Module) -> list[Site]:
    """The sets of channels that can be reordered exactly, those of inner layers before those of residual streams.

    Rules: fc1 → fc2 of timm's Mlp (with a norm between them) and GlobalResponseNormMlp; values → projection of timm's
    Attention, within heads; conv → batch norm → conv inside timm's residual blocks; the residual streams of timm's
    VisionTransformer and ResNet; fully connected layers in a row. Those of a network that merges tokens are those that
    it has without. Networks whose layers share weights have none.
    """
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    if len(names) != len(list(model.named_parameters())):
        return []
    timm = import_timm()
    inner = [site for path, module in model.named_modules() for site in _inner(path, module, timm)]
    streams = [site for path, module in model.named_modules() for site in _streams(path, module, timm)]
    found = [site for site in (*inner, *streams) if site.readers]
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return [site for site in found if all(_fits(site, place, shapes) for place in site.places)]


def reordered(model: nn.Module, orders: Sequence[tuple[Site, Tensor]]) -> nn.Module:
    """A copy of the model in which the channels of each site stand in a new order: place i holds channel order[i].

    Raises ModelError for an order that is no permutation of the site's channels, or leaves its blocks.
    """
    for site, order in orders:
        if not torch.equal(order.sort().values, torch.arange(site.size)) or not site.allows(order):
            raise ModelError(f"the order of {site.name} is no permutation of its {site.size} channels within blocks")
    changed = copy.deepcopy(model)
    state = changed.state_dict()
    with torch.no_grad():
        for site, order in orders:
            for place in site.places:
                state[place.tensor].copy_(along(state[place.tensor], place, order))
    return changed


def along(tensor: Tensor, place: Along, order: Tensor) -> Tensor:
    """The tensor with its channels in a new order."""
    index = torch.arange(tensor.shape[place.axis])
    index[place.start : place.start + len(order)] = place.start + order
    return tensor.index_select(place.axis, index.to(tensor.device))


def _fits(site: Site, place: Along, shapes: dict[str, tuple[int, ...]]) -> bool:
    """Whether the channels fill the axis from `start` on. An axis with more holds something else too, or them twice."""
    shape = shapes.get(place.tensor, ())
    return place.axis < len(shape) and place.start + site.size == shape[place.axis]


# --- what is written and read ----------------------------------------------------------------------------------------


def _name(path: str, *parts: str) -> str:
    return ".".join(part for part in (path, *parts) if part)


def _rows(path: str, module: Any, start: int = 0) -> list[Along]:
    """Outputs of a Linear or convolution."""
    places = [Along(_name(path, "weight"), 0, start)]
    return places if module.bias is None else [*places, Along(_name(path, "bias"), 0, start)]


def _each(path: str, module: Any) -> list[Along]:
    """One number a channel: weight, bias and statistics of a norm, the factor of a LayerScale."""
    tensors = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
    return [Along(_name(path, name), 0) for name, tensor in tensors.items() if tensor.ndim == 1]


def _columns(path: str) -> Along:
    return Along(_name(path, "weight"), 1)


def _kind(module: Any) -> type:
    """The class of a module; of one that merges tokens, the class that `unmerge_tokens` gives back to it."""
    kind = type(module)
    return kind.__bases__[1] if isinstance(module, (MergingBlock, MergingAttention)) else kind


def _plain(module: Any) -> bool:
    """A Linear or an ungrouped convolution as torch has it."""
    return (type(module) is nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)


def _elementwise(module: Any) -> bool:
    return module is None or type(module).__name__ in _ELEMENTWISE


def _norm(module: Any) -> bool:
    """A norm that treats channels alike: of each channel by itself, or of all of them together."""
    return isinstance(module, _NORMS) or type(module).__name__ in ("LayerNorm", "LayerNorm2d", "Identity", "RmsNorm")


# --- inside blocks ---------------------------------------------------------------------------------------------------


def _inner(path: str, module: Any, timm: Any) -> Iterator[Site]:
    layers, resnet = timm.layers, timm.models.resnet
    if type(module) is layers.Mlp and _elementwise(module.act) and _norm(module.norm):
        yield _hidden(path, module, _each(_name(path, "norm"), module.norm))
    elif type(module).__name__ == "GlobalResponseNormMlp" and _elementwise(module.act):
        yield _hidden(path, module, _each(_name(path, "grn"), module.grn))
    elif _kind(module) is layers.Attention and getattr(module, "gate", None) is None and _norm(module.norm):
        yield _values(path, module)
    elif type(module) in (resnet.Bottleneck, resnet.BasicBlock) and _plain_block(module):
        yield from _convs(path, module)
    elif type(module) is nn.Sequential:
        yield from _row_of_linears(path, module)
    elif type(module) is MLP:
        last = len(module.widths) - 2
        if last >= 1:
            first, second = f"features.fc{last}", "head"
            places = (*_rows(_name(path, first), module.get_submodule(first)), _columns(_name(path, second)))
            size = module.head.in_features
            yield Site(f"{_name(path, first)} to head", size, places, (_name(path, second, "weight"),))


def _hidden(path: str, module: Any, norm: list[Along]) -> Site:
    fc1, fc2 = _name(path, "fc1"), _name(path, "fc2")
    places = (*_rows(fc1, module.fc1), *norm, _columns(fc2))
    return Site(f"hidden units of {path}", module.fc1.weight.shape[0], places, (_name(fc2, "weight"),))


def _values(path: str, module: Any) -> Site:
    """The values of each head, a third of the rows of qkv, are what the projection reads."""
    qkv, proj = _name(path, "qkv"), _name(path, "proj")
    width = module.proj.in_features
    places = (*_rows(qkv, module.qkv, 2 * width), *_each(_name(path, "norm"), module.norm), _columns(proj))
    return Site(f"values of {path}", width, places, (_name(proj, "weight"),), module.num_heads)


def _plain_block(block: Any) -> bool:
    """A residual block without what mixes channels or looks at them by number."""
    # a DropBlock of another kind than Identity draws by place, which trained networks in eval mode do not notice
    alike = all(_elementwise(getattr(block, name, None)) for name in ("act1", "act2", "act3", "aa"))
    convs = [getattr(block, name, None) for name in ("conv1", "conv2", "conv3")]
    norms = [getattr(block, name, None) for name in ("bn1", "bn2", "bn3")]
    return (
        alike
        and getattr(block, "se", None) is None
        and all(conv is None or _plain(conv) for conv in convs)
        and all(norm is None or isinstance(norm, _NORMS) for norm in norms)
    )


def _convs(path: str, block: Any) -> Iterator[Site]:
    """conv1 → bn1 → conv2, and conv2 → bn2 → conv3 of a bottleneck."""
    last = 3 if hasattr(block, "conv3") else 2
    for i in range(1, last):
        conv, norm, reader = (_name(path, part) for part in (f"conv{i}", f"bn{i}", f"conv{i + 1}"))
        module = getattr(block, f"conv{i}")
        places = (*_rows(conv, module), *_each(norm, getattr(block, f"bn{i}")), _columns(reader))
        yield Site(f"{conv} to conv{i + 1}", module.out_channels, places, (_name(reader, "weight"),))


def _row_of_linears(path: str, sequence: nn.Sequential) -> Iterator[Site]:
    """Linear → what acts on each number by itself → Linear."""
    before: tuple[str, nn.Linear] | None = None
    for name, module in sequence.named_children():
        here = _name(path, name)
        if type(module) is nn.Linear:
            if before is not None:
                places = (*_rows(before[0], before[1]), _columns(here))
                yield Site(f"{before[0]} to {name}", module.in_features, places, (_name(here, "weight"),))
            before = (here, module)
        elif not _elementwise(module):
            before = None


# --- residual streams ------------------------------------------------------------------------------------------------


def _streams(path: str, module: Any, timm: Any) -> Iterator[Site]:
    transformer, resnet, deit = timm.models.VisionTransformer, timm.models.resnet.ResNet, timm.models.deit
    if type(module) in (transformer, deit.VisionTransformerDistilled):
        yield from _vit_stream(path, module, timm)
    elif type(module) is resnet:
        yield from _resnet_streams(path, module)


def _last_conv(path: str, module: Any) -> tuple[str, Any] | None:
    """The convolution that writes a stem's output: the module itself, or the last one of a Sequential."""
    if isinstance(module, nn.Conv2d):
        return path, module
    found = [(_name(path, name), one) for name, one in module.named_children()]
    return found[-1] if found and isinstance(found[-1][1], nn.Conv2d) else None


def _vit_stream(path: str, vit: Any, timm: Any) -> Iterator[Site]:
    block_type = timm.models.vision_transformer.Block
    stem = _last_conv(_name(path, "patch_embed", "proj"), vit.patch_embed.proj)
    blocks = [(_name(path, "blocks", name), block) for name, block in vit.blocks.named_children()]
    # without a classifier the stream itself is the output, whose order must stay
    if stem is None or vit.attn_pool is not None or type(vit.head) is not nn.Linear:
        return
    if any(_kind(block) is not block_type for _, block in blocks):
        return
    if not all(_kind(b.attn) is timm.layers.Attention and getattr(b.attn, "gate", None) is None
               and hasattr(b.mlp, "fc1") and hasattr(b.mlp, "fc2") and _norm(b.norm1) and _norm(b.norm2)
               for _, b in blocks):  # fmt: skip
        return
    places = [*_rows(*stem)]
    for token in ("cls_token", "reg_token", "dist_token", "pos_embed"):
        if getattr(vit, token, None) is not None:
            places.append(Along(_name(path, token), 2))
    norms = [(_name(path, part), getattr(vit, part)) for part in ("norm_pre", "norm", "fc_norm")]
    if hasattr(vit.patch_embed, "norm"):  # timm's HybridEmbed has none
        norms.append((_name(path, "patch_embed", "norm"), vit.patch_embed.norm))
    if not all(_norm(norm) for _, norm in norms):
        return
    readers = []
    for here, block in blocks:
        norms += [(_name(here, part), getattr(block, part)) for part in ("norm1", "ls1", "norm2", "ls2")]
        places += [*_rows(_name(here, "attn.proj"), block.attn.proj), *_rows(_name(here, "mlp.fc2"), block.mlp.fc2)]
        readers += [_name(here, "attn.qkv"), _name(here, "mlp.fc1")]
    readers += [_name(path, head) for head in ("head", "head_dist") if type(getattr(vit, head, None)) is nn.Linear]
    places += [place for name, norm in norms for place in _each(name, norm)]
    places += [_columns(reader) for reader in readers]
    name = f"residual stream of {path or 'the transformer'}"
    yield Site(name, vit.embed_dim, tuple(places), tuple(_name(reader, "weight") for reader in readers))


def _resnet_streams(path: str, net: Any) -> Iterator[Site]:
    """From stem to layer1, then one stream from each change of width to the next, and to the classifier."""
    stem = _last_conv(_name(path, "conv1"), net.conv1)
    pooled = type(net.maxpool) in (nn.MaxPool2d, nn.Identity)
    if stem is None or not pooled or not isinstance(net.bn1, _NORMS) or type(net.fc) is not nn.Linear:
        return
    places, readers = [*_rows(*stem), *_each(_name(path, "bn1"), net.bn1)], []
    size, start = stem[1].out_channels, "stem"
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        for name, block in getattr(net, stage).named_children():
            here = _name(path, stage, name)
            last = "3" if hasattr(block, "conv3") else "2"
            if not _plain_block(block):
                return
            places.append(_columns(_name(here, "conv1")))
            readers.append(_name(here, "conv1.weight"))
            writers = [*_rows(_name(here, f"conv{last}"), getattr(block, f"conv{last}")),
                       *_each(_name(here, f"bn{last}"), getattr(block, f"bn{last}"))]  # fmt: skip
            if block.downsample is None:
                places += writers
                continue
            shortcut = _shortcut(_name(here, "downsample"), block.downsample)
            if shortcut is None:
                return
            column, rows = shortcut
            places.append(column)
            readers.append(column.tensor)
            yield Site(f"residual stream from {start}", size, tuple(places), tuple(readers))
            places, readers = [*rows, *writers], []
            size, start = getattr(block, f"conv{last}").out_channels, here
    head = _name(path, "fc")
    places.append(_columns(head))
    yield Site(f"residual stream from {start}", size, tuple(places), (*readers, _name(head, "weight")))


def _shortcut(path: str, module: nn.Module) -> tuple[Along, list[Along]] | None:
    """Where the shortcut's convolution reads, and what writes its output; None for one of another form."""
    column, rows = None, []
    for name, part in module.named_children():
        here = _name(path, name)
        if isinstance(part, nn.Conv2d) and part.groups == 1 and column is None:
            column, rows = _columns(here), _rows(here, part)
        elif isinstance(part, _NORMS) and column is not None:
            rows += _each(here, part)
        elif type(part) not in (nn.AvgPool2d, nn.Identity):
            return None
    return None if column is None else (column, rows)
