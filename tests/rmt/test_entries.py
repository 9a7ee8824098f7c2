"""Statistics of the entries: right on matrices of known make, quiet on noise, and what they add to a verdict."""

import math
import re

import numpy as np
import pytest

from mpviz.errors import SpectrumError
from mpviz.rmt import entry_stats, explain, fit_bulk
from tests.rmt.matrices import spectrum

SHAPES = [(400, 150), (150, 400), (250, 250)]


@pytest.mark.parametrize("shape", SHAPES)
def test_iid_noise_has_no_spread(shape):
    rng = np.random.default_rng(0)
    draws = {
        0.0: lambda: rng.normal(size=shape),
        -1.2: lambda: rng.uniform(-2, 5e-1, size=shape) + 0.75,
        3.0: lambda: rng.laplace(size=shape),
    }
    for kurtosis, draw in draws.items():
        for _ in range(8):
            stats = entry_stats(1e-3 * draw())
            assert stats.kurtosis == pytest.approx(kurtosis, abs=0.15 + 0.15 * abs(kurtosis))
            assert max(stats.column_spread, stats.row_spread) < 0.04
            assert stats.zeros == 0


@pytest.mark.parametrize("freedom", [2, 3, 5])
def test_heavy_tailed_entries_are_not_taken_for_unequal_columns(freedom):
    rng = np.random.default_rng(1)
    for _ in range(8):
        stats = entry_stats(rng.standard_t(freedom, size=(300, 200)))
        assert stats.kurtosis > 2
        assert max(stats.column_spread, stats.row_spread) < 0.3 / freedom


@pytest.mark.parametrize("spread", [0.1, 0.3, 0.6])
@pytest.mark.parametrize("shape", SHAPES)
def test_spreads_are_those_that_were_put_in(shape, spread):
    rng = np.random.default_rng(2)
    scales = 1 + spread * np.sqrt(3) * np.linspace(-1, 1, shape[1])  # uniform: standard deviation `spread`
    stats = entry_stats(rng.normal(size=shape) * np.abs(scales))
    expected = np.std(np.abs(scales)) / np.mean(np.abs(scales))
    assert stats.column_spread == pytest.approx(expected, rel=0.05, abs=0.01)
    assert stats.row_spread < 0.05
    turned = entry_stats(rng.normal(size=shape[::-1]) * np.abs(scales)[:, None])
    assert turned.row_spread == pytest.approx(expected, rel=0.05, abs=0.01)
    assert turned.column_spread < 0.05


def test_zeros_and_scale():
    rng = np.random.default_rng(3)
    matrix = rng.normal(size=(60, 50)) * (rng.uniform(size=(60, 50)) < 0.25)
    stats = entry_stats(matrix)
    assert stats.zeros == pytest.approx(np.mean(matrix == 0))
    huge, tiny = entry_stats(1e250 * matrix), entry_stats(1e-250 * matrix)
    for other in (huge, tiny):
        assert other.kurtosis == pytest.approx(stats.kurtosis)
        assert other.column_spread == pytest.approx(stats.column_spread)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.zeros((4, 4)), "every entry is zero"),
        (np.ones(5), "unfold the layer first"),
        (np.ones((0, 5)), "unfold the layer first"),
        (np.array([[1.0, math.nan]]), "NaN or infinite"),
        (np.array([[1.0, math.inf]]), "NaN or infinite"),
    ],
)
def test_bad_matrices(matrix, message):
    with pytest.raises(SpectrumError, match=message):
        entry_stats(matrix)


def bad_fit(matrix):
    fit = fit_bulk(spectrum(matrix), matrix.shape)
    assert not fit.mp_like
    return fit, entry_stats(matrix)


def test_the_sentence_names_side_and_size():
    rng = np.random.default_rng(4)
    noise = rng.normal(size=(300, 200))
    right, left = 1 + 0.3 * np.sign(rng.normal(size=200)), 1 + 0.3 * np.sign(rng.normal(size=300))
    third = r"scales differ by (29|30|31|32) %"
    assert re.search(f": column {third} ", explain(*bad_fit(noise * right)).verdict)
    assert re.search(f": row {third} ", explain(*bad_fit(noise * left[:, None])).verdict)
    both = explain(*bad_fit(noise * right * left[:, None])).verdict
    assert re.search(f": column {third} and row {third} ", both)
    sparse = rng.normal(size=(300, 200)) * (rng.uniform(size=(300, 200)) < 0.04)
    told = explain(*bad_fit(sparse))
    assert told.reason == "heavy tail"
    assert "96 % of them zero" in told.verdict


def test_dead_rows_stay_in_the_sentence():
    rng = np.random.default_rng(5)
    matrix = rng.normal(size=(300, 200)) * (1 + 0.4 * np.sign(rng.normal(size=200)))
    matrix[:, :7] = 0
    assert explain(*bad_fit(matrix)).verdict.endswith("; 7 of 200 eigenvalues are zero")


def test_only_reason_verdict_and_interval_change():
    fit, stats = bad_fit(np.random.default_rng(6).standard_t(2, size=(200, 200)))
    told = explain(fit, stats)
    changed = {name for name in vars(fit) if getattr(fit, name) != getattr(told, name)}
    assert changed <= {"reason", "verdict", "sigma_plus_interval"}
    assert "heavy-tailed entries" in told.verdict


def test_the_shuffled_null_acquits_the_entries():
    # a few rows of large, a few of small entries: pooled they are heavy-tailed, shuffled they are noise of their own
    rng = np.random.default_rng(7)
    matrix = rng.laplace(size=(400, 300))
    for j in range(1, 300):
        matrix[:, j] = 0.5 * matrix[:, j - 1] + math.sqrt(0.75) * matrix[:, j]
    fit, stats = bad_fit(matrix)
    assert stats.kurtosis > 1
    shuffled = rng.permutation(matrix.ravel()).reshape(matrix.shape)
    null = fit_bulk(spectrum(shuffled), matrix.shape)
    assert null.mp_like
    assert explain(fit, stats, null).reason == "other structure"
    # the null of heavy-tailed entries is itself bad, and acquits nobody
    heavy = rng.standard_t(2, size=(400, 300))
    fit, stats = bad_fit(heavy)
    null = fit_bulk(spectrum(rng.permutation(heavy.ravel()).reshape(heavy.shape)), heavy.shape)
    assert not null.mp_like
    assert explain(fit, stats, null).reason == "heavy tail"


@pytest.mark.parametrize("make", ["laplace", "student"])
def test_the_interval_knows_the_kurtosis(make):
    # the mean square of heavier-tailed entries scatters more: without the factor the interval is too short
    rng = np.random.default_rng(8)
    shape, plain, told = (90, 70), 0, 0
    truth = (math.sqrt(90) + math.sqrt(70)) * (math.sqrt(2) if make == "laplace" else math.sqrt(5 / 3))
    draws = 300
    for _ in range(draws):
        matrix = rng.laplace(size=shape) if make == "laplace" else rng.standard_t(5, size=shape)
        fit = fit_bulk(spectrum(matrix), shape)
        low, high = fit.sigma_plus_interval
        plain += low <= truth <= high
        low, high = explain(fit, entry_stats(matrix)).sigma_plus_interval
        told += low <= truth <= high
    assert plain < 0.88 * draws
    assert told > 0.90 * draws
