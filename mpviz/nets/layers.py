"""The weight matrices of a network: their names, roles, shapes, and whether pruning may touch them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from mpviz.errors import ModelError, nearest

ROLES = ("stem", "attention", "mlp", "conv", "depthwise", "head")
_ATTENTION = ("attn", "attention", "self_attn", "qkv", "q_proj", "k_proj", "v_proj", "out_proj", "in_proj")
_HEADS = ("head", "fc", "classifier", "last_linear")


@dataclass(frozen=True)
class LayerInfo:
    """One weight, seen as a matrix of `rows` outputs and `cols` inputs.

    name: the parameter's name. depth: position in the order of the modules, from 0.
    why: the reason when `prunable` is false, else "".
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

    @property
    def aspect(self) -> float:
        """c = cols / rows, the ratio of the Marchenko–Pastur law of WᵀW / rows."""
        return self.cols / self.rows


def as_matrix(weight: Tensor) -> Tensor:
    """The weight as Float["out in"]: a convolution's kernel is unfolded to C_out × (C_in·kh·kw).

    Raises ModelError for tensors with fewer than two axes.
    """
    if weight.ndim < 2:
        raise ModelError(f"a tensor of shape {tuple(weight.shape)} is not a matrix; give a Linear or Conv weight")
    return weight.reshape(weight.shape[0], -1)


def _weights(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    seen: set[int] = set()  # a weight that two modules share is one layer
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)) and id(module.weight) not in seen:
            seen.add(id(module.weight))
            yield name, module


def _is_head(model: nn.Module, name: str, module: nn.Module, is_last: bool) -> bool:
    classifier = getattr(model, "get_classifier", None)
    if callable(classifier):
        found = classifier()
        found = found if isinstance(found, (tuple, list)) else (found,)
        return any(part is module for part in found)
    return isinstance(module, nn.Linear) and is_last and (name.split(".")[0] in _HEADS or "." not in name)


def _is_stem(model: nn.Module, name: str, is_first: bool, module: nn.Module) -> bool:
    first_conv = getattr(model, "default_cfg", None) or {}
    named = first_conv.get("first_conv") if isinstance(first_conv, dict) else None
    if named is not None and name in ([named] if isinstance(named, str) else list(named)):
        return True
    if name.split(".")[0] in ("patch_embed", "stem", "conv_stem") or ".patch_embed." in name:
        return True
    return is_first and isinstance(module, nn.Conv2d)


def _role(model: nn.Module, name: str, module: nn.Module, is_first: bool, is_last: bool) -> str:
    if _is_head(model, name, module, is_last):
        return "head"
    if _is_stem(model, name, is_first, module):
        return "stem"
    if isinstance(module, nn.Conv2d) and module.groups > 1:
        return "depthwise"
    if any(part in _ATTENTION for part in name.split(".")):
        return "attention"
    return "conv" if isinstance(module, nn.Conv2d) else "mlp"


def _why_not(role: str, module: nn.Module) -> str:
    if role in ("head", "stem"):
        return f"the {role} is left out by default: cutting its bulk destroys small networks"
    if isinstance(module, nn.Conv2d) and module.groups > 1:
        return f"grouped convolution ({module.groups} groups): each group has its own small spectrum"
    return ""


def list_layers(model: nn.Module, layers: Sequence[str] | None = None) -> list[LayerInfo]:
    """Every Linear and Conv2d weight, in the order of the modules.

    layers: keep these parameter names only (with or without the final ".weight").
    Raises ModelError when a name is unknown (with the nearest), or the model has no such layer.
    """
    found = list(_weights(model))
    if not found:
        raise ModelError(f"{type(model).__name__} has no Linear or Conv2d weight; there is no spectrum to look at")
    infos = []
    for depth, (name, module) in enumerate(found):
        weight = module.weight
        assert isinstance(weight, Tensor)
        role = _role(model, name, module, depth == 0, depth == len(found) - 1)
        why = _why_not(role, module)
        infos.append(
            LayerInfo(
                name=f"{name}.weight" if name else "weight",
                role=role,
                kind=type(module).__name__,
                rows=weight.shape[0],
                cols=weight[0].numel(),
                params=weight.numel(),
                prunable=not why,
                why=why,
                depth=depth,
            )
        )
    return infos if layers is None else _selected(infos, layers)


def _selected(infos: list[LayerInfo], layers: Sequence[str]) -> list[LayerInfo]:
    if isinstance(layers, str):
        layers = [layers]
    by_name = {info.name: info for info in infos}
    by_name.update({info.name.removesuffix(".weight"): info for info in infos})
    for name in layers:
        if name not in by_name:
            raise ModelError(f"unknown layer '{name}'; {nearest(name, by_name)}")
    wanted = {by_name[name].name for name in layers}
    return [info for info in infos if info.name in wanted]


def weight_of(model: nn.Module, name: str) -> Tensor:
    """The parameter of that name, detached. Raises ModelError when there is none."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    if name not in parameters:
        raise ModelError(f"unknown parameter '{name}'; {nearest(name, parameters)}")
    return parameters[name].detach()
