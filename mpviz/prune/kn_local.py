"""Near-exact search of k:n masks: swaps from three starts. A preview for n ≤ 16, the way for n = 32."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_SWAPS = 64  # rounds at most; three to five are usual


def removal_cost(q: Tensor, removed: Tensor) -> Tensor:
    """xᵀQx, Float64["cells"], of sets Bool["cells n"] under costs Float64["cells n n"]."""
    x = removed.to(q.dtype)
    return (torch.bmm(q, x[:, :, None]).squeeze(2) * x).sum(dim=1)


def local_search(q: Tensor, removed: int) -> Tensor:
    """Sets of `removed` inputs Bool["cells n"] that no swap of one input makes cheaper, the best of three starts.

    q: Float["cells n n"], symmetric. Starts: the smallest diagonal; inputs removed one by one, each time the cheapest;
    all removed and the dearest put back one by one.
    """
    best, cost = smallest_diagonal(q, removed), torch.full_like(q[:, 0, 0], math.inf)
    for start in (best, _grow(q, removed), _shrink(q, removed)):
        found = swapped(q, start)
        price = removal_cost(q, found)
        better = price < cost
        best, cost = torch.where(better[:, None], found, best), torch.where(better, price, cost)
    return best


def smallest_diagonal(q: Tensor, removed: int) -> Tensor:
    """The inputs that cost least by themselves."""
    order = torch.sort(q.diagonal(dim1=1, dim2=2), dim=1, descending=True, stable=True).indices
    chosen = torch.zeros(q.shape[:2], dtype=torch.bool, device=q.device)
    return chosen.scatter_(1, order[:, q.shape[1] - removed :], True)


def _grow(q: Tensor, removed: int) -> Tensor:
    """Each time the input whose removal adds least."""
    diagonal = q.diagonal(dim1=1, dim2=2)
    chosen = torch.zeros(q.shape[:2], dtype=torch.bool, device=q.device)
    pull = torch.zeros_like(diagonal)  # Qx
    for _ in range(removed):
        added = (diagonal + 2 * pull).masked_fill(chosen, math.inf).argmin(dim=1, keepdim=True)
        chosen.scatter_(1, added, True)
        pull += q.gather(1, added[:, :, None].expand(-1, 1, q.shape[2])).squeeze(1)
    return chosen


def _shrink(q: Tensor, removed: int) -> Tensor:
    """All removed, then each time the input back whose return saves most."""
    diagonal = q.diagonal(dim1=1, dim2=2)
    chosen = torch.ones(q.shape[:2], dtype=torch.bool, device=q.device)
    pull = q.sum(dim=2)
    for _ in range(q.shape[1] - removed):
        back = (2 * pull - diagonal).masked_fill(~chosen, -math.inf).argmax(dim=1, keepdim=True)
        chosen.scatter_(1, back, False)
        pull -= q.gather(1, back[:, :, None].expand(-1, 1, q.shape[2])).squeeze(1)
    return chosen


def swapped(q: Tensor, start: Tensor) -> Tensor:
    """Take the best swap of one removed for one kept input until none helps."""
    chosen, n = start.clone(), q.shape[1]
    active = torch.arange(len(q), device=q.device)
    for _ in range(_SWAPS):
        part, x = q[active], chosen[active]
        pull = torch.bmm(part, x.to(q.dtype)[:, :, None]).squeeze(2)
        diagonal = part.diagonal(dim1=1, dim2=2)
        back = (diagonal - 2 * pull).masked_fill(~x, math.inf)
        gone = (diagonal + 2 * pull).masked_fill(x, math.inf)
        change, place = (back[:, :, None] + gone[:, None, :] - 2 * part).flatten(1).min(dim=1)
        better = change < -1e-12 * part.abs().sum(dim=(1, 2))
        if not bool(better.any()):
            break
        active, place = active[better], place[better]
        chosen[active, place // n] = False
        chosen[active, place % n] = True
    return chosen
