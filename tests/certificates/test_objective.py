"""Certificates of the objective: whenever one holds, J is lower; whatever is left out of one makes it lie."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpviz.certificates.cross_entropy import cross_entropy, exact_change, loss_path_bound, softmax_bound_of_eta
from mpviz.certificates.objective import (
    LayerTerm,
    Penalty,
    additive_certificate,
    critical_lambda2,
    mask_certificate,
    ordered_certificate,
    restore_test,
    stationarity,
)
from mpviz.errors import BudgetError, MpvizError

SEEDS = st.integers(0, 10**6)


class Linear:
    """A linear classifier, whose every quantity can be written down: L = 1, η = ‖Rx‖∞ on the whole path."""

    def __init__(self, seed, share=0.5, classes=4, width=6, n=20):
        rng = torch.Generator().manual_seed(seed)
        self.a = torch.randn(classes, width, generator=rng, dtype=torch.float64)
        self.x = 0.3 * torch.randn(n, width, generator=rng, dtype=torch.float64)
        self.y = torch.randint(0, classes, (n,), generator=rng)
        mask = torch.rand(classes, width, generator=rng) > share
        self.s, self.r = self.a * mask, self.a * ~mask

    def ce(self, weight):
        return cross_entropy(self.x @ weight.T, self.y).mean().item()

    def eta(self, removed):
        return (self.x @ removed.T).abs().amax(1)

    def budget(self, removed):
        return float(loss_path_bound(self.eta(removed)).mean_upper)

    def j(self, weight, penalty):
        return self.ce(weight) + penalty.of(weight)


@settings(max_examples=150, deadline=None)
@given(seed=SEEDS, lambda1=st.floats(0, 0.2), lambda2=st.floats(0, 0.5))
def test_whenever_a_mask_certificate_holds_the_objective_falls(seed, lambda1, lambda2):
    net, penalty = Linear(seed), Penalty(lambda2, lambda1)
    z = net.x @ net.a.T
    soft = softmax_bound_of_eta(z, net.y, net.eta(net.r)).mean_upper
    for bound in (net.budget(net.r), soft):
        cert = mask_certificate(net.s, net.r, max(0.0, bound), penalty)
        assert cert.slack == cert.gain - cert.bound
        fall = net.j(net.a, penalty) - net.j(net.s, penalty)
        assert fall >= cert.slack - 1e-9, "the fall is never less than promised"
        if cert.holds:
            assert fall > 0
    assert soft <= net.budget(net.r) + 1e-12


def test_both_answers_occur_and_a_budget_that_is_too_small_would_lie():
    answers, lies = set(), 0
    for seed in range(300):
        net = Linear(seed)
        rise, budget = exact_change(net.x @ net.a.T, net.x @ net.s.T, net.y).mean, net.budget(net.r)
        answers |= {mask_certificate(net.s, net.r, budget, Penalty(strength)).holds for strength in (1e-3, 1.0)}
        if rise > 0:
            penalty = Penalty(0.9 * rise / float(net.r.square().sum()))  # J rises, by a little
            assert not mask_certificate(net.s, net.r, budget, penalty).holds
            one_sided = mask_certificate(net.s, net.r, abs(float((net.x @ net.r.T).mean())), penalty)
            lies += one_sided.holds
    assert answers == {True, False}
    assert lies > 0, "a mean in which signs cancel is no budget"


@settings(max_examples=150, deadline=None)
@given(seed=SEEDS, lambda2=st.floats(0, 2.0), mix=st.floats(-1.0, 1.0))
def test_whenever_an_additive_certificate_holds_the_objective_falls(seed, lambda2, mix):
    net, penalty = Linear(seed), Penalty(lambda2)
    r = 0.3 * net.r + 0.3 * mix * net.a
    s = net.a - r
    cert = additive_certificate(s, r, net.budget(r), penalty)
    fall = net.j(s + r, penalty) - net.j(s, penalty)
    assert fall >= cert.slack - 1e-9
    assert not cert.holds or fall > 0


def test_the_inner_product_is_needed():
    s, r = torch.tensor([[2.0, 0.0]]), torch.tensor([[-1.0, 0.0]])  # removing R makes the weight larger
    assert Penalty(1.0).of(s + r) < Penalty(1.0).of(s)
    assert not additive_certificate(s, r, 0.1, Penalty(1.0)).holds
    assert Penalty(1.0).of(r) > 0.1, "without |<S,R>| it would be certified"
    with pytest.raises(BudgetError, match="share entries"):
        mask_certificate(s, r, 0.1, Penalty(1.0))
    with pytest.raises(MpvizError, match="no L1 penalty"):
        additive_certificate(s, r, 0.1, Penalty(1.0, 0.1))


def test_the_critical_strength_is_where_the_answer_turns():
    net = Linear(1)
    bound, critical = net.budget(net.r), critical_lambda2(net.r, net.budget(net.r), 0.01)
    assert not mask_certificate(net.s, net.r, bound, Penalty(critical * (1 - 1e-6), 0.01)).holds
    cert = mask_certificate(net.s, net.r, bound, Penalty(critical * (1 + 1e-6), 0.01))
    assert cert.holds and cert.critical_lambda2 == critical
    assert critical_lambda2(net.r, 1e-9, lambda1=1.0) == 0.0
    nothing = torch.zeros(2, 2)
    assert critical_lambda2(nothing, 0.0) == math.inf
    assert not mask_certificate(torch.ones(2, 2), nothing, 0.0, Penalty(1.0)).holds, "nothing removed, nothing gained"


@settings(max_examples=80, deadline=None)
@given(seed=SEEDS, lambda1=st.floats(0, 0.2), lambda2=st.floats(0, 0.5))
def test_restoring_improves_the_bound_exactly_when_the_test_says(seed, lambda1, lambda2):
    net, penalty = Linear(seed), Penalty(lambda2, lambda1)
    split = torch.rand(net.a.shape, generator=torch.Generator().manual_seed(seed)) > 0.5
    q, p = net.r * split, net.r * ~split
    found = restore_test(net.s, q, p, net.budget(q + p), net.budget(p), penalty)
    without = mask_certificate(net.s + q, p, net.budget(p), penalty).slack
    with_q = mask_certificate(net.s, q + p, net.budget(q + p), penalty).slack
    if abs(without - with_q) > 1e-9:
        assert found.restore == (without > with_q)
    with pytest.raises(BudgetError, match="disjoint masks"):
        restore_test(net.s, net.a, p, 1.0, 0.5, penalty)


def test_a_stationary_point_satisfies_the_inequality_and_excludes_the_plain_certificate():
    net, penalty = Linear(2), Penalty(0.05, 0.01)
    a = net.a.clone().requires_grad_()
    for step in range(6000):  # proximal: subgradient steps with a falling rate
        j = torch.nn.functional.cross_entropy(net.x @ a.T, net.y) + 0.05 * a.square().sum() + 0.01 * a.abs().sum()
        (g,) = torch.autograd.grad(j, a)
        a = (a - 0.5 / (1 + 0.01 * step) * g).detach().requires_grad_()
    a = a.detach()
    mask = torch.rand(a.shape, generator=torch.Generator().manual_seed(0)) > 0.5
    s, r = a * mask, a * ~mask
    found = stationarity(s, r, net.budget(r), penalty, epsilon=1e-3)
    assert found.consistent and found.epsilon_needed <= 1e-3
    assert not mask_certificate(s, r, net.budget(r), penalty).holds
    # doubling the pull breaks the inequality for weights that are far from stationary
    far = stationarity(net.s * 9, net.r * 9, 0.5, Penalty(1.0))
    assert not far.consistent and far.epsilon_needed == pytest.approx(far.pull - 0.5)


def test_ordered_layers_add_up_and_dense_budgets_are_refused():
    first = LayerTerm("fc1", 0.1, 0.02, 0.3)
    good = ordered_certificate([first, LayerTerm("fc2", 0.3, 0.05, 0.2, pruned_before=("fc1",))])
    assert (good.bound, good.gain, good.eta) == pytest.approx((0.4, 0.5, 0.07)) and good.holds
    with pytest.raises(BudgetError, match="earlier layers are pruned"):
        ordered_certificate([first, LayerTerm("fc2", 0.3, 0.05, 0.2)])
    with pytest.raises(BudgetError, match="twice"):
        ordered_certificate([first, LayerTerm("fc1", 0.3, 0.05, 0.2, pruned_before=("fc1",))])
    with pytest.raises(BudgetError, match="one at least"):
        ordered_certificate([])


def test_dense_budgets_of_several_layers_would_be_wrong():
    """x → w1 x → w2(·): the second layer's budget in the dense network misses what the first one's pruning opened."""
    x, z = 1.0, {}
    for name, (a, b, c) in {"dense": (1, -1, 1), "both": (1, 0, 0)}.items():  # z = c·(a + b)·x
        z[name] = c * (a + b) * x
    first_alone = abs(1 * (1 + 0) * x - z["dense"])  # prune b: 1
    second_alone = abs(0 * (1 - 1) * x - z["dense"])  # prune c in the dense network: 0
    second_after = abs(0 * (1 + 0) * x - 1 * (1 + 0) * x)  # prune c after b: 1
    assert abs(z["both"] - z["dense"]) <= first_alone + second_after
    assert second_alone == 0 < second_after


def test_decoupled_decay_has_no_objective():
    with pytest.raises(MpvizError, match="AdamW"):
        Penalty(0.01, objective="decoupled")
    with pytest.raises(MpvizError, match="unknown objective"):
        Penalty(0.01, objective="adam")
    for bad in (-1.0, math.nan, math.inf):
        with pytest.raises(MpvizError, match="at least 0"):
            Penalty(bad)


def test_bad_input():
    s, r = torch.eye(2), torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    with pytest.raises(BudgetError, match="not of one weight"):
        mask_certificate(s, torch.zeros(2, 3), 0.1, Penalty())
    with pytest.raises(BudgetError, match="NaN"):
        mask_certificate(s, r * torch.nan, 0.1, Penalty())
    with pytest.raises(MpvizError, match="NaN"):
        mask_certificate(s, r, math.nan, Penalty())
    for bad in (-0.1, math.nan):
        with pytest.raises(MpvizError, match="at least 0"):
            stationarity(s, r, bad, Penalty())
    assert mask_certificate(s, r, -0.1, Penalty()).holds, "a proved fall of the cross-entropy needs no penalty"
    with pytest.raises(MpvizError, match="epsilon"):
        stationarity(s, r, 0.1, Penalty(), epsilon=-1)
    assert not mask_certificate(s, r, math.inf, Penalty(1.0)).holds
