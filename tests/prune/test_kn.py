"""The search of k:n masks against brute force, in bounded memory, on any number of threads."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import Tensor

from mpviz.errors import Cancelled, PatternError
from mpviz.nets.kn_pattern import KN
from mpviz.prune.kn import MEMORY, Found, search
from mpviz.prune.kn_local import _grow, _shrink, local_search, removal_cost, smallest_diagonal, swapped
from mpviz.prune.pattern import check_legal, layout

PATTERNS = ("1:2", "2:4", "1:4", "4:8", "6:12", "8:16", "12:16", "3:5", "7:9")


def case(pattern: KN, rows: int = 50, groups: int = 20, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Values, covariances of strongly correlated inputs, and penalties of both signs."""
    draw = torch.Generator().manual_seed(seed)
    n = pattern.n
    factors = torch.randn(groups, n, 2 * n, generator=draw, dtype=torch.float64)
    factors += 2 * torch.randn(groups, n, 1, generator=draw, dtype=torch.float64)
    values = torch.randn(rows, groups, n, generator=draw)
    penalty = 0.3 * torch.randn(rows, groups, n, generator=draw)
    return values, factors @ factors.mT / (2 * n), penalty


def brute_force(values: Tensor, covariance: Tensor, pattern: KN, penalty: Tensor | None) -> Tensor:
    """The least cost of each cell, every pattern's removed part multiplied out."""
    gone = (~pattern.masks()).double()
    best = torch.empty(values.shape[:2], dtype=torch.float64)
    for row in range(len(values)):
        for group in range(values.shape[1]):
            r = gone * values[row, group]
            cost = (r @ covariance[group] * r).sum(dim=1)
            best[row, group] = (cost if penalty is None else cost + gone @ penalty[row, group].double()).min()
    return best


def objective(found: Found, penalty: Tensor | None) -> Tensor:
    return found.cost if penalty is None else found.cost + (~found.masks * penalty.double()).sum(dim=2)


@pytest.mark.parametrize("text", PATTERNS)
@pytest.mark.parametrize("with_penalty", [False, True])
def test_no_pattern_costs_less_in_a_thousand_cells(text: str, with_penalty: bool) -> None:
    pattern = KN.parse(text)
    values, covariance, penalty = case(pattern)
    extra = penalty if with_penalty else None
    found = search(values, covariance, pattern, extra, threads=1)
    assert found.exact and bool((found.masks.sum(dim=2) == pattern.k).all())
    best = brute_force(values, covariance, pattern, extra)
    torch.testing.assert_close(objective(found, extra), best, rtol=1e-9, atol=1e-9)
    # the cost that is told is that of the mask that is given
    r = (~found.masks * values).double()
    torch.testing.assert_close(found.cost, torch.einsum("rgi,gij,rgj->rg", r, covariance, r), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("text", ["4:8", "8:16"])
def test_chunks_and_threads_change_nothing(text: str) -> None:
    pattern = KN.parse(text)
    values, covariance, penalty = case(pattern, rows=37, groups=9)
    whole = search(values, covariance, pattern, penalty, threads=1)
    for options in ({"memory": 2**16}, {"threads": 3}, {"threads": 2, "memory": 2**20}):
        again = search(values, covariance, pattern, penalty, **options)
        assert torch.equal(again.masks, whole.masks) and torch.equal(again.cost, whole.cost)


@pytest.mark.parametrize("text", ["2:4", "4:8", "8:16"])
def test_the_preview_is_near_and_never_below_the_optimum(text: str) -> None:
    pattern = KN.parse(text)
    values, covariance, penalty = case(pattern, rows=10)
    found = search(values, covariance, pattern, penalty, method="local", threads=1)
    best = brute_force(values, covariance, pattern, penalty)
    assert not found.exact and bool((found.masks.sum(dim=2) == pattern.k).all())
    gap = objective(found, penalty) - best
    assert bool((gap > -1e-9).all())
    spread = covariance.diagonal(dim1=1, dim2=2).sum(dim=1).mean()
    assert float(gap.mean()) < 0.01 * float(spread)


def test_groups_of_32_are_searched_by_swaps_and_no_swap_helps() -> None:
    pattern = KN(16, 32)
    values, covariance, _ = case(pattern, rows=6, groups=4)
    found = search(values, covariance, pattern, threads=1)
    assert not found.exact and bool((found.masks.sum(dim=2) == 16).all())
    for row in range(6):
        for group in range(4):
            mask = found.masks[row, group]
            for out in mask.nonzero().flatten().tolist():
                for back in (~mask).nonzero().flatten().tolist():
                    other = mask.clone()
                    other[out], other[back] = False, True
                    r = (~other * values[row, group]).double()
                    assert float(r @ covariance[group] @ r) >= float(found.cost[row, group]) - 1e-9


def test_ties_keep_larger_weights_then_earlier_inputs() -> None:
    values = torch.tensor([[[1.0, 3.0, 2.0, 0.5]], [[1.0, 1.0, 1.0, 1.0]]])
    dead = torch.zeros(1, 4, 4, dtype=torch.float64)
    alive = torch.eye(4, dtype=torch.float64)[None]
    both = search(torch.cat([values, values], dim=1), torch.cat([dead, alive]), KN(2, 4)).masks
    assert both[0, 0].tolist() == [False, True, True, False]  # no input ever comes: the smaller weights go
    assert both[1, 1].tolist() == [True, True, False, False]


@pytest.mark.parametrize("with_penalty", [False, True])
@pytest.mark.parametrize("text", ["2:4", "4:8", "8:16"])
def test_groups_whose_inputs_differ_a_lot_in_power_are_all_searched_exactly(text: str, with_penalty: bool) -> None:
    pattern = KN.parse(text)
    values, covariance, penalty = case(pattern, rows=8, groups=7)
    power = torch.logspace(-12, 6, 7, dtype=torch.float64)
    covariance = covariance * power[:, None, None]
    extra = (penalty * power[:, None]).double() if with_penalty else None
    found = search(values, covariance, pattern, extra, threads=1)
    best = brute_force(values, covariance, pattern, extra)
    torch.testing.assert_close(objective(found, extra) / power, best / power, rtol=1e-9, atol=1e-10)
    r = (~found.masks * values).double()
    cost = torch.einsum("rgi,gij,rgj->rg", r, covariance, r)
    torch.testing.assert_close(found.cost / power, cost / power, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("text", PATTERNS)
@pytest.mark.parametrize("method", ["exact", "local"])
def test_without_any_input_the_largest_values_stay(text: str, method: str) -> None:
    pattern = KN.parse(text)
    values, covariance, _ = case(pattern, rows=9, groups=4)
    found = search(values, torch.zeros_like(covariance), pattern, method=method, threads=1)
    largest = torch.zeros_like(found.masks).scatter_(2, values.abs().topk(pattern.k, dim=2).indices, True)
    assert torch.equal(found.masks, largest) and not bool(found.cost.any())
    # a dead group beside living ones too
    covariance[1] = 0.0
    assert torch.equal(search(values, covariance, pattern, method=method, threads=1).masks[:, 1], largest[:, 1])


@pytest.mark.parametrize("text", ["2:4", "4:8", "8:16"])
@pytest.mark.parametrize("method", ["exact", "local"])
def test_the_cost_that_is_told_holds_nothing_but_the_covariance(text: str, method: str) -> None:
    """Of inputs that are multiples of one another: what goes may cancel, and hardly anything is left to tell."""
    pattern = KN.parse(text)
    draw = torch.Generator().manual_seed(3)
    values = torch.randn(40, 6, pattern.n, generator=draw, dtype=torch.float64)
    h = torch.randn(6, pattern.n, generator=draw, dtype=torch.float64)
    values[:, :, 1] = -values[:, :, 0] * h[:, 0] / h[:, 1] * (1 + 1e-5)
    found = search(values, h[:, :, None] * h[:, None, :], pattern, method=method, threads=1)
    cost = (~found.masks * values * h).sum(dim=2).square()
    torch.testing.assert_close(found.cost, cost, rtol=1e-4, atol=1e-14)
    assert float(cost.median()) < 1e-3 * float(values.square().mean())


def test_what_is_kept_can_make_up_for_what_goes() -> None:
    """Two removed inputs that cancel cost nothing, though each alone is dear: magnitudes would not see it."""
    covariance = torch.full((1, 4, 4), 4.0, dtype=torch.float64) + 0.1 * torch.eye(4, dtype=torch.float64)
    values = torch.tensor([[[3.0, -3.0, 1.0, 1.5]]])
    assert search(values, covariance, KN(2, 4)).masks[0, 0].tolist() == [False, False, True, True]


def test_the_best_of_three_starts_is_taken() -> None:
    values, covariance, _ = case(KN(8, 16), rows=40, groups=20, seed=2)
    v = values.transpose(0, 1).double()
    q = (v[..., :, None] * v[..., None, :] * covariance[:, None]).reshape(-1, 16, 16)
    costs = torch.stack([removal_cost(q, swapped(q, start)) for start in (smallest_diagonal(q, 8), _grow(q, 8),
                                                                          _shrink(q, 8))])  # fmt: skip
    torch.testing.assert_close(removal_cost(q, local_search(q, 8)), costs.amin(dim=0))
    for i in range(3):  # none of them can be left out
        others = costs[[j for j in range(3) if j != i]].amin(dim=0)
        assert int((costs[i] < 0.999 * others).sum()) > 0


@pytest.mark.parametrize(("text", "memory"), [("4:8", 2**18), ("8:16", 2**21)])
def test_all_threads_together_keep_to_the_memory(text: str, memory: int) -> None:
    """Each thread works on a chunk of its own, so that chunks get smaller as threads get more."""
    pattern = KN.parse(text)
    values, covariance, _ = case(pattern, rows=256, groups=1)
    chunks = {}
    for threads in (1, 4):
        asked: list[int] = []
        count = partial(asked.append, 1)  # which is None: go on
        search(values, covariance, pattern, threads=threads, memory=memory, cancelled=count)  # type: ignore[arg-type]
        chunks[threads] = len(asked)
    assert chunks[1] > 1 and chunks[4] >= 3 * chunks[1]
    assert MEMORY < 500e6


def test_memory_stays_near_what_was_asked_for() -> None:
    """All costs of these cells at once would take 1.7 GB; the process may grow by a tenth of that."""
    code = """
import resource, torch
from mpviz.nets.kn_pattern import KN
from mpviz.prune.kn import search
torch.manual_seed(0)
values, factors = torch.randn(256, 64, 16), torch.randn(64, 16, 32, dtype=torch.float64)
covariance = factors @ factors.mT
search(values[:8], covariance, KN(8, 16), threads=1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
search(values, covariance, KN(8, 16), memory=2**26, threads=1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    grown = int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert grown < 170_000  # KiB


def test_what_is_refused() -> None:
    pattern = KN(2, 4)
    values, covariance, penalty = case(pattern, 3, 2)
    with pytest.raises(PatternError, match=r"takes values \(rows, groups, 4\)"):
        search(values[..., :3], covariance, pattern)
    with pytest.raises(PatternError, match="covariances hold NaN"):
        search(values, covariance * torch.nan, pattern)
    with pytest.raises(PatternError, match="the values hold NaN"):
        search(values / 0, covariance, pattern)
    with pytest.raises(PatternError, match="the penalty has shape"):
        search(values, covariance, pattern, penalty[:1])
    with pytest.raises(PatternError, match="did you mean 'exact'"):
        search(values, covariance, pattern, method="exakt")
    with pytest.raises(PatternError, match="engine 'cupy' needs tensors on a GPU"):
        search(values, covariance, pattern, engine="cupy")
    with pytest.raises(PatternError, match="did you mean 'torch'"):
        search(values, covariance, pattern, engine="torche")
    with pytest.raises(Cancelled):
        search(values, covariance, pattern, cancelled=lambda: True)
    for text in ("3:2", "0:4", "2-4", "two:4", "8:64", ""):
        with pytest.raises(PatternError):
            KN.parse(text)


def test_a_layout_gives_each_weight_one_place_and_takes_it_back() -> None:
    weight = torch.arange(2 * 8 * 3 * 3).float().reshape(2, 8, 3, 3)
    order = torch.randperm(8)
    for conv, width, given in (("flattened", 72, None), ("native", 8, order)):
        where = layout("w", (2, 8, 3, 3), KN(2, 4), conv, given)
        assert where.columns.numel() == 72 and width % 4 == 0
        assert torch.equal(where.weight(where.cells(weight)), weight)
    native = layout("w", (2, 8, 3, 3), KN(2, 4), "native", order).cells(weight)
    # groups go through the channels in the new order, pixel by pixel of the kernel
    assert torch.equal(native[0].reshape(9, 8), weight[0].flatten(1)[order].T)


def test_legality_is_told_with_its_order_and_the_number_of_broken_groups() -> None:
    where = layout("w", (4, 8), KN(2, 4), order=torch.tensor([0, 2, 4, 6, 1, 3, 5, 7]))
    mask = where.weight(torch.tensor([True, True, False, False]).expand(4, 2, 4))
    check_legal("w", mask, KN(2, 4), order=torch.tensor([0, 2, 4, 6, 1, 3, 5, 7]))
    with pytest.raises(PatternError, match=r"8 of 8 groups of w do not keep 2 of 4"):
        check_legal("w", mask, KN(2, 4))
    with pytest.raises(PatternError, match="2:4 needs a multiple of 4 inputs; w has 6"):
        layout("w", (4, 6), KN(2, 4))
    with pytest.raises(PatternError, match="no permutation of its 8 inputs"):
        layout("w", (4, 8), KN(2, 4), order=torch.zeros(8, dtype=torch.int64))
    with pytest.raises(PatternError, match="did you mean 'native'"):
        layout("w", (4, 8), KN(2, 4), "nativ")
