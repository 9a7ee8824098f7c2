"""Where the weights come from: a module, a state dict, or a safetensors file that is read one layer at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mpviz.errors import ModelError, nearest
from mpviz.nets.roles import Matrix, by_names, is_fused, is_head, is_stem, role_of, why_no_matrix
from mpviz.nets.store import FORMAT
from mpviz.nets.tensorfile import TensorFile

Weights = nn.Module | Mapping[str, Any] | str | Path

_NESTED = ("state_dict", "model", "model_state_dict")  # where training loops keep the weights of a checkpoint
_Conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_Turned = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class WeightSource:
    """The matrices of one network. `read` gives the tensor of a matrix, detached, where it lives.

    title: what it is, for messages. matrices: in the order of the network. skipped: {tensor name: why it is none}.
    in_memory: False when reading costs time and memory. on_gpu: True when any of them lives on a CUDA device.
    """

    title: str
    matrices: tuple[Matrix, ...]
    skipped: dict[str, str]
    read: Callable[[str], Tensor]
    in_memory: bool = True
    on_gpu: bool = False


def open_weights(model: Weights) -> WeightSource:
    """The matrices of a module, of a state dict {name: tensor}, or of the safetensors file at a path.

    A state dict may lie under "state_dict" or "model", as training loops save it. Of a file only the header is read.
    Raises ModelError for anything else and when there is no matrix, CheckpointError for an unreadable file.
    """
    if isinstance(model, nn.Module):
        return _of_module(model)
    if isinstance(model, (str, Path)):
        return _of_file(Path(model))
    if isinstance(model, Mapping):
        return _of_mapping(model)
    raise ModelError(
        f"a {type(model).__name__} holds no weights that can be found; give a module, a state dict or the path of a "
        ".safetensors file"
    )


# --- modules --------------------------------------------------------------------------------------------------------


def _weights(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """(module name, module, attribute) of every matrix; a weight that two modules share comes once."""
    seen: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, *_Conv)):
            attributes = ["weight"]
        elif isinstance(module, nn.MultiheadAttention):
            attributes = ["in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"]
        else:
            continue
        for attribute in attributes:
            weight = _look(module, attribute)
            if not isinstance(weight, Tensor) or id(weight) in seen:
                continue
            if isinstance(weight, nn.Parameter):  # what a parametrisation computes has a new id at every look
                seen.add(id(weight))
            yield name, module, attribute


_computing = threading.Lock()


def _look(module: nn.Module, attribute: str) -> Any:
    """The attribute of a module, None where there is none, leaving the module as it is.

    A parametrised weight is computed at every look, and some parametrisations take a step while they train: spectral
    normalisation moves its vectors. So they are asked in evaluation mode, one thread at a time.
    """
    parts = getattr(module, "parametrizations", None)
    if parts is None or attribute not in parts:
        return getattr(module, attribute, None)
    with _computing, torch.no_grad():
        training = [part for part in parts[attribute].modules() if part.training]
        for part in training:
            part.training = False
        try:
            return getattr(module, attribute)
        finally:
            for part in training:
                part.training = True


def _classifiers(model: nn.Module) -> list[nn.Module] | None:
    """The heads that a timm model names itself; None for a model that does not say."""
    ask = getattr(model, "get_classifier", None)
    if not callable(ask):
        return None
    found = ask()
    return list(found) if isinstance(found, (tuple, list)) else [found]


def _first_convs(model: nn.Module) -> list[str]:
    """The stems that a timm model names itself."""
    config = getattr(model, "default_cfg", None)
    named = config.get("first_conv") if isinstance(config, dict) else None
    return [] if named is None else [named] if isinstance(named, str) else list(named)


def _of_module(model: nn.Module) -> WeightSource:
    found = [one for one in _weights(model) if not _unusable(_look(one[1], one[2]))]
    heads, stems = _classifiers(model), _first_convs(model)
    matrices, places = [], {}
    for i, (where, module, attribute) in enumerate(found):
        weight = _look(module, attribute)
        name = f"{where}.{attribute}" if where else attribute
        conv = isinstance(module, _Conv)
        groups = module.groups if isinstance(module, _Conv) else 1
        last = i == len(found) - 1
        head = is_head(name, conv, last) if heads is None else any(part is module for part in heads)
        stem = where in stems or is_stem(name, conv, first=i == 0)
        why = "" if isinstance(weight, nn.Parameter) else "computed by a parametrisation, not stored: nothing to mask"
        matrices.append(
            Matrix(
                name=name,
                shape=tuple(weight.shape),
                kind=type(module).__name__,
                role=role_of(name, conv, groups, head, stem),
                groups=groups,
                fused=is_fused(name, weight.shape[0]) and not _by_head(model, where),
                why=why,
            )
        )
        places[name] = (module, attribute)
    if not matrices:
        raise ModelError(f"{type(model).__name__} has no Linear or Conv2d weight; there is no spectrum to look at")

    def read(name: str) -> Tensor:
        module, attribute = places[name]
        return _look(module, attribute).detach()

    on_gpu = any(parameter.is_cuda for parameter in model.parameters())
    return WeightSource(type(model).__name__, tuple(matrices), _left_out(model, set(places)), read, on_gpu=on_gpu)


def _unusable(weight: Tensor) -> str:
    if isinstance(weight, (nn.UninitializedParameter, nn.UninitializedBuffer)):
        return "not initialised yet; send one batch through the model first"
    return why_no_matrix("weight", tuple(weight.shape), _type_of(weight))


def _by_head(model: nn.Module, where: str) -> bool:
    """True for attention whose rows are not q, k and v in thirds.

    MaxViT, TinyViT and EfficientFormer keep those of each head together, lambda layers have parts of unequal size, and
    global blocks of GCViT hold no queries at all.
    """
    attention = model.get_submodule(where.rpartition(".")[0])
    if any(getattr(attention, name, False) for name in ("head_first", "use_global")):
        return True
    return any(hasattr(attention, name) for name in ("key_dim", "val_dim", "dim_qk", "dim_v"))


def _left_out(model: nn.Module, taken: set[str]) -> dict[str, str]:
    """{name: why} of the parameters and buffers that are no matrices."""
    lookups = {
        f"{name}.weight" for name, part in model.named_modules() if isinstance(part, (nn.Embedding, nn.EmbeddingBag))
    }
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    turned = {f"{name}.weight": part for name, part in model.named_modules() if isinstance(part, _Turned)}
    owners = {id(tensor): name for name, tensor in tensors.items() if name in taken}
    skipped = {}
    for name, tensor in tensors.items():
        if name in taken:
            continue
        if id(tensor) in owners:
            skipped[name] = f"the same tensor as {owners[id(tensor)]}"
        elif name in turned:
            skipped[name] = _unusable(tensor) or _turn(turned[name])
        elif name in lookups:
            skipped[name] = "an embedding: rows are looked up, not multiplied"
        else:
            skipped[name] = _unusable(tensor) or why_no_matrix(name, tuple(tensor.shape), _type_of(tensor))
            skipped[name] = skipped[name] or "the weight of no Linear or convolution; pass {name: tensor} to see it"
    return skipped


def _turn(module: nn.Module) -> str:
    """How to see the weight of a transposed convolution, Float["in out/groups kernel…"]."""
    groups = int(getattr(module, "groups", 1))
    one = "weight" if groups == 1 else f"weight.chunk({groups})[i]"
    return f"a {type(module).__name__} stores inputs first; pass {{name: {one}.transpose(0, 1)}} to see it"


# --- state dicts and files ------------------------------------------------------------------------------------------


def _type_of(array: Any) -> str:
    return getattr(array.dtype, "name", str(array.dtype).removeprefix("torch."))


def _sorted_out(
    title: str, tensors: Mapping[str, tuple[tuple[int, ...], str]], ordered: bool
) -> tuple[tuple[Matrix, ...], dict[str, str]]:
    """The matrices among tensors of which (shape, number type) are known, and why the others are none."""
    skipped = {name: why for name, (shape, kind) in tensors.items() if (why := why_no_matrix(name, shape, kind))}
    found = by_names([(name, shape) for name, (shape, _) in tensors.items() if name not in skipped], ordered)
    # TinyViT and EfficientFormer keep q, k and v of each head together; a table beside the weight tells them
    tables = {name.rpartition(".")[0] for name in tensors if name.endswith(".attention_biases")}
    matrices = [replace(one, fused=one.fused and _parent(one.name) not in tables) for one in found]
    if not matrices:
        shown = "; ".join(f"{name}: {why}" for name, why in list(skipped.items())[:3]) or "it is empty"
        raise ModelError(f"{title} has no weight matrix ({shown}); there is no spectrum to look at")
    return tuple(matrices), skipped


def _parent(name: str) -> str:
    """The module that holds the module of a weight."""
    return name.removesuffix(".weight").rpartition(".")[0]


def _of_mapping(given: Mapping[str, Any]) -> WeightSource:
    for key in _NESTED:
        inside = given.get(key)
        if isinstance(inside, (Mapping, nn.Module)):
            return open_weights(inside)
    arrays = {str(name): value for name, value in given.items() if _is_array(value)}
    others = {
        str(name): f"a {type(value).__name__}, not a tensor" for name, value in given.items() if not _is_array(value)
    }
    shapes = {name: (tuple(array.shape), _type_of(array)) for name, array in arrays.items()}
    matrices, skipped = _sorted_out("the state dict", shapes, ordered=True)
    on_gpu = any(_on_gpu(arrays[one.name]) for one in matrices)
    return WeightSource(
        "the state dict", matrices, skipped | others, lambda name: as_tensor(arrays[name]), on_gpu=on_gpu
    )


def _on_gpu(array: Any) -> bool:
    return array.is_cuda if isinstance(array, Tensor) else not isinstance(array, np.ndarray)


def _is_array(value: object) -> bool:
    return isinstance(value, (Tensor, np.ndarray)) or type(value).__module__.partition(".")[0] == "cupy"


def as_tensor(array: Any) -> Tensor:
    """A torch, numpy or cupy array (or nested lists) as a detached tensor, over the same memory where possible."""
    if isinstance(array, Tensor):
        return array.detach()
    if _is_array(array) and not isinstance(array, np.ndarray):
        return torch.from_dlpack(array)  # cupy, which is imported only where such an array comes from
    array = np.asarray(array)
    if array.dtype.kind == "f" and (array.dtype.itemsize > 8 or not array.dtype.isnative):
        array = array.astype(np.float64)
    fits = array.flags.writeable and all(stride >= 0 for stride in array.strides)  # torch knows no other arrays
    return torch.from_numpy(array if fits else array.copy())


def _of_file(path: Path) -> WeightSource:
    file = TensorFile(path)
    prefix, ours = "", file.metadata.get("format") == FORMAT
    shapes = {name: (slot.shape, slot.dtype) for name, slot in file.slots.items()}
    others = {}
    if ours:  # written by mp.save: masks and permutations lie beside the weights
        prefix = "model/"
        others = {
            name: f"a {name.partition('/')[0]} of the checkpoint" for name in shapes if not name.startswith(prefix)
        }
        shapes = {name.removeprefix(prefix): one for name, one in shapes.items() if name not in others}
    matrices, skipped = _sorted_out(str(path), shapes, ordered=not _alphabetical(shapes))
    others |= file.broken
    return WeightSource(str(path), matrices, skipped | others, lambda name: file.read(prefix + name), in_memory=False)


def _alphabetical(shapes: Mapping[str, tuple[tuple[int, ...], str]]) -> bool:
    """True when names are sorted within each number type, as safetensors writes them: they tell of no order."""
    by_type: dict[str, list[str]] = {}
    for name, (_, kind) in shapes.items():
        by_type.setdefault(kind, []).append(name)
    return all(names == sorted(names) for names in by_type.values())


def read_matrix(source: WeightSource, name: str) -> Tensor:
    """The tensor of a matrix by name. Raises ModelError for one that is none."""
    names = [one.name for one in source.matrices]
    if name not in names:
        raise ModelError(f"unknown parameter '{name}' in {source.title}; {nearest(name, names)}")
    return source.read(name)
