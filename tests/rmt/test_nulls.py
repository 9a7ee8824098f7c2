"""The table of nulls: it is what its script makes, its p-values are uniform on noise, its intervals cover."""

import json
import math
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom, kstest

import mpviz.rmt.nulls as nulls
from mpviz.errors import SpectrumError
from mpviz.rmt import METHODS, fit_bulk
from mpviz.rmt.nulls import null_of
from tests.benchmarks.null_table import ASPECTS, SIZES, TAILS, cell
from tests.rmt.matrices import noise_spectrum, spectrum, spiked

RECORD = json.loads(Path(nulls.__file__).with_name("null_table.json").read_text())
OFF_GRID = [(90, 60), (333, 300), (170, 700)]


@cache  # the same for every method
def noise_spectra(seed, shape, draws):
    rng = np.random.default_rng(seed)
    return [noise_spectrum(rng, shape) for _ in range(draws)]


@cache
def spiked_spectra(seed, shape, factors, draws):
    rng = np.random.default_rng(seed)
    return [spectrum(spiked(rng, shape, np.array(factors))) for _ in range(draws)]


def test_the_file_says_where_it_comes_from():
    assert RECORD["command"] == "python tests/benchmarks/null_table.py"
    assert RECORD["draws"] >= 10_000
    assert {"date", "hardware", "versions", "seed"} <= RECORD.keys()
    assert tuple(RECORD["sizes"]) == SIZES
    assert tuple(RECORD["aspects"]) == ASPECTS
    assert tuple(RECORD["tails"]) == TAILS
    assert Path(nulls.__file__).with_name("null_table.json").stat().st_size < 40_000


@pytest.mark.parametrize("method", METHODS)
def test_entries_come_back_at_the_nodes(method):
    for i, p in enumerate(SIZES):
        for j, aspect in enumerate(ASPECTS):
            null = null_of(method, p, p / aspect)
            row = RECORD["cells"][method][i][j]
            assert null.rigidity == pytest.approx(row[:-2], abs=1e-9)
            assert null.edge_error == pytest.approx(row[-2:], abs=1e-9)
            assert null.limit == pytest.approx(row[TAILS.index(0.01)], abs=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_between_and_beyond_the_nodes(method):
    lowest, highest = null_of(method, 64, 128), null_of(method, 128, 256)
    between = null_of(method, 90, 180)
    assert np.all(np.minimum(lowest.rigidity, highest.rigidity) <= between.rigidity + 1e-12)
    assert np.all(between.rigidity <= np.maximum(lowest.rigidity, highest.rigidity) + 1e-12)
    assert null_of(method, 9, 18).rigidity == pytest.approx(null_of(method, 16, 32).rigidity)
    assert null_of(method, 16, 16000).limit == pytest.approx(null_of(method, 16, 16 / 0.03).limit)
    # beyond the table p × KS goes on growing
    assert np.all(null_of(method, 8192, 16384).rigidity > null_of(method, 2048, 4096).rigidity)


@pytest.mark.parametrize("method", METHODS)
def test_the_script_makes_this_table(method):
    # a few hundred draws of a cell, against the quartiles of the ten thousand in the file
    made = cell(32, 0.5, draws=400)[method]
    kept = RECORD["cells"][method][SIZES.index(32)][ASPECTS.index(0.5)]
    middle = slice(TAILS.index(0.75), TAILS.index(0.25) + 1)
    assert made[middle] == pytest.approx(kept[middle], abs=0.1)
    assert made[-2:] == pytest.approx(kept[-2:], abs=0.6)


def test_p_values_fall_and_stop_at_the_last_share():
    null = null_of("bema", 200, 300)
    found = [null.p_value(rigidity) for rigidity in np.linspace(0.5, 9, 200)]
    assert found[0] == pytest.approx(1.0)
    assert all(a >= b for a, b in pairwise(found))
    assert found[-1] == TAILS[-1] == null.p_value(1e9)
    assert null.p_value(null.limit) == pytest.approx(0.01)
    for tail, rigidity in zip(null.tails, null.rigidity, strict=True):
        assert null.p_value(float(rigidity)) == pytest.approx(tail)


@pytest.mark.parametrize("shape", OFF_GRID)
@pytest.mark.parametrize("method", METHODS)
def test_p_values_of_noise_are_uniform(method, shape):
    found = [fit_bulk(drawn, shape, method=method).p_value for drawn in noise_spectra(1, shape, 400)]
    assert kstest(found, "uniform").pvalue > 0.001


@pytest.mark.parametrize("shape", [(200, 100), (150, 150)])
@pytest.mark.parametrize("make", ["uniform", "rademacher"])
def test_p_values_of_other_noise_do_not_crowd_at_zero(make, shape):
    rng = np.random.default_rng(2)
    draw = {"uniform": lambda: rng.uniform(-1, 1, shape), "rademacher": lambda: rng.choice([-1.0, 1.0], shape)}[make]
    found = np.array([fit_bulk(spectrum(draw()), shape).p_value for _ in range(200)])
    assert np.mean(found < 0.05) < 0.15
    assert np.mean(found <= 0.001) <= 0.015


@pytest.mark.parametrize("shape", OFF_GRID)
@pytest.mark.parametrize("method", METHODS)
def test_the_interval_covers_the_edge_of_noise(method, shape):
    truth = 0.2 * (math.sqrt(shape[0]) + math.sqrt(shape[1]))
    draws, held = 500, 0
    for drawn in noise_spectra(3, shape, draws):
        fit = fit_bulk(0.04 * drawn, shape, method=method)
        low, high = fit.sigma_plus_interval
        assert low < fit.sigma_plus * 1.01 and high > fit.sigma_plus * 0.99
        held += low <= truth <= high
    lowest, highest = binom.interval(0.9998, draws, 0.95)
    assert lowest <= held <= highest


@pytest.mark.parametrize("shape", [(300, 300), (400, 160), (160, 400)])
@pytest.mark.parametrize("method", ["bema", "trace", "ks"])
def test_the_interval_covers_beside_spikes(method, shape):
    # what is left beside k spikes is the noise of a smaller block, which the spikes pull down a little
    factors = (2.0, 2.5, 3.0, 4.0, 5.0)
    n, p = max(shape), min(shape)
    pull = np.sum(p / n / (np.square(factors) * math.sqrt(p / n))) / p
    truth = math.sqrt(1 - pull) * (math.sqrt(n - 5) + math.sqrt(p - 5))
    draws, held = 120, 0
    for drawn in spiked_spectra(4, shape, factors, draws):
        low, high = fit_bulk(drawn, shape, method=method).sigma_plus_interval
        held += low <= truth <= high
    assert held >= binom.ppf(0.0005, draws, 0.95)


def test_the_interval_is_not_wider_than_it_must_be():
    rng = np.random.default_rng(5)
    fits = [fit_bulk(noise_spectrum(rng, (240, 160)), (240, 160)) for _ in range(300)]
    widths = [math.log(fit.sigma_plus_interval[1] / fit.sigma_plus_interval[0]) for fit in fits]
    scatter = np.std([math.log(fit.sigma_plus) for fit in fits])
    assert np.mean(widths) == pytest.approx(2 * 1.96 * scatter, rel=0.15)


def test_the_continuation_beyond_the_table():
    # 3000 × 6000 lies outside; the median p × KS there is what the growth with log p says
    rng = np.random.default_rng(6)
    found = [fit_bulk(noise_spectrum(rng, (6000, 3000)), (6000, 3000)).rigidity for _ in range(30)]
    null = null_of("bema", 3000, 6000)
    assert np.median(found) == pytest.approx(null.rigidity[TAILS.index(0.5)], abs=0.2)
    assert np.mean(np.array(found) > null.limit) < 0.05


def test_a_missing_table_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(nulls, "_FILE", tmp_path / "null_table.json")
    nulls._table.cache_clear()
    try:
        with pytest.raises(SpectrumError, match=r"null_table.json is missing .* install it again"):
            null_of("bema", 50, 50)
    finally:
        nulls._table.cache_clear()
