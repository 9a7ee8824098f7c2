"""Kept entries that take over what removed ones of their group did: least squares on the group's covariance."""

from __future__ import annotations

import torch
from torch import Tensor

DAMPING = 1e-3  # of the mean input power of a group: keeps nearly parallel inputs from large opposite weights
_CELLS = 4096  # solved at a time


def repaired(values: Tensor, masks: Tensor, covariance: Tensor, damping: float = DAMPING) -> Tensor:
    """New values Float["rows groups n"], zero where removed, with the least mean squared change of the outputs.

    For a cell with kept inputs K and removed ones R this is u_K + C_KK⁻¹ C_KR u_R: the change that is left is
    u_Rᵀ (C_RR − C_RK C_KK⁻¹ C_KR) u_R instead of u_Rᵀ C_RR u_R. values: Float["rows groups n"]; masks: Bool like them,
    True = kept; covariance: Float["groups n n"], E[h hᵀ]. damping: added to the diagonal of C, as a share of its mean.
    Only the inputs of one group make up for each other, so no more than the groups' own covariances is needed.
    Source: the update of optimal brain surgeon (Hassibi & Stork 1993), within groups.
    """
    rows, groups, n = values.shape
    moment = covariance.to(values.device, torch.float64)
    power = moment.diagonal(dim1=1, dim2=2).mean(dim=1)
    eye = torch.eye(n, dtype=torch.float64, device=values.device)
    # a group that no input ever enters has nothing to solve for
    moment = moment + (damping * power + (power == 0).double())[:, None, None] * eye
    flat, kept = values.reshape(-1, n), masks.reshape(-1, n)
    found = torch.empty_like(flat)
    for start in range(0, rows * groups, _CELLS):
        here = torch.arange(start, min(start + _CELLS, rows * groups), device=values.device)
        u, k, c = flat[here].double(), kept[here].double(), moment[here % groups]
        # the kept block of C, and 1 where an input goes, so that one batch solves all patterns
        system = k[:, :, None] * c * k[:, None, :] + torch.diag_embed(1.0 - k)
        pull = k * torch.bmm(c, ((1.0 - k) * u)[..., None]).squeeze(2)
        found[here] = (k * (u + torch.linalg.solve(system, pull))).to(values.dtype)
    return found.reshape(rows, groups, n)
