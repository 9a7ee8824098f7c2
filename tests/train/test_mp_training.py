"""MP training: what goes, when, what stays exact, and what it refuses."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import mpviz as mp
from mpviz.errors import Cancelled, CheckpointError, DataError, TrainingError
from mpviz.nets.factors import factored, ranks_of
from mpviz.rmt.fit import fit_bulk
from mpviz.train.mp_training import MPPlan, mp_train
from mpviz.train.thinning import kept_share, thin_out
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


def test_the_numbers_of_the_paper_are_the_defaults() -> None:
    plan = MPPlan()
    assert (plan.epochs, plan.learning_rate, plan.decay, plan.every, plan.momentum) == (100, 0.01, 0.96, 4, 0.9)
    assert (plan.lambda1, plan.lambda2, plan.horizon, plan.remove, plan.factor) == (1e-6, 1e-6, 200.0, True, False)


def test_a_training_is_sgd_with_momentum_on_the_elastic_net_thinned_out_on_the_way() -> None:
    """Oracle: the update by hand, the gradient of both penalties by formula, and f(epoch) of the epoch itself."""
    plan = dataclasses.replace(FAST, lambda1=3e-4, lambda2=2e-3, momentum=0.8, decay=0.5, seed=3)
    found = mp_train(network(), digits(), plan)
    model, order, (images, labels) = network(), torch.Generator().manual_seed(3), digits().sample()
    weights, speed = [model[1].weight, model[3].weight, model[5].weight], {}
    for epoch in range(1, 5):
        for chosen in torch.randperm(len(labels), generator=order).split(64):
            model.zero_grad()
            F.cross_entropy(model(images[chosen]), labels[chosen]).backward()
            with torch.no_grad():
                for w in weights:
                    w.grad += 3e-4 * w.sign() + 2 * 2e-3 * w
                for p in model.parameters():
                    speed[p] = 0.8 * speed.get(p, 0.0) + p.grad
                    p -= 0.1 * 0.5 ** ((epoch - 1) // 2) * speed[p]
        if epoch % 2 == 0:
            for w in weights[:2]:
                w.data = thin_out(w, 1 - epoch / 8)[0]
    for (name, one), other in zip(found.model.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-3, msg=name)
    assert found.log["share"].tolist() == [0.75, 0.75, 0.5, 0.5]


def with_dropout() -> nn.Sequential:
    net = network()
    return nn.Sequential(*net[:3], nn.Dropout(0.3), *net[3:])


@pytest.mark.parametrize("stop", [1, 17, 36, 37, 50])
def test_a_run_that_stopped_goes_on_and_ends_the_same(tmp_path: Path, stop: int) -> None:
    """18 steps an epoch; the removals come after the steps 36 and 72."""
    torch.set_num_threads(1)
    state = torch.get_rng_state()
    whole = mp_train(with_dropout(), digits(), FAST)
    assert torch.equal(torch.get_rng_state(), state), "the generators are left as they were"
    asked = iter([False] * (stop - 1) + [True])
    with pytest.raises(
        Cancelled, match=rf"after step {stop} \(epoch {-(-stop // 18)}\); the last good checkpoint is .*{stop:08d}"
    ):
        mp_train(with_dropout(), digits(), FAST, out=tmp_path, every=10, cancelled=lambda: next(asked))
    torch.rand(5)
    again = mp_train(with_dropout(), digits(), FAST, out=tmp_path, every=10)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name
    assert again.history.drop(columns="seconds").equals(whole.history.drop(columns="seconds"))
    assert again.log.equals(whole.log) and len(whole.log) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-00000070.safetensors",
        "step-00000072.safetensors",
    ]
    assert again.checkpoint == tmp_path / "step-00000072.safetensors"
    steps: list[float] = []
    finished = mp_train(with_dropout(), digits(), FAST, out=tmp_path, progress=lambda share, _: steps.append(share))
    assert not steps and finished.history.equals(again.history), "a finished run is read, not repeated"
    assert torch.equal(mp.load(again.checkpoint, with_dropout()).model[1].weight, whole.model[1].weight)


def test_a_folder_is_of_one_run(tmp_path: Path) -> None:
    mp_train(network(), digits(), FAST, out=tmp_path)
    with pytest.raises(CheckpointError, match=r"holds another MP training.*horizon"):
        mp_train(network(), digits(), dataclasses.replace(FAST, horizon=9.0), out=tmp_path)
    other = network()
    with torch.no_grad():
        other[1].bias[0] += 1
    with pytest.raises(CheckpointError, match=r"holds another MP training.*network"):
        mp_train(other, digits(), FAST, out=tmp_path)
    with pytest.raises(TrainingError, match="every = 0"):
        mp_train(network(), digits(), FAST, out=tmp_path, every=0)


@pytest.mark.parametrize("rate", [1e9, 1e17, 1e30])
def test_a_loss_that_is_not_finite_keeps_a_checkpoint_that_answers(tmp_path: Path, rate: float) -> None:
    plan = dataclasses.replace(FAST, learning_rate=rate)
    with pytest.raises(
        TrainingError, match=r"step \d+ .*epoch 1.*lower the learning rate; the last good checkpoint"
    ) as caught:
        mp_train(network(), digits(), plan, out=tmp_path, every=1)
    last = max(tmp_path.iterdir())
    assert str(last) in str(caught.value)
    assert torch.isfinite(mp.load(last, network()).model(digits().sample()[0])).all()
    with pytest.raises(TrainingError, match="nothing was kept: out=None"):
        mp_train(network(), digits(), plan)


def test_a_factored_network_is_saved_and_reloaded(tmp_path: Path) -> None:
    found = mp_train(network(), digits(), dataclasses.replace(FAST, epochs=2, horizon=2.0, factor=True))
    assert set(ranks_of(found.model)) == {"1", "3"}
    path, x = mp.save(tmp_path / "a", found.model), digits().sample(50)[0]
    assert torch.equal(mp.load(path, network()).model(x), found.model(x))
    assert path.stat().st_size < mp.save(tmp_path / "b", network()).stat().st_size


def test_it_refuses_in_sentences() -> None:
    splits = mp.load_data("digits")
    with pytest.raises(DataError, match="refuses the test split"):
        mp_train(network(), splits.test, FAST)
    with pytest.raises(TrainingError, match="two linear layers or more; this one has 1"):
        mp_train(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), digits(), FAST)
    for wrong in ({"epochs": 0}, {"every": 0}, {"horizon": 0.0}, {"lambda1": -1.0}, {"learning_rate": float("nan")}):
        with pytest.raises(TrainingError, match=next(iter(wrong))):
            mp_train(network(), digits(), dataclasses.replace(FAST, **wrong))
    with pytest.raises(TrainingError, match="lambda1 = 'little'; give a number"):
        mp_train(network(), digits(), dataclasses.replace(FAST, lambda1="little"))
    with pytest.raises(Cancelled, match="epoch 1"):
        mp_train(network(), digits(), FAST, cancelled=lambda: True)


def test_a_network_of_other_classes_or_images_is_told():
    few = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 16), torch.nn.ReLU(), torch.nn.Linear(16, 7))
    with pytest.raises(TrainingError, match="the data have 10 classes, the network gives"):
        mp_train(few, mp.load_data("digits").train)
    narrow = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 16), torch.nn.ReLU(), torch.nn.Linear(16, 10))
    with pytest.raises(TrainingError, match="cannot take images of shape"):
        mp_train(narrow, mp.load_data("digits").train)
