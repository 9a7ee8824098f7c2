"""The CUDA kernel of the exact search: compiled by nvcc where there is one, run by a C++ compiler, and on a GPU."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mpviz.nets.kn_pattern import KN
from mpviz.prune.kn import search, with_ties
from mpviz.prune.kn_cuda import SOURCE, cupy_or_none, revolving_door, search_on_gpu, walk

# What a GPU would do, one block after the other; the threads of a block in turn, of which the first fills the shared
# memory alone and the barrier has nothing to wait for.
SHIM = r"""
#include <cstddef>
#define __global__
#define __shared__ static
struct Place { unsigned int x, y; };
static Place blockIdx, threadIdx, blockDim;
static void __syncthreads() {}
"""
RUN = r"""
extern "C" void run(const double* v, const double* m, const double* p, const unsigned char* s, int steps,
                    unsigned int first, int rows, int groups, unsigned int* best) {
    blockDim.x = 1;
    for (blockIdx.y = 0; blockIdx.y < (unsigned)groups; ++blockIdx.y)
        for (blockIdx.x = 0; blockIdx.x < (unsigned)rows; ++blockIdx.x)
            best_patterns(v, m, p, s, steps, first, rows, groups, best);
}
"""


def case(pattern: KN, rows: int, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Groups of very different power, and one that no input enters, where the larger values stay."""
    torch.manual_seed(pattern.n)
    factors = torch.randn(groups, pattern.n, 2 * pattern.n, dtype=torch.float64)
    values = torch.randn(rows, groups, pattern.n, dtype=torch.float64)
    power = torch.logspace(-12, 6, groups, dtype=torch.float64)
    penalty = torch.randn(rows, groups, pattern.n, dtype=torch.float64) * power[:, None]
    moment = factors @ factors.mT * power[:, None, None]
    moment[1], penalty[:, 1] = 0.0, 0.0
    return values, moment, penalty


@pytest.mark.parametrize(("n", "size"), [(4, 2), (5, 1), (8, 4), (16, 8), (16, 4), (12, 6), (3, 3)])
def test_the_walk_meets_every_set_once_and_swaps_one_input(n: int, size: int) -> None:
    first, swaps = walk(n, size)
    sets = [first]
    for back, gone in swaps.tolist():
        assert sets[-1] >> back & 1 and not sets[-1] >> gone & 1
        sets.append(sets[-1] & ~(1 << back) | 1 << gone)
    assert sorted(sets) == sorted(sum(1 << i for i in chosen) for chosen in combinations(range(n), size))
    assert len(revolving_door(n, size)) == len(sets)


def test_nvcc_compiles_the_kernel(tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if nvcc is None:
        pytest.skip("no nvcc")
    source = tmp_path / "kernel.cu"
    source.write_text(SOURCE)
    for n in (4, 16):
        command = [nvcc, "-ptx", f"-DN={n}", "-o", str(tmp_path / f"{n}.ptx"), str(source)]
        subprocess.run(command, check=True, capture_output=True)
        assert ".entry best_patterns" in (tmp_path / f"{n}.ptx").read_text()


@pytest.mark.parametrize("text", ["2:4", "4:8", "6:12", "8:16", "12:16"])
def test_the_kernel_finds_what_the_search_on_the_cpu_finds(text: str, tmp_path: Path) -> None:
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    pattern = KN.parse(text)
    source, library = tmp_path / "kernel.cpp", tmp_path / "kernel.so"
    source.write_text(SHIM + SOURCE + RUN)
    subprocess.run(
        [compiler, "-O2", "-shared", "-fPIC", f"-DN={pattern.n}", "-o", str(library), str(source)], check=True
    )
    values, moment, penalty = case(pattern, rows=17, groups=3)
    first, swaps = walk(pattern.n, pattern.removed)
    best = np.zeros((17, 3), dtype=np.uint32)
    arrays = [values.numpy(), with_ties(moment).numpy(), penalty.numpy(), np.ascontiguousarray(swaps)]
    pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in (*arrays, best)]
    run = ctypes.CDLL(str(library)).run
    run(*pointers[:4], len(swaps), ctypes.c_uint(first), 17, 3, pointers[4])
    gone = torch.from_numpy((best[..., None] >> np.arange(pattern.n)) & 1) > 0
    assert torch.equal(~gone, search(values, moment, pattern, penalty, threads=1).masks)


@pytest.mark.gpu
@pytest.mark.parametrize("text", ["2:4", "4:8", "8:16", "12:16"])
def test_a_gpu_finds_what_the_cpu_finds(text: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    pattern = KN.parse(text)
    values, moment, penalty = case(pattern, rows=300, groups=40)
    expected = search(values, moment, pattern, penalty)
    found = search(values.cuda(), moment.cuda(), pattern, penalty.cuda(), engine="torch")
    assert torch.equal(found.masks.cpu(), expected.masks)
    torch.testing.assert_close(found.cost.cpu(), expected.cost, rtol=1e-9, atol=1e-24)
    if cupy_or_none() is not None:
        gone = search_on_gpu(values.cuda(), with_ties(moment).cuda(), penalty.cuda(), pattern)
        assert torch.equal(~gone.cpu(), expected.masks)
