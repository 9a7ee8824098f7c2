"""Exact search of k:n masks as one CUDA kernel: a thread a cell, walking all patterns by swaps of one input.

In revolving-door order each pattern differs from the one before by one input that comes back and one that goes, so that
a step needs two inner products over the group instead of a whole quadratic form. All threads take the same swaps: the
set is the same in all of them, and branches on it cost nothing. CuPy is imported only when CUDA tensors arrive.
Source of the order: Nijenhuis & Wilf, Combinatorial Algorithms (1978).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpviz.nets.kn_pattern import KN

_THREADS = 128

SOURCE = r"""
// values [rows, groups, N], moment [groups, N, N], penalty [rows, groups, N], swaps [steps, 2]: input back, input gone.
// best [rows, groups]: bit i is set when input i goes.
extern "C" __global__ void best_patterns(
    const double* values, const double* moment, const double* penalty, const unsigned char* swaps, int steps,
    unsigned int first, int rows, int groups, unsigned int* best)
{
    __shared__ double c[N * N];
    int group = blockIdx.y;
    for (int i = threadIdx.x; i < N * N; i += blockDim.x)
        c[i] = moment[(size_t)group * N * N + i];
    __syncthreads();
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows)
        return;
    size_t cell = (size_t)row * groups + group;
    double u[N], d[N];
#pragma unroll
    for (int i = 0; i < N; ++i) {
        u[i] = values[cell * N + i];
        d[i] = penalty[cell * N + i];
    }
    unsigned int set = first, least = first;
    double cost = 0.0;
#pragma unroll
    for (int i = 0; i < N; ++i)
        if (set >> i & 1u) {
            double pull = 0.0;
#pragma unroll
            for (int j = 0; j < N; ++j)
                if (set >> j & 1u)
                    pull += c[i * N + j] * u[j];
            cost += u[i] * pull + d[i];
        }
    double lowest = cost;
    for (int step = 0; step < steps; ++step) {
        int back = swaps[2 * step], gone = swaps[2 * step + 1];
        set &= ~(1u << back);  // what stays removed through the swap
        double pull_back = 0.0, pull_gone = 0.0, u_back = 0.0, u_gone = 0.0, d_back = 0.0, d_gone = 0.0;
#pragma unroll
        for (int j = 0; j < N; ++j) {
            if (set >> j & 1u) {
                pull_back += c[back * N + j] * u[j];
                pull_gone += c[gone * N + j] * u[j];
            }
            if (j == back) { u_back = u[j]; d_back = d[j]; }
            if (j == gone) { u_gone = u[j]; d_gone = d[j]; }
        }
        cost -= u_back * (2.0 * pull_back + u_back * c[back * N + back]) + d_back;
        cost += u_gone * (2.0 * pull_gone + u_gone * c[gone * N + gone]) + d_gone;
        set |= 1u << gone;
        if (cost < lowest) {
            lowest = cost;
            least = set;
        }
    }
    best[cell] = least;
}
"""


@lru_cache(maxsize=8)
def revolving_door(n: int, size: int) -> np.ndarray:
    """Int["sets size"], all sets of `size` of n inputs; neighbours differ by one swap.

    Sets without the last input, then those with it, backwards.

    >>> revolving_door(4, 2).tolist()
    [[0, 1], [1, 2], [0, 2], [2, 3], [1, 3], [0, 3]]
    """
    if size == 0:
        return np.zeros((1, 0), dtype=np.int64)
    if size == n:
        return np.arange(n, dtype=np.int64)[None]
    without, others = revolving_door(n - 1, size), revolving_door(n - 1, size - 1)[::-1]
    return np.vstack([without, np.hstack([others, np.full((len(others), 1), n - 1, dtype=np.int64)])])


@lru_cache(maxsize=8)
def walk(n: int, removed: int) -> tuple[int, np.ndarray]:
    """The first set as bits, and UInt8["sets−1 2"]: which input comes back and which goes at each step."""
    sets = np.zeros((len(revolving_door(n, removed)), n), dtype=np.int8)
    np.put_along_axis(sets, revolving_door(n, removed), 1, axis=1)
    change = np.diff(sets, axis=0)
    swaps = np.stack([change.argmin(axis=1), change.argmax(axis=1)], axis=1).astype(np.uint8)
    return int(sum(1 << int(i) for i in np.flatnonzero(sets[0]))), swaps


def cupy_or_none() -> Any:
    """The module cupy, None where it is not installed."""
    try:
        import cupy
    except ImportError:
        return None
    return cupy


@lru_cache(maxsize=8)
def _kernel(n: int) -> Any:
    return cupy_or_none().RawModule(code=SOURCE, options=(f"-DN={n}",)).get_function("best_patterns")


def search_on_gpu(values: Tensor, moment: Tensor, penalty: Tensor | None, pattern: KN) -> Tensor:
    """Removed sets Bool["rows groups n"] of least cost, all on one CUDA device; needs cupy.

    values, penalty: Float["rows groups n"]; moment: Float64["groups n n"], with what settles ties (`kn.with_ties`).
    Tensors are handed over without a copy.
    """
    cupy = cupy_or_none()
    rows, groups, n = values.shape
    first, swaps = walk(n, pattern.removed)
    extra = torch.zeros_like(values, dtype=torch.float64) if penalty is None else penalty
    best = torch.empty(rows, groups, dtype=torch.int32, device=values.device)
    tensors = [one.to(values.device, torch.float64).contiguous() for one in (values, moment, extra)]
    with cupy.cuda.Device(values.device.index), cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream):
        arrays = [cupy.from_dlpack(one) for one in (*tensors, best)]
        sizes = (np.int32(len(swaps)), np.uint32(first), np.int32(rows), np.int32(groups))
        grid = (-(-rows // _THREADS), groups)
        _kernel(n)(grid, (_THREADS,), (*arrays[:3], cupy.asarray(swaps), *sizes, arrays[3]))
    return (best[..., None] >> torch.arange(n, device=values.device)) & 1 > 0
