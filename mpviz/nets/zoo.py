"""Models by name: bundled networks, any timm architecture, or a checkpoint of `mp.save`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from mpviz.errors import CheckpointError, ModelError, nearest
from mpviz.nets.architectures import ARCHITECTURES, build
from mpviz.nets.packaged import PACKAGED, packaged_weights
from mpviz.nets.paths import data_root
from mpviz.nets.timm_import import import_timm

SOURCE_ATTRIBUTE = "_mpviz_source"


@dataclass(frozen=True)
class Source:
    """How an architecture can be built again: a bundled or timm name and timm's keyword arguments."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)


def source_of(model: nn.Module) -> Source | None:
    """Where a model came from, None for one that was built elsewhere."""
    return getattr(model, SOURCE_ATTRIBUTE, None)


def bundled_names() -> tuple[str, ...]:
    """Names of the networks that come with mpviz."""
    return tuple(ARCHITECTURES)


def model_card(name: str) -> dict[str, Any]:
    """The card of a bundled network: data, recipe with λ₁ and λ₂, seed, test accuracy on all 10 000 images.

    Raises ModelError for an unknown name or a card that is missing or damaged.
    """
    if name not in ARCHITECTURES:
        raise ModelError(f"no bundled network '{name}'; {nearest(name, ARCHITECTURES)}")
    path = data_root() / "models" / f"{name}.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"the card of {name} cannot be read ({error}); restore {path}") from error


def build_architecture(source: Source) -> nn.Module:
    """The architecture with random weights, in eval mode.

    Raises ModelError for a name that nobody knows, or options that its architecture does not take.
    """
    if source.name in ARCHITECTURES:
        model = build(source.name, seed=0)
    elif source.name in PACKAGED:
        model = build_architecture(Source(PACKAGED[source.name].architecture, source.options))
    else:
        timm = import_timm()
        if not timm.is_model(source.name):
            known = [*ARCHITECTURES, *PACKAGED, *timm.list_models(), *timm.list_pretrained()]
            raise ModelError(f"unknown model '{source.name}'; {nearest(source.name, known)}")
        try:
            model = timm.create_model(source.name, pretrained=False, **source.options)
        except Exception as error:  # each architecture checks its options, and each in its own way
            given = ", ".join(f"{key}={value!r}" for key, value in source.options.items())
            raise ModelError(f"timm cannot build '{source.name}' with {given or 'its defaults'}: {error}") from error
    setattr(model, SOURCE_ATTRIBUTE, source)
    return model.eval()


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file. Raises CheckpointError when it is missing, truncated or something else."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no weights at {path}; give a .safetensors file")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is no whole safetensors file ({error}); copy or save it again") from error


def fill(model: nn.Module, weights: dict[str, torch.Tensor], origin: object) -> nn.Module:
    """Load weights strictly. Raises ModelError that names the first misfits."""
    try:
        model.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:4]]
        raise ModelError(f"the weights of {origin} do not fit {type(model).__name__}: {' '.join(lines)}") from error
    return model


def load_model(name: str, pretrained: bool = True, weights: str | Path | None = None, **options: Any) -> nn.Module:
    """A model in eval mode.

    name: a bundled network ("fashion-mlp", "fashion-mlp-l1", "fashion-vit", "fashion-resnet"), one whose weights come
    as a package ("efficientnet-lite0", "dinov2-vit-s14": the extra `pretrained`), any timm name, or the path of a
    checkpoint that `mp.save` wrote. pretrained: False gives random weights. weights: a local safetensors file to load
    into the architecture instead. options: passed to ``timm.create_model`` (num_classes, in_chans, …).
    Raises ModelError for an unknown name or weights that do not fit, CheckpointError for an unreadable file.
    """
    name = str(name)
    if name not in ARCHITECTURES and (Path(name).suffix == ".safetensors" or Path(name).is_file()):
        from mpviz.nets.store import load

        if options or weights is not None or not pretrained:
            raise ModelError(f"the checkpoint {name} brings architecture and weights; give its path alone")
        return load(name).model
    if name in ARCHITECTURES and options:
        raise ModelError(f"the bundled network {name} takes no options; got {', '.join(options)}")
    source = Source(name, options)
    if name not in ARCHITECTURES and name not in PACKAGED and pretrained and weights is None:
        return _pretrained_timm(source)
    model = build_architecture(source)
    if name in PACKAGED and pretrained and weights is None:
        return fill(model, packaged_weights(name, model.state_dict()), name)
    if weights is None and pretrained:
        weights = data_root() / "models" / f"{name}.safetensors"
    return model if weights is None else fill(model, read_weights(weights), weights)


def _pretrained_timm(source: Source) -> nn.Module:
    timm = import_timm()
    build_architecture(source)  # an unknown name fails here, before any download
    try:
        model = timm.create_model(source.name, pretrained=True, **source.options)
    except Exception as error:  # the hub's clients raise many kinds; each means "no weights"
        raise ModelError(
            f"the pretrained weights of '{source.name}' cannot be had ({type(error).__name__}); "
            "open a checkpoint that mp.save wrote, give weights=FILE.safetensors, or pretrained=False for random ones"
        ) from error
    setattr(model, SOURCE_ATTRIBUTE, source)
    return model.eval()
