"""Checkpoints: one safetensors file with weights, bit-packed masks and, in its header, JSON for the rest."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mpviz.errors import CheckpointError, ModelError
from mpviz.files import replacing
from mpviz.nets.factors import ranks_of, rebuild
from mpviz.nets.forward import masked_parameters
from mpviz.nets.layout import lay_out, layout_of
from mpviz.nets.tome import Schedule, merge_tokens, schedule_of, settled_schedule, unmerge_tokens
from mpviz.nets.zoo import Source, build_architecture, fill, source_of

FORMAT = "mpviz-checkpoint-1"
_WEIGHT, _MASK, _PERMUTATION = "model/", "mask/", "permutation/"


@dataclass(frozen=True)
class Checkpoint:
    """What `load` gives back. masks: {parameter name: bool tensor}, True = kept.

    permutations: {parameter name: Int["units"]}, the input that stands at each place when groups are formed. tome:
    pairs of tokens that the model merges in each block, () for none. pattern: {"pattern": "k:n", "conv": how
    convolutions are grouped} of a projected model.
    """

    model: nn.Module
    masks: dict[str, Tensor] = field(default_factory=dict)
    permutations: dict[str, Tensor] = field(default_factory=dict)
    tome: tuple[int, ...] = ()
    recipe: dict[str, Any] | None = None
    results: dict[str, Any] | None = None
    pattern: dict[str, str] | None = None


def _check_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    for name, masked in masked_parameters(model, masks).items():
        if not torch.equal(masked, parameters[name].detach()):
            raise ModelError(
                f"the mask of {name} removes entries that the model still has; save inside `with mp.apply_masks(...)`"
            )


def _pack(mask: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(mask.cpu().numpy().reshape(-1)))


def _unpack(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    count = int(np.prod(shape))
    return torch.from_numpy(np.unpackbits(packed.numpy(), count=count).astype(bool)).reshape(shape)


def _with_suffix(path: str | Path) -> Path:
    path = Path(path)
    if not path.name:
        raise CheckpointError(f"'{path}' names no file; give one such as runs/pruned.safetensors")
    return path if path.suffix == ".safetensors" else path.with_name(path.name + ".safetensors")


def save(
    path: str | Path,
    model: nn.Module,
    masks: Mapping[str, Tensor] | None = None,
    permutations: Mapping[str, Tensor] | None = None,
    tome: Schedule = 0,
    recipe: Mapping[str, Any] | None = None,
    results: Mapping[str, Any] | None = None,
    pattern: Mapping[str, str] | None = None,
) -> Path:
    """Write one checkpoint file, atomically: after an error the old file is as it was and no other is left.

    path: gets the suffix .safetensors when it has none. recipe, results: what JSON can hold. tome: 0 takes the model as
    it is, merging or not; another schedule is what a model that does not merge yet shall do once loaded. pattern: of a
    projection, with its permutations (`Projected.saved_as`). Layers stored as two (`mpviz.nets.factors`) are noted with
    their ranks, so that `load` can build them again.
    Raises CheckpointError when the file cannot be written, ModelError when masks and weights disagree, or for merges
    that the model cannot do.
    """
    path = _with_suffix(path)
    masks = dict(masks or {})
    _check_masks(model, masks)
    try:
        header = header_of(model, tome, recipe, results, pattern)
    except ModelError:
        raise
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"recipe or results of {path} cannot be written as JSON: {error}") from error
    # clones: safetensors refuses tensors that share memory (tied weights)
    tensors = {_WEIGHT + k: v.detach().cpu().clone().contiguous() for k, v in model.state_dict().items()}
    tensors |= {_MASK + k: _pack(v) for k, v in masks.items()}
    tensors |= {_PERMUTATION + k: v.cpu().clone().contiguous() for k, v in (permutations or {}).items()}
    try:
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata={"format": FORMAT, "mpviz": header})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write {path}: {error}; nothing was changed") from error
    return path


def header_of(
    model: nn.Module,
    tome: Schedule = 0,
    recipe: Mapping[str, Any] | None = None,
    results: Mapping[str, Any] | None = None,
    pattern: Mapping[str, str] | None = None,
) -> str:
    """The JSON of a checkpoint's header.

    Raises TypeError or ValueError for what JSON cannot hold, ModelError for merges that the model cannot do or does
    otherwise.
    """
    source, ranks, schedule = _source_now(model), ranks_of(model), settled_schedule(model, tome)
    header: dict[str, Any] = {"source": source, "layout": layout_of(model), "tome": list(schedule),
                              "recipe": recipe, "results": results,
                              "pattern": None if pattern is None else dict(pattern)}  # fmt: skip
    return json.dumps(header | ({"ranks": ranks} if ranks else {}), allow_nan=True)


def _source_now(model: nn.Module) -> dict[str, Any] | None:
    """How the model is built anew: as it was, with the classes that its head has by now."""
    source, net = source_of(model), model
    if source is None:
        return None
    options: dict[str, Any] = dict(source.options)
    published = (getattr(net, "pretrained_cfg", None) or {}).get("num_classes")
    classes: Any = getattr(net, "num_classes", None)
    if isinstance(published, int) and isinstance(classes, int) and options.get("num_classes", published) != classes:
        options["num_classes"] = classes
    return asdict(source) | {"options": options}


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {}), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is no whole safetensors file ({error}); copy or save it again") from error


def _header(path: Path, metadata: Mapping[str, str]) -> tuple[Source | None, dict[str, int], dict[str, Any]]:
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} was not written by mp.save (format {metadata.get('format')!r}); "
            f"weights alone go in with mp.load_model(name, weights='{path.name}')"
        )
    try:
        header = json.loads(metadata["mpviz"])
        source = Source(**header["source"]) if header["source"] else None
        ranks = {str(name): int(rank) for name, rank in header.get("ranks", {}).items()}
        tome = tuple(int(pairs) for pairs in header["tome"])
        laid = header.get("layout", {})
        layout = {"channels_last": bool(laid.get("channels_last")),
                  "unfused": [str(name) for name in laid.get("unfused", ())]}  # fmt: skip
        rest = {key: header[key] for key in ("recipe", "results", "pattern")}
        return source, ranks, {"layout": layout, "tome": tome, **rest}
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"the header of {path} is damaged ({error}); save it again") from error


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}


def _match_types(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give the model the saved number types; filling a float32 model with float64 values would round them."""
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name in weights and tensor.dtype != weights[name].dtype:
            tensor.data = tensor.data.to(weights[name].dtype)


def _masks(path: Path, model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    parameters, masks = dict(model.named_parameters()), {}
    for name, packed in _part(tensors, _MASK).items():
        if (
            name not in parameters
            or packed.dtype != torch.uint8
            or packed.numel() != math.ceil(parameters[name].numel() / 8)
        ):
            raise CheckpointError(f"the mask of {name} in {path} fits no parameter of the model; save it again")
        masks[name] = _unpack(packed, tuple(parameters[name].shape))
    return masks


def load(path: str | Path, model: nn.Module | None = None) -> Checkpoint:
    """Read a checkpoint; its model, in eval mode, gives bit-identical logits to the one that was saved.

    path: may leave out the suffix .safetensors. model: the architecture, of which a copy is filled; needed when the
    saved model did not come from `mp.load_model`. Layers that were stored as two are two again, and a model that merged
    tokens merges them again.
    Raises CheckpointError for a missing, truncated or foreign file, ModelError when `model` does not fit.
    """
    path = Path(path) if Path(path).is_file() else _with_suffix(path)
    metadata, tensors = _read(path)
    source, ranks, header = _header(path, metadata)
    if model is None:
        if source is None:
            raise CheckpointError(f"{path} holds a model of your own making; pass it: mp.load(path, model=…)")
        model = build_architecture(source)
    else:
        model = copy.deepcopy(model)  # filling stops at the first misfit, and the caller's model stays as it is
    weights = _part(tensors, _WEIGHT)
    for name, rank in ranks.items():
        if len(weights.get(f"{name}.first.weight", ())) != rank:
            raise CheckpointError(f"the header of {path} is damaged (the rank of {name} is {rank}); save it again")
    rebuild(model, ranks)
    _match_types(model, weights)
    fill(model, weights, path)
    lay_out(model, header.pop("layout"))
    masks = _masks(path, model, tensors)
    if schedule_of(model) != header["tome"]:
        merge_tokens(unmerge_tokens(model), header["tome"] or 0)
    return Checkpoint(model=model.eval(), masks=masks, permutations=_part(tensors, _PERMUTATION), **header)
