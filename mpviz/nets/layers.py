"""The weight matrices of a network: their names, roles, shapes, and whether pruning may touch them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from mpviz.errors import ModelError, PatternError, nearest
from mpviz.nets.roles import ROLES, Matrix
from mpviz.nets.weights import Weights, open_weights, read_matrix

SPLITS = ("qkv", "groups")
FITTING = "fitting"  # instead of names: the layers whose inputs a pattern divides


@dataclass(frozen=True)
class LayerInfo:
    """One weight, seen as a matrix of `rows` outputs and `cols` inputs.

    name: the parameter's name; a part has its own in brackets behind it. depth: position in the order of the network,
    from 0. why: the reason when `prunable` is false, else "". groups: of a convolution; each group is a matrix of
    rows / groups × cols. part: "q", "k", "v" or "group 3 of 32", "" for a whole weight; a part takes `rows` rows of the
    parameter from `first_row` on.
    """

    name: str
    role: str
    kind: str
    rows: int
    cols: int
    params: int
    prunable: bool
    why: str
    depth: int
    groups: int = 1
    part: str = ""
    first_row: int = 0

    @property
    def aspect(self) -> float:
        """c = cols / rows of one group, the ratio of the Marchenko–Pastur law of WᵀW / rows."""
        return self.cols * self.groups / self.rows

    @property
    def parameter(self) -> str:
        """Name of the parameter that the part belongs to; the own name of a whole weight."""
        return self.name[: self.name.rindex("[")] if self.part else self.name

    @property
    def matrix(self) -> tuple[int, int]:
        """(rows, cols) of one group, the matrix whose spectrum is taken."""
        return self.rows // self.groups, self.cols


def as_matrix(weight: Tensor) -> Tensor:
    """The weight as Float["out in"]: a convolution's kernel is unfolded to C_out × (C_in·kh·kw).

    Raises ModelError for tensors with fewer than two axes.
    """
    if weight.ndim < 2:
        raise ModelError(f"a tensor of shape {tuple(weight.shape)} is not a matrix; give a Linear or Conv weight")
    return weight.reshape(weight.shape[0], -1)


def part_of(weight: Tensor, info: LayerInfo) -> Tensor:
    """The rows of a parameter that belong to the layer, as Float["groups out in"]."""
    rows, cols = info.matrix
    return as_matrix(weight)[info.first_row : info.first_row + info.rows].reshape(info.groups, rows, cols)


def check_split(split: Sequence[str] | str) -> tuple[str, ...]:
    """The kinds of parts as a tuple. Raises ModelError for one that is not in SPLITS."""
    wanted = (split,) if isinstance(split, str) else tuple(split)
    for one in wanted:
        if one not in SPLITS:
            raise ModelError(f"unknown split '{one}'; {nearest(str(one), SPLITS)}")
    return wanted


def list_layers(
    model: Weights, layers: Sequence[str] | None = None, split: Sequence[str] | str = ()
) -> list[LayerInfo]:
    """Every Linear and convolution weight, in the order of the network.

    model: a module, a state dict {name: tensor} or the path of a safetensors file. layers: keep these parameter names
    only (with or without the final ".weight"). split: "qkv" lists fused attention weights as q, k and v, "groups"
    each group of a grouped convolution, instead of the whole; a depthwise convolution stays one row.
    Raises ModelError when a name is unknown (with the nearest), or the model has no such layer; CheckpointError for a
    file that cannot be read.
    """
    return infos_of(open_weights(model).matrices, layers, split)


def infos_of(
    matrices: Sequence[Matrix], layers: Sequence[str] | None = None, split: Sequence[str] | str = ()
) -> list[LayerInfo]:
    """The layers, whole or in parts, of matrices in the order of the network. Raises ModelError for unknown names."""
    wanted = check_split(split)
    infos = [info for depth, matrix in enumerate(matrices) for info in _parts(_whole(matrix, depth), matrix, wanted)]
    return infos if layers is None else _selected(infos, layers)


def named_layers(model: nn.Module, layers: Sequence[str] | str) -> list[LayerInfo]:
    """Layers by name, or the prunable ones of a role, each once, in the order of the network.

    A layer that is called like a role is meant. Raises PatternError for a role that no prunable layer has, ModelError
    for an unknown name.
    """
    layers = [layers] if isinstance(layers, str) else layers
    everything = list_layers(model)
    called = {info.name.removesuffix(".weight") for info in everything}
    roles = {name for name in layers if name in ROLES and name not in called}
    by_role = {info.name for info in everything if info.role in roles and info.prunable}
    if roles and not by_role:
        raise PatternError(f"{type(model).__name__} has no prunable layer of the role '{min(roles)}'")
    single = [name for name in layers if name not in roles]
    by_name = {info.name for info in list_layers(model, single)} if single else set()
    return [info for info in everything if info.name in by_role | by_name]


def _whole(matrix: Matrix, depth: int) -> LayerInfo:
    why = _why_not(matrix)
    return LayerInfo(
        name=matrix.name,
        role=matrix.role,
        kind=matrix.kind,
        rows=matrix.rows,
        cols=matrix.cols,
        params=matrix.rows * matrix.cols,
        prunable=not why,
        why=why,
        depth=depth,
        groups=matrix.groups,
    )


def _why_not(matrix: Matrix) -> str:
    if matrix.role in ("head", "stem"):
        return f"the {matrix.role} is left out by default: cutting its bulk destroys small networks"
    if matrix.groups > 1:
        return f"grouped convolution ({matrix.groups} groups): each group has its own small spectrum"
    return matrix.why


def _parts(info: LayerInfo, matrix: Matrix, split: tuple[str, ...]) -> list[LayerInfo]:
    """The layer's parts where they were asked for and there are any, else the layer itself."""
    if "qkv" in split and matrix.fused:
        guess = "; thirds assumed from name and shape, give the module to be sure" if matrix.assumed else ""
        return [replace(part, why=part.why + guess) for part in _rows_of(info, ["q", "k", "v"], "")]
    if "groups" in split and info.groups > 1 and info.rows > info.groups:
        return group_infos(info)
    return [info]


def group_infos(info: LayerInfo) -> list[LayerInfo]:
    """The groups of a grouped convolution, each a layer of its own."""
    return _rows_of(info, [f"group {i}" for i in range(1, info.groups + 1)], f" of {info.groups}")


def _rows_of(info: LayerInfo, labels: list[str], end: str) -> list[LayerInfo]:
    """Equal parts of the layer's rows, one a label."""
    rows = info.rows // len(labels)
    return [
        replace(
            info,
            name=f"{info.name}[{label}]",
            rows=rows,
            params=rows * info.cols,
            prunable=False,
            why=f"{_share(label)} of {info.name}; masks are made for the whole weight",
            groups=1,
            part=label + end,
            first_row=i * rows,
        )
        for i, label in enumerate(labels)
    ]


def _share(label: str) -> str:
    return "a third of the rows" if label in ("q", "k", "v") else "a group"


def _selected(infos: list[LayerInfo], layers: Sequence[str]) -> list[LayerInfo]:
    if isinstance(layers, str):
        layers = [layers]
    by_name: dict[str, list[LayerInfo]] = {}
    for info in infos:
        for name in {info.name, info.parameter, info.parameter.removesuffix(".weight")}:
            by_name.setdefault(name, []).append(info)
    for name in layers:
        if name not in by_name:
            raise ModelError(f"unknown layer '{name}'; {nearest(name, by_name)}")
    wanted = {info.name for name in layers for info in by_name[name]}
    return [info for info in infos if info.name in wanted]


def weight_of(model: Weights, name: str) -> Tensor:
    """The parameter of that name, detached; of a state dict or file a weight matrix. Raises ModelError for no such."""
    if not isinstance(model, nn.Module):
        return read_matrix(open_weights(model), name)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    if name not in parameters:
        raise ModelError(f"unknown parameter '{name}'; {nearest(name, parameters)}")
    return parameters[name].detach()
