"""Every position of a slider: no mask is left out, each is run, and what is certified stays."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mpviz as mp
from mpviz.certificates import exhaustive
from mpviz.certificates.bounds import Options
from mpviz.certificates.certify import Slider, certify, tier_results
from mpviz.certificates.exhaustive import Stretch, every_position, most_masks, seconds_for, stretch
from mpviz.certificates.margins import compare_logits
from mpviz.errors import BudgetError, Cancelled, DataError
from mpviz.nets.forward import logits, pruned_copy
from mpviz.prune.masks import Ranking

Masks = dict[str, Tensor]


def small(ties: bool = False) -> nn.Sequential:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Flatten(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4)).eval()
    if ties:
        with torch.no_grad():
            for p in net.parameters():
                p.copy_((4 * p).round() / 4)
    return net


def family(net: nn.Module) -> Callable[[float], Masks]:
    ranking = Ranking(net)
    return lambda s: ranking.masks(ranking.counts(s, {name: 1.0 + i for i, name in enumerate(ranking.names)}))


def key(masks: Masks) -> bytes:
    return b"".join(mask.numpy().tobytes() for mask in masks.values())


@pytest.mark.parametrize("ties", [False, True])
def test_no_mask_is_left_out_and_each_is_run(ties: bool) -> None:
    net = small(ties)
    at = family(net)
    x = torch.randn(30, 1, 3, 3)
    target = net(x).argmax(1)
    all_masks = {key(at(s)): at(s) for s in np.linspace(0.2, 0.7, 4001)}
    found = stretch(at, 0.2, 0.7)
    assert found.masks == len(all_masks) > 20
    least = torch.full((30,), torch.inf, dtype=torch.float64)
    for masks in all_masks.values():
        z = logits(net, x, masks).double()
        rest = z.scatter(1, target[:, None], -torch.inf).amax(1)
        least = torch.minimum(least, z.gather(1, target[:, None]).squeeze(1) - rest)
    ran = every_position(net, at, 0.2, 0.7, x, target, batch=7)
    assert (ran.certified == (least > 0).numpy()).all()
    assert 0 < ran.certified.sum() < 30, "both kinds are there"
    np.testing.assert_allclose(ran.lower[ran.certified], least.numpy()[ran.certified], atol=1e-6)
    for row in np.flatnonzero(~ran.certified)[:3]:
        z = logits(net, x[row : row + 1], at(ran.at[row])).double().squeeze(0)
        assert z[target[row]] <= z[torch.arange(4) != target[row]].max(), "the position named is one that flips it"


def test_several_entries_that_go_at_one_position_are_one_step() -> None:
    def at(s: float) -> Masks:
        mask = torch.ones(6, dtype=torch.bool)
        mask[:2] = s < 0.3
        mask[2:5] = s < 0.4
        return {"w": mask}

    found = stretch(at, 0.1, 0.5)
    assert [step["w"].tolist() for step in found.steps] == [[0, 1], [2, 3, 4]]
    assert found.positions == (0.3, 0.4)
    assert stretch(at, 0.31, 0.39).masks == 1
    assert most_masks(at, 0.1, 0.5) == 6 and most_masks(at, 0.31, 0.39) == 1, "a limit, without a search"


class Bump(nn.Module):
    """Flips only while exactly the first of two weights is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, 2.0]))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.w
        bad = (a == 0) & (b != 0)
        return torch.stack([x[:, 0], x[:, 0] - torch.where(bad, -1.0, 1.0)], dim=1)


def two(s: float) -> Masks:
    return {"w": torch.tensor([s < 0.2, s < 0.4])}


def test_a_flip_between_two_harmless_ends_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x, target = Bump().eval(), torch.ones(1, 1), torch.zeros(1, dtype=torch.long)
    for s in (0.1, 0.5):
        assert logits(net, x, two(s)).argmax(1).item() == 0
    ran = every_position(net, two, 0.1, 0.5, x, target)
    assert ran.masks == 3 and not ran.certified[0] and 0.2 <= ran.at[0] < 0.4
    whole = stretch(two, 0.1, 0.5)
    joined = {"w": torch.cat([step["w"] for step in whole.steps])}
    skipped = Stretch(0.1, 0.5, whole.first, (joined,), (0.5,))
    assert every_position(net, skipped, 0.1, 0.5, x, target).certified[0], "a mask left out is what this test is about"


def test_what_bounds_prove_is_so_at_every_position() -> None:
    model = mp.load_model("fashion-mlp")
    split = mp.load_data("fashion-mnist").test
    ranking = Ranking(model)
    slider = Slider(lambda s: ranking.masks(ranking.counts(s)), 0.6, 0.6002)
    pruned = pruned_copy(model, slider.masks_at(0.6))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    cert = certify(model, pruned, split, ("slider", "every position"), samples=60, slider=slider)
    ran, bound = cert.tiers["every position"], cert.tiers["slider"]
    assert round(0.6002 * ranking.total) - round(0.6 * ranking.total) == 133
    assert ran.tier == "measured" and "134 masks" in ran.about.replace("\u202f", "")
    assert ran.certified is not None and bound.certified is not None
    assert not (bound.certified & ~ran.certified).any()
    assert (bound.lower[bound.certified] <= ran.lower[bound.certified] + 1e-5).all()  # type: ignore[index]
    assert cert.violations == 0
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_network_without_any_rule_is_answered() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(9, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(self.fc(x.flatten(1))) * (2.0 if float(x.sum()) > 0 else 1.0)

    net, x = Odd().eval(), torch.randn(3, 1, 3, 3)
    order = net.fc.weight.detach().abs().flatten().argsort()

    def at(s: float) -> Masks:
        mask = torch.ones(36, dtype=torch.bool)
        mask[order[: round(36 * s)]] = False
        return {"fc.weight": mask.view(4, 9)}

    assert every_position(net, at, 0.0, 0.5, x, net(x).argmax(1)).masks == 19


def test_only_the_layers_that_have_masks_change() -> None:
    net, x = small(), torch.randn(12, 1, 3, 3)
    order = net[3].weight.detach().abs().flatten().argsort()

    def removing(count: int) -> Masks:
        mask = torch.ones(48, dtype=torch.bool)
        mask[order[:count]] = False
        return {"3.weight": mask.view(6, 8)}

    at = lambda s: removing(round(48 * s))  # noqa: E731
    found = stretch(at, 0.2, 0.6)
    assert found.masks == most_masks(at, 0.2, 0.6) == 20
    target = net(x).argmax(1)
    least = torch.full((12,), torch.inf, dtype=torch.float64)
    for count in range(10, 30):
        z = logits(net, x, removing(count)).double()
        rest = z.scatter(1, target[:, None], -torch.inf).amax(1)
        least = torch.minimum(least, z.gather(1, target[:, None]).squeeze(1) - rest)
    assert (every_position(net, found, 0.2, 0.6, x, target).certified == (least > 0).numpy()).all()


def test_entries_that_go_between_neighbouring_floats_are_told_apart() -> None:
    first = np.nextafter(0.3, 1)
    second = np.nextafter(first, 1)
    at = lambda s: {"w": torch.tensor([s < first, s < second, s < 0.3])}  # noqa: E731
    found = stretch(at, 0.1, 0.7)
    assert [step["w"].tolist() for step in found.steps] == [[2], [0], [1]]
    assert found.positions[:2] == (0.3, first) and found.positions[2] >= second


def test_a_tie_of_logits_is_not_certified() -> None:
    class Tie(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([1.0, 2.0]))

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x[:, 0] * self.w[0], 0 * x[:, 0]], dim=1)

    x, target = torch.ones(1, 1), torch.zeros(1, dtype=torch.long)
    ran = every_position(Tie().eval(), two, 0.1, 0.3, x, target)
    assert ran.lower.tolist() == [0.0] and not ran.certified[0]


def test_bad_input_is_named_and_work_can_be_cancelled() -> None:
    net = small()
    at, x = family(net), torch.randn(4, 1, 3, 3)
    target = net(x).argmax(1)
    with pytest.raises(BudgetError, match="not nested"):
        stretch(lambda s: at(0.9 - s), 0.1, 0.5)
    with pytest.raises(BudgetError, match="from a sparsity to a later one"):
        stretch(at, 0.5, 0.1)
    with pytest.raises(BudgetError, match="at some positions"):
        stretch(lambda s: at(s) if s < 0.2 else {}, 0.1, 0.5)
    with pytest.raises(BudgetError, match="between the same ends"):
        every_position(net, stretch(at, 0.1, 0.2), 0.1, 0.5, x, target)
    with pytest.raises(BudgetError, match="from a sparsity to a later one"):
        most_masks(at, 0.5, 0.1)
    with pytest.raises(DataError, match="no images"):
        seconds_for(net, 3, x[:0])
    with pytest.raises(DataError, match="one at least"):
        every_position(net, at, 0.1, 0.2, x[:0], target[:0])
    with pytest.raises(DataError, match="NaN"):
        every_position(net, at, 0.1, 0.2, torch.full_like(x, torch.nan), target)
    with pytest.raises(Cancelled):
        every_position(net, at, 0.1, 0.5, x, target, cancelled=lambda: True)
    with pytest.raises(Cancelled):
        tier_results(compare_logits(net(x).detach(), net(x).detach(), target), net, net, x, ("every position",),
                     slider=Slider(at, 0.1, 0.5), options=Options(cancelled=lambda: True))  # fmt: skip


def test_the_estimate_of_its_cost_counts_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 2.0, 10.0, 11.0, 20.0, 23.0])
    monkeypatch.setattr(exhaustive.time, "monotonic", lambda: next(ticks))
    assert seconds_for(small(), 50, torch.randn(4, 1, 3, 3)) == 50.0


def test_the_estimate_leaves_a_network_in_training_as_it_is() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(9, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert seconds_for(net, 3, torch.randn(4, 1, 3, 3)) > 0
    assert net.training and all(torch.equal(before[name], value) for name, value in net.state_dict().items())
