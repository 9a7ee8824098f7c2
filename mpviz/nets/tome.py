"""Token Merging for timm's vision transformers: alike tokens become one between a block's attention and its MLP.

After Bolya et al., "Token Merging: Your ViT but faster" (2023). In each block, tokens outside the prefix (class,
distillation and register tokens) are dealt alternately into two sets; each of the first finds the one of the second
whose key, averaged over heads, points most nearly the same way, and the r most alike pairs become one token, the mean
weighted by how many places each stands for. In later blocks a token that stands for m places counts m times in the
softmax (log m is added to its attention logits), so merging tokens that are the same changes nothing. Behind the last
block every place gets the token it went into: the class token is where it was, a mean over places is the size-weighted
mean of the tokens, and attention pooling and dense features see as many tokens as before.

The order of tokens between blocks is the original's: prefix, what is left of the first set, the second set; the first
set keeps the order of the image also in networks without a class token, which the original code shuffles by likeness.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import accumulate
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpviz.errors import ModelError
from mpviz.nets.timm_import import import_timm

Schedule = int | Sequence[int]
Model = TypeVar("Model", bound=nn.Module)

_ALONE = (
    "a block of a model that merges tokens was called by itself or with a mask, as forward_intermediates and gradient "
    "checkpointing do, and would merge nothing; use forward_features, or leave merging off"
)


class _Tokens:
    """What one forward pass knows of its tokens beside their values. Each pass has its own, so threads never meet."""

    def __init__(self, prefix: int) -> None:
        self.prefix = prefix
        self.merges = 0  # in the block that runs
        self.keys: Tensor | None = None  # Float["b tokens d"] of the last attention, a mean over heads
        self.sizes: Tensor | None = None  # Float["b tokens"], places a token stands for; None while all are 1
        self.places: Tensor | None = None  # Int["b places"], token of a place; None while each is its own

    def bias(self, like: Tensor) -> Tensor | None:
        """log of the sizes, Float["b 1 1 tokens"], to be added to attention logits; None while all are 0."""
        return None if self.sizes is None else self.sizes.log().to(like.dtype)[:, None, None]

    def merge(self, x: Tensor) -> Tensor:
        """Float["b tokens d"] → Float["b tokens−merges d"]."""
        if not self.merges or self.keys is None:
            return x
        source, target, order = _pairs(self.keys, self.merges, self.prefix)
        sizes = self.sizes
        if sizes is None:  # halves cannot count beyond 256 or 2048
            sizes = torch.ones(x.shape[:2], dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        total = sizes.scatter_add(1, target, sizes.gather(1, source))
        share = (sizes.gather(1, source) / total.gather(1, target)).to(x.dtype)[..., None]
        # The weighted mean as a step from the target, so that what merges with nothing keeps its bits.
        step = (_pick(x, source) - _pick(x, target)) * share
        x = x.scatter_add(1, target[..., None].expand_as(step), step)
        went = torch.zeros_like(total, dtype=torch.long)
        went = went.scatter(1, order, torch.arange(order.shape[1], device=x.device).expand_as(order))
        went = went.scatter(1, source, went.gather(1, target))
        self.places = went if self.places is None else went.gather(1, self.places)
        self.sizes = total.gather(1, order)
        return _pick(x, order)

    def spread(self, x: Tensor) -> Tensor:
        """Each place with the token it went into, Float["b places d"]."""
        return x if self.places is None else _pick(x, self.places)


def _pick(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


@torch.no_grad()
def _pairs(keys: Tensor, merges: int, prefix: int) -> tuple[Tensor, Tensor, Tensor]:
    """Bipartite soft matching: merged tokens and their targets, Int["b merges"], and who stays, Int["b tokens−merges"].

    merges: at most half of the tokens behind the prefix. Of equally alike pairs the first in the image merges.
    """
    batch, count, _ = keys.shape
    first = torch.arange(prefix + prefix % 2, count, 2, device=keys.device)  # even numbers, as if the prefix were dealt
    second = torch.arange(prefix + 1 - prefix % 2, count, 2, device=keys.device)
    keys = F.normalize(keys, dim=-1)
    likeness, partner = (keys[:, first] @ keys[:, second].transpose(1, 2)).max(-1)
    ranked = likeness.argsort(stable=True, dim=-1, descending=True)
    merged, kept = ranked[:, :merges], ranked[:, merges:].sort(-1).values
    front = torch.arange(prefix, device=keys.device)
    order = torch.cat([front.expand(batch, -1), first[kept], second.expand(batch, -1)], dim=1)
    return first[merged], second[partner.gather(1, merged)], order


class MergingBlocks(nn.Sequential):
    """The blocks of a transformer as they run while tokens merge. schedule: pairs merged in each."""

    schedule: tuple[int, ...]
    prefix: int

    def forward(self, x: Tensor) -> Tensor:
        """Float["b places d"] → Float["b places d"]."""
        tokens = _Tokens(self.prefix)
        for block, merges in zip(self, self.schedule, strict=True):
            tokens.merges = min(merges, max(0, (x.shape[1] - self.prefix) // 2))  # images may be smaller than planned
            x = block(x, tokens=tokens)
        return tokens.spread(x)

    def __getitem__(self, index: Any) -> Any:
        part: Any = super().__getitem__(index)
        if isinstance(index, slice):  # timm cuts off blocks that it does not need
            part.schedule, part.prefix = self.schedule[index], self.prefix
        return part


class _Pickled(nn.Module):
    """Merging classes are made at run time; a pickle names timm's class, and makes its merging one again."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _empty, (type(self).__bases__[1],), self.__dict__


def _empty(kind: Any) -> nn.Module:
    """A module of timm's Block or Attention that merges, without its parts."""
    merging = _merging()[kind]
    return merging.__new__(merging)


class MergingBlock(_Pickled):
    """Goes before timm's Block in the bases of a class: attention, merging, MLP."""

    def forward(self: Any, x: Tensor, *masks: Any, tokens: _Tokens | None = None, **options: Any) -> Tensor:
        """Float["b tokens d"] → Float["b tokens−merges d"]. Raises ModelError when it is not run by MergingBlocks."""
        if tokens is None or masks or options:
            raise ModelError(_ALONE)
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), tokens=tokens)))
        x = tokens.merge(x)
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class MergingAttention(_Pickled):
    """Goes before timm's Attention in the bases of a class: tokens count as often as the places they stand for."""

    def forward(self: Any, x: Tensor, tokens: _Tokens | None = None) -> Tensor:
        """Float["b tokens d"] → Float["b tokens d"]; leaves its keys with `tokens`."""
        if tokens is None:
            raise ModelError(_ALONE)
        if tokens.sizes is None and not tokens.merges:
            return super().forward(x)  # as timm has it, to the last bit
        batch, count, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, count, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, bias = self.q_norm(q), self.k_norm(k), tokens.bias(v)
        tokens.keys = k.detach().mean(1)
        if self.fused_attn:
            drop = self.attn_drop.p if self.training else 0.0
            heads = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=drop)
        else:
            logits = (q * self.scale) @ k.transpose(-2, -1)
            heads = self.attn_drop((logits if bias is None else logits + bias).softmax(-1)) @ v
        out = heads.transpose(1, 2).reshape(batch, count, -1)
        norm, gate = getattr(self, "norm", None), getattr(self, "gate", None)  # which older releases of timm lack
        out = out if norm is None else norm(out)
        out = out if gate is None else out * gate(x).sigmoid()
        return self.proj_drop(self.proj(out))


@cache
def _merging() -> dict[Any, Any]:
    """timm's Block and Attention, and the class of each that merges."""
    timm = import_timm()
    kinds = {timm.models.vision_transformer.Block: MergingBlock, timm.layers.Attention: MergingAttention}
    return {kind: type(added.__name__, (added, kind), {"__doc__": added.__doc__}) for kind, added in kinds.items()}


def merge_tokens(model: Model, r: Schedule) -> Model:
    """Make `model` merge r pairs of tokens a block from now on, in place; returns it. For a model that one owns.

    r: one number for all blocks, which later blocks cut to half of the tokens they still have behind the prefix, or one
    a block. 0 everywhere leaves any model as it is. Names of parameters, the state dict and the mode stay; a deep copy
    merges too. Raises ModelError, and changes nothing, for a model that is no plain VisionTransformer of timm (`Block`
    with `Attention`), uses gradient checkpointing or merges already, and for more merges than tokens.
    """
    if schedule_of(model):
        kind = type(model).__name__
        raise ModelError(f"{kind} merges tokens already, r = {schedule_of(model)}; call unmerge_tokens(model) first")
    schedule = planned_schedule(model, r)
    if schedule:
        net: Any = model
        for block in net.blocks:
            for module in (block, block.attn):
                module.__class__ = _merging()[type(module)]
        net.blocks.__class__ = MergingBlocks
        net.blocks.schedule, net.blocks.prefix = schedule, net.num_prefix_tokens
    return model


def unmerge_tokens(model: Model) -> Model:
    """Undo `merge_tokens`, in place; a model that does not merge is left as it is. Returns the model."""
    blocks: Any = getattr(model, "blocks", None)
    if isinstance(blocks, MergingBlocks):
        for block in blocks:
            for module in (block, block.attn):
                module.__class__ = type(module).__bases__[1]
        del blocks.schedule, blocks.prefix
        blocks.__class__ = nn.Sequential  # type: ignore[assignment]
    return model


class MergedTokens:
    """A model that merges tokens; leaving the `with` block or `.remove()` makes it the model it was."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.schedule = schedule_of(model)
        self._on = bool(self.schedule)

    def remove(self) -> None:
        """Merge no more. A second call does nothing."""
        if self._on:
            unmerge_tokens(self.model)
        self._on = False

    def __enter__(self) -> nn.Module:
        return self.model

    def __exit__(self, *error: object) -> None:
        self.remove()


def merged_tokens(model: nn.Module, r: Schedule) -> MergedTokens:
    """Make `model` merge r pairs of tokens a block until that is taken off again; see `merge_tokens`.

    Usable as ``with merged_tokens(vit, r=8):`` or kept for its ``.remove()``. Raises ModelError as `merge_tokens` does.
    """
    return MergedTokens(merge_tokens(model, r))


def schedule_of(model: nn.Module) -> tuple[int, ...]:
    """Pairs that the model merges in each block, at the image size it was built for; () when it merges none."""
    blocks = getattr(model, "blocks", None)
    return blocks.schedule if isinstance(blocks, MergingBlocks) else ()


def planned_schedule(model: nn.Module, r: Schedule) -> tuple[int, ...]:
    """Pairs that `merge_tokens(model, r)` would merge in each block; () for none. Raises ModelError as it does."""
    if isinstance(r, int) and r == 0:
        return ()
    net = _check(model)
    schedule = _schedule(net, r, _places(net))
    return schedule if any(schedule) else ()


def settled_schedule(model: nn.Module, r: Schedule) -> tuple[int, ...]:
    """Pairs that a model merges in each block when r is asked for: its own, or r's where it merges none.

    Raises ModelError as `merge_tokens` does, and for a model that merges otherwise already.
    """
    own, asked = schedule_of(model), planned_schedule(model, r)
    if own and asked and asked != own:
        raise ModelError(f"the model merges {own} pairs of tokens a block, not {r}; leave tome at 0")
    return own or asked


@contextmanager
def merging(model: nn.Module, r: Schedule) -> Iterator[nn.Module]:
    """The model with r pairs merged a block for a while, whatever it merges before and after."""
    before = schedule_of(model)
    unmerge_tokens(model)
    try:
        yield merge_tokens(model, r)
    finally:
        merge_tokens(unmerge_tokens(model), before or 0)


def token_counts(model: nn.Module, r: Schedule, tokens: int | None = None) -> tuple[int, ...]:
    """Tokens, prefix included, that enter each block's attention when r pairs merge a block.

    tokens: what enters the first block; by default what the model's own image size gives. ViT-B/16 at 224 × 224 with
    r = 8: 197, 189, …, 109. Raises ModelError as `merge_tokens` does, but not for a model that merges already.
    """
    return _counts(model, r, tokens)[:-1]


def mlp_token_counts(model: nn.Module, r: Schedule, tokens: int | None = None) -> tuple[int, ...]:
    """Tokens that enter each block's MLP, behind its merges: 189, 181, …, 101 in the example of `token_counts`."""
    return _counts(model, r, tokens)[1:]


def _counts(model: nn.Module, r: Schedule, tokens: int | None) -> tuple[int, ...]:
    net = _check(model)
    count = _places(net) if tokens is None else tokens
    if count is None:
        raise ModelError(f"{type(net).__name__} takes images of any size; say how many tokens enter its first block")
    return tuple(accumulate(_schedule(net, r, count), operator.sub, initial=count))


def _check(model: nn.Module) -> Any:
    """The model. Raises ModelError when its tokens cannot be merged."""
    kind = type(model).__name__
    if not isinstance(model, import_timm().models.VisionTransformer):
        raise ModelError(f"{kind} is no VisionTransformer of timm, whose tokens alone can be merged; leave r at 0")
    net: Any = model
    for i, block in enumerate(net.blocks):
        parts = type(block), type(getattr(block, "attn", None))
        if parts not in (tuple(_merging()), tuple(_merging().values())):
            found = " with ".join(part.__name__ for part in parts)
            raise ModelError(f"blocks.{i} of {kind} is {found}; tokens merge in timm's plain Block with Attention only")
    if net.grad_checkpointing:
        raise ModelError(f"{kind} uses gradient checkpointing; turn it off with model.set_grad_checkpointing(False)")
    return net


def _places(net: Any) -> int | None:
    """Tokens entering the first block, None where the model fixes no image size."""
    patches = getattr(net.patch_embed, "num_patches", None)
    return None if patches is None else patches + net.num_prefix_tokens


def _schedule(net: Any, r: Schedule, tokens: int | None) -> tuple[int, ...]:
    """Pairs merged in each block. Raises ModelError for what is no schedule, and for more merges than tokens."""
    depth, single, left = len(net.blocks), not isinstance(r, Sequence), tokens or 0
    try:
        asked = [operator.index(one) for one in (r if isinstance(r, Sequence) else [r] * depth)]
    except TypeError as error:
        raise ModelError(f"r is {r!r}; give a whole number of pairs, or one for each of the {depth} blocks") from error
    if len(asked) != depth:
        raise ModelError(f"r has {len(asked)} numbers and {type(net).__name__} {depth} blocks; give one a block")
    if any(one < 0 for one in asked):
        raise ModelError(f"r = {min(asked)} pairs cannot be merged; give 0 or more")
    for i, one in enumerate(asked if tokens is not None else ()):
        most = max(0, (left - net.num_prefix_tokens) // 2)
        if one > most and (i == 0 or not single):
            raise ModelError(f"r = {one} are more merges than tokens: block {i} can merge {most} of {left}; lower r")
        asked[i] = min(one, most)
        left -= asked[i]
    return tuple(asked)
