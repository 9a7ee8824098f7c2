"""A checkpoint from somebody unknown: looked at, header first, before anything is built or filled from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mpviz.errors import CheckpointError, ModelError
from mpviz.nets.architectures import ARCHITECTURES, build
from mpviz.nets.header import check_header
from mpviz.nets.packaged import PACKAGED
from mpviz.nets.store import FORMAT
from mpviz.nets.tensorfile import TensorFile
from mpviz.nets.timm_import import import_timm

MOST_TENSORS = 20_000
# What may be asked of timm, up to which value: nothing here names a file, an address or a class.
COUNTS = {"num_classes": 100_000, "in_chans": 64, "img_size": 1024}
POOLS = ("", "avg", "max", "avgmax", "catavgmax", "token", "map")
FLOATS = ("float64", "float32", "float16", "bfloat16")
_WEIGHT = "model/"


def check_checkpoint(path: str | Path) -> None:
    """Refuse what is no whole checkpoint of `mp.save`, or does not hold the weights of the architecture it names.

    Nothing of the file is executed, and no memory is taken for weights that it does not hold. Raises CheckpointError
    or ModelError.
    """
    path = Path(path)
    with open(path, "rb") as file:
        check_header(file.read(8), path.stat().st_size)
    file_of = TensorFile(path)
    if file_of.broken:
        raise CheckpointError(next(iter(file_of.broken.values())))
    if len(file_of.slots) > MOST_TENSORS:
        raise CheckpointError(f"{path.name} holds {len(file_of.slots)} tensors, and up to {MOST_TENSORS} are taken")
    end = max((slot.stop for slot in file_of.slots.values()), default=0)
    if end > path.stat().st_size:
        raise CheckpointError(f"{path.name} was cut short; upload it again")
    name, options, ranks = _source(path, file_of.metadata)
    if ranks:
        raise CheckpointError(f"{path.name} has layers stored as two, which only `mpviz analyze` on one's own opens")
    slots = {key[len(_WEIGHT) :]: slot for key, slot in file_of.slots.items() if key.startswith(_WEIGHT)}
    found = {key: (slot.shape, "float" if slot.dtype in FLOATS else slot.dtype) for key, slot in slots.items()}
    wanted = {key: (tuple(value.shape), _kind(value)) for key, value in _layout(name, options).state_dict().items()}
    if found != wanted:
        odd = sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key))
        raise ModelError(f"the weights of {path.name} do not fit {name}, as at {odd[0][:80]!r}; save it again")


def _kind(value: torch.Tensor) -> str:
    return "float" if value.dtype.is_floating_point else str(value.dtype).removeprefix("torch.")


def _source(path: Path, metadata: dict[str, Any]) -> tuple[str, dict[str, Any], Any]:
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path.name} was not written by mp.save, so its architecture is unknown; save it so")
    try:
        header = json.loads(metadata["mpviz"])
        source = header["source"] or {}
        name, options, ranks = source.get("name", ""), source.get("options", {}), header.get("ranks")
        pairs = header["tome"]
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"the header of {path.name} is damaged; save it again") from error
    if not name or not isinstance(name, str):
        raise CheckpointError(f"{path.name} holds a model of its owner's making; only bundled and timm networks open")
    if not isinstance(options, dict) or not all(_harmless(key, value) for key, value in options.items()):
        known = ", ".join(COUNTS)
        raise CheckpointError(f"{path.name} asks for more of {name[:80]!r} than a usual {known}; save it without that")
    if not isinstance(pairs, list) or len(pairs) > 1000 or any(type(one) is not int for one in pairs):
        raise CheckpointError(f"the header of {path.name} is damaged; save it again")
    return name, options, ranks


def _harmless(key: str, value: Any) -> bool:
    if key == "global_pool":
        return value in POOLS
    return type(value) is int and 0 <= value <= COUNTS.get(key, -1)


def _layout(name: str, options: dict[str, Any]) -> nn.Module:
    """The architecture without memory for its weights."""
    architecture = PACKAGED[name].architecture if name in PACKAGED else name
    try:
        with torch.device("meta"):
            if architecture in ARCHITECTURES:
                return build(architecture, seed=0)
            timm = import_timm()
            if not timm.is_model(architecture):
                raise ModelError(f"unknown model {name[:80]!r}; save a bundled or a timm network")
            return timm.create_model(architecture, pretrained=False, **options)
    except ModelError:
        raise
    except Exception as error:  # each architecture checks its options, and each in its own way
        raise ModelError(f"{name[:80]!r} cannot be laid out as this file asks ({type(error).__name__})") from error
