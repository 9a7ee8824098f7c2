"""Checkpoints of a training under way: one safetensors file each, whole or not there, readable by `mp.load` too."""

from __future__ import annotations

import contextlib
import json
import math
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mpviz.errors import CheckpointError
from mpviz.files import replacing
from mpviz.nets.store import FORMAT, header_of

_KEPT = 2  # the newest may turn out damaged by the disk; the one before it is then still there
_PATTERN = "step-*.safetensors"


@dataclass(frozen=True)
class Progress:
    """Where a run stands: JSON data beside the tensors.

    step: optimiser steps done. identity: of the run (`plan.identity`). epochs: finished ones, a row each. partial: sums
    over the epoch under way. seconds: spent so far. scaler: state of the loss scaling of float16. log: rows on what
    else was done.
    """

    step: int
    identity: dict[str, Any]
    epochs: list[dict[str, Any]]
    partial: dict[str, float]
    seconds: float
    scaler: dict[str, Any] | None = None
    log: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was read: tensors by name, with the prefixes model/, mask/, optimizer/ and random/."""

    path: Path
    progress: Progress
    tensors: dict[str, Tensor]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors below a prefix."""
        return {key[len(prefix) :]: value for key, value in self.tensors.items() if key.startswith(prefix)}


def path_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"step-{step:08d}.safetensors"


def all_of(folder: Path) -> list[Path]:
    """The checkpoints of a folder, the newest last."""
    return sorted(folder.glob(_PATTERN))


def write(
    path: Path,
    model: nn.Module,
    masks: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    randomness: Mapping[str, Tensor],
    progress: Progress,
) -> None:
    """Write the checkpoint of a step and drop all but the newest two. Raises CheckpointError; then nothing changed."""
    tensors = {f"model/{k}": v.detach().cpu().clone().contiguous() for k, v in model.state_dict().items()}
    tensors |= {f"mask/{k}": _pack(v) for k, v in masks.items()}
    tensors |= {f"optimizer/{k}": v.detach().cpu().clone().contiguous() for k, v in optimizer.items()}
    tensors |= {f"random/{k}": v.contiguous() for k, v in randomness.items()}
    metadata = {"format": FORMAT, "mpviz": header_of(model), "recovery": json.dumps(asdict(progress))}
    try:
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata=metadata)
        for old in all_of(path.parent)[:-_KEPT]:
            old.unlink()
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write {path}: {error}; earlier checkpoints are as they were") from error


def newest(folder: Path) -> Saved | None:
    """The last checkpoint of a folder that is whole; None where there is none at all.

    Raises CheckpointError when there are checkpoints and none can be read.
    """
    problems = []
    for path in reversed(all_of(folder)):
        try:
            return read(path)
        except CheckpointError as error:
            problems.append(str(error))
    if problems:
        raise CheckpointError(f"no checkpoint in {folder} can be read: {problems[0]}; start in another folder")
    return None


def read(path: Path) -> Saved:
    """One checkpoint. Raises CheckpointError for a file that is damaged or not of a recovery."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return Saved(path, Progress(**json.loads(metadata["recovery"])), tensors)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is no whole checkpoint of a recovery ({error})") from error


def sweep(folder: Path) -> None:
    """Take away the half-written files that a killed process left; they were never checkpoints."""
    # the last are of the safetensors library, which writes to a name of its own first
    for pattern in (".step-*.part", ".metrics.csv.*.part", ".tmp??????"):
        for leftover in folder.glob(pattern):
            with contextlib.suppress(OSError):
                leftover.unlink()


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimiser's memory as {parameter name/key: tensor}, e.g. "head.weight/exp_avg"."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{names[id(parameter)]}/{key}": value
        for parameter, memory in optimizer.state.items()
        for key, value in memory.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Give an optimiser its memory back, on the devices of the parameters; AdamW's step counts stay on the CPU."""
    parameters = dict(model.named_parameters())
    for key, value in saved.items():
        name, _, kind = key.rpartition("/")
        if name not in parameters:
            raise CheckpointError(
                f"the checkpoint remembers {name}, which is no parameter of the student; start afresh"
            )
        device = torch.device("cpu") if kind == "step" else parameters[name].device
        optimizer.state[parameters[name]][kind] = value.clone().to(device)


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The global generators of Python, numpy, torch and the CUDA device, as tensors."""
    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    assert (version, kind) == (3, "MT19937")
    state = {
        "python": torch.tensor(numbers, dtype=torch.int64),
        "python_gauss": _optional(gauss),
        "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "numpy_rest": torch.tensor([position, has_gauss], dtype=torch.int64),
        "numpy_gauss": torch.tensor([cached], dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Set the global generators to what `random_state` gave."""
    gauss = float(state["python_gauss"][0])
    random.setstate((3, tuple(state["python"].tolist()), None if math.isnan(gauss) else gauss))
    position, has_gauss = state["numpy_rest"].tolist()
    keys = state["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, position, has_gauss, float(state["numpy_gauss"][0])))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def _optional(value: float | None) -> Tensor:
    return torch.tensor([math.nan if value is None else value], dtype=torch.float64)


def _pack(mask: Tensor) -> Tensor:
    """Eight entries a byte, as `mp.save` does."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy().reshape(-1)))
