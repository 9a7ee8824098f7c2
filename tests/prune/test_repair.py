"""Kept values that take over for removed ones: in groups that no input enters, and one by one against least squares."""

from __future__ import annotations

import pytest
import torch

from mpviz.nets.kn_pattern import KN
from mpviz.prune.repair import repaired


def test_a_group_that_no_input_enters_keeps_its_values_and_spoils_no_other() -> None:
    torch.manual_seed(0)
    values = torch.randn(6, 3, 4)
    masks = KN(2, 4).masks()[torch.randint(6, (6, 3))]
    factors = torch.randn(3, 4, 8, dtype=torch.float64)
    covariance = factors @ factors.mT
    covariance[1] = 0.0
    found = repaired(values, masks, covariance)
    assert bool(torch.isfinite(found).all()) and not bool(found[~masks].any())
    assert torch.equal(found[:, 1], values[:, 1] * masks[:, 1])
    alive = repaired(values[:, [0, 2]], masks[:, [0, 2]], covariance[[0, 2]])
    torch.testing.assert_close(found[:, [0, 2]], alive, rtol=1e-6, atol=1e-6)


def test_groups_of_any_power_are_repaired_alike() -> None:
    """What is repaired does not depend on the unit of the inputs, of none of the groups."""
    torch.manual_seed(1)
    values, masks = torch.randn(5, 3, 4), KN(2, 4).masks()[torch.randint(6, (5, 3))]
    factors = torch.randn(3, 4, 8, dtype=torch.float64)
    covariance = factors @ factors.mT
    scaled = covariance * torch.tensor([1e9, 1.0, 1e-9], dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(repaired(values, masks, scaled), repaired(values, masks, covariance))


@pytest.mark.parametrize("text", ["2:4", "8:16"])
def test_without_damping_no_other_kept_values_change_the_outputs_less(text: str) -> None:
    torch.manual_seed(2)
    pattern = KN.parse(text)
    values = torch.randn(4, 2, pattern.n, dtype=torch.float64)
    masks = pattern.masks()[torch.randint(pattern.count, (4, 2))]
    factors = torch.randn(2, pattern.n, 3 * pattern.n, dtype=torch.float64)
    covariance = factors @ factors.mT
    found = repaired(values, masks, covariance, damping=0.0)
    # at the minimum the slope C(u − û) is zero on what is kept
    slope = torch.einsum("gab,rgb->rga", covariance, values - found)
    assert float((slope * masks).abs().max()) < 1e-9 * float(covariance.abs().max())
