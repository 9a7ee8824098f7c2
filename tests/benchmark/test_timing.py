"""Arms take turns, and one that fails takes no other with it."""

import pytest
import torch

from mpviz.benchmark import timing
from mpviz.benchmark.timing import Timing, time_arms
from mpviz.errors import Cancelled, ModelError


@pytest.fixture(autouse=True)
def no_repeats(monkeypatch):
    monkeypatch.setattr(timing, "LEAST", 0.0)


def test_arms_take_turns_and_each_goes_first():
    ran: list[str] = []
    found = time_arms({name: lambda name=name: ran.append(name) for name in "abc"}, rounds=3, warmup=1)
    # one warm-up and one call to learn how long it takes, then a round each
    assert ran == list("aabbccabcbcacab")
    assert {name: len(arm.samples) for name, arm in found.arms.items()} == {"a": 3, "b": 3, "c": 3}
    assert all(one > 0 for arm in found.arms.values() for one in arm.samples)
    assert found.arms["a"].wall == found.arms["a"].samples  # there is one clock on a CPU
    assert found.arms["a"].peak_bytes is None and found.arms["a"].joules is None


def test_quick_calls_are_repeated(monkeypatch):
    def a_tenth_of_a_millisecond(call, calls, place):
        for _ in range(calls):
            call()
        return 1e-4, 1e-4

    monkeypatch.setattr(timing, "LEAST", 0.002)
    monkeypatch.setattr(timing, "_once", a_tenth_of_a_millisecond)
    ran: list[int] = []
    found = time_arms({"quick": lambda: ran.append(1)}, rounds=3, warmup=1).arms["quick"]
    assert found.calls == 20 and len(ran) == 2 + 3 * 20


def test_an_arm_without_memory_is_left_out():
    def greedy() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB\nand more lines")

    found = time_arms({"a": lambda: None, "greedy": greedy, "b": lambda: None}, rounds=3)
    assert list(found.arms) == ["a", "b"]
    assert found.failed == {"greedy": "out of memory: CUDA out of memory. Tried to allocate 3 GiB"}


def test_median_and_quartiles_are_those_of_the_samples():
    one = Timing((5.0, 1.0, 2.0, 4.0, 3.0), (5.0, 1.0, 2.0, 4.0, 3.0), 1)
    assert (one.median, one.quartiles) == (3.0, (2.0, 4.0))


def test_bad_plans_and_cancelling():
    for asked in ({"rounds": 2}, {"warmup": 0}):
        with pytest.raises(ModelError, match="take 3 rounds and 1 call at least"):
            time_arms({"a": lambda: None}, **asked)
    with pytest.raises(Cancelled):
        time_arms({"a": lambda: None}, cancelled=lambda: True)
