"""Population statements: exact by the binomial law, honest about which samples may be used."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mpviz.certificates.population import clopper_pearson, population_curve, population_share
from mpviz.errors import DataError, MpvizError


def failure_rate(p, n, limit):
    """Exact chance that a lower limit lies above the true share, over all outcomes of the binomial law."""
    k = np.arange(n + 1)
    wrong = np.array([limit(int(one)) > p for one in k])
    return float(stats.binom.pmf(k, n, p)[wrong].sum())


@settings(max_examples=60, deadline=None)
@given(p=st.floats(0.01, 0.999), n=st.integers(1, 60), delta=st.sampled_from([0.01, 0.05, 0.2]))
def test_the_lower_limit_fails_with_at_most_delta(p, n, delta):
    assert failure_rate(p, n, lambda k: clopper_pearson(k, n, delta, split="test").low) <= delta + 1e-12


def test_the_share_itself_and_a_forgotten_correction_would_fail():
    n, p, delta, positions = 50, 0.9, 0.05, 10
    assert failure_rate(p, n, lambda k: k / n) > delta
    wrong = failure_rate(p, n, lambda k: clopper_pearson(k, n, delta, positions=1, split="test").low)
    right = failure_rate(p, n, lambda k: clopper_pearson(k, n, delta, positions=positions, split="test").low)
    assert right <= delta / positions < wrong


def test_bonferroni_holds_over_dependent_positions():
    rng, positions, n, delta = np.random.default_rng(0), 10, 80, 0.2
    truth = np.linspace(0.95, 0.6, positions)
    failed = {True: 0, False: 0}
    draws = 1000
    for _ in range(draws):
        alone = rng.random((positions, n)) < truth[:, None]  # independent positions are the worst case
        lows = [one.low for one in population_curve(list(alone), delta, split="test")]
        failed[True] += bool((np.array(lows) > truth).any())
        single = [population_share(one, delta, split="test").low for one in alone]
        failed[False] += bool((np.array(single) > truth).any())
    assert stats.binomtest(failed[True], draws, delta, alternative="greater").pvalue > 1e-3
    assert stats.binomtest(failed[False], draws, delta, alternative="greater").pvalue < 1e-3


@pytest.mark.parametrize(("hits", "n"), [(0, 20), (3, 20), (20, 20), (9_918, 10_000)])
def test_equals_scipy(hits, n):
    theirs = stats.binomtest(hits, n).proportion_ci(0.95, "exact")
    ours = clopper_pearson(hits, n, 0.05, sides=2, split="test")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    assert ours.low <= theirs.low and theirs.high <= ours.high
    one = clopper_pearson(hits, n, 0.05, split="test")
    assert one.low == pytest.approx(stats.binomtest(hits, n, alternative="greater").proportion_ci(0.95).low, abs=1e-9)
    assert one.high == 1.0 and one.tier == "population"


@pytest.mark.parametrize("split", ["train", "calibration"])
def test_samples_that_were_used_are_refused(split):
    with pytest.raises(DataError, match="measure on the test split"):
        clopper_pearson(1, 2, split=split)
    with pytest.raises(DataError, match="measure on the test split"):
        clopper_pearson(1, 2, split=split, held_out=True)


def test_who_does_not_say_is_asked():
    with pytest.raises(DataError, match="held_out=True"):
        clopper_pearson(1, 2)
    with pytest.raises(DataError, match="used to build the mask"):
        clopper_pearson(1, 2, split="test", held_out=False)
    assert clopper_pearson(1, 2, held_out=True).samples == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"hits": 0, "samples": 0}, "no samples"),
        ({"hits": 3, "samples": 2}, "impossible"),
        ({"hits": -1, "samples": 2}, "impossible"),
        ({"hits": 1.5, "samples": 2}, "count"),
        ({"hits": 1, "samples": 2, "positions": 0}, "one at least"),
        ({"hits": 1, "samples": 2, "delta": 0.0}, "between 0 and 1"),
        ({"hits": 1, "samples": 2, "delta": float("nan")}, "between 0 and 1"),
        ({"hits": 1, "samples": 2, "sides": 3}, "sides"),
    ],
)
def test_impossible_input(arguments, words):
    with pytest.raises(MpvizError, match=words):
        clopper_pearson(split="test", **arguments)


def test_outcomes_are_bools():
    with pytest.raises(DataError, match="one bool a sample"):
        population_share(np.array([0.5, 1.0]), split="test")
    with pytest.raises(DataError, match="one outcome"):
        population_curve([], split="test")
    with pytest.raises(DataError, match="no samples"):
        population_share(np.array([], dtype=bool), split="test")
