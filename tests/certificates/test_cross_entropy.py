"""Bounds of the cross-entropy: never broken by any change of the logits that they allow, and each part is needed."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from mpviz.certificates.cross_entropy import (
    cross_entropy,
    exact_change,
    loss_path_bound,
    measured_change,
    softmax_bound,
    softmax_bound_of_eta,
)
from mpviz.errors import DataError, MpvizError

CASE = {"seed": st.integers(0, 10**6), "scale": st.floats(0.01, 40.0), "eta": st.floats(1e-9, 30.0)}


def sample(seed, scale, classes=5, n=32):
    rng = torch.Generator().manual_seed(seed)
    z = scale * torch.randn(n, classes, generator=rng, dtype=torch.float64)
    return z, torch.randint(0, classes, (n,), generator=rng), rng


def adversary(labels, classes, eta):
    """Every other logit up, the label's down: the worst change of size eta."""
    d = torch.full((len(labels), classes), eta, dtype=torch.float64)
    return d.scatter(1, labels[:, None], -eta)


@settings(max_examples=150, deadline=None)
@given(**CASE)
def test_no_change_within_eta_breaks_a_bound(seed, scale, eta):
    z, y, rng = sample(seed, scale)
    worst = adversary(y, 5, eta)
    path = loss_path_bound(torch.full((32,), eta, dtype=torch.float64), kind="endpoint")
    soft = softmax_bound_of_eta(z, y, torch.full((32,), eta, dtype=torch.float64))
    assert (soft.upper <= path.upper + 1e-12).all(), "never worse than 2 eta"
    assert (soft.lower >= path.lower - 1e-12).all()
    for d in (
        worst,
        -worst,
        eta * (2 * torch.rand(32, 5, generator=rng, dtype=torch.float64) - 1),
        eta * torch.randn(32, 5, generator=rng).double().sign(),
    ):
        change = exact_change(z, z + d, y).change
        room = 1e-12 * (1 + scale + eta)  # z + d itself is rounded
        assert (change <= soft.upper + room).all() and (change >= soft.lower - room).all()
        assert (np.abs(change) <= path.upper + room).all()
    # the worst change attains the bound: nothing smaller would do
    assert np.allclose(exact_change(z, z + worst, y).change, soft.upper, rtol=1e-6, atol=room)


@settings(max_examples=150, deadline=None)
@given(**CASE)
def test_pairwise_bounds_hold_for_every_change_between_them(seed, scale, eta):
    z, y, rng = sample(seed, scale)
    rise = eta * torch.rand(32, 5, generator=rng, dtype=torch.float64)
    fall = rise - eta * torch.rand(32, 5, generator=rng, dtype=torch.float64)
    rise, fall = (one.scatter(1, y[:, None], 0.0) for one in (rise, fall))
    bound = softmax_bound(z, y, rise, fall)
    for share in (0.0, 0.3, 1.0):
        change = exact_change(z, z + fall + share * (rise - fall), y).change
        room = 1e-12 * (1 + scale + eta)
        assert (change <= bound.upper + room).all() and (change >= bound.lower - room).all()
    assert (bound.lower <= bound.upper).all()


def test_mutations_would_be_noticed():
    z, y, _ = sample(3, 1.0)
    eta = 0.4
    change = exact_change(z, z + adversary(y, 5, eta), y).change
    half = softmax_bound_of_eta(z, y, torch.full((32,), eta / 2, dtype=torch.float64))
    assert (change > half.upper).all(), "eta instead of 2 eta is broken"
    confident = torch.tensor([[0.0, 30.0]], dtype=torch.float64)  # wrong and sure: CE moves by almost 2 eta
    moved = exact_change(
        confident, confident + torch.tensor([[-eta, eta]], dtype=torch.float64), torch.tensor([0])
    ).change
    assert moved[0] > eta and moved[0] == pytest.approx(2 * eta, rel=1e-9)
    # p of the pruned instead of the dense network is not the identity
    pruned = z + adversary(y, 5, eta)
    swapped = softmax_bound(pruned, y, measured_change(z, pruned, y)).upper
    assert (np.abs(swapped - change) > 1e-3).any()


def test_the_exact_change_is_the_difference_and_keeps_small_digits():
    z, y, rng = sample(5, 2.0)
    d = torch.randn(32, 5, generator=rng, dtype=torch.float64)
    result = exact_change(z, z + d, y)
    theirs = F.cross_entropy(z + d, y, reduction="none") - F.cross_entropy(z, y, reduction="none")
    np.testing.assert_allclose(result.change, theirs, atol=1e-12)
    np.testing.assert_allclose(result.pruned - result.dense, theirs, atol=1e-12)
    np.testing.assert_allclose(cross_entropy(z, y), F.cross_entropy(z, y, reduction="none"), atol=1e-13)
    assert result.mean == pytest.approx(theirs.mean().item()) and result.tier == "measured"
    z0 = torch.zeros(1, 2, dtype=torch.float64)
    tiny = exact_change(z0, torch.tensor([[0.0, 1e-14]], dtype=torch.float64), torch.tensor([0])).change
    assert tiny[0] == pytest.approx(5e-15, rel=1e-6)


def test_measured_changes_make_the_bound_exact():
    z, y, rng = sample(6, 3.0)
    pruned = z + torch.randn(32, 5, generator=rng, dtype=torch.float64)
    change = measured_change(z, pruned, y)
    bound = softmax_bound(z, y, change, change, tier="measured")
    exact = exact_change(z, pruned, y).change
    np.testing.assert_allclose(bound.upper, exact, atol=1e-11)
    assert (bound.upper >= exact).all() and (bound.lower <= exact).all() and bound.tier == "measured"


def test_huge_and_unknown_changes_are_safe():
    z, y = torch.tensor([[1000.0, -1000.0, 0.0]], dtype=torch.float64), torch.tensor([1])
    rise = torch.tensor([[torch.inf, 0.0, 5.0]])
    bound = softmax_bound(z, y, rise)
    assert bound.upper[0] == np.inf and np.isfinite(bound.lower[0])
    assert softmax_bound(z, y, torch.tensor([[900.0, 0.0, 800.0]])).upper[0] == pytest.approx(900.0)
    # without a lower bound the loss can fall to 0 and no further
    assert bound.lower[0] == pytest.approx(-cross_entropy(z, y)[0].item())


def test_the_path_bound_knows_what_it_is_valid_for():
    eta = torch.tensor([1.0, 2.0])
    assert loss_path_bound(eta, 0.25).upper.tolist() == [1.5, 3.0]
    assert loss_path_bound(eta, 1.0).upper.tolist() == [0.0, 0.0]
    with pytest.raises(MpvizError, match="between it and the dense one"):
        loss_path_bound(eta, 0.5, kind="endpoint")
    with pytest.raises(MpvizError, match="theta"):
        loss_path_bound(eta, -0.1)
    with pytest.raises(MpvizError, match="'path' or"):
        loss_path_bound(eta, kind="guess")


Z, Y = torch.zeros(3, 4), torch.tensor([0, 1, 2])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: exact_change(Z, Z[:2], Y), "do not fit"),
        (lambda: exact_change(Z, torch.zeros(3, 5), Y), "do not fit"),
        (lambda: exact_change(Z, Z, torch.tensor([0, 1, 4])), "labels run from 0 to 4"),
        (lambda: exact_change(Z, Z, torch.tensor([0, -1, 2])), "labels run from -1"),
        (lambda: exact_change(Z, Z, Y[:2]), "do not fit 3 samples"),
        (lambda: exact_change(Z, Z, Y.float()), "labels of torch.float32"),
        (lambda: exact_change(Z, Z * torch.nan, Y), "pruned network gives NaN"),
        (lambda: exact_change(Z + torch.inf, Z, Y), "dense network gives NaN"),
        (lambda: exact_change(Z[:0], Z[:0], Y[:0]), "one sample at least"),
        (lambda: exact_change(Z[:, :1], Z[:, :1], Y), "two at least"),
        (lambda: exact_change(Z[0], Z[0], Y), "samples, classes"),
        (lambda: loss_path_bound(torch.tensor([-1.0])), "NaN or negative"),
        (lambda: loss_path_bound(torch.tensor([torch.nan])), "NaN or negative"),
        (lambda: loss_path_bound(torch.zeros(0)), "one sample at least"),
        (lambda: softmax_bound(Z, Y, torch.ones(3, 4)), "not 0 at the label"),
        (lambda: softmax_bound(Z, Y, Z * torch.nan), "write inf"),
        (lambda: softmax_bound(Z, Y, torch.zeros(3, 5)), "rise has shape"),
        (lambda: softmax_bound(Z, Y, Z, 1 - F.one_hot(Y, 4)), "fall exceeds rise"),
        (lambda: softmax_bound_of_eta(Z, Y, torch.ones(2)), "do not fit 3 samples"),
        (lambda: measured_change(Z, Z[:2], Y), "do not fit"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(DataError, match=words):
        call()
