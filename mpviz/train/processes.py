"""One process or many: Hugging Face accelerate, opened for one run and left as it was found."""

from __future__ import annotations

import contextlib
import copy
import os
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from mpviz.errors import Cancelled, TrainingError

_ONE_AT_A_TIME = threading.Lock()


def choose_device(device: str | torch.device | None) -> tuple[torch.device, str]:
    """The device of a run and why it is that one.

    Raises TrainingError for a name that torch does not know, or "cuda" where there is none.
    """
    if device is None:
        if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"):
            return torch.device("cpu"), "CPU: the launcher asked for it"
        if torch.cuda.is_available():
            return torch.device("cuda"), f"GPU: {torch.cuda.get_device_name()} was found"
        return torch.device("cpu"), "CPU: torch sees no CUDA device"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise TrainingError(f"no device is called '{device}'; use 'cuda', 'cpu' or None") from error
    if chosen.type not in ("cpu", "cuda"):
        raise TrainingError(f"recovery runs on 'cuda' or 'cpu', not on '{device}'")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise TrainingError(
            f"device '{device}' was asked for, and torch sees {torch.cuda.device_count()} CUDA devices; "
            "use device=None, which takes what there is"
        )
    return chosen, f"{'GPU' if chosen.type == 'cuda' else 'CPU'}: asked for"


@contextlib.contextmanager
def open_accelerator(device: torch.device, precision: str, cancelled: Callable[[], bool] | None) -> Iterator[Any]:
    """An ``accelerate.Accelerator`` for this process and those that were launched with it.

    Accelerate keeps its state, and torch its generators, once per process: runs of several threads take turns, and
    afterwards both are as they were. Raises TrainingError when accelerate is missing or cannot do what is asked,
    Cancelled while waiting for another run.
    """
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState, GradientState, PartialState
    except ImportError as error:
        raise TrainingError("recovery needs Hugging Face accelerate: pip install mpviz[train]") from error
    if precision == "fp16" and device.type == "cpu":
        raise TrainingError("float16 training needs a GPU; use precision='bf16' or 'no'")
    with _turn(cancelled), randomness_kept(), _current(device):
        kept = [(state, dict(state._shared_state)) for state in (AcceleratorState, PartialState, GradientState)]
        GradientState._reset_state()
        AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
        try:
            try:
                accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=precision)
            except (ValueError, RuntimeError, OSError) as error:
                raise TrainingError(f"accelerate cannot start on '{device}' with {precision}: {error}") from error
            accelerator.gradient_accumulation_steps = 1  # micro-batches are weighed here; its launcher may say another
            yield accelerator
            accelerator.free_memory()
        finally:
            if not torch.distributed.is_initialized():
                for state, content in kept:
                    state._shared_state.clear()
                    state._shared_state.update(content)


def launched() -> tuple[int, int]:
    """The number of this process among those that were launched together, and how many they are."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    return (int(os.environ.get("RANK", "0")) if world > 1 else 0), world


def all_there() -> None:
    """Wait until all processes that train together have come here."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def seed_everything(seed: int, rank: int) -> None:
    """Set the global generators; each process has its own, for dropout and its kin."""
    number = int(np.random.SeedSequence([seed, rank]).generate_state(1)[0])
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


@contextlib.contextmanager
def _turn(cancelled: Callable[[], bool] | None) -> Iterator[None]:
    while not _ONE_AT_A_TIME.acquire(timeout=0.2):
        if cancelled is not None and cancelled():
            raise Cancelled("the recovery was cancelled before its turn came")
    try:
        yield
    finally:
        _ONE_AT_A_TIME.release()


@contextlib.contextmanager
def randomness_kept() -> Iterator[None]:
    """Inside, the global generators of Python, numpy and torch may be used; afterwards they are as they were."""
    python, arrays = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)


def placed(network: nn.Module, device: torch.device) -> nn.Module:
    """The network on the device: itself where it is there already, else a copy, so that its owner's stays."""
    tensors = [*network.parameters(), *network.buffers()]
    return network if all(one.device == device for one in tensors) else copy.deepcopy(network).to(device)


def _current(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Make cuda:2 the current device; without a number the launcher decides."""
    if device.type == "cuda" and device.index is not None:
        return torch.cuda.device(device)
    return contextlib.nullcontext()
