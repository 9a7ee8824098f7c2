"""Exact search of k:n masks: the pattern of least cost for each row and group, in bounded memory.

A cell is one row's group of n inputs with values u and calibration covariance C = E[h hᵀ]. Removing the set R costs
Σ_{a,b ∈ R} Q_ab with Q = (u uᵀ) ⊙ C, the mean squared contribution of what is removed to the output, plus a penalty
for each removed entry. Few patterns are scored all at once, as one matrix product over pairs; many by halves, where
most of one half's choices are ruled out by a lower bound. Source of the cost: arXiv:2606.02608.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor

from mpviz.errors import Cancelled, PatternError, nearest
from mpviz.nets.kn_pattern import KN
from mpviz.prune.kn_cuda import cupy_or_none, search_on_gpu
from mpviz.prune.kn_local import local_search, removal_cost, smallest_diagonal, swapped

MEMORY = 448 * 2**20  # bytes of work space
METHODS = ("exact", "local")
ENGINES = ("auto", "torch", "cupy")
EXACT = 16  # inputs of a group up to which "auto" is exact
_ENUMERATE = 1000  # patterns up to which all are scored at once
_CELLS = 256  # of a chunk on a CPU: its tables stay in the cache
_SCORES = 2**20  # numbers that are held at a time
_TIE = 1e-12  # of a group's mean input power: equal costs are settled by the size of the weights


@dataclass(frozen=True, eq=False)
class Found:
    """masks: Bool["rows groups n"], True = kept. cost: Float64["rows groups"], rᵀCr of what goes, without penalty.

    exact: whether no pattern of any cell costs less, its penalties included (up to rounding of float64, and 1e-12 of
    the group's mean power · Σ u², which settles ties), or a local search came to rest.
    """

    masks: Tensor
    cost: Tensor
    exact: bool


def search(
    values: Tensor,
    covariance: Tensor,
    pattern: KN,
    penalty: Tensor | None = None,
    method: str = "auto",
    memory: int = MEMORY,
    threads: int | None = None,
    cancelled: Callable[[], bool] | None = None,
    engine: str = "auto",
) -> Found:
    """The pattern of least cost for each cell.

    values: Float["rows groups n"]. covariance: Float["groups n n"], E[h hᵀ] of each group's inputs. penalty:
    Float["rows groups n"], what removing an entry costs beside. method: "exact" scores every pattern or proves that it
    cannot be best; "local" swaps entries until nothing gets better, from three starts: a preview; "auto" is exact up
    to n = 16. memory: bytes of work space. threads: torch's own number when None. Runs where `values` are; engine: on a
    GPU "cupy" walks all patterns in one kernel, "torch" takes the CPU's way, "auto" the first where cupy is installed.
    Cells whose patterns cost the same keep their larger values, then their earlier inputs.
    Raises PatternError for shapes that do not fit or numbers that are not finite, Cancelled.
    """
    chosen = _checked(values, covariance, pattern, penalty, method)
    rows, groups, n = values.shape
    device = values.device
    moment = covariance.to(device, torch.float64)
    settling = with_ties(moment)
    if chosen == "exact" and _walks(engine, device):
        gone = search_on_gpu(values, settling, penalty, pattern)
        u = (gone * values).double()
        return Found(~gone, (torch.einsum("rga,gab->rgb", u, moment) * u).sum(dim=2), True)
    solve = _solver(pattern, chosen)
    masks = torch.empty(groups, rows, n, dtype=torch.bool, device=device)
    cost = torch.empty(groups, rows, dtype=torch.float64, device=device)

    def work(part: tuple[slice, slice]) -> None:
        if cancelled is not None and cancelled():
            raise Cancelled("the search was cancelled; nothing was changed")
        some_groups, some_rows = part
        u = values[some_rows, some_groups].permute(1, 2, 0).double().contiguous()
        extra = None if penalty is None else penalty[some_rows, some_groups].permute(1, 2, 0).to(u).contiguous()
        removed, price = solve(u, moment[some_groups], settling[some_groups], extra)
        masks[some_groups, some_rows] = ~removed
        cost[some_groups, some_rows] = price

    workers = _workers(threads, device)
    parts = list(_parts(groups, rows, _chunk(pattern, chosen, memory // workers, device)))
    if workers == 1:
        for part in parts:
            work(part)
    else:
        with _one_thread_each(), ThreadPoolExecutor(workers) as pool:
            list(pool.map(work, parts))
    return Found(masks.transpose(0, 1).contiguous(), cost.T.contiguous(), chosen == "exact")


def with_ties(moment: Tensor) -> Tensor:
    """The covariances Float64["groups n n"] by which patterns are chosen: where equal, small values go.

    Each group has its own scale, so that one of weak inputs is chosen by them too; a dead one by its values alone.
    """
    power = moment.diagonal(dim1=1, dim2=2).mean(dim=1)
    power = torch.where(power > 0, power, torch.ones_like(power))
    return moment + torch.diag_embed((_TIE * power)[:, None].expand(moment.shape[:2]))


def _checked(values: Tensor, covariance: Tensor, pattern: KN, penalty: Tensor | None, method: str) -> str:
    if method not in ("auto", *METHODS):
        raise PatternError(f"unknown search '{method}'; {nearest(str(method), ('auto', *METHODS))}")
    n = pattern.n
    if values.ndim != 3 or values.shape[2] != n or tuple(covariance.shape) != (values.shape[1], n, n):
        raise PatternError(
            f"{pattern} takes values (rows, groups, {n}) and covariances (groups, {n}, {n}); "
            f"got {tuple(values.shape)} and {tuple(covariance.shape)}"
        )
    if penalty is not None and penalty.shape != values.shape:
        raise PatternError(f"the penalty has shape {tuple(penalty.shape)}, the values {tuple(values.shape)}")
    for what, numbers in (("values", values), ("covariances", covariance), ("penalties", penalty)):
        if numbers is not None and not torch.isfinite(numbers).all():
            raise PatternError(f"the {what} hold NaN or infinite numbers; look at the weights and the calibration")
    return method if method != "auto" else "exact" if n <= EXACT else "local"


def _walks(engine: str, device: torch.device) -> bool:
    """Whether the kernel searches. Raises PatternError when it is asked for and cannot."""
    if engine not in ENGINES:
        raise PatternError(f"unknown engine '{engine}'; {nearest(str(engine), ENGINES)}")
    there = device.type == "cuda" and cupy_or_none() is not None
    if engine == "cupy" and not there:
        raise PatternError("engine 'cupy' needs tensors on a GPU and cupy (mpviz[gpu]); leave it at 'auto'")
    return there and engine != "torch"


_Solve = Callable[[Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]


def _solver(pattern: KN, method: str) -> _Solve:
    """From values Float64["groups n rows"], moments Float64["groups n n"], the same with what settles ties, and
    penalties like the values to what goes, Bool["groups rows n"], and its cost Float64["groups rows"] by the moments
    alone.
    """
    if pattern.removed == 0:
        return lambda u, *_: (torch.zeros_like(u.transpose(1, 2), dtype=torch.bool), torch.zeros_like(u[:, 0]))
    if method == "local":
        return _cell_by_cell(partial(local_search, removed=pattern.removed))
    if pattern.count <= _ENUMERATE:
        return partial(_enumerate, pattern=pattern)
    return _cell_by_cell(partial(_by_halves, removed=pattern.removed))


def _cell_by_cell(solve: Callable[[Tensor], Tensor]) -> _Solve:
    """A solver from one that takes each cell's own costs Float64["cells n n"]."""

    def solved(u: Tensor, moment: Tensor, settling: Tensor, extra: Tensor | None) -> tuple[Tensor, Tensor]:
        groups, n, rows = u.shape
        v = u.transpose(1, 2)
        both = v[..., :, None] * v[..., None, :]
        total = (both * settling[:, None]).reshape(-1, n, n)
        removed = solve(total if extra is None else total + torch.diag_embed(extra.transpose(1, 2).reshape(-1, n)))
        price = removal_cost((both * moment[:, None]).reshape(-1, n, n), removed)
        return removed.reshape(groups, rows, n), price.reshape(groups, rows)

    return solved


def _parts(groups: int, rows: int, cells: int) -> Iterator[tuple[slice, slice]]:
    """Blocks of about so many cells: whole groups where they fit, else some rows of one."""
    some_rows = min(rows, cells)
    some_groups = max(1, cells // rows)
    for group in range(0, groups, some_groups):
        for row in range(0, rows, some_rows):
            yield slice(group, group + some_groups), slice(row, row + some_rows)


def _chunk(pattern: KN, method: str, memory: int, device: torch.device) -> int:
    """How many cells are worked on at a time."""
    n = pattern.n
    numbers, cache = 8 * n * n, _CELLS
    if method == "exact" and pattern.count <= _ENUMERATE:
        numbers, cache = n * (n + 1) + 2 * pattern.count, max(_CELLS, 2**18 // pattern.count)
    elif method == "exact":
        numbers += 3 * 2 ** (n // 2) * n
    cells = max(1, memory // (8 * numbers))
    return cells if device.type == "cuda" else min(cells, cache)


def _workers(threads: int | None, device: torch.device) -> int:
    if device.type != "cpu":
        return 1
    return max(1, torch.get_num_threads() if threads is None else threads)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Torch's own threads would only stand in the way of ours. The number belongs to the process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# --- few patterns: all of them, as one product over pairs ------------------------------------------------------------


def _enumerate(u: Tensor, moment: Tensor, settling: Tensor, extra: Tensor | None, pattern: KN) -> tuple[Tensor, Tensor]:
    """Every pattern's cost is linear in the products u_a u_b: one small matrix a group takes them to all costs."""
    pairs, features, gone = (one.to(u.device) for one in _pair_features(pattern.k, pattern.n))
    a, b = pairs
    costs = torch.bmm(features * settling[:, a, b][:, None], u[:, a] * u[:, b])  # groups, patterns, rows
    total = costs if extra is None else costs + torch.matmul(gone.double(), extra)
    removed = gone[total.argmin(dim=1)]
    r = torch.where(removed.transpose(1, 2), u, 0.0).contiguous()
    # summed one by one: the order, and so the last bit, does not depend on how many rows there are
    price = torch.zeros_like(r[:, 0])
    for i in range(r.shape[1]):
        pull = r[:, i] * moment[:, i, i, None]
        for j in range(i):
            pull += r[:, j] * (2.0 * moment[:, i, j, None])
        price += r[:, i] * pull
    return removed, price


@lru_cache(maxsize=16)
def _pair_features(k: int, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs Int["2 pairs"] a ≤ b; Float64["patterns pairs"], 1 where both go (2 for a < b); gone Bool["patterns n"]."""
    pairs = torch.triu_indices(n, n)
    gone = ~KN(k, n).masks()
    both = (gone[:, pairs[0]] & gone[:, pairs[1]]) * torch.where(pairs[0] == pairs[1], 1.0, 2.0).double()
    return pairs, both, gone


# --- many patterns: halves and a bound -------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Half:
    """All subsets of one half: members Float64["subsets m"], sizes Int["subsets"], features over pairs, by_size."""

    members: Tensor
    sizes: Tensor
    pairs: Tensor
    features: Tensor
    by_size: tuple[Tensor, ...]


@lru_cache(maxsize=16)
def _half(m: int, device: torch.device) -> _Half:
    members = torch.tensor(list(itertools.product((0.0, 1.0), repeat=m)), dtype=torch.float64, device=device)
    sizes = members.sum(dim=1).long()
    pairs = torch.triu_indices(m, m, device=device)
    weight = torch.where(pairs[0] == pairs[1], 1.0, 2.0).double()
    features = (members[:, pairs[0]] * members[:, pairs[1]] * weight).T.contiguous()
    return _Half(members, sizes, pairs, features, tuple((sizes == s).nonzero().flatten() for s in range(m + 1)))


def _by_halves(q: Tensor, removed: int) -> Tensor:
    """Removed sets Bool["cells n"] of least cost, in float64.

    The n inputs are cut in halves A and B. With x_A chosen, the cost is f_A(x_A) + f_B(x_B) + v·x_B, v = 2 Q_BA x_A, so
    it is at least f_A(x_A) + min f_B + Σ min(v, 0), the minimum over sets of the size that is left. Choices of A for
    which this does not lie below the cost of a local search are done with; for the others every set of B is scored.
    """
    n = q.shape[1]
    a, b = _half(n // 2, q.device), _half(n - n // 2, q.device)
    m = n // 2
    best = swapped(q, smallest_diagonal(q, removed))
    cost = removal_cost(q, best)
    cost_a = q[:, a.pairs[0], a.pairs[1]] @ a.features
    cost_b = q[:, m + b.pairs[0], m + b.pairs[1]] @ b.features
    cross = 2.0 * torch.matmul(a.members, q[:, :m, m:])  # cells, sets of A, inputs of B
    least_b = torch.stack([cost_b[:, sets].amin(dim=1) for sets in b.by_size], dim=1)
    left = removed - a.sizes
    possible = (left >= 0) & (left < len(b.by_size))
    bound = cost_a + least_b[:, left.clamp(0, len(b.by_size) - 1)] + cross.clamp(max=0.0).sum(dim=2)
    slack = 1e-12 * q.abs().sum(dim=(1, 2))
    open_ = (bound < (cost - slack)[:, None]) & possible
    for size, sets in enumerate(b.by_size):
        columns = ((left == size) & possible).nonzero().flatten()
        if not len(columns):
            continue
        where = open_[:, columns].nonzero()
        for part in where.split(max(1, _SCORES // len(sets))):
            cell, choice = part[:, 0], columns[part[:, 1]]
            scores = torch.addmm(cost_b[cell[:, None], sets], cross[cell, choice], b.members[sets].T)
            score, column = scores.min(dim=1)
            score = score + cost_a[cell, choice]
            _take_better(best, cost, cell, score, a.members[choice], b.members[sets[column]])
    return best


def _take_better(best: Tensor, cost: Tensor, cell: Tensor, score: Tensor, part_a: Tensor, part_b: Tensor) -> None:
    """Put the best of the scored sets of each cell in the place of what was best so far, where it is better."""
    least = cost.scatter_reduce(0, cell, score, "amin")
    hit = (score == least[cell]) & (least < cost)[cell]
    # of several of the same score the first one, on every device
    first = cell.new_full((len(cost),), len(cell))
    place = torch.arange(len(cell), device=cell.device)
    first.scatter_reduce_(0, cell[hit], place[hit], "amin")
    chosen = first[first < len(cell)]
    best[cell[chosen]] = torch.cat([part_a[chosen], part_b[chosen]], dim=1) > 0
    cost.copy_(least)
