"""Going through the layers of a network: what is known already, what has to be computed, and where."""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from mpviz.errors import Cancelled, CheckpointError, ModelError, SpectrumError
from mpviz.nets import cache
from mpviz.nets.cache import Measured
from mpviz.nets.engine import (
    Solved,
    as_numpy,
    cast_note,
    real_stack,
    shuffle_entries,
    single_threaded_blas,
    solve,
    solve_batch,
)
from mpviz.nets.layer_spectrum import FitArguments, LayerSpectrum, depthwise, failed, layer_of, named, spiked
from mpviz.nets.layers import LayerInfo, part_of
from mpviz.nets.weights import WeightSource
from mpviz.rmt.entries import EntryStats, entry_stats_of

Progress = Callable[[float, str], None]
Stop = Callable[[], bool]

_ROOM = 2**30  # bytes that layers in work may take together; a larger one runs alone
_QUEUE = 2**31  # bytes of weights that wait for their batch on a device
_FAILURES = (SpectrumError, CheckpointError, OSError, MemoryError, torch.OutOfMemoryError)


@dataclass(frozen=True)
class Plan:
    """How layers are analysed. precision: see `solve`. device: where to move weights, None for where they are."""

    source: WeightSource
    arguments: FitArguments
    precision: str = "float64"
    device: str | None = None
    cache: bool = True
    cancelled: Stop | None = None


@dataclass(frozen=True)
class _Work:
    """A layer to compute. stack: Float["groups rows cols"]; content: its key, "" without a cache; found: on disk."""

    info: LayerInfo
    stack: Tensor
    content: str
    found: Measured | None


def run(plan: Plan, infos: Sequence[LayerInfo], progress: Progress | None = None) -> dict[str, LayerSpectrum]:
    """Every layer, keyed by name and in order; those that fail keep their row with the reason.

    On the CPU layers run side by side, one thread each; on a GPU those of one shape run in one batch.
    Raises Cancelled when asked to stop, ModelError for a device that is not there.
    """
    found: dict[str, LayerSpectrum] = {}
    go = _on_device if _wants_device(plan) else _side_by_side
    with single_threaded_blas():
        for layer in go(plan, infos):
            found[layer.info.name] = layer
            if progress is not None:
                progress(len(found) / len(infos), layer.info.name)
    return {info.name: found[info.name] for info in infos}


def _wants_device(plan: Plan) -> bool:
    if plan.device is None:
        return plan.source.on_gpu
    try:
        kind = torch.device(plan.device).type
    except RuntimeError as error:
        raise ModelError(f"no device is called '{plan.device}'; use 'cuda' or 'cpu'") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ModelError("there is no CUDA device here; leave device out to compute on the CPU")
    return kind == "cuda"


# --- on the CPU -----------------------------------------------------------------------------------------------------


def _side_by_side(plan: Plan, infos: Sequence[LayerInfo]) -> Iterator[LayerSpectrum]:
    gate = _Gate(_ROOM)

    def work(info: LayerInfo) -> LayerSpectrum:
        with gate.room_for(_needs(plan, info)):
            try:
                prepared = _prepare(plan, info)
                return prepared if isinstance(prepared, LayerSpectrum) else _finish(plan, prepared, None)
            except _FAILURES as error:
                return failed(info, _words(error))

    # the largest first, so that no thread is left alone with the longest
    order = sorted(infos, key=lambda info: -info.params * min(info.matrix))
    with ThreadPoolExecutor(_threads()) as pool:
        jobs = [pool.submit(work, info) for info in order]
        yield from _results(jobs)


def _results(jobs: Sequence[Future[LayerSpectrum]]) -> Iterator[LayerSpectrum]:
    """Results as they come; after an error those that have not begun never do."""
    try:
        for job in as_completed(jobs):
            yield job.result()
    finally:
        for job in jobs:
            job.cancel()


def _threads() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # fewer than the machine has, in a container
    return max(1, len(affinity(0)) if affinity is not None else os.cpu_count() or 1)


def _needs(plan: Plan, info: LayerInfo) -> int:
    """Bytes that the analysis of a layer takes, about: its Gram matrix three times and, from a file, its weights."""
    return 24 * info.groups * min(info.matrix) ** 2 + (0 if plan.source.in_memory else 8 * info.params)


class _Gate:
    """Lets layers work together while there is room for them; one that is larger than the room works alone."""

    def __init__(self, room: int) -> None:
        self._room, self._taken = room, 0
        self._change = threading.Condition()

    @contextmanager
    def room_for(self, size: int) -> Iterator[None]:
        with self._change:
            self._change.wait_for(lambda: self._taken == 0 or self._taken + size <= self._room)
            self._taken += size
        try:
            yield
        finally:
            with self._change:
                self._taken -= size
                self._change.notify_all()


# --- on a device ----------------------------------------------------------------------------------------------------


def _on_device(plan: Plan, infos: Sequence[LayerInfo]) -> Iterator[LayerSpectrum]:
    """Read in order, solve in batches of one shape, fit on the CPU meanwhile."""
    waiting: dict[tuple[int, ...], list[_Work]] = defaultdict(list)
    size = 0
    with ThreadPoolExecutor(_threads()) as pool:
        jobs: list[Future[LayerSpectrum]] = []

        def flush() -> None:
            for works in waiting.values():
                jobs.extend(pool.submit(_finish_safely, plan, *one) for one in _solved(plan, works))
            waiting.clear()

        for info in infos:
            try:
                prepared = _prepare(plan, info)
            except _FAILURES as error:
                yield failed(info, _words(error))
                continue
            if isinstance(prepared, LayerSpectrum):
                yield prepared
                continue
            if prepared.found is not None:
                jobs.append(pool.submit(_finish_safely, plan, prepared, None))
                continue
            waiting[tuple(prepared.stack.shape[1:])].append(prepared)
            size += prepared.stack.nbytes
            if size > _QUEUE:
                flush()
                size = 0
        flush()
        yield from _results(jobs)


def _solved(plan: Plan, works: list[_Work]) -> Iterator[tuple[_Work, Solved | str]]:
    """Layers of one matrix shape with their eigenvalues; when the batch fails, each alone, with its own words."""
    try:
        yield from zip(works, solve_batch([work.stack for work in works], plan.precision), strict=True)
    except (SpectrumError, torch.OutOfMemoryError):
        for work in works:
            _stop(plan)
            try:
                yield work, solve(work.stack, plan.precision)
            except _FAILURES as error:
                yield work, _words(error)


def _finish_safely(plan: Plan, work: _Work, solved: Solved | str | None) -> LayerSpectrum:
    try:
        return failed(work.info, solved) if isinstance(solved, str) else _finish(plan, work, solved)
    except _FAILURES as error:
        return failed(work.info, _words(error))


# --- one layer ------------------------------------------------------------------------------------------------------


def _stop(plan: Plan) -> None:
    if plan.cancelled is not None and plan.cancelled():
        raise Cancelled("the analysis was cancelled")


def _words(error: BaseException) -> str:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return "not enough memory for its Gram matrix; free some, or leave the layer out"
    return str(error)


def _prepare(plan: Plan, info: LayerInfo) -> LayerSpectrum | _Work:
    """The layer's weights and what is known of them, or at once its result when there is nothing to compute."""
    _stop(plan)
    if info.rows == info.groups > 1:
        return depthwise(info)
    stack = part_of(real_stack(plan.source.read(info.parameter)), info)
    if not (stack.is_cuda or stack.device.type == "cpu"):
        stack = stack.cpu()
    content, found = "", None
    if plan.cache:
        content = cache.content_key(stack)
        known = cache.memory.get(_key(plan, content))
        if known is not None:
            return named(known, info, "found in memory")
        found = _on_disk(plan, content, stack, None)
    return _Work(info, stack if plan.device is None else stack.to(plan.device), content, found)


def _key(plan: Plan, content: str) -> tuple[str, str, FitArguments]:
    return content, plan.precision, plan.arguments


def _on_disk(plan: Plan, content: str, stack: Tensor, seed: int | None) -> Measured | None:
    groups, rows, cols = stack.shape
    return cache.load(cache.measured_key(content, plan.precision, seed), (groups, min(rows, cols)))


def _finish(plan: Plan, work: _Work, solved: Solved | None) -> LayerSpectrum:
    """All numbers of a layer. solved: its eigenvalues when a batch found them."""
    found, why, null, new = work.found, "found on disk", None, dict[int | None, Measured]()
    if found is None:
        why, solved = "computed", solved or solve(work.stack, plan.precision)
        found = new[None] = Measured(solved.eigenvalues, solved.engine, _entries(work.stack))
    seed = plan.arguments.shuffled
    if seed is not None:
        null = _on_disk(plan, work.content, work.stack, seed) if work.content else None
        null = null or new.setdefault(seed, _null(plan, work, seed))
    layer = layer_of(work.info, found, null, plan.arguments)
    ratio = spiked(layer) if found.engine.startswith("float32") else ""
    if ratio:  # the fit finds a bulk below what its median had promised
        engine = f"float64{ratio}{cast_note(work.stack.dtype, 'float64')}"
        found, why = replace(found, eigenvalues=solve(work.stack).eigenvalues, engine=engine), "computed"
        new[None] = found
        layer = layer_of(work.info, found, null, plan.arguments)
    if _unchanged(work):
        for order, measured in new.items():
            cache.store(cache.measured_key(work.content, plan.precision, order), measured)
        size = found.eigenvalues.nbytes * (2 if null is None else 4)
        cache.memory.put(_key(plan, work.content), layer, size)
    return named(layer, work.info, why)


def _null(plan: Plan, work: _Work, seed: int) -> Measured:
    """Eigenvalues of the shuffled entries."""
    solved = solve(shuffle_entries(work.stack, seed).to(work.stack.device), plan.precision)
    return Measured(solved.eigenvalues, solved.engine)


def _unchanged(work: _Work) -> bool:
    """Whether the weights are still those that were hashed: a training beside the analysis may have moved them."""
    return bool(work.content) and cache.content_key(work.stack) == work.content


def _entries(stack: Tensor) -> tuple[EntryStats | None, ...]:
    """Statistics of the entries of each matrix; numbers that NumPy does not know are converted block by block."""
    found: list[EntryStats | None] = []
    for matrix in stack.cpu():
        try:
            found.append(entry_stats_of(partial(_rows, matrix), (int(matrix.shape[0]), int(matrix.shape[1]))))
        except SpectrumError:  # all zero; what is not finite has failed before
            found.append(None)
    return tuple(found)


def _rows(matrix: Tensor, first: int, stop: int) -> np.ndarray:
    return as_numpy(matrix[first:stop])
