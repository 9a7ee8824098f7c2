"""What comes after the attention of a vision transformer's last block, as a list of operations for the class token."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from mpviz.errors import ModelError
from mpviz.nets.graph import Network, Node, check_plain
from mpviz.nets.timm_import import import_timm

PART = "the last block after its attention, and the head"


def _refuse(model: nn.Module, why: str) -> ModelError:
    return ModelError(
        f"no proved bound for {type(model).__name__}: {why}; the measured, population and estimate tiers remain"
    )


def _is_identity(module: Any) -> bool:
    return module is None or isinstance(module, (nn.Identity, nn.Dropout))


def _check(model: Any) -> Any:
    """The last block. Raises ModelError for a transformer whose end has another form."""
    vit = import_timm().models.vision_transformer
    if type(model) is not vit.VisionTransformer or not len(model.blocks) or type(model.blocks[-1]) is not vit.Block:
        raise _refuse(model, "it is no plain vision transformer of timm")
    check_plain(model)
    if any(module.training for module in model.modules()):
        raise ModelError(f"{type(model).__name__} is in training mode; call .eval()")
    if getattr(model, "global_pool", "") != "token" or getattr(model, "attn_pool", None) is not None:
        raise _refuse(model, "only a class token is read here, not an average over tokens")
    block = model.blocks[-1]
    between = [getattr(block, name, None) for name in ("ls1", "ls2", "drop_path1", "drop_path2")]
    between += [getattr(block.mlp, name, None) for name in ("norm", "drop1", "drop2")]
    if not all(_is_identity(module) for module in [*between, block.attn.proj_drop, model.fc_norm, model.head_drop]):
        raise _refuse(model, "its last block scales or normalises in places that have no rule")
    gelu = isinstance(block.mlp.act, nn.GELU) and block.mlp.act.approximate == "none"
    norms = isinstance(block.norm2, nn.LayerNorm) and isinstance(model.norm, nn.LayerNorm)
    if not (gelu and norms):
        raise _refuse(model, "its last block has another activation or norm than GELU and LayerNorm")
    if not isinstance(model.head, nn.Linear):
        raise _refuse(model, "it has no linear head")
    return block


def last_block(model: nn.Module) -> Network:
    """From the class token as it leaves the last attention, before its projection, to the logits.

    Its weights are that projection, both layers of the last MLP and the head; all others are as in `model`. Attention
    mixes tokens only before this point, so the class token is all that counts. What comes before is run in float64,
    and its rounding, about 1e-14 of the values, is not part of what is proved. Raises ModelError for other networks.
    """
    net: Any = model
    _check(net)
    path = f"blocks.{len(net.blocks) - 1}"

    def layer(name: str, module: str, source: str) -> Node:
        bias = f"{module}.bias" if model.get_submodule(module).bias is not None else ""
        return Node(name, "linear", (source,), module, f"{module}.weight", bias)

    nodes = (
        Node("tokens", "input", ()),
        Node("residual", "first", ("tokens",)),
        Node("heads", "second", ("tokens",)),
        layer("proj", f"{path}.attn.proj", "heads"),
        Node("attended", "add", ("residual", "proj")),
        Node("norm2", "layernorm", ("attended",), f"{path}.norm2"),
        layer("fc1", f"{path}.mlp.fc1", "norm2"),
        Node("act", "gelu", ("fc1",), f"{path}.mlp.act"),
        layer("fc2", f"{path}.mlp.fc2", "act"),
        Node("out", "add", ("attended", "fc2")),
        Node("norm", "layernorm", ("out",), "norm"),
        layer("head", "head", "norm"),
    )
    return Network(model, nodes, PART, _Entry(model))


class _Entry:
    """Images → Float64["n 2 width"]: the class token entering the last block, and entering its projection."""

    def __init__(self, model: nn.Module) -> None:
        self._model: Any = copy.deepcopy(model).double()

    def __call__(self, images: Tensor) -> Tensor:
        block = self._model.blocks[-1]
        seen: dict[str, Tensor] = {}
        hooks = [
            block.register_forward_pre_hook(lambda _, args: seen.update(residual=args[0][:, 0])),
            block.attn.proj.register_forward_pre_hook(lambda _, args: seen.update(heads=args[0][:, 0])),
        ]
        try:
            with torch.no_grad():
                self._model.forward_features(images.double())
        finally:
            for hook in hooks:
                hook.remove()
        return torch.stack([seen["residual"], seen["heads"]], dim=1)
