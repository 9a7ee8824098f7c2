"""What a weight does in its network, told from its name, shape and place: the same rules for modules and files."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

ROLES = ("stem", "attention", "mlp", "conv", "depthwise", "head")

_ATTENTION = {
    *("attn", "attention", "self_attn", "cross_attn", "self_attention", "mha"),
    *("qkv", "q_proj", "k_proj", "v_proj", "out_proj", "in_proj", "in_proj_weight"),
    *("q_proj_weight", "k_proj_weight", "v_proj_weight"),
}
_HEADS = {"head", "fc", "classifier", "last_linear"}
_SURE_HEADS = {"head", "head_dist", "head.fc", "classifier", "last_linear", "lm_head"}
_STEMS = {"patch_embed", "stem", "conv_stem"}
_INNER_STEMS = {"patch_embed", "patch_embeddings"}
_FUSED = {"qkv", "to_qkv", "Wqkv", "in_proj_weight"}  # q, k and v in this order, a third of the rows each
_PER_HEAD = {"attn_block", "attn_grid"}  # of MaxViT and its kin
_CHANNELS = 4  # of an image at most
_KINDS = {2: "Linear", 3: "Conv1d", 4: "Conv2d", 5: "Conv3d"}
_WRAPPERS = ("module.", "_orig_mod.", "model.")  # what DataParallel, torch.compile and trainers put in front

# Of the last part of a name, so that a Linear layer inside a position network stays one.
_POSITION = re.compile(r"pos(ition(al)?)?_?emb|rel(ative)?_(pos|coords|attention_bias)|^rope|freqs?$|^wpe$")
_TOKEN = re.compile(r"(cls|class|dist|distill|reg|register|mask|prompt)_(token|embed)s?(ding)?s?$")
_LOOKUP = re.compile(r"^(?!.*patch).*emb(ed(s|ding|dings)?)?(_tokens)?$|^wte$|^shared$")
_NO_WEIGHT = re.compile(r"(mask|table|index|indices|bias|biases)$")


@dataclass(frozen=True)
class Matrix:
    """One tensor that is a weight matrix, with `shape` as it is stored.

    kind: Linear, Conv2d, … groups: of a convolution, else 1. fused: q, k and v are thirds of its rows; assumed: so it
    is for most weights of that name, which is all that is known. why: the reason when pruning cannot reach it, else "".
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    role: str
    groups: int = 1
    fused: bool = False
    assumed: bool = False
    why: str = ""

    @property
    def rows(self) -> int:
        """Outputs, of all groups together."""
        return self.shape[0]

    @property
    def cols(self) -> int:
        """Inputs of one output: a convolution's kernel is unfolded."""
        return math.prod(self.shape[1:])


def owner(name: str) -> str:
    """The module of a parameter: its name without ".weight" and without what wrappers put in front.

    >>> owner("module.blocks.0.attn.qkv.weight"), owner("weight"), owner("attn.in_proj_weight")
    ('blocks.0.attn.qkv', '', 'attn.in_proj_weight')
    """
    for wrapper in _WRAPPERS:
        name = name.removeprefix(wrapper)
    return "" if name == "weight" else name.removesuffix(".weight")


def is_fused(name: str, rows: int) -> bool:
    """True for a weight that holds q, k and v one below the other."""
    return rows % 3 == 0 and owner(name).rpartition(".")[2] in _FUSED


def thirds_by_name(name: str, shape: Sequence[int]) -> bool:
    """Whether q, k and v are thirds of the rows, as far as name and shape of a tensor tell.

    Not so for convolutions and for MaxViT's blocks, which keep those of each head together, nor for attention whose
    parts are not as wide as its input.
    """
    per_head = not _PER_HEAD.isdisjoint(name.split("."))
    return is_fused(name, shape[0]) and not per_head and len(shape) == 2 and shape[0] == 3 * shape[1]


def is_stem(name: str, conv: bool, first: bool) -> bool:
    """True for the first convolution, and for what a patch embedding or stem is made of."""
    parts = owner(name).split(".")
    return parts[0] in _STEMS or not _INNER_STEMS.isdisjoint(parts) or (first and conv)


def is_head(name: str, conv: bool, last: bool) -> bool:
    """True for a classifier by its name: a sure one, or the last weight when it stands alone or is named like one."""
    module = owner(name)
    if conv:
        return False
    return module in _SURE_HEADS or (last and (module.partition(".")[0] in _HEADS or "." not in module))


def role_of(name: str, conv: bool, groups: int, head: bool, stem: bool) -> str:
    """One of ROLES."""
    if head:
        return "head"
    if stem:
        return "stem"
    if groups > 1:
        return "depthwise"
    if not _ATTENTION.isdisjoint(owner(name).split(".")):
        return "attention"
    return "conv" if conv else "mlp"


def natural(name: str) -> list[tuple[int, int, str]]:
    """A sorting key in which block 2 comes before block 10.

    >>> sorted(["b.10.w", "b.2.w"], key=natural)
    ['b.2.w', 'b.10.w']
    """
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts if part]


def why_no_matrix(name: str, shape: Sequence[int], number_type: str) -> str:
    """Why a tensor is not analysed, from what can be seen of it; "" for what can be a matrix.

    number_type: as torch writes it, without "torch.".

    >>> why_no_matrix("blocks.0.norm1.weight", (768,), "float32")
    '1-D: a bias, norm or scale, not a matrix'
    """
    if not number_type.startswith(("float", "bfloat")):
        kind = "complex numbers" if number_type.startswith("complex") else "no real numbers"
        return f"{number_type}: {kind}, such as indices, counters, masks or quantised values"
    if number_type.startswith(("float4", "float8_e8m0")):
        return f"{number_type}: packed or scale numbers that torch does not multiply; store it as float16 or float32"
    if len(shape) < 2:
        return "a single number" if len(shape) == 0 else "1-D: a bias, norm or scale, not a matrix"
    if math.prod(shape) == 0:
        return f"its shape {tuple(shape)} holds no entries"
    leaf = owner(name).rpartition(".")[2]
    if _POSITION.search(leaf):
        return "a position embedding or table, not a layer's matrix"
    if _TOKEN.search(leaf):
        return "a learned token, not a matrix"
    if _LOOKUP.search(leaf) and len(shape) == 2:
        return "an embedding by its name: rows are looked up, not multiplied"
    if _NO_WEIGHT.search(leaf):
        return "a mask, table or bias by its name, not a weight"
    if len(shape) > 5 or (len(shape) > 2 and name.rpartition(".")[2] != "weight"):
        return f"a {len(shape)}-D tensor that is no convolution's weight"
    return ""


def by_names(found: Sequence[tuple[str, tuple[int, ...]]], ordered: bool) -> list[Matrix]:
    """Roles of the matrices of a state dict or file, of which only names and shapes are known.

    found: (name, shape) of each matrix. ordered: they stand in the order of the network; else they are put into the
    natural order of their names, stem first and head last. A convolution over one input channel is depthwise, unless
    it is the first of the stem; other groups do not show in a shape.
    """
    if not ordered:
        found = sorted(found, key=lambda one: natural(one[0]))
    first, last = _first_one(found, ordered), _last_ones(found, ordered)
    matrices: list[Matrix] = []
    for i, (name, shape) in enumerate(found):
        conv = len(shape) > 2
        stem = is_stem(name, conv, i == first)
        opening = stem and all(one.role != "stem" for one in matrices)
        groups = shape[0] if conv and shape[1] == 1 and not opening else 1
        role = role_of(name, conv, groups, is_head(name, conv, i in last), stem)
        kind = "MultiheadAttention" if name.endswith("_proj_weight") else _KINDS[len(shape)]
        fused = thirds_by_name(name, shape)
        assumed = fused and not name.endswith("in_proj_weight")  # torch's own, where it is so
        matrices.append(Matrix(name, shape, kind, role, groups, fused, assumed))
    if not ordered:
        matrices.sort(key=lambda one: {"stem": 0, "head": 2}.get(one.role, 1))
    return matrices


def _first_one(found: Sequence[tuple[str, tuple[int, ...]]], ordered: bool) -> int:
    """Where a stem without a stem's name may stand, -1 for nowhere: without an order, the first conv. of an image."""
    if ordered:
        return 0
    if any(is_stem(name, len(shape) > 2, False) for name, shape in found):
        return -1
    convs = [(i, shape[1]) for i, (_, shape) in enumerate(found) if len(shape) > 2]
    return convs[0][0] if convs and convs[0][1] <= _CHANNELS else -1


def _last_ones(found: Sequence[tuple[str, tuple[int, ...]]], ordered: bool) -> set[int]:
    """Where the last weight stands: without an order, the last of each part that is named like a head."""
    heads = {owner(name).partition(".")[0]: i for i, (name, shape) in enumerate(found) if len(shape) == 2}
    named = {i for part, i in heads.items() if part in _HEADS}
    return named if named and not ordered else {len(found) - 1}
