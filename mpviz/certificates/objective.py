"""Does pruning lower the training objective for certain? The elastic-net certificates of arXiv:2606.02608.

    J(A) = CE(A) + λ₂‖A‖_F² + λ₁‖A‖₁

One layer A = S + R loses R. B is any proved bound of the rise of the mean cross-entropy on the set on which J is taken:
the path budget B_T(R), or the mean of the sharper softmax-weighted bound. Then J(S) < J(A) when B is less than what
the penalties fall by. λ₂ multiplies the sum of squares: an optimizer's coupled "weight decay" w means λ₂ = w / 2.

Optimizers with *decoupled* decay (AdamW) lower no such J: they shrink weights beside the gradient step, and the point
they settle at is a stationary point of no function of this form. Every function here refuses them when told so.

Rounding: sums of n terms of one sign in float64 err by less than n·2⁻⁵³ relative (Higham 2002); every strict
inequality is asked to hold with that share of each side to spare, and by no less than 1e-12 of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mpviz.errors import BudgetError, MpvizError

OBJECTIVES = ("elastic-net", "decoupled")


@dataclass(frozen=True)
class Penalty:
    """λ₂ (of the sum of squares), λ₁ (of the sum of absolute entries) and what kind of objective they belong to.

    objective: "elastic-net" for penalties that are part of the loss (coupled); "decoupled" for AdamW, which is refused.
    """

    lambda2: float = 0.0
    lambda1: float = 0.0
    objective: str = "elastic-net"

    def __post_init__(self) -> None:
        if self.objective == "decoupled":
            raise MpvizError(
                "this network was trained with decoupled weight decay (AdamW), which minimises no penalised objective; "
                "no elastic-net certificate exists for it: look at the change of the cross-entropy itself"
            )
        if self.objective not in OBJECTIVES:
            raise MpvizError(f"unknown objective '{self.objective}'; known: {', '.join(OBJECTIVES)}")
        for name, value in (("lambda2", self.lambda2), ("lambda1", self.lambda1)):
            if not (math.isfinite(value) and value >= 0):
                raise MpvizError(f"{name} is {value}; give a finite strength of at least 0")

    def of(self, weight: Tensor) -> float:
        """λ₂‖W‖_F² + λ₁‖W‖₁."""
        return self.lambda2 * square(weight) + self.lambda1 * absolute(weight)


@dataclass(frozen=True)
class ObjectiveCertificate:
    """Whether J falls for certain. bound: of the rise of the cross-entropy; gain: what the penalties fall by.

    slack: gain − bound. critical_lambda2: the λ₂ beyond which this bound would certify the same R, 0 when any does and
    inf when none; margin_of_rounding: what the comparison left to rounding. tier: that of the bound.
    """

    kind: str
    bound: float
    gain: float
    critical_lambda2: float
    margin_of_rounding: float
    tier: str = "bound"

    @property
    def slack(self) -> float:
        """Gain minus bound: how far J falls at least, where positive."""
        return self.gain - self.bound

    @property
    def holds(self) -> bool:
        """J is certainly lower after pruning."""
        return self.bound + self.margin_of_rounding < self.gain


@dataclass(frozen=True)
class RestoreTest:
    """Whether restoring Q improves the certificate. budget_drop: B(Q+P) − B(P); price: λ₂‖Q‖_F² + λ₁‖Q‖₁."""

    budget_drop: float
    price: float
    margin_of_rounding: float
    tier: str = "bound"

    @property
    def restore(self) -> bool:
        """The bound of J after pruning P alone is lower than after pruning Q + P."""
        return self.budget_drop > self.price + self.margin_of_rounding


@dataclass(frozen=True)
class Stationarity:
    """2λ₂‖R‖_F² + λ₁‖R‖₁ ≤ B + ε, what a point that the path cannot improve must satisfy.

    pull: the left-hand side; epsilon_needed: the least ε ≥ 0 with which it holds.
    """

    pull: float
    budget: float
    epsilon: float

    @property
    def epsilon_needed(self) -> float:
        """How much slope J must have along the path at least; 0 when the weights may be stationary."""
        return max(0.0, self.pull - self.budget)

    @property
    def consistent(self) -> bool:
        """The inequality holds, up to 1e-12 relative: the weights may be stationary to within ε."""
        return self.pull * (1 - 1e-12) <= self.budget + self.epsilon


def mask_certificate(
    kept: Tensor, removed: Tensor, bound: float, penalty: Penalty, tier: str = "bound"
) -> ObjectiveCertificate:
    """J falls when B < λ₂‖R‖_F² + λ₁‖R‖₁, for a mask: S ⊙ R = 0, which is checked.

    kept, removed: S and R, of one shape. bound: B.
    Proof sketch. Disjoint supports make both norms additive: ‖A‖_F² = ‖S‖_F² + ‖R‖_F², ‖A‖₁ = ‖S‖₁ + ‖R‖₁. So
    J(S) − J(A) = ΔCE − λ₂‖R‖_F² − λ₁‖R‖₁ ≤ B − gain < 0.
    """
    _check_pair(kept, removed)
    if (kept.ne(0) & removed.ne(0)).any():
        raise BudgetError(
            "S and R share entries, so this is no mask; use the additive certificate, or give S = A ⊙ mask, R = A − S"
        )
    gain = penalty.of(removed)
    return ObjectiveCertificate(
        kind="mask",
        bound=check_rise(bound),
        gain=gain,
        critical_lambda2=critical_lambda2(removed, bound, penalty.lambda1),
        margin_of_rounding=_margin(removed, gain, bound),
        tier=tier,
    )


def additive_certificate(
    kept: Tensor, removed: Tensor, bound: float, penalty: Penalty, tier: str = "bound"
) -> ObjectiveCertificate:
    """J falls when B + 2λ₂|⟨S,R⟩_F| < λ₂‖R‖_F², for any R (λ₁ = 0): a low-rank or denoised part, say.

    gain is λ₂(‖R‖_F² − 2|⟨S,R⟩|), so that `holds` reads as for a mask.
    Proof sketch. ‖S + R‖_F² − ‖S‖_F² = ‖R‖_F² + 2⟨S,R⟩ ≥ ‖R‖_F² − 2|⟨S,R⟩|. ‖·‖₁ has no such expansion: λ₁ must be 0.
    """
    _check_pair(kept, removed)
    if penalty.lambda1 != 0:
        raise MpvizError(
            f"the additive certificate knows no L1 penalty and lambda1 is {penalty.lambda1}; use a mask, or lambda1 = 0"
        )
    product = (kept.detach().double() * removed.detach().double()).flatten()
    net = square(removed) - 2 * abs(float(product.sum()))
    gain = penalty.lambda2 * net
    size = penalty.lambda2 * (square(removed) + 2 * float(product.abs().sum()))  # cancellation inside ⟨S,R⟩
    return ObjectiveCertificate(
        kind="additive",
        bound=check_rise(bound),
        gain=gain,
        critical_lambda2=float(bound) / net if net > 0 else math.inf,
        margin_of_rounding=_margin(removed, size, bound),
        tier=tier,
    )


def critical_lambda2(removed: Tensor, bound: float, lambda1: float = 0.0) -> float:
    """λ₂ = (B − λ₁‖R‖₁) / ‖R‖_F²: a mask is certified for every larger λ₂. 0 when λ₁ alone is enough, inf for R = 0.

    >>> round(critical_lambda2(torch.tensor([[1.0, -2.0]]), bound=0.5, lambda1=0.1), 6)
    0.04
    """
    norm = square(removed)
    if norm == 0:  # nothing is removed, so nothing is gained
        return math.inf
    return max(0.0, (check_rise(bound) - lambda1 * absolute(removed)) / norm)


def restore_test(
    kept: Tensor, restored: Tensor, removed: Tensor, budget_both: float, budget_removed: float, penalty: Penalty
) -> RestoreTest:
    """A = S + Q + P with P removed: restoring Q improves the bound iff B(Q+P) − B(P) > λ₂‖Q‖_F² + λ₁‖Q‖₁.

    kept, restored, removed: S, Q and P with disjoint supports. budget_both, budget_removed: B of Q + P and of P.
    Proof sketch. The bound of J(S+Q) − J(A) is B(P) − pen(P), that of J(S) − J(A) is B(Q+P) − pen(Q+P), and pen is
    additive over disjoint supports: the first is lower exactly when B(Q+P) − B(P) > pen(Q). It compares two *bounds*,
    not two values of J.
    """
    _check_pair(kept, restored)
    _check_pair(kept, removed)
    if ((kept.ne(0).int() + restored.ne(0).int() + removed.ne(0).int()) > 1).any():
        raise BudgetError("S, Q and P share entries; cut the weight into three parts with disjoint masks")
    drop, price = check_budget(budget_both) - check_budget(budget_removed), penalty.of(restored)
    if math.isnan(drop):  # both infinite: nothing is known of either
        drop = 0.0
    size = price + sum(abs(one) for one in (budget_both, budget_removed) if math.isfinite(one))
    return RestoreTest(budget_drop=drop, price=price, margin_of_rounding=_margin(restored, size, 0.0))


def stationarity(
    kept: Tensor, removed: Tensor, path_budget: float, penalty: Penalty, epsilon: float = 0.0
) -> Stationarity:
    """Whether the weights can be a point at which J cannot be lowered along A_θ = S + θR (mask, slope ≥ −ε).

    path_budget: B_T(R) of a Lipschitz constant that is valid on the whole path: it must bound the slope at θ = 1, so
    neither a measured η nor the softmax-weighted bound of the endpoint will do.
    Proof sketch. d/dθ at θ = 1 of the penalties is 2λ₂‖R‖_F² + λ₁‖R‖₁, and |d/dθ CE| ≤ B_T(R). If J cannot be lowered
    by decreasing θ, up to ε, then d/dθ J ≤ ε, which is the inequality. Together with the mask certificate it gives
    λ₂‖R‖_F² < ε: at a converged point of the same objective the plain certificate cannot hold.
    """
    _check_pair(kept, removed)
    if (kept.ne(0) & removed.ne(0)).any():
        raise BudgetError("S and R share entries, so this is no mask; give S = A ⊙ mask and R = A − S")
    if not (math.isfinite(epsilon) and epsilon >= 0):
        raise MpvizError(f"epsilon is the slope that is tolerated, finite and at least 0; got {epsilon}")
    pull = 2 * penalty.lambda2 * square(removed) + penalty.lambda1 * absolute(removed)
    return Stationarity(pull=pull, budget=check_budget(path_budget), epsilon=float(epsilon))


@dataclass(frozen=True)
class LayerTerm:
    """One layer of an ordered certificate.

    budget: B of this layer *in the network in which the layers of `pruned_before` are already pruned*; eta: mean η of
    the same; gain: λ₂‖R‖_F² + λ₁‖R‖₁ of its R.
    """

    name: str
    budget: float
    eta: float
    gain: float
    pruned_before: tuple[str, ...] = ()


@dataclass(frozen=True)
class OrderedCertificate:
    """Several layers, one after the other: budgets, η and gains add up."""

    layers: tuple[LayerTerm, ...]
    tier: str = "bound"

    @property
    def bound(self) -> float:
        """Σ budgets: a bound of the rise of the cross-entropy when all layers are pruned."""
        return math.fsum(term.budget for term in self.layers)

    @property
    def eta(self) -> float:
        """Σ η."""
        return math.fsum(term.eta for term in self.layers)

    @property
    def gain(self) -> float:
        """Σ gains: what the penalties fall by."""
        return math.fsum(term.gain for term in self.layers)

    @property
    def holds(self) -> bool:
        """J is certainly lower when all layers are pruned."""
        return self.bound + 1e-12 * (abs(self.bound) + abs(self.gain)) < self.gain


def ordered_certificate(terms: list[LayerTerm] | tuple[LayerTerm, ...], tier: str = "bound") -> OrderedCertificate:
    """The certificate of several layers, from terms in the order in which they were pruned.

    Proof sketch. A^(0) dense, A^(k) with the first k layers pruned: J(A^(K)) − J(A^(0)) is the sum of the single
    steps, and step k is the one-layer certificate in the network A^(k−1). Budgets that were all taken in the dense
    network do not add up to a bound, so each term must say which layers were pruned before it, and that is checked.
    """
    if not terms:
        raise BudgetError("no layer was given; an ordered certificate needs one at least")
    before: tuple[str, ...] = ()
    for term in terms:
        if term.name in before:
            raise BudgetError(f"{term.name} is pruned twice; give each layer once")
        if set(term.pruned_before) != set(before):
            raise BudgetError(
                f"the budget of {term.name} was taken with {list(term.pruned_before) or 'no layer'} pruned, but it "
                f"comes after {list(before) or 'none'}; take it in the network in which the earlier layers are pruned"
            )
        check_rise(term.budget)
        check_budget(term.eta)
        before = (*before, term.name)
    return OrderedCertificate(tuple(terms), tier)


def square(weight: Tensor) -> float:
    """‖W‖_F² in float64."""
    return float(weight.detach().double().square().sum())


def absolute(weight: Tensor) -> float:
    """‖W‖₁, the sum of absolute entries, in float64."""
    return float(weight.detach().double().abs().sum())


def check_rise(bound: float) -> float:
    """A bound of a rise as a float: negative where a fall is proved, inf where nothing is. Refuses NaN."""
    if math.isnan(bound):
        raise MpvizError("the bound of the rise of the cross-entropy is NaN; give inf where nothing is proved")
    return float(bound)


def check_budget(budget: float) -> float:
    """A budget as a float, inf allowed. Raises MpvizError for NaN or a negative one."""
    if not budget >= 0:
        raise MpvizError(f"a budget or an eta bounds an absolute change and is at least 0; got {budget}")
    return float(budget)


def _margin(removed: Tensor, size: float, bound: float) -> float:
    share = max(1e-12, 4 * removed.numel() * 2.0**-53)
    return share * (abs(size) + (abs(bound) if math.isfinite(bound) else 0.0))


def _check_pair(one: Tensor, other: Tensor) -> None:
    if one.shape != other.shape:
        raise BudgetError(f"parts of shapes {tuple(one.shape)} and {tuple(other.shape)} are not of one weight")
    for part in (one, other):
        if not torch.isfinite(part).all():
            raise BudgetError("a part of the weight holds NaN or infinite entries; load the model again or repair it")
