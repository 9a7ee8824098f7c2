"""Eigenvalues of weight matrices: a Gram matrix of the smaller side and its values, one at a time or in batches."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mpviz.errors import SpectrumError, nearest
from mpviz.rmt.law import MarchenkoPastur

if TYPE_CHECKING:
    from threadpoolctl import threadpool_limits

PRECISIONS = ("float64", "fast")

_BLOCK = 64 * 2**20  # bytes of the long side that are raised to float64 at a time
_BATCH = 512 * 2**20  # bytes of work space for a batch of matrices on the CPU; on a GPU a share of what is free
_RANGE = 1e100  # float64 Gram entries beyond it, or below its inverse, are computed from scaled weights
_RANGE32 = 1e30
_LEAST = float(np.finfo(np.float64).tiny / np.finfo(np.float64).eps)  # below it float64 loses digits of a spectrum
_SQUARE = 1e-3  # λ₋ / λ₊ below which rounding in float32 (about 1e-6 λ₊) blurs the lower edge
_SPIKED = 1e4  # λ_max / λ₊ above which rounding in float32 reaches the bulk
_BROKEN = "the matrix has {} NaN or infinite entries; load the weights again or repair them"


@dataclass(frozen=True)
class Solved:
    """eigenvalues: Float64["matrices p"], each row ascending, of X = WᵀW / rows. engine: the arithmetic and why."""

    eigenvalues: np.ndarray
    engine: str


def solve(stack: Tensor, precision: str = "float64") -> Solved:
    """Spectra of the matrices Float["matrices rows cols"] of one layer, computed where they live.

    precision: "float64", or "fast": float32, unless the lower edge, the spikes or the range of the entries need more.
    Raises SpectrumError for weights that are not finite or of a kind that has no spectrum.
    """
    if precision not in PRECISIONS:
        raise SpectrumError(f"unknown precision '{precision}'; {nearest(str(precision), PRECISIONS)}")
    if stack.is_cuda or len(stack) > 1:
        return solve_batch([stack], precision)[0]
    values, engine = _solve_one(stack[0], precision)
    return Solved(values[None], engine + cast_note(stack.dtype, engine))


def real_stack(weight: Tensor) -> Tensor:
    """The tensor as plain numbers in memory. Raises SpectrumError for what has none, with the remedy."""
    if weight.is_meta:
        raise SpectrumError("the weights are on the meta device and have no values; load them first")
    if weight.is_complex():
        raise SpectrumError("complex weights have no Marchenko–Pastur fit here; give their real and imaginary parts")
    if weight.is_quantized:
        weight = weight.dequantize()
    return weight.to_dense() if weight.layout != torch.strided else weight


def cast_note(dtype: torch.dtype, engine: str) -> str:
    """What happened to weights that are stored in another number type than they are multiplied in."""
    name = str(dtype).removeprefix("torch.")
    if dtype in (torch.float32, torch.float64):
        return f", rounded from {name}" if engine.startswith("float32") and dtype == torch.float64 else ""
    return f", cast from {name}"


# --- one matrix on the CPU ------------------------------------------------------------------------------------------


def _solve_one(matrix: Tensor, precision: str) -> tuple[np.ndarray, str]:
    shape = (int(matrix.shape[0]), int(matrix.shape[1]))
    why = "" if precision == "float64" else needs_float64(shape)
    if precision == "fast" and not why:
        gram = _gram(matrix, np.float32)
        why = _outside(np.diagonal(gram), _RANGE32)
        if not why:
            values = _values(gram, shape[0])
            why = _guess_spiked(values, shape)
            if not why:
                return _without_noise(values, shape), "float32"
    gram, scale = _gram(matrix, np.float64), 1.0
    if _outside(np.diagonal(gram), _RANGE):
        scale = _scale(matrix)
        gram = _gram(matrix, np.float64, scale)
    return _unscaled(_values(gram, shape[0])[None], np.array([[scale]]))[0], f"float64{why}"


def _unscaled(values: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Eigenvalues of the matrices Float64["matrices p"] from those of W / scale, scales Float64["matrices 1"].

    Raises SpectrumError where they leave the range of float64, though the entries do not.
    """
    with np.errstate(over="ignore", under="ignore"):
        found = values * scales * scales
    largest, scaled = found.max(axis=1), values.max(axis=1)
    lost = (scaled > 0) & ~((largest > _LEAST) & (largest < math.inf))
    if lost.any():
        size = float(scales[int(np.argmax(lost)), 0])
        raise SpectrumError(
            f"the entries reach {size:.0e} and their squares leave the range of float64; "
            f"divide the weights by {size:.0e}"
        )
    return found


def _gram(matrix: Tensor, dtype: type, scale: float = 1.0) -> np.ndarray:
    """WᵀW or WWᵀ, whichever is smaller, of W / scale; the long side is raised to `dtype` block by block."""
    rows, cols = matrix.shape
    short, long, axis = (cols, rows, 0) if cols <= rows else (rows, cols, 1)
    step = max(_BLOCK // (8 * short), short // 4, 1)
    total: np.ndarray | None = None
    with np.errstate(all="ignore"):  # NaN and overflow are looked for afterwards
        for start in range(0, long, step):
            block = as_numpy(matrix.narrow(axis, start, min(step, long - start)), dtype)
            if scale != 1.0:
                block = block / scale
            # a product with its own transpose: NumPy computes one half and mirrors it
            part = block.T @ block if axis == 0 else block @ block.T
            total = part if total is None else np.add(total, part, out=total)
    assert total is not None
    return total


def as_numpy(block: Tensor, dtype: type | None = None) -> np.ndarray:
    """A CPU tensor as a contiguous array, without a copy where possible; types unknown to NumPy become float32."""
    known = block.dtype in (torch.float64, torch.float32, torch.float16) or not block.is_floating_point()
    return np.ascontiguousarray((block if known else block.float()).resolve_neg().numpy(), dtype=dtype)


def _values(gram: np.ndarray, rows: int) -> np.ndarray:
    try:
        # numpy's eigvalsh holds no interpreter lock and one OpenBLAS thread is enough at these sizes
        values = np.linalg.eigvalsh(gram)
    except np.linalg.LinAlgError as error:
        raise SpectrumError("the eigenvalues did not converge; check the weights of this layer") from error
    return np.clip(values.astype(np.float64), 0.0, None) / rows


def _scale(matrix: Tensor) -> float:
    """What to divide by so that squares stay in range. Raises SpectrumError for entries that are not finite."""
    bad, largest = 0, 0.0
    for block in matrix.split(max(1, _BLOCK // (8 * matrix.shape[1]))):
        numbers = block.double()
        bad += int((~torch.isfinite(numbers)).sum())
        largest = max(largest, float(numbers.abs().max()))
    if bad:
        raise SpectrumError(_BROKEN.format(bad))
    return largest or 1.0


# --- when float32 is enough -----------------------------------------------------------------------------------------


def needs_float64(shape: tuple[int, int]) -> str:
    """The reason in words when a matrix of this shape is too square for float32, else ""."""
    root = math.sqrt(min(shape) / max(shape))
    if ((1 - root) / (1 + root)) ** 2 < _SQUARE:
        return ": float32 would lose the lower edge of a matrix so close to square"
    return ""


def _outside(diagonal: Any, limit: float) -> str:
    """The reason in words when squares leave the range of the numbers, or are NaN; else ""."""
    largest = float(diagonal.max())
    return "" if 1 / limit < largest < limit else ": entries beyond the range of float32"


def too_spiked(largest: float, edge: float) -> str:
    """The reason in words when λ_max drowns a bulk of upper edge λ₊ in the rounding of float32, else ""."""
    ratio = largest / edge if edge > 0 else math.inf
    if math.isnan(edge) or ratio <= _SPIKED:
        return ""
    return f": the largest eigenvalue is {ratio:.0e} λ₊, float32 would lose the bulk"


def _guess_spiked(values: np.ndarray, shape: tuple[int, int]) -> str:
    """`too_spiked` with λ₊ from the median, before there is a fit."""
    aspect = min(shape) / max(shape)
    return too_spiked(float(values[-1]), float(np.median(values)) / _median(aspect) * (1 + math.sqrt(aspect)) ** 2)


@lru_cache(maxsize=256)
def _median(aspect: float) -> float:
    return float(MarchenkoPastur(aspect=aspect).ppf(np.array([0.5]))[0])


def _without_noise(values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Rounding of float32 where an exact calculation has zeros, set to zero: the fit counts what is above it."""
    limit = math.sqrt(max(shape)) * float(np.finfo(np.float32).eps) * values[-1]
    return np.where(values > limit, values, 0.0)


# --- many matrices of one shape -------------------------------------------------------------------------------------


def solve_batch(stacks: list[Tensor], precision: str = "float64") -> list[Solved]:
    """Spectra of several layers Float["matrices rows cols"] of one matrix shape, together in batches that fit memory.

    Runs on the device of the stacks, the same way on a GPU and on the CPU.
    Raises SpectrumError when any of them has weights that are not finite; alone it says which.
    """
    everything = torch.cat(stacks) if len(stacks) > 1 else stacks[0]
    count, rows, cols = everything.shape
    step = _batch_size(everything)
    values = np.empty((count, min(rows, cols)))
    words = [""] * count
    for start in range(0, count, step):
        part = slice(start, start + step)
        values[part], words[part] = _solve_some(everything[part], precision)
    solved, start = [], 0
    for stack in stacks:
        part = slice(start, start + len(stack))
        engine = "; ".join(dict.fromkeys(words[part]))
        solved.append(Solved(values[part], engine + cast_note(stack.dtype, engine)))
        start += len(stack)
    return solved


def _batch_size(stack: Tensor) -> int:
    _, rows, cols = stack.shape
    room = torch.cuda.mem_get_info(stack.device)[0] // 3 if stack.is_cuda else _BATCH
    return max(1, room // (8 * (2 * rows * cols + 4 * min(rows, cols) ** 2)))


def _solve_some(stack: Tensor, precision: str) -> tuple[np.ndarray, list[str]]:
    """Eigenvalues Float64["matrices p"] and the arithmetic used for each, of a batch that fits into memory."""
    shape = (int(stack.shape[1]), int(stack.shape[2]))
    why = "" if precision == "float64" else needs_float64(shape)
    if precision == "float64" or why:
        return _batch_values(stack, torch.float64), [f"float64{why}"] * len(stack)
    values, words = np.empty((len(stack), min(shape))), ["float32"] * len(stack)
    numbers = stack if stack.element_size() > 1 else stack.float()  # eight bits know no arithmetic
    with np.errstate(over="ignore", under="ignore"):
        sizes = numbers.abs().amax(dim=(1, 2)).double().cpu().numpy() ** 2 * max(shape)
    fine = (sizes < _RANGE32) & (sizes > 1 / _RANGE32)
    if fine.any():
        values[fine] = _batch_values(stack[torch.from_numpy(fine).to(stack.device)], torch.float32)
    for i in range(len(stack)):
        why = _guess_spiked(values[i], shape) if fine[i] else ": entries beyond the range of float32"
        if why:
            values[i], words[i] = _batch_values(stack[i : i + 1], torch.float64)[0], f"float64{why}"
        else:
            values[i] = _without_noise(values[i], shape)
    return values, words


def _batch_values(stack: Tensor, dtype: torch.dtype) -> np.ndarray:
    _, rows, cols = stack.shape
    work = stack.to(dtype)
    sizes = work.abs().amax(dim=(1, 2))
    bad = int((~torch.isfinite(work)).sum()) if not bool(torch.isfinite(sizes).all()) else 0
    if bad:
        raise SpectrumError(_BROKEN.format(bad))
    extreme = (sizes > math.sqrt(_RANGE)) | (sizes < 1 / math.sqrt(_RANGE))
    scales = torch.where(extreme & (sizes > 0) & (dtype == torch.float64), sizes, torch.ones_like(sizes))
    if bool((scales != 1).any()):
        work = work / scales[:, None, None]
    gram = work.mT @ work if cols <= rows else work @ work.mT
    try:
        values = torch.linalg.eigvalsh(gram)
    except torch.linalg.LinAlgError as error:
        raise SpectrumError("the eigenvalues did not converge; check the weights of this layer") from error
    scales64 = scales.double().cpu().numpy()[:, None]
    return _unscaled(np.clip(values.double().cpu().numpy(), 0.0, None) / rows, scales64)


# --- the null, and threads ------------------------------------------------------------------------------------------


def shuffle_entries(stack: Tensor, seed: int) -> Tensor:
    """The entries of each matrix Float["matrices rows cols"] in an order drawn by the seed, on the CPU."""
    flat = stack.detach().cpu().reshape(len(stack), -1).clone()
    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()]
    draws = np.random.default_rng(seed)
    for row in flat.view(kind).numpy():  # moved as integers: NumPy does not know every number type
        draws.shuffle(row)
    return flat.reshape(stack.shape)


_blas_lock = threading.Lock()
_blas_users = 0
_blas_limit: threadpool_limits | None = None


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """One BLAS thread for each thread of ours, while the block lasts.

    The limit belongs to the process: of analyses that overlap the first sets it and the last takes it back. Some
    builds of OpenBLAS follow it only when it is set from the main thread.
    """
    global _blas_users, _blas_limit
    from threadpoolctl import threadpool_limits

    with _blas_lock:
        if _blas_users == 0:
            _blas_limit = threadpool_limits(limits=1, user_api="blas")
        _blas_users += 1
    try:
        yield
    finally:
        with _blas_lock:
            _blas_users -= 1
            if _blas_users == 0 and _blas_limit is not None:
                _blas_limit.restore_original_limits()
                _blas_limit = None
