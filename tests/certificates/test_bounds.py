"""The bound tier: no member of a set may break its bound, and every way of getting it wrong must be noticed."""

from __future__ import annotations

from collections.abc import Callable

import attacks
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mpviz.certificates import bounds, boxes, families, rules, walk
from mpviz.certificates.exhaustive import stretch
from mpviz.certificates.scope import find_scope
from mpviz.errors import BudgetError, Cancelled, DataError, ModelError, MpvizError
from mpviz.nets.forward import masked_parameters
from mpviz.nets.graph import Network, trace
from tests.certificates import networks

SETS = ("bracket", "sub-masks", "path", "ball")
N = 6


def make(kind: str, which: str, seed: int, sparsity: float) -> tuple[Network, families.Family, Tensor, Tensor]:
    """A network, a set around it, samples, and the labels that the dense network gives them."""
    model = networks.build(kind, seed)
    network = trace(model)
    x = networks.images(N, seed)
    masks = networks.threshold_masks(model, sparsity)
    family = {
        "bracket": lambda: families.bracket(model, networks.threshold_masks(model, 0.7 * sparsity), masks),
        "sub-masks": lambda: families.sub_masks(model, masks),
        "path": lambda: families.path(model, masked_parameters(model, masks)),
        "ball": lambda: families.ball(0.1 * sparsity, masked_parameters(model, masks)),
    }[which]()
    return network, family, x, walk.centre_logits(network, x).argmax(dim=1)


def count_broken(network: Network, family: families.Family, x: Tensor, target: Tensor, seed: int) -> int:
    """Members of the family, random and adversarial, that break the bound."""
    bound = bounds.margin_bound(network, family, x, target)
    lower = torch.from_numpy(bound.lower)
    model64 = attacks.double(network.model)
    run, generator = attacks.evaluator(model64), torch.Generator().manual_seed(seed)
    bad = 0
    if family.ball:
        for rival in range(lower.shape[1]):
            weights = dict(family.centre)
            for moved in attacks.worst_inputs(
                _with(model64, weights), x, target, torch.full_like(target, rival), family.ball
            ):
                bad += attacks.broken(attacks.logits(model64, weights, moved), target, lower)[0]
        return bad
    for corners in (True, False) * 4:
        member = attacks.random_member(family, generator, corners)
        bad += attacks.broken(attacks.logits(model64, member, x), target, lower)[0]
    if family.is_path:
        return bad
    for i in range(len(x)):
        for rival in range(lower.shape[1]):
            one = slice(i, i + 1)
            against = torch.tensor([rival])
            for member in attacks.worst_members(run, family, x[one], target[one], against, 3):
                z = attacks.logits(model64, member, x[one])
                bad += attacks.broken(z, target[one], lower[one])[0]
    return bad


def _with(model64: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    with torch.no_grad():
        for name, values in weights.items():
            model64.get_parameter(name).copy_(values)
    return model64


@pytest.mark.parametrize("kind", networks.KINDS)
@pytest.mark.parametrize("which", SETS)
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 10_000), sparsity=st.floats(0.02, 0.9))
def test_nothing_in_the_set_breaks_the_bound(kind: str, which: str, seed: int, sparsity: float) -> None:
    network, family, x, target = make(kind, which, seed, sparsity)
    assert count_broken(network, family, x, target, seed) == 0


@pytest.mark.parametrize("kind", networks.KINDS)
def test_a_set_of_one_gives_the_exact_margins(kind: str) -> None:
    network, family, x, target = make(kind, "bracket", 3, 0.4)
    masks = networks.threshold_masks(network.model, 0.4)
    one = families.bracket(network.model, masks, masks)
    bound = bounds.margin_bound(network, one, x, target)
    z = attacks.logits(attacks.double(network.model), dict(one.centre), x)
    exact = (z.gather(1, target[:, None]) - z).numpy()
    finite = bound.lower < float("inf")
    assert abs(bound.lower[finite] - exact[finite]).max() < 1e-9
    assert (bound.lower[finite] <= exact[finite]).all()
    assert family.radius  # the wider set is not the same
    wider = bounds.margin_bound(network, family, x, target)
    assert (wider.margin < bound.margin).any()


# --- each way of getting it wrong is noticed ----------------------------------------------------------------------


def _no_absolute_value(monkeypatch: pytest.MonkeyPatch) -> None:
    def charge(v: Tensor, cost: Tensor | None) -> Tensor:
        zero = v.new_zeros(v.shape[:2])
        return zero if cost is None else torch.einsum("nkf,nf->nk", v.flatten(2), cost.flatten(1))

    monkeypatch.setattr(bounds, "_charge", charge)


def _layer_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    real = bounds.affine

    def affine(network: Network, node, x, family, unit):  # type: ignore[no-untyped-def]
        first = next(n for n in network if n.weight)
        if node.name == first.name:
            family = families.Family("", family.centre, {}, {}, 0.0, family.ball)
        return real(network, node, x, family, unit)

    for module in (bounds, walk):
        monkeypatch.setattr(module, "affine", affine)


def _margin_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    real = bounds._backward
    monkeypatch.setattr(bounds, "_backward", lambda *args: tuple(0.5 * part for part in real(*args)))


def _chord_from_below(monkeypatch: pytest.MonkeyPatch) -> None:
    def relu(v: Tensor, x: boxes.State, out: boxes.State) -> tuple[Tensor, Tensor]:
        back, constant = boxes.relu_backward(v, x, out)
        return back, torch.zeros_like(constant)

    monkeypatch.setattr(rules, "relu_backward", relu)


def _rows_swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    real = bounds._rows
    monkeypatch.setattr(bounds, "_rows", lambda z, t: -real(z, t))


MUTATIONS = [_no_absolute_value, _layer_forgotten, _margin_halved, _chord_from_below, _rows_swapped]


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda f: f.__name__.strip("_"))
@pytest.mark.parametrize("which", ["bracket", "ball"])
def test_a_broken_rule_is_noticed(
    mutate: Callable[[pytest.MonkeyPatch], None], which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if which == "ball" and mutate is _layer_forgotten:
        pytest.skip("a ball moves inputs, not layers")
    mutate(monkeypatch)
    bad = 0
    for seed in range(12):
        network, family, x, target = make("mlp", which, seed, 0.5)
        bad += count_broken(network, family, x, target, seed)
    assert bad > 0


# --- sets in parts ------------------------------------------------------------------------------------------------


def test_a_slider_in_parts_holds_at_every_position_and_is_no_worse() -> None:
    model = networks.build("mlp", 5)
    network, x = trace(model), networks.images(40, 5)
    target = walk.centre_logits(network, x).argmax(dim=1)

    def at(s: float) -> dict[str, Tensor]:
        return networks.threshold_masks(model, s)

    whole = bounds.slider_bound(network, at, (0.1, 0.4), x, target, bounds.Options(pieces=1))
    parts = bounds.slider_bound(network, at, (0.1, 0.4), x, target, bounds.Options(pieces=64))
    assert parts.coverage > whole.coverage
    for s in torch.linspace(0.1, 0.4, 60).tolist():
        z = walk.centre_logits(network, x, masked_parameters(model, at(s)))
        assert (z.argmax(dim=1) == target)[torch.from_numpy(parts.certified)].all()


def test_a_slider_that_is_nested_at_its_ends_alone_is_refused() -> None:
    model = networks.build("mlp", 0)
    network, x = trace(model), networks.images(4, 0)
    target = walk.centre_logits(network, x).argmax(dim=1)
    both, between = networks.threshold_masks(model, 0.2), networks.threshold_masks(model, 0.3)
    at = lambda s: between if 0.31 < s < 0.39 else both  # noqa: E731
    with pytest.raises(BudgetError, match="not nested"):
        bounds.slider_bound(network, at, (0.3, 0.4), x, target)
    with pytest.raises(BudgetError, match="not nested"):
        stretch(at, 0.3, 0.4)


def test_a_stretch_of_one_position_and_senseless_options() -> None:
    model = networks.build("mlp", 0)
    network, x = trace(model), networks.images(4, 0)
    target = walk.centre_logits(network, x).argmax(dim=1)
    told: list[float] = []
    at = lambda s: networks.threshold_masks(model, s)  # noqa: E731
    one = bounds.slider_bound(network, at, (0.1, 0.1), x, target, bounds.Options(progress=told.append))
    assert len(one.margin) == 4 and told[-1] == 1.0
    for wrong in ({"pieces": 0}, {"batch": 0}):
        with pytest.raises(MpvizError, match="at least 1"):
            bounds.Options(**wrong)
    with pytest.raises(BudgetError, match="no bool tensor"):
        families.bracket(model, {"1.weight": torch.ones(20, 64)}, {"1.weight": torch.ones(20, 64)})


def test_the_least_margin_of_a_sample_that_is_lost_is_no_promise() -> None:
    for seed in range(8):
        model = networks.build("mlp", seed)
        network, x = trace(model), networks.images(20, seed)
        target = walk.centre_logits(network, x).argmax(dim=1)
        at = lambda s, model=model: networks.threshold_masks(model, s)  # noqa: E731
        found = bounds.slider_bound(network, at, (0.2, 0.8), x, target, bounds.Options(pieces=8))
        assert not np.isnan(found.lower).any()
        for s in torch.linspace(0.2, 0.8, 40).tolist():
            z = walk.centre_logits(network, x, masked_parameters(model, at(s)))
            assert attacks.broken(z, target, torch.from_numpy(found.lower))[0] == 0


def test_a_path_holds_for_every_theta() -> None:
    model = networks.build("mlp", 2)
    network, x = trace(model), networks.images(40, 2)
    target = walk.centre_logits(network, x).argmax(dim=1)
    pruned = masked_parameters(model, networks.threshold_masks(model, 0.5))
    bound = bounds.path_bound(network, pruned, x, target)
    assert 0 < bound.coverage < 1
    dense = dict(model.named_parameters())
    for theta in torch.linspace(0, 1, 50).tolist():
        weights = {k: (1 - theta) * s.double() + theta * dense[k].double() for k, s in pruned.items()}
        z = walk.centre_logits(network, x, weights)
        assert attacks.broken(z, target, torch.from_numpy(bound.lower))[0] == 0


def test_float32_networks_keep_the_bound_that_was_made_for_them() -> None:
    network, family, x, target = make("mlp", "bracket", 11, 0.2)
    exact = bounds.margin_bound(network, family, x, target)
    single = bounds.margin_bound(network, family, x, target, arithmetic="float32")
    assert (single.margin < exact.margin).all()
    assert (single.rounding > 1e6 * exact.rounding).all()
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        member = {k: v.float() for k, v in attacks.random_member(family, generator, True).items()}
        with torch.no_grad():
            z = torch.func.functional_call(network.model, member, (x,)).double()
        assert attacks.broken(z, target, torch.from_numpy(single.lower))[0] == 0


# --- parts of networks --------------------------------------------------------------------------------------------


def test_a_part_that_starts_at_the_first_moving_layer_gives_the_same_bounds() -> None:
    network, _, x, target = make("residual", "bracket", 4, 0.3)
    last = {name: mask for name, mask in networks.threshold_masks(network.model, 0.3).items() if name != "conv1.weight"}
    family = families.sub_masks(network.model, last)
    part, start = walk.prepare(network, last, x, batch=4)
    assert len(part.nodes) < len(network.nodes)
    whole = bounds.margin_bound(network, family, x, target)
    same = bounds.margin_bound(part, family, start, target, batch=4)
    np.testing.assert_allclose(whole.lower, same.lower, rtol=0, atol=1e-9)
    with pytest.raises(MpvizError, match="needs the images themselves"):
        bounds.margin_bound(part, families.ball(0.1), start, target)


def test_the_scope_is_as_long_as_bounds_can_bear() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        deep = nn.Sequential(nn.Flatten(), *(layer for _ in range(12) for layer in (nn.Linear(64, 64), nn.ReLU())))
        model = nn.Sequential(deep, nn.Linear(64, 4)).eval()
    masks = networks.threshold_masks(model, 0.4)
    scope = find_scope(model, masks, networks.images(4, 0))
    assert not scope.whole
    assert 0 < len(scope.layers) < 13
    assert "outgrow" in scope.why
    assert scope.layers[-1] == "1.weight"
    shallow = networks.build("mlp", 0)
    few = networks.threshold_masks(shallow, 0.02)
    whole = find_scope(shallow, few, networks.images(4, 0))
    assert whole.whole
    assert set(whole.layers) == {name for name, mask in few.items() if not mask.all()}
    none = find_scope(nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Sigmoid()).eval(), {}, networks.images(4, 0))
    assert none.network is None
    assert "no rule for Sigmoid" in none.why


# --- what is refused ----------------------------------------------------------------------------------------------


def test_masks_that_are_not_nested_are_refused() -> None:
    model = networks.build("mlp", 0)
    sparser, denser = networks.threshold_masks(model, 0.3), networks.threshold_masks(model, 0.5)
    with pytest.raises(BudgetError, match=r"1\.weight are not nested.*freeze the layer weights"):
        families.bracket(model, denser, sparser)
    with pytest.raises(BudgetError, match="one end of the bracket only"):
        families.bracket(model, {"1.weight": denser["1.weight"]}, denser)


def test_bad_samples_are_refused() -> None:
    network, family, x, target = make("mlp", "bracket", 0, 0.2)
    with pytest.raises(DataError, match="no samples"):
        bounds.margin_bound(network, family, x[:0], target[:0])
    with pytest.raises(DataError, match="6 samples and 5 targets"):
        bounds.margin_bound(network, family, x, target[:5])
    with pytest.raises(DataError, match=r"targets run from .* to 4, the network has 4 classes"):
        bounds.margin_bound(network, family, x, torch.full_like(target, 4))
    with pytest.raises(DataError, match="NaN or infinite logits"):
        bounds.margin_bound(network, family, x * float("nan"), target)
    with pytest.raises(MpvizError, match="unknown arithmetic 'bf16'"):
        bounds.margin_bound(network, family, x, target, arithmetic="bf16")
    with pytest.raises(Cancelled):
        bounds.margin_bound(network, family, x, target, cancelled=lambda: True)


def test_another_architecture_is_refused() -> None:
    model = networks.build("mlp", 0)
    with pytest.raises(BudgetError, match="names no parameter"):
        families.path(model, {"9.weight": torch.zeros(2, 2)})
    with pytest.raises(BudgetError, match=r"1\.weight has shape \(2, 2\) in one network and \(20, 64\)"):
        families.path(model, {"1.weight": torch.zeros(2, 2)})


@pytest.mark.parametrize(
    ("layer", "named"),
    [
        (nn.Sigmoid(), r"Sigmoid \(2\)"),
        (nn.ReLU6(), "ReLU6"),
        (nn.Conv2d(1, 1, 3, padding="same"), "padding 'same'"),
        (nn.Flatten(0), r"Flatten\(0, -1\)"),
        (nn.BatchNorm1d(4, track_running_stats=False), "without running statistics"),
    ],
)
def test_an_operation_without_a_rule_is_named(layer: nn.Module, named: str) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), layer).eval()
    with pytest.raises(ModelError, match=f"{named}.*measured, population and estimate tiers remain"):
        trace(model)


def test_training_mode_and_control_flow_are_refused() -> None:
    with pytest.raises(ModelError, match=r"training mode.*\.eval"):
        trace(networks.mlp())

    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ModelError, match="Branches cannot be read as a list of operations"):
        trace(Branches().eval())


class Twice(nn.Module):
    """A layer, and what `then` makes of its output."""

    def __init__(self, then: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.fc, self.relu, self.then = nn.Linear(4, 4), nn.ReLU(inplace=True), then
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self, x)  # type: ignore[call-arg]


def _read_again(m: Twice, x: Tensor) -> Tensor:
    y = m.fc(x)
    return m.relu(y) + y


def _added_in_place(m: Twice, x: Tensor) -> Tensor:
    y = m.fc(x)
    z = y
    z += x
    return torch.relu(z) + y


@pytest.mark.parametrize(
    ("then", "named"),
    [
        (_read_again, "in place on a value that is read again"),
        (lambda m, x: m.fc(x) + m.scale, "outside a layer"),
        (lambda m, x: torch.nn.functional.relu(m.fc(x)) + x + 1.0, "addition of anything but two"),
    ],
)
def test_what_a_graph_does_not_show_is_refused(then: Callable[[Tensor], Tensor], named: str) -> None:
    with pytest.raises(ModelError, match=named):
        trace(Twice(then).eval())


def test_what_python_does_unseen_is_caught_by_running_it() -> None:
    network = trace(Twice(_added_in_place).eval())
    with pytest.raises(ModelError, match="do not give its logits"):
        walk.check_faithful(network, torch.ones(3, 4))
    walk.check_faithful(trace(networks.build("residual", 0)), networks.images(3, 0))


def test_in_place_is_fine_where_nobody_else_reads() -> None:
    model = Twice(lambda m, x: m.relu(m.fc(x)) + x).eval()  # type: ignore[arg-type, call-arg, misc]
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(walk.centre_logits(trace(model), x), model(x).double(), atol=1e-6)


def test_shared_weights_and_hooks_are_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).eval()
    model[2].weight = model[0].weight
    with pytest.raises(ModelError, match=r"two layers share \(0\.weight and 2\.weight\)"):
        trace(model)
    hooked = nn.Sequential(nn.Linear(4, 4)).eval()
    hooked[0].register_forward_hook(lambda module, inputs, out: 2 * out)
    with pytest.raises(ModelError, match="forward hooks of 0"):
        trace(hooked)
