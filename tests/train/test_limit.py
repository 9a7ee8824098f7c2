"""The training limit: what decays, what stays, and that a record gives the experiment back."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

import mpviz as mp
from mpviz.errors import Cancelled, TrainingError
from mpviz.train.limit import LimitPlan, TrainingLimit, from_record, to_record, training_limit

PLAN = LimitPlan(width=96, planted=(3.0, 2.0), decay=0.02, rate=0.1, epochs=40, batch=50, snapshots=5, images=1000)


@pytest.fixture(scope="module")
def result() -> TrainingLimit:
    return training_limit(mp.load_data("digits"), PLAN)


def test_both_runs_start_from_the_same_planted_layer(result: TrainingLimit) -> None:
    first, second = result.penalised, result.free
    np.testing.assert_array_equal(first.evolution.eigenvalues[0], second.evolution.eigenvalues[0])
    start = first.table.iloc[0]
    assert start["n_spikes"] == 2 and start["steps"] == 0 and start["bulk_scale"] == 1.0
    assert start["planted_overlap"] > 0.5, "the planted directions lead at the start"


def test_with_decay_the_bulk_follows_plain_decay_and_without_it_stays(result: TrainingLimit) -> None:
    decayed, free = result.penalised.table, result.free.table
    # computed from the definition, not from the module
    steps = 40 * len(range(0, 1000, 50))
    assert decayed["steps"].iloc[-1] == steps
    assert decayed["plain_decay"].iloc[-1] == pytest.approx(np.exp(-0.1 * 0.02 * steps), rel=2e-3)
    assert decayed["bulk_scale"].iloc[-1] == pytest.approx(decayed["plain_decay"].iloc[-1], abs=0.05)
    assert abs(free["bulk_scale"].iloc[-1] - 1) < 0.1
    assert (free["plain_decay"] == 1.0).all()


def test_the_network_learns_and_its_leading_directions_settle(result: TrainingLimit) -> None:
    for run in (result.penalised, result.free):
        assert run.table["accuracy"].iloc[-1] > 0.8 > run.table["accuracy"].iloc[0]
        assert run.table["final_overlap"].iloc[-1] == pytest.approx(1.0)
        assert run.table["final_overlap"].iloc[-2] > run.table["final_overlap"].iloc[0]


def test_a_record_gives_the_experiment_back(result: TrainingLimit) -> None:
    again = from_record(json.loads(json.dumps(to_record(result))))
    assert again.plan == result.plan and again.data == result.data
    for old, new in ((result.penalised, again.penalised), (result.free, again.free)):
        assert new.evolution.labels == old.evolution.labels
        np.testing.assert_allclose(new.table["sigma_plus"], old.table["sigma_plus"], rtol=1e-4)
        np.testing.assert_array_equal(new.table["accuracy"], old.table["accuracy"])


def test_the_seed_decides(result: TrainingLimit) -> None:
    short = dataclasses.replace(PLAN, epochs=1, snapshots=2)
    digits = mp.load_data("digits")
    one, two = training_limit(digits, short), training_limit(digits, short)
    np.testing.assert_array_equal(one.penalised.evolution.eigenvalues[-1], two.penalised.evolution.eigenvalues[-1])
    other = training_limit(digits, dataclasses.replace(short, seed=1))
    assert not np.array_equal(one.free.evolution.eigenvalues[0], other.free.evolution.eigenvalues[0])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"epochs": 0}, "epochs"),
        ({"snapshots": 1}, "snapshots"),
        ({"decay": 20.0}, "shrinking"),
        ({"planted": ()}, "planted"),
        ({"batch": 5000}, "lower batch"),
    ],
)
def test_a_plan_that_cannot_be_trained_is_refused(change: dict, words: str) -> None:
    with pytest.raises(TrainingError, match=words):
        training_limit(mp.load_data("digits"), dataclasses.replace(PLAN, **change))


def test_a_rate_that_diverges_is_named() -> None:
    with pytest.raises(TrainingError, match="lower the rate"):
        training_limit(mp.load_data("digits"), dataclasses.replace(PLAN, rate=1e6, decay=0.0))


def test_cancel_stops_at_the_next_step() -> None:
    with pytest.raises(Cancelled):
        training_limit(mp.load_data("digits"), PLAN, cancelled=lambda: True)


def test_a_foreign_record_is_refused() -> None:
    with pytest.raises(TrainingError, match="no record"):
        from_record({"plan": {}})
