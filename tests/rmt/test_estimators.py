"""The five methods on both sides of c = 1: each is what its name says, accurate on noise, and where they differ."""

import math

import numpy as np
import pytest

from mpviz.rmt import METHODS, MarchenkoPastur, fit_bulk
from tests.rmt.matrices import noise_spectrum, spectrum, spiked

SHAPES = [(400, 160), (250, 250), (160, 400)]
REPEATING = ["bema", "trace", "ks"]


def test_the_methods_are_these():
    assert METHODS == ("bema", "bema-once", "median", "trace", "ks")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", METHODS)
def test_noise(method, shape):
    rng = np.random.default_rng(1)
    fits = [fit_bulk(0.09 * noise_spectrum(rng, shape), shape, method=method) for _ in range(40)]
    errors = np.array([math.sqrt(fit.variance) / 0.3 - 1 for fit in fits])
    # six times what the root mean square of the entries itself scatters by
    assert np.max(np.abs(errors)) < 6 / math.sqrt(2 * shape[0] * shape[1]) * (3 if method == "median" else 1)
    assert abs(np.mean(errors)) < 0.002
    assert sum(fit.n_spikes for fit in fits) <= 3
    assert {fit.method for fit in fits} == {method}
    assert sum(fit.reason == "MP-like" for fit in fits) >= 36  # one in a hundred is called bad
    root = math.sqrt(shape[1] / shape[0])
    clean = next(fit for fit in fits if not fit.n_spikes)
    assert clean.edges[1] == pytest.approx(clean.variance * (1 + root) ** 2, rel=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", METHODS)
def test_spikes_are_counted(method, shape):
    rng = np.random.default_rng(2)
    fits = [fit_bulk(spectrum(spiked(rng, shape, [2.5, 3, 3, 4])), shape, method=method) for _ in range(5)]
    assert [fit.n_spikes for fit in fits] == [4] * 5
    if method in REPEATING:
        assert all(abs(math.sqrt(fit.variance) - 1) < 0.02 for fit in fits)


@pytest.mark.parametrize("method", METHODS)
def test_transpose_scale_and_order(method):
    rng = np.random.default_rng(3)
    matrix = spiked(rng, (300, 120), [2, 3])
    eigs = spectrum(matrix)
    tall = fit_bulk(eigs, (300, 120), method=method)
    wide = fit_bulk(rng.permutation(spectrum(matrix.T)), (120, 300), method=method)
    big = fit_bulk(1e8 * eigs, (300, 120), method=method)
    for other, scale in ((wide, 1.0), (big, 1e8)):
        assert other.n_spikes == tall.n_spikes == 2
        assert other.variance == pytest.approx(scale * tall.variance, rel=1e-6)
        assert other.sigma_plus == pytest.approx(math.sqrt(scale) * tall.sigma_plus, rel=1e-6)
        assert other.sigma_plus_interval == pytest.approx([math.sqrt(scale) * e for e in tall.sigma_plus_interval])
        assert other.rigidity == pytest.approx(tall.rigidity, rel=1e-4)
        assert other.p_value == pytest.approx(tall.p_value, rel=1e-2)


@pytest.mark.parametrize("shape", SHAPES)
def test_bema_once_is_the_first_round(shape):
    eigs = spectrum(spiked(np.random.default_rng(4), shape, np.linspace(2, 5, 12)))
    fit = fit_bulk(eigs, shape, method="bema-once", trim=0.2)
    count = len(eigs)
    law = MarchenkoPastur(shape[1] / shape[0])
    q = law.ppf_nonzero((np.arange(count) + 0.5) / count)[math.ceil(0.2 * count) : -math.ceil(0.2 * count)]
    central = eigs[math.ceil(0.2 * count) : -math.ceil(0.2 * count)]
    assert fit.variance == pytest.approx(float(q @ central / (q @ q)), rel=1e-10)
    assert fit.law.aspect == pytest.approx(shape[1] / shape[0], rel=1e-12)
    # twelve spikes left in the match lift it; the repeated fit takes them out
    assert fit.variance > 1.01 > 1.004 > fit_bulk(eigs, shape, trim=0.2).variance > 0.99


@pytest.mark.parametrize("shape", SHAPES)
def test_median_is_the_median(shape):
    eigs = spectrum(spiked(np.random.default_rng(5), shape, [2, 3, 4, 5]))
    fit = fit_bulk(eigs, shape, method="median")
    middle = MarchenkoPastur(shape[1] / shape[0]).ppf_nonzero(0.5)
    assert fit.variance == pytest.approx(float(np.median(eigs) / middle), rel=1e-10)
    assert fit.n_spikes == 4
    # one broken half of the spectrum does not move it, as it would the others
    broken = np.where(np.arange(len(eigs)) < 0.4 * len(eigs), 0.3 * eigs, eigs)
    assert fit_bulk(broken, shape, method="median").variance == pytest.approx(fit.variance, rel=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_trace_is_the_energy_that_is_not_spike(shape):
    rng = np.random.default_rng(6)
    noise = noise_spectrum(rng, shape)
    fit = fit_bulk(noise, shape, method="trace")
    assert fit.n_spikes == 0
    assert fit.variance == pytest.approx(np.sum(noise) / shape[1], rel=1e-12)  # the mean square of the entries
    # with spikes: Kritchman & Nadler's equation, trace of the rest = σ²[np − k(n + p) + … − p Σ 1/t²]
    eigs = spectrum(spiked(rng, shape, [2, 3, 4]))
    fit = fit_bulk(eigs, shape, method="trace")
    n, p = max(shape) - 3, min(shape) - 3
    rest = float(np.sum(eigs[:-3])) * shape[0] / (n * p)
    total = eigs[-3:] * shape[0] / (n * rest) - 1 - p / n
    strength = 0.5 * (total + np.sqrt(total**2 - 4 * p / n))  # t² of each spike
    assert fit.variance == pytest.approx(rest / (1 - np.sum(p / n / strength) / p), rel=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_ks_has_the_least_distance(shape):
    eigs = noise_spectrum(np.random.default_rng(7), shape)
    fit = fit_bulk(eigs, shape, method="ks")
    assert fit.n_spikes == 0
    steps = np.arange(len(eigs) + 1) / len(eigs)

    def distance(variance: float) -> float:
        fitted = MarchenkoPastur(shape[1] / shape[0], variance).cdf_nonzero(eigs)
        return len(eigs) * max(np.max(steps[1:] - fitted), np.max(fitted - steps[:-1]))

    assert fit.rigidity == pytest.approx(distance(fit.variance), rel=1e-6)
    grid = fit.variance * np.linspace(0.97, 1.03, 241)
    assert min(distance(variance) for variance in grid) >= fit.rigidity - 1e-6
    others = [fit_bulk(eigs, shape, method=method).rigidity for method in METHODS]
    assert min(others) == fit.rigidity


def test_on_noise_the_trace_is_sharpest_and_the_median_bluntest():
    rng = np.random.default_rng(8)
    spectra = [noise_spectrum(rng, (300, 200)) for _ in range(60)]
    scatter = {m: np.std([fit_bulk(e, (300, 200), method=m).variance for e in spectra]) for m in METHODS}
    assert min(scatter, key=scatter.get) == "trace"
    assert max(scatter, key=scatter.get) == "median"
    assert scatter["bema"] < 1.2 * scatter["trace"]


@pytest.mark.parametrize("factor", [1e-3, 1.5])
def test_bema_bears_a_few_other_columns_better_than_the_trace(factor):
    rng = np.random.default_rng(9)
    off = {"bema": [], "trace": []}
    for _ in range(10):
        matrix = rng.normal(size=(400, 300))
        matrix[:, :15] *= factor
        for method, errors in off.items():
            errors.append(abs(fit_bulk(spectrum(matrix), (400, 300), method=method).variance - 1))
    assert np.mean(off["bema"]) < 0.95 * np.mean(off["trace"])


@pytest.mark.parametrize("method", METHODS)
def test_hard_spectra_end(method):
    rng = np.random.default_rng(10)
    wild = [
        (np.ones(60), (60, 60)),
        (spectrum(rng.standard_cauchy(size=(120, 120))), (120, 120)),
        (np.geomspace(1e-9, 1e9, 80), (200, 80)),
        (np.concatenate([np.full(79, 1e-8), [1.0]]), (80, 80)),
    ]
    for eigs, shape in wild:
        fit = fit_bulk(eigs, shape, method=method)
        assert not fit.mp_like
        assert math.isfinite(fit.variance) and fit.variance > 0
        assert fit.n_spikes == int(np.sum(eigs > fit.threshold))


@pytest.mark.parametrize("method", METHODS)
def test_why_says_what_was_matched(method):
    why = fit_bulk(noise_spectrum(np.random.default_rng(11), (90, 60)), (90, 60), method=method).why
    word = {
        "bema": "quantiles matched on 48 of 60",
        "bema-once": "matched once on 48 of 60",
        "median": "the median of 60",
    }
    assert (word | {"trace": "the mean of 60 of 60", "ks": "least distance over 60 of 60"})[method] in why
    assert "0.99 Tracy–Widom level" in why
