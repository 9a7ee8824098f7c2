"""Multiply–adds of a network as it runs: dense, under a k:n pattern or masks, and with tokens merged.

One MAC is one multiply–add of one image (batch 1). Counted are Linear layers, convolutions and products of activations
(QKᵀ and AV of attention), stem and head included; norms, softmax, activation functions, biases and Token Merging's own
matching (0.07 % of a ViT-B/16 under 2:4 and r = 8) are not. What runs is watched, not derived from the architecture: in
one forward pass on tensors without values, each matrix product and convolution that PyTorch executes is attributed to
the parameter it reads, or to the module that runs. Twice these numbers are the FLOPs of `torch.utils.flop_counter` with
fused attention off. Fewer MACs are no speed: only a measured endpoint is.
"""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mpviz.errors import BudgetError, ModelError, PatternError, nearest
from mpviz.nets.architectures import ARCHITECTURES, MLP
from mpviz.nets.forward import Masks, masked_parameters
from mpviz.nets.kn_pattern import KN
from mpviz.nets.layers import FITTING, LayerInfo, list_layers, named_layers
from mpviz.nets.roles import ROLES, role_of
from mpviz.nets.tome import Schedule, merge_tokens, schedule_of, unmerge_tokens
from mpviz.nets.zoo import source_of

CONVENTIONS = ("executed", "paper")
_PRODUCTS = {"mm": (0, 1), "addmm": (1, 2), "bmm": (0, 1), "baddbmm": (1, 2)}  # where the two matrices stand
_UNFIT = (RuntimeError, AssertionError, ValueError, TypeError, IndexError)  # of networks, at images that do not fit


@dataclass(frozen=True, eq=False)
class Macs:
    """Multiply–adds of one image: `dense` of the dense, unmerged network, `sparse` with pattern or masks and merging.

    table: a row an operation in the order they run, indexed by parameter name or "blocks.0.attn (QKᵀ, AV)"; columns
    role, kind, dense and sparse (MACs), density (share of the weight kept), places (tokens or output pixels that the
    weight is applied to; rows of a product), params, bytes_dense, bytes_kept. Bytes are those of the weight; kept are
    its values with ⌈log₂ n⌉ bits of position for each in a k:n pattern, with one bit an entry under masks. schedule:
    pairs of tokens merged in each block.
    """

    dense: int
    sparse: int
    table: pd.DataFrame
    input_size: tuple[int, int, int]
    schedule: tuple[int, ...] = ()
    convention: str = "executed"

    @property
    def reduction(self) -> float:
        """Share of the MACs saved, 1 − sparse / dense."""
        return 1 - self.sparse / self.dense

    def __str__(self) -> str:
        """What is saved, in a sentence."""
        how = "as executed" if self.convention == "executed" else "by the paper's convention"
        return f"{100 * self.reduction:.2f}\u202f% of {self.dense:,} multiply–adds are saved, {how}; this is no speed"

    def by_role(self) -> pd.DataFrame:
        """MACs, reduction, parameters and bytes of each role, in the order of `mpviz.nets.roles.ROLES`."""
        sums = self.table.groupby("role")[["dense", "sparse", "params", "bytes_dense", "bytes_kept"]].sum()
        sums = sums.loc[[role for role in ROLES if role in sums.index]]
        sums.insert(2, "reduction", 1 - sums["sparse"] / sums["dense"])
        return sums


def count_macs(
    model: nn.Module,
    input_size: int | Sequence[int] | None = None,
    pattern: str | KN | None = None,
    tome: Schedule = 0,
    convention: str = "executed",
    masks: Masks | None = None,
    layers: Sequence[str] | str | None = None,
) -> Macs:
    """Count the multiply–adds of one image. The model itself is only read.

    input_size: (channels, height, width) or the side of a square image; the model's own when None. pattern: "k:n", on
    the prunable layers of `list_layers`, convolutions unfolded, on those that `layers` tells by names or roles ("mlp"),
    or, with "fitting", on those whose inputs n divides. masks: {parameter name: bool tensor}, True = kept, instead.
    tome: pairs of tokens merged a block, as in `merge_tokens`; a model that merges already is counted as it merges.
    convention: "executed" counts what runs; "paper" bills each MLP at the tokens that enter its block's attention,
    before they merge.
    Raises PatternError for a bad pattern and for layers whose inputs are no multiple of n, BudgetError for a bad
    convention or masks, ModelError for unknown layers, images the model cannot take, and tokens that cannot be merged.

    >>> from mpviz.nets.zoo import load_model
    >>> count_macs(load_model("fashion-mlp", pretrained=False)).dense == 784 * 512 + 512 * 512 + 512 * 10
    True
    """
    if convention not in CONVENTIONS:
        raise BudgetError(f"unknown convention '{convention}'; {nearest(str(convention), CONVENTIONS)}")
    infos = {info.name: info for info in list_layers(model)}
    kept = _kept(model, infos, pattern, masks, layers)
    size, merging = _size(model, input_size), schedule_of(model)
    schedule = schedule_of(_bare(model, merging if merging and tome == 0 else tome))
    if merging and schedule != merging:
        raise ModelError(f"{type(model).__name__} merges r = {merging} already; leave tome at 0 to count that")
    dense = _trace(model, size, 0)
    ran = _trace(model, size, schedule) if schedule else dense
    if convention == "paper":
        ran = _billed(ran, schedule)
    bits = 0 if pattern is None else (KN.parse(pattern).n - 1).bit_length()
    # What only the merged network runs, the matching of its tokens, has no row.
    rows = [_row(name, count, ran[name], infos.get(name), kept.get(name), bits) for name, count in dense.items()]
    table = pd.DataFrame(rows).set_index("name")
    return Macs(int(table["dense"].sum()), int(table["sparse"].sum()), table, size, schedule, convention)


def _kept(
    model: nn.Module, infos: Mapping[str, LayerInfo], pattern: str | KN | None, masks: Masks | None, layers: Any
) -> dict[str, int]:
    """Entries kept of each weight that is pruned."""
    if masks is not None and (pattern is not None or layers is not None):
        raise BudgetError("masks say themselves what each layer keeps; leave out pattern= and layers=")
    if masks is not None:
        masked_parameters(_bare(model, 0), masks)  # checks names, shapes and types, and costs no memory on this copy
        return {name: int(mask.sum()) for name, mask in masks.items()}
    if pattern is None:
        if layers is not None:
            raise BudgetError("layers= names what a pattern prunes; give pattern= as well, such as '2:4'")
        return {}
    kn = KN.parse(pattern)
    fitting = layers in (FITTING, [FITTING])
    chosen = (
        named_layers(model, layers)
        if layers is not None and not fitting
        else [info for info in infos.values() if info.prunable and not (fitting and info.cols % kn.n)]
    )
    grouped = next((info.name for info in chosen if info.groups > 1), None)
    if grouped is not None:
        raise PatternError(f"{grouped} is a grouped convolution, which has no k:n pattern; take it out of layers=")
    unfit = [f"{info.name} has {info.cols}" for info in chosen if info.cols % kn.n]
    if unfit:
        shown = ", ".join(unfit[:3]) + (f" and {len(unfit) - 3} more do not fit" if len(unfit) > 3 else "")
        raise PatternError(f"{kn} needs a multiple of {kn.n} inputs; {shown}; layers='fitting' leaves them dense")
    return {info.name: info.params * kn.k // kn.n for info in chosen if kn.removed}


def _size(model: nn.Module, given: int | Sequence[int] | None) -> tuple[int, int, int]:
    """Channels, height and width of an image. Raises ModelError for what is none, or where nothing tells it."""
    net: Any = model
    source = source_of(model)
    own = tuple((getattr(net, "pretrained_cfg", None) or {}).get("input_size") or ())
    if source is not None and source.name in ARCHITECTURES:
        own = (1, 28, 28)
    elif isinstance(net, MLP):
        own = (1, 1, net.widths[0])
    convs = [module.in_channels for module in net.modules() if isinstance(module, nn.Conv2d)]
    asked = None if source is None else source.options.get("in_chans")
    channels = getattr(net, "in_chans", None) or asked or [*own, *convs, 3][0]
    sides = getattr(getattr(net, "patch_embed", None), "img_size", None) or own[1:]  # as built, before as published
    size = (channels, *sides)
    if given is not None:
        values = given if isinstance(given, Sequence) else (channels, given, given)
        size = tuple(int(value) if hasattr(value, "__index__") else 0 for value in values)
        if len(size) != 3 or min(size) < 1:
            raise ModelError(f"input_size is {given!r}; give the side of a square image or (channels, height, width)")
    elif len(size) != 3:
        raise ModelError(f"{type(model).__name__} does not say how large its images are; give input_size=(c, h, w)")
    return size


@dataclass
class _Count:
    """One operation. entries: of its weight, 0 for a product of activations, of which the first has `rows` rows."""

    kind: str
    entries: int = 0
    bytes: int = 0
    rows: int = 0
    macs: int = 0
    products: int = 0


class _Watch(TorchDispatchMode):
    """Counts what a model executes while it is on. found: by parameter name, or "()" behind the path of a module."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.found: dict[str, _Count] = {}
        # A tensor and its views have one storage, also without values.
        self._weights = {p.untyped_storage()._cdata: (n, p.numel(), p.nbytes) for n, p in model.named_parameters()}
        self._running: list[tuple[str, nn.Module]] = [("", model)]
        for path, module in model.named_modules():
            module.register_forward_pre_hook(lambda module, _, path=path: self._running.append((path, module)))
            module.register_forward_hook(lambda *_: self._running.__delitem__(-1))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in _PRODUCTS:
            left, right = (args[i] for i in _PRODUCTS[name])
            self._add("Linear", (right, left), out.numel() * left.shape[-1], left.shape[-2])
        elif name == "convolution":
            x, weight, transposed = args[0], args[1], args[6]
            macs = (x if transposed else out).numel() * math.prod(weight.shape[1:])
            self._add(f"Conv{weight.ndim - 2}d", (weight,), macs)
        elif name.startswith("_scaled_dot_product"):
            query, key = args[:2]
            self._add("product", (), (query.numel() + out[0].numel()) * key.shape[-2], query.shape[-2], products=2)
        elif name.startswith(("_native_multi_head_attention", "_transformer_encoder_layer")):
            raise RuntimeError("fused layers hide what they run; call torch.backends.mha.set_fastpath_enabled(False)")
        return out

    def _add(self, kind: str, operands: tuple[Tensor, ...], macs: int, rows: int = 0, products: int = 1) -> None:
        name, entries, size = self._weight(operands)
        key = name or f"{self._running[-1][0]}()"
        count = self.found.setdefault(key, _Count(kind if name else "product", entries, size, rows))
        count.macs += macs
        count.products += products

    def _weight(self, operands: tuple[Tensor, ...]) -> tuple[str, int, int]:
        """Name, entries and bytes of the weight among what is multiplied; "" and 0 when all are activations."""
        path, module = self._running[-1]
        own: Any = getattr(module, "weight", None)  # also where what multiplies is made from it, e.g. standardised
        made = isinstance(own, Tensor) and own.ndim > 1 and bool(operands)
        for tensor in operands:
            if (known := self._weights.get(tensor.untyped_storage()._cdata)) is not None:
                return known
        return (f"{path}.weight".lstrip("."), own.numel(), own.nbytes) if made else ("", 0, 0)


def _bare(model: nn.Module, tome: Schedule, meta: bool = True) -> nn.Module:
    """A copy in eval mode without hooks, merging as `tome` says. Its tensors have no values, or are the model's own."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for name, value in [*module._parameters.items(), *module._buffers.items(), *vars(module).items()]:
            if isinstance(value, Tensor):
                new = torch.empty_like(value, device="meta") if meta else value.detach()
                weight = isinstance(value, nn.Parameter)  # shared; a buffer may be written to
                memo[id(value)] = nn.Parameter(new, requires_grad=False) if weight else new.clone()
            elif isinstance(value, dict) and "_hooks" in name:  # they may belong to a run in another thread
                memo[id(value)] = OrderedDict()
    try:
        copied = copy.deepcopy(model, memo).eval()
    except (RuntimeError, TypeError) as error:
        raise ModelError(f"{type(model).__name__} cannot be copied to be counted ({error}); build it afresh") from error
    return merge_tokens(unmerge_tokens(copied), tome)


def _trace(model: nn.Module, size: tuple[int, int, int], tome: Schedule) -> dict[str, _Count]:
    """What one pass runs. Raises ModelError when the model cannot take the image."""
    why: Exception | None = None
    for meta in (True, False):  # networks that look at values run once for real
        copied = _bare(model, tome, meta)
        like = next((p for p in copied.parameters() if p.is_floating_point()), torch.zeros(()))
        watch = _Watch(copied)
        try:
            with torch.inference_mode(False), torch.no_grad(), watch:
                copied(torch.zeros(1, *size, dtype=like.dtype, device=like.device))
            return watch.found
        except torch.OutOfMemoryError:
            raise
        except _UNFIT as error:
            why = error
    raise ModelError(f"{type(model).__name__} cannot take an image of shape {size} ({why}); choose input_size") from why


def _billed(ran: dict[str, _Count], schedule: tuple[int, ...]) -> dict[str, _Count]:
    """Each block's MLP at as many tokens as enter its attention."""
    billed = dict(ran)
    for i in range(len(schedule)):
        qkv = ran[f"blocks.{i}.attn.qkv.weight"]
        for name, count in ran.items():
            if name.startswith(f"blocks.{i}.mlp."):
                billed[name] = replace(count, macs=count.entries * (qkv.macs // qkv.entries))
    return billed


def _row(name: str, dense: _Count, ran: _Count, info: LayerInfo | None, kept: int | None, bits: int) -> dict[str, Any]:
    """One row of the table. kept: entries, None where nothing is pruned; bits: of a kept one's place, 0 for masks."""
    entries, keeps = dense.entries, dense.entries if kept is None else kept
    if not entries:
        label = "(QKᵀ, AV)" if dense.products > 1 else "(product)"
        name, role = f"{name.removesuffix('()')} {label}".lstrip(), "attention"
    else:
        role = info.role if info else role_of(name, dense.kind.startswith("Conv"), 1, False, False)
    where = 0 if kept is None else math.ceil((keeps * bits if bits else entries) / 8)
    return {
        "name": name,
        "role": role,
        "kind": info.kind if info else dense.kind,
        "dense": dense.macs,
        "sparse": ran.macs * keeps // entries if entries else ran.macs,
        "density": keeps / entries if entries else 1.0,
        "places": ran.macs // entries if entries else ran.rows,
        "params": entries,
        "bytes_dense": dense.bytes,
        "bytes_kept": keeps * (dense.bytes // entries) + where if entries else 0,
    }
