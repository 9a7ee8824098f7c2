"""What the analysis of a large half-precision layer takes beside its weights."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mpviz.nets import analysis, engine


class Largest(TorchDispatchMode):
    """Notes the largest tensor that an operation makes in memory of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        given = {one.untyped_storage().data_ptr() for one in arguments if isinstance(one, torch.Tensor)}
        if isinstance(result, torch.Tensor) and result.untyped_storage().data_ptr() not in given:
            self.size = max(self.size, result.untyped_storage().nbytes())
        return result


def peak(work: Callable[[], object]) -> int:
    """Bytes that NumPy holds at most, and the largest tensor that torch makes."""
    tracemalloc.start()
    try:
        with Largest() as torches:
            work()
        return tracemalloc.get_traced_memory()[1] + torches.size
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float32])
@pytest.mark.parametrize("shape", [(16384, 512), (512, 16384)])
def test_statistics_take_little_beside_the_gram_matrix(kind, shape):
    stack = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0)).to(kind)
    gram = peak(lambda: engine.solve(stack))
    assert peak(lambda: analysis._entries(stack)) < 0.3 * gram


def test_the_counter_sees_a_whole_conversion():
    stack = torch.ones(1, 256, 256, dtype=torch.bfloat16)
    assert peak(lambda: stack.float()) >= 256 * 256 * 4


def test_extreme_entries_are_measured_in_blocks():
    matrix = torch.full((2**15, 1024), 1e-160, dtype=torch.float64)
    with Largest() as torches:
        assert engine._scale(matrix) == 1e-160
    assert torches.size < matrix.nbytes / 2
