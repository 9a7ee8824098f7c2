"""‖Rψ‖∞ lowered after a projection: what it is, by hand; that it never rises; that patterns and networks stay whole."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mpviz as mp
from mpviz.errors import Cancelled, DataError, ModelError, PatternError
from mpviz.nets.kn_pattern import KN
from mpviz.nets.layers import weight_of
from mpviz.nets.tome import merged_tokens, schedule_of
from mpviz.prune.cast import Projected, project
from mpviz.prune.rescore import rescore


class Small(nn.Module):
    """A convolution and a layer over tokens between a stem and a head."""

    def __init__(self, inputs: int = 8, outputs: int = 12) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, inputs, 3, padding=1)
        self.fc = nn.Linear(inputs, outputs)
        self.head = nn.Linear(outputs, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.relu(self.conv(torch.relu(self.stem(x)))).flatten(2).transpose(1, 2)
        return self.head(torch.relu(self.fc(tokens)).mean(dim=1))


@pytest.fixture
def small() -> tuple[Small, Tensor]:
    torch.manual_seed(0)
    return Small().eval(), torch.randn(20, 1, 6, 6)


@torch.no_grad()
def largest_change(net: Small, name: str, mask: Tensor, x: Tensor) -> float:
    """Oracle, without any unfolding: the layer with what is removed alone, mean over images of the largest |R h|."""
    gone = weight_of(net, name) * ~mask
    h = torch.relu(net.stem(x))
    if name == "fc.weight":
        change = torch.relu(net.conv(h)).flatten(2).transpose(1, 2) @ gone.T
    else:
        change = F.conv2d(h, gone, padding=1)
    return float(change.abs().flatten(1).amax(dim=1).mean())


@pytest.mark.parametrize("conv", ["flattened", "native"])
@pytest.mark.parametrize("rule", ["none", "hungarian"])
def test_the_table_tells_the_largest_changes_and_they_never_rise(
    small: tuple[Small, Tensor], conv: str, rule: str
) -> None:
    net, x = small
    found = project(net, "2:4", x, conv=conv, permute=rule)
    better = rescore(net, found, x, steps=30)
    assert list(better.table.index) == list(found.masks) == ["conv.weight", "fc.weight"]
    for name, row in better.table.iterrows():
        mask, new = found.masks[str(name)], better.projected.masks[str(name)]
        assert row["before"] == pytest.approx(largest_change(net, str(name), mask, x), rel=1e-5)
        assert row["after"] == pytest.approx(largest_change(net, str(name), new, x), rel=1e-5)
        assert row["after"] < row["before"] and row["changed"] > 0
        assert not torch.equal(mask, new)
        weight = weight_of(net, str(name))
        assert torch.equal(weight_of(better.projected.model, str(name)), torch.where(new, weight, 0.0))
    better.projected.check(better.projected.model)
    assert set(better.projected.permutations) == set(found.permutations)


def test_one_group_gets_the_best_of_all_its_patterns() -> None:
    torch.manual_seed(3)
    net, x = Small(4, 1).eval(), torch.randn(9, 1, 4, 4)
    found = project(net, "2:4", x, layers=["fc"], criterion="magnitude")
    costs = {}
    for kept in itertools.combinations(range(4), 2):
        mask = torch.zeros(1, 4, dtype=torch.bool)
        mask[0, list(kept)] = True
        costs[kept] = largest_change(net, "fc.weight", mask, x)
    better = rescore(net, found, x)
    kept = tuple(better.projected.masks["fc.weight"][0].nonzero().flatten().tolist())
    assert costs[kept] == min(costs.values()) < max(costs.values())
    assert better.table.loc["fc.weight", "after"] == pytest.approx(min(costs.values()), rel=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("seed", range(6))
def test_one_step_is_that_of_an_oracle(seed: int) -> None:
    """The row that is the largest on most images; of each of its groups in turn the pattern with the least mean."""
    torch.manual_seed(seed)
    net, x = Small().eval(), torch.randn(7, 1, 4, 4)
    found = project(net, "2:4", x, layers=["fc"], criterion="magnitude")
    mask, weight = found.masks["fc.weight"].clone(), net.fc.weight.double()
    h = torch.relu(net.conv(torch.relu(net.stem(x)))).flatten(2).transpose(1, 2).double()

    def peaks(kept: Tensor) -> Tensor:
        return (h @ (weight * ~kept).T).abs().amax(dim=1)

    row = int(torch.bincount(peaks(mask).argmax(dim=1)).argmax())
    for group in range(2):
        tried = []
        for pattern in KN(2, 4).masks():
            other = mask.clone()
            other[row, 4 * group : 4 * group + 4] = pattern
            tried.append((float(peaks(other).amax(dim=1).mean()), other))
        mask = min(tried, key=lambda one: one[0])[1]
    assert torch.equal(rescore(net, found, x, steps=1).projected.masks["fc.weight"], mask)


def test_only_rows_that_reach_the_largest_change_are_taken_up() -> None:
    torch.manual_seed(4)
    net, x = Small().eval(), torch.randn(12, 1, 6, 6)
    with torch.no_grad():
        net.fc.weight[3] *= 100.0
    found = project(net, "2:4", x, layers=["fc"], criterion="magnitude")
    better = rescore(net, found, x).projected.masks["fc.weight"] != found.masks["fc.weight"]
    assert not better[torch.arange(12) != 3].any()
    assert rescore(net, found, x, steps=0).table["changed"].sum() == 0


def test_more_tried_patterns_or_steps_are_never_worse(small: tuple[Small, Tensor]) -> None:
    net, x = small
    found = project(net, "2:4", x, layers=["conv"], criterion="magnitude")
    after = [rescore(net, found, x, steps=n).table["after"].item() for n in (0, 1, 4, 40)]
    assert after == sorted(after, reverse=True) and after[-1] < after[0]
    one, all_ = (rescore(net, found, x, steps=40, patterns=n).table for n in (1, 6))
    assert one["after"].item() <= one["before"].item() and all_["after"].item() < all_["before"].item()


def test_those_of_least_squared_cost_are_tried_first(small: tuple[Small, Tensor]) -> None:
    net, x = small
    found = project(net, "2:4", x)  # already keeps the pattern of least cost everywhere
    assert rescore(net, found, x, steps=30, patterns=1).table["changed"].sum() == 0
    assert rescore(net, found, x, steps=30, patterns=2).table["changed"].sum() > 0


def test_the_networks_are_as_they_were(small: tuple[Small, Tensor]) -> None:
    net, x = small
    found = project(net, "2:4", x)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    projected = {name: value.clone() for name, value in found.model.state_dict().items()}
    masks = {name: mask.clone() for name, mask in found.masks.items()}
    rescore(net, found, x, steps=10)
    with pytest.raises(Cancelled, match="nothing was changed"):
        rescore(net, found, x, cancelled=lambda: True)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(torch.equal(value, projected[name]) for name, value in found.model.state_dict().items())
    assert all(torch.equal(mask, masks[name]) for name, mask in found.masks.items())
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_what_is_kept_is_saved_and_loads_again(small: tuple[Small, Tensor], tmp_path) -> None:  # type: ignore[no-untyped-def]
    net, x = small
    better = rescore(net, project(net, "2:4", x, permute="hungarian"), x, steps=10).projected
    path = mp.save(tmp_path / "better", better.model, **better.saved_as)
    with torch.no_grad():
        assert torch.equal(mp.load(path, net).model(x), better.model(x))


def test_a_merging_network_is_looked_at_while_it_merges() -> None:
    model = mp.load_model("fashion-vit")
    x = mp.load_data(folder="bundled").calibration.sample(6)[0]
    name = "blocks.5.mlp.fc1.weight"
    found = project(model, "2:4", x, tome=8, layers=[name])
    row = rescore(model, found, x, steps=1, patterns=2).table.loc[name]
    seen: list[Tensor] = []
    with merged_tokens(model, 8):
        handle = model.get_submodule("blocks.5.mlp.fc1").register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        with torch.no_grad():
            model(x)
        handle.remove()
    change = (seen[0] @ (weight_of(model, name) * ~found.masks[name]).T).abs().flatten(1).amax(dim=1).mean()
    assert row["before"] == pytest.approx(float(change), rel=1e-4) and schedule_of(model) == ()


def test_a_split_is_drawn_by_its_seed() -> None:
    model, split = mp.load_model("fashion-mlp"), mp.load_data(folder="bundled").calibration
    found = project(model, "2:4", split, images=16, layers=["features.fc2"])
    one, same, other = (
        rescore(model, found, split, images=8, steps=1, patterns=2, seed=seed).table for seed in (0, 0, 1)
    )
    assert one.equals(same) and one["before"].item() != other["before"].item()


def test_what_cannot_be_scored_again_is_a_sentence(small: tuple[Small, Tensor]) -> None:
    net, x = small
    ser = mp.prune_model(net, "magnitude", 0.5)
    refused: list[Projected] = [
        project(net, "2:4", x, repair=True), project(net, "2:4", x, ser.of(net), ser.masks),
    ]  # fmt: skip
    for one in refused:
        with pytest.raises(PatternError, match="only plain projections of a dense model"):
            rescore(net, one, x)
    found = project(net, "2:4", x)
    with pytest.raises(DataError, match="the test split only measures"):
        rescore(net, found, mp.load_data("digits").test)
    with pytest.raises(DataError, match="no images"):
        rescore(net, found, x[:0])
    with pytest.raises(DataError, match=r"NaN or infinite values enter conv\.weight"):
        rescore(net, found, torch.full_like(x, torch.inf))
    with pytest.raises(ModelError, match="training mode"):
        rescore(net.train(), found, x)
