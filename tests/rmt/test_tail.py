"""The power-law tail: exponent and start of known tails, the flag for spectra without one, and brute force."""

import math

import numpy as np
import pytest

from mpviz.errors import SpectrumError
from mpviz.rmt import fit_bulk, power_law_tail
from mpviz.rmt.tail import MIN_TAIL, tail_limit
from tests.rmt.matrices import noise_spectrum, spectrum


def pareto(rng, count, alpha, x_min=1.0):
    return x_min * rng.uniform(size=count) ** (-1 / (alpha - 1))


@pytest.mark.parametrize("alpha", [1.7, 2.5, 3.5])
def test_exponent_of_a_pure_power_law(alpha):
    rng = np.random.default_rng(0)
    found = [power_law_tail(pareto(rng, 800, alpha, 1e-7)) for _ in range(20)]
    assert np.mean([f.alpha for f in found]) == pytest.approx(alpha, rel=0.04)
    # the standard error of Clauset, Shalizi & Newman, (α − 1) / √n
    assert all(abs(f.alpha - alpha) < 4.5 * (alpha - 1) / math.sqrt(f.n_tail) for f in found)
    assert not any(f.no_tail for f in found)


def test_start_of_a_tail_over_a_body():
    rng = np.random.default_rng(1)
    starts, alphas = [], []
    for _ in range(20):
        values = np.concatenate([rng.uniform(0, 2.0, size=200), pareto(rng, 300, 2.5, 2.0)])
        found = power_law_tail(values)
        starts.append(found.x_min)
        alphas.append(found.alpha)
        assert found.n_tail == int(np.sum(values >= found.x_min))
        assert not found.no_tail
    assert np.median(starts) == pytest.approx(2.0, rel=0.15)
    assert np.median(alphas) == pytest.approx(2.5, rel=0.1)


def by_hand(values):
    """Every eigenvalue as a start, one after the other."""
    values = np.sort(values)
    best = (math.inf,)
    for i in range(len(values) - MIN_TAIL + 1):
        tail = values[i:]
        alpha = 1 + len(tail) / np.sum(np.log(tail / tail[0]))
        fitted = 1 - (tail / tail[0]) ** (1 - alpha)
        steps = np.arange(len(tail) + 1) / len(tail)
        distance = max(np.max(steps[1:] - fitted), np.max(fitted - steps[:-1]))
        best = min(best, (distance, alpha, tail[0], len(tail)))
    return best


@pytest.mark.parametrize("count", [10, 11, 57, 200, 255])
def test_equals_brute_force(count):
    rng = np.random.default_rng(count)
    for values in (pareto(rng, count, 2.2), rng.exponential(size=count), noise_spectrum(rng, (2 * count, count))):
        distance, alpha, start, size = by_hand(values)
        found = power_law_tail(values)
        assert (found.ks, found.alpha, found.x_min) == pytest.approx((distance, alpha, start), rel=1e-9)
        assert found.n_tail == size


def test_long_spectra_are_searched_closely_enough():
    rng = np.random.default_rng(2)
    for _ in range(3):
        values = np.concatenate([rng.uniform(0, 1, size=900), pareto(rng, 500, 2.4)])
        found, best = power_law_tail(values), by_hand(values)
        assert best[0] * (1 - 1e-9) <= found.ks < 1.15 * best[0]
        assert found.alpha == pytest.approx(best[1], rel=0.06)


@pytest.mark.parametrize("aspect", [1.0, 0.9, 0.5, 0.25, 0.05])
@pytest.mark.parametrize("short", [16, 40, 150, 400])
def test_pure_bulks_have_no_tail(short, aspect):
    rng = np.random.default_rng(3)
    draws = 250
    flagged = sum(power_law_tail(noise_spectrum(rng, (round(short / aspect), short))).no_tail for _ in range(draws))
    assert flagged >= 0.98 * draws  # the rate is above 99 %: more than five misses of 250 have a chance below 1 in 20


def test_pure_bulks_have_no_tail_overall():
    rng = np.random.default_rng(4)
    shapes = [(64, 64), (300, 90), (128, 512), (700, 500)]
    flagged = [power_law_tail(noise_spectrum(rng, shape)).no_tail for shape in shapes for _ in range(300)]
    assert np.mean(flagged) >= 0.99


@pytest.mark.parametrize("count", [64, 200, 600])
def test_heavy_tails_are_seen(count):
    rng = np.random.default_rng(5)
    for alpha in (1.5, 2.0, 3.0, 4.0):
        assert np.mean([power_law_tail(pareto(rng, count, alpha)).no_tail for _ in range(60)]) <= 0.05
    if count >= 200:
        for freedom in (1, 2, 3):
            drawn = [np.abs(rng.standard_t(freedom, size=count)) for _ in range(60)]
            assert np.mean([power_law_tail(values).no_tail for values in drawn]) <= 0.05


@pytest.mark.parametrize("shape", [(384, 384), (500, 250)])
def test_spectra_of_heavy_tailed_matrices(shape):
    rng = np.random.default_rng(6)
    for freedom in (1, 1.5, 2):
        for _ in range(4):
            eigs = spectrum(rng.standard_t(freedom, size=shape))
            found = power_law_tail(eigs, fit_bulk(eigs, shape).threshold)
            assert not found.no_tail
            if freedom < 2:  # P(λ > u) falls like P(|w| > √u): α = 1 + ν/2, soonest for the heaviest tails
                assert found.alpha == pytest.approx(1 + freedom / 2, abs=0.4)


def test_the_edge_decides_when_it_is_known():
    eigs = pareto(np.random.default_rng(7), 300, 2.5)
    assert not power_law_tail(eigs).no_tail
    assert not power_law_tail(eigs, edge=float(np.median(eigs))).no_tail
    below = power_law_tail(eigs, edge=float(eigs.max()))
    assert below.no_tail
    assert "no eigenvalue above" in below.why
    assert below.alpha == power_law_tail(eigs).alpha


def test_scale_order_and_zeros_do_not_matter():
    values = pareto(np.random.default_rng(8), 300, 2.5)
    one = power_law_tail(values)
    other = power_law_tail(np.random.default_rng(0).permutation(np.concatenate([1e-9 * values, np.zeros(40)])))
    assert (other.alpha, other.ks, other.x_min) == pytest.approx((one.alpha, one.ks, 1e-9 * one.x_min), rel=1e-9)
    assert (other.n_tail, other.no_tail) == (one.n_tail, one.no_tail)


def test_too_few_and_all_equal():
    few = power_law_tail(np.arange(1.0, 10.0))
    assert few.no_tail and math.isnan(few.alpha) and few.n_tail == 0
    assert few.why == "only 9 eigenvalues above zero, a tail needs 10"
    equal = power_law_tail(np.ones(50))
    assert equal.no_tail and equal.alpha == math.inf
    lump = power_law_tail(np.append(np.ones(50), 9.0))
    assert lump.no_tail and lump.why.startswith("no power law is near: KS 0.9")


def test_why_and_limit():
    bulk = power_law_tail(noise_spectrum(np.random.default_rng(9), (300, 200)))
    assert bulk.why.startswith("ends like a bulk")
    assert tail_limit(10) > tail_limit(100) > 0.7
    assert f"{tail_limit(bulk.n_tail):.2f}" in bulk.why


@pytest.mark.parametrize("edge", [0.0, -1.0, math.nan])
def test_bad_edge(edge):
    with pytest.raises(SpectrumError, match=r"pass fit\.threshold, or nothing"):
        power_law_tail(pareto(np.random.default_rng(0), 50, 2.0), edge=edge)
