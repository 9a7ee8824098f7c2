"""What a projection tells against a count of its own: the best of several orders, and numbers that mean nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mpviz as mp
from mpviz.errors import DataError, PatternError
from mpviz.nets.calibrate import second_moments
from mpviz.nets.kn_pattern import KN
from mpviz.nets.layers import weight_of
from mpviz.prune.cast import Projected, project
from mpviz.prune.pattern import check_legal, layout


class Chain(nn.Module):
    """Four Linear layers between a stem and a head, some of whose inputs weigh far more than others."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.one, self.two = nn.Linear(16, 16), nn.Linear(16, 16)
        self.three, self.four = nn.Linear(16, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x)).mean(dim=(2, 3))
        for layer in (self.one, self.two, self.three, self.four):
            x = torch.relu(layer(x))
        return self.head(x)


def chain(seed: int) -> tuple[Chain, Tensor]:
    torch.manual_seed(seed)
    net, x = Chain().eval(), torch.randn(32, 1, 6, 6)
    with torch.no_grad():
        net.one.weight.mul_(torch.logspace(-1, 1, 16))
        net.two.weight.mul_(torch.logspace(-1, 1, 16)[torch.randperm(16)])
    return net, x


def costs_by_hand(net: nn.Module, x: Tensor, found: Projected) -> dict[str, tuple[float, float]]:
    """Of each layer what its mask costs, and what the best one costs for its order: every pattern of every cell."""
    patterns, costs = found.pattern.masks(), {}
    for name, moments in second_moments(net, x, list(found.masks)).items():
        weight, mask = weight_of(net, name), found.masks[name]
        where = layout(name, tuple(weight.shape), found.pattern, found.conv, found.permutations.get(name))
        blocks, cells, kept = where.blocks(moments.gram), where.cells(weight).double(), where.cells(mask)
        r = (
            cells[:, :, None]
            * torch.cat([kept[:, :, None], patterns.expand(*cells.shape[:2], -1, -1)], dim=2).logical_not()
        )
        all_costs = torch.einsum("rgpa,gab,rgpb->rgp", r, blocks, r)
        costs[name] = float(all_costs[..., 0].sum()), float(all_costs[..., 1:].amin(dim=2).sum())
    return costs


@pytest.mark.parametrize("seed", [1, 6])
def test_the_cost_under_the_best_order_is_that_of_its_own_groups(seed: int) -> None:
    net, x = chain(seed)
    found = project(net, "2:4", x, permute="best")
    rules = found.cost["order"]
    assert rules.nunique() > 1, "layers choose different rules"
    for name, (cost, least) in costs_by_hand(net, x, found).items():
        assert found.cost.loc[name, "cost"] == pytest.approx(cost, rel=1e-4)
        assert cost == pytest.approx(least, rel=1e-4)
        check_legal(name, found.masks[name], KN(2, 4), order=found.permutations.get(name))
    for rule in ("none", "snake", "hungarian"):
        alone = project(net, "2:4", x, permute=rule)
        for name, (cost, _) in costs_by_hand(net, x, alone).items():
            assert found.cost.loc[name, "cost"] <= cost * (1 + 1e-4)


def test_exact_means_that_no_masks_have_a_lower_cost_than_the_one_beside_it() -> None:
    net, x = chain(0)
    exact = {}
    for label, options in {
        "cast": {}, "best": {"permute": "best"}, "local": {"method": "local"}, "wanda": {"criterion": "wanda"},
        "magnitude": {"criterion": "magnitude"}, "damped": {"damping": 0.1},
    }.items():  # fmt: skip
        found = project(net, "2:4", x, **options)  # type: ignore[arg-type]
        exact[label] = found.cost["exact"].unique().tolist()
        if exact[label] == [True]:
            assert all(cost == pytest.approx(least, rel=1e-4) for cost, least in costs_by_hand(net, x, found).values())
    assert exact == {"cast": [True], "best": [True]} | {
        label: [False] for label in ("local", "wanda", "magnitude", "damped")
    }


@pytest.mark.parametrize(("options", "words"), [
    ({"alpha_ser": "a"}, "alpha_ser is a strength of at least 0; got 'a'"),
    ({"alpha_ser": None}, "alpha_ser is a strength of at least 0; got None"),
    ({"alpha_ser": torch.nan}, "alpha_ser is a strength of at least 0; got nan"),
    ({"damping": "0.1"}, "damping is a share of the mean input power, at least 0; got '0.1'"),
    ({"damping": [0.1]}, r"damping is a share of the mean input power, at least 0; got \[0.1\]"),
    ({"seed": -1, "permute": "hungarian"}, "seed is a whole number, at least 0; got -1"),
    ({"seed": 0.5}, "seed is a whole number, at least 0; got 0.5"),
    ({"seed": "one"}, "seed is a whole number, at least 0; got 'one'"),
])  # fmt: skip
def test_settings_that_are_no_numbers_are_sentences(options: dict[str, Any], words: str) -> None:
    net, x = chain(0)
    with pytest.raises(PatternError, match=words):
        project(net, "2:4", x, **options)


def test_numbers_of_numpy_are_numbers() -> None:
    net, x = chain(0)
    plain = project(net, "2:4", x, damping=0.5, seed=3, permute="hungarian")
    same = project(net, "2:4", x, damping=np.float32(0.5), seed=np.int64(3), permute="hungarian")  # type: ignore[arg-type]
    assert all(torch.equal(same.masks[name], mask) for name, mask in plain.masks.items())


def test_calibration_that_is_no_images_is_a_sentence() -> None:
    net, x = chain(0)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x))
    for given, what in (
        (x.numpy(), "ndarray"), (list(x), "list"), ((x, x), "tuple"), ("calibration", "str"), (loader, "DataLoader"),
        (torch.tensor(1.0), r"a tensor of float32 of shape \(\)"), (x.byte(), "a tensor of uint8 of shape"),
        (mp.load_data("fashion-mnist", folder="bundled"), "Splits"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=rf"are a split, such as data.calibration, .*; got .*({what})"):
            project(net, "2:4", given)  # type: ignore[arg-type]
