"""MP training: what goes, when, what stays exact, and what it refuses."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import mpviz as mp
from mpviz.errors import Cancelled, DataError, TrainingError
from mpviz.rmt.fit import fit_bulk
from mpviz.train.mp_training import MPPlan, factored, kept_share, mp_train, thin_out
from tests.train.recovery_case import digits

FAST = MPPlan(epochs=4, every=2, horizon=8, learning_rate=0.1, batch=64)


def noise(rows: int = 120, columns: int = 60, spike: float = 0.0) -> torch.Tensor:
    rng = np.random.default_rng(0)
    ones = np.outer(np.ones(rows), np.ones(columns)) / np.sqrt(rows * columns)
    return torch.from_numpy(rng.normal(size=(rows, columns)) + spike * ones)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 10)
    )  # fmt: skip


def oracle(weight: torch.Tensor, share: float) -> np.ndarray:
    u, s, vt = np.linalg.svd(weight.numpy(), full_matrices=False)
    edge = fit_bulk(s**2 / len(u), weight.shape).sigma_plus
    below = [i for i in range(len(s)) if s[i] < edge]
    for i in below[round(share * len(below)) :]:
        s[i] = 0.0
    return u @ np.diag(s) @ vt


@pytest.mark.parametrize("share", [0.0, 0.3, 0.98])
def test_the_smallest_below_the_edge_go(share: float) -> None:
    weight = noise(spike=60.0)
    thin, seen = thin_out(weight, share)
    np.testing.assert_allclose(thin.numpy(), oracle(weight, share), atol=1e-10)
    assert seen["removed"] == seen["below"] - round(share * seen["below"]) > 0
    assert seen["rank"] == torch.linalg.matrix_rank(thin, rtol=1e-6)
    assert torch.linalg.matrix_norm(thin, 2) == pytest.approx(torch.linalg.matrix_norm(weight, 2))  # the spike stays


def test_what_an_earlier_removal_left_at_zero_is_no_spectrum() -> None:
    once, first = thin_out(noise(spike=60.0), 0.9)
    _, second = thin_out(once.float(), 0.9)
    assert second["rank"] == first["rank"] == 60 - first["removed"]


def test_a_layer_without_a_bulk_is_left_alone() -> None:
    heavy = torch.from_numpy(np.random.default_rng(0).standard_cauchy((120, 60)))
    thin, seen = thin_out(heavy, 0.0)
    assert seen["grade"] == "poor"
    assert torch.equal(thin, heavy)
    assert seen["removed"] == 0


def test_the_share_falls_to_zero() -> None:
    assert [kept_share(e, 200) for e in (0, 4, 100, 200, 300)] == [1.0, 0.98, 0.5, 0.0, 0.0]


def test_it_learns_thins_out_and_leaves_the_given_network_as_it_was() -> None:
    model, data = network(), digits()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = mp_train(model, data, FAST)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert found.history["accuracy"].iloc[-1] > 0.6
    assert found.history["learning_rate"].tolist() == pytest.approx([0.1, 0.1, 0.096, 0.096])
    assert found.log["epoch"].tolist() == [2, 2, 4, 4]
    assert found.log["removed"].sum() > 0
    assert set(found.log["layer"]) == {"1", "3"}  # never the last
    again = mp_train(model, data, FAST)
    for name, value in again.model.state_dict().items():
        assert torch.equal(value, found.model.state_dict()[name])


def test_without_removal_the_weights_are_others() -> None:
    plan = dataclasses.replace(FAST, epochs=2, horizon=4.0)
    with_it = mp_train(network(), digits(), plan)
    without = mp_train(network(), digits(), dataclasses.replace(plan, remove=False))
    assert without.log.empty
    ranks = [torch.linalg.matrix_rank(found.model[1].weight, rtol=1e-5) for found in (with_it, without)]
    assert ranks[0] < ranks[1]


def test_the_elastic_net_makes_weights_smaller() -> None:
    plan = dataclasses.replace(FAST, remove=False)
    plain = mp_train(network(), digits(), dataclasses.replace(plan, lambda1=0.0, lambda2=0.0))
    netted = mp_train(network(), digits(), dataclasses.replace(plan, lambda1=1e-4, lambda2=1e-3))
    assert netted.model[1].weight.abs().sum() < plain.model[1].weight.abs().sum()


def test_two_factors_give_the_same_answers_with_fewer_numbers() -> None:
    plan = dataclasses.replace(FAST, epochs=2, horizon=2.0)
    whole, split = (mp_train(network(), digits(), dataclasses.replace(plan, factor=f)) for f in (False, True))
    assert split.parameters[1] < split.parameters[0] == whole.parameters[1]
    x, _ = digits().sample(50)
    torch.testing.assert_close(split.model(x), whole.model(x), atol=1e-4, rtol=1e-4)
    full = nn.Linear(20, 30)
    assert factored(full) is full


def test_it_refuses_in_sentences() -> None:
    splits = mp.load_data("digits")
    with pytest.raises(DataError, match="refuses the test split"):
        mp_train(network(), splits.test, FAST)
    with pytest.raises(TrainingError, match="two linear layers or more; this one has 1"):
        mp_train(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), digits(), FAST)
    for wrong in ({"epochs": 0}, {"every": 0}, {"horizon": 0.0}, {"lambda1": -1.0}, {"learning_rate": float("nan")}):
        with pytest.raises(TrainingError, match=next(iter(wrong))):
            mp_train(network(), digits(), dataclasses.replace(FAST, **wrong))
    with pytest.raises(TrainingError, match=r"loss is .* of epoch 1; lower the learning rate"):
        mp_train(network(), digits(), dataclasses.replace(FAST, learning_rate=1e9))
    with pytest.raises(Cancelled, match="epoch 1"):
        mp_train(network(), digits(), FAST, cancelled=lambda: True)
