"""Each reason has a generated matrix that triggers it and one, close by, that must not."""

import math

import numpy as np
import pytest

from mpviz.errors import SpectrumError
from mpviz.rmt import GRADES, METHODS, REASONS, entry_stats, explain, fit_bulk, no_fit
from tests.rmt.matrices import noise_spectrum, signal, spectrum, spiked

SHAPES = [(384, 384), (512, 256), (256, 512)]
rng = np.random.default_rng


def columns(seed, shape, spread):
    generator = rng(seed)
    return generator.normal(size=shape) * np.exp(spread * generator.normal(size=shape[1]))


def student(seed, shape, freedom):
    return rng(seed).standard_t(freedom, size=shape)


def orthogonal(seed, shape):
    return signal(rng(seed), shape, np.ones(min(shape)))


def correlated(seed, shape, weight=0.4):
    """Neighbouring columns alike, all of one scale."""
    matrix = rng(seed).normal(size=shape)
    for j in range(1, shape[1]):
        matrix[:, j] = weight * matrix[:, j - 1] + math.sqrt(1 - weight**2) * matrix[:, j]
    return matrix


def fitted(matrix, **options):
    return fit_bulk(spectrum(matrix), matrix.shape, **options)


def reasons(make, repeats=6):
    """What the eigenvalues say, and what is said once the entries are known."""
    matrices = [make(seed) for seed in range(repeats)]
    fits = [fitted(matrix) for matrix in matrices]
    told = [explain(fit, entry_stats(matrix)) for fit, matrix in zip(fits, matrices, strict=True)]
    assert all(fit.mp_like == (fit.reason == "MP-like") == (fit.grade == "good") for fit in fits + told)
    assert all(fit.reason in REASONS for fit in fits + told)
    return {fit.reason for fit in fits}, {fit.reason for fit in told}


@pytest.mark.parametrize("shape", SHAPES)
def test_mp_like(shape):
    good = {"MP-like"}
    assert reasons(lambda seed: rng(seed).normal(size=shape)) == (good, good)
    assert reasons(lambda seed: rng(seed).uniform(-1, 1, size=shape)) == (good, good)
    assert reasons(lambda seed: spiked(rng(seed), shape, np.linspace(1.5, 5, 12))) == (good, good)
    alone, told = reasons(lambda seed: columns(seed, shape, 0.2))
    assert not (alone | told) & good


@pytest.mark.parametrize("shape", SHAPES)
def test_column_scales_differ(shape):
    differ = {"column scales differ"}
    assert reasons(lambda seed: columns(seed, shape, 0.15)) == (differ, differ)
    rows = reasons(lambda seed: columns(seed, shape[::-1], 0.15).T)
    assert rows == (differ, differ)
    # very unequal columns have a heavy tail; the entries tell
    assert reasons(lambda seed: columns(seed, shape, 1.2)) == ({"heavy tail"}, differ)
    for other in (lambda seed: student(seed, shape, 2), lambda seed: rng(seed).normal(size=shape)):
        alone, told = reasons(other)
        assert not (alone | told) & differ


@pytest.mark.parametrize("shape", SHAPES)
def test_heavy_tail(shape):
    heavy = {"heavy tail"}
    assert reasons(lambda seed: student(seed, shape, 2)) == (heavy, heavy)
    assert reasons(lambda seed: rng(seed).standard_cauchy(size=shape)) == (heavy, heavy)
    assert reasons(lambda seed: student(seed, shape, 2.5))[1] == heavy
    ranks = np.arange(1, min(shape) // 3)
    transition = (shape[0] * shape[1]) ** 0.25

    def tailed(seed):
        return rng(seed).normal(size=shape) + signal(rng(seed), shape, 10 * transition / np.sqrt(ranks))

    assert reasons(tailed) == (heavy, heavy)
    for other in (lambda seed: columns(seed, shape, 0.15), lambda seed: rng(seed).normal(size=shape)):
        alone, told = reasons(other)
        assert not (alone | told) & heavy


@pytest.mark.parametrize("shape", SHAPES)
def test_other_structure(shape):
    other = {"other structure"}
    assert reasons(lambda seed: orthogonal(seed, shape)) == (other, other)
    assert "closer together" in fitted(orthogonal(0, shape)).verdict
    assert reasons(lambda seed: orthogonal(seed, shape) + rng(seed).normal(scale=0.01, size=shape)) == (other, other)
    # columns that depend on each other look like unequal ones, until the entries are seen
    assert reasons(lambda seed: correlated(seed, shape)) == ({"column scales differ"}, other)
    alone, told = reasons(lambda seed: columns(seed, shape, 0.2))
    assert not (alone | told) & other


def test_too_few_eigenvalues():
    small = fit_bulk(noise_spectrum(rng(0), (40, 7)), (40, 7), strict=False)
    row = fit_bulk([3.0], (1, 50), strict=False)
    trimmed = fit_bulk(noise_spectrum(rng(0), (40, 20)), (40, 20), trim=0.45, strict=False)
    assert {fit.reason for fit in (small, row, trimmed)} == {"too few eigenvalues"}
    assert fit_bulk(noise_spectrum(rng(0), (40, 10)), (40, 10)).reason == "MP-like"


def test_low_rank():
    def of_rank(rank):
        return spectrum(rng(1).normal(size=(100, rank)) @ rng(2).normal(size=(rank, 60)))

    for rank in (1, 6, 20):
        fit = fit_bulk(of_rank(rank), (100, 60), strict=False)
        assert fit.reason == "low rank"
        assert fit.verdict.startswith(f"low rank: only {rank} of 60")
    assert fit_bulk(of_rank(40), (100, 60)).reason != "low rank"
    few_dead = rng(3).normal(size=(100, 60))
    few_dead[:, :5] = 0
    assert fitted(few_dead).reason == "MP-like"


def test_no_spectrum():
    bad = noise_spectrum(rng(0), (40, 20))
    bad[3] = math.nan
    for eigs, shape, options in [
        (bad, (40, 20), {}),
        (np.zeros(20), (40, 20), {}),
        ([], (0, 20), {}),
        (np.ones(3), (40, 20), {}),
        (noise_spectrum(rng(0), (40, 20)), (40, 20), {"method": "bemma"}),
    ]:
        with pytest.raises(SpectrumError):
            fit_bulk(eigs, shape, **options)
        assert fit_bulk(eigs, shape, strict=False, **options).reason == "no spectrum"
    assert fit_bulk(noise_spectrum(rng(0), (40, 20)), (40, 20)).reason == "MP-like"


def test_a_layer_without_fit_can_be_made_by_others():
    fit = no_fit((30, 20), 0, "layer x holds NaN; repair its weights")
    assert (fit.verdict, fit.reason, fit.mp_like, fit.law) == (
        "layer x holds NaN; repair its weights",
        REASONS[-1],
        False,
        None,
    )
    assert math.isnan(fit.sigma_plus) and math.isnan(fit.p_value) and all(map(math.isnan, fit.sigma_plus_interval))
    assert explain(fit, entry_stats(np.eye(3))) is fit


def test_mostly_spikes_is_no_bulk():
    # two populations of columns: the quieter half alone is a perfect bulk, with the other half as spikes
    matrix = rng(4).normal(size=(512, 256)) * np.where(np.arange(256) % 2, 1.0, 3.0)
    fit = fitted(matrix)
    assert fit.rigidity < fit.rigidity_limit
    assert fit.n_spikes > 100
    assert not fit.mp_like
    assert explain(fit, entry_stats(matrix)).verdict.startswith("not MP-like: column scales differ by 50 %")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_method_judges(method, shape):
    for seed in range(3):
        assert fitted(rng(seed).normal(size=shape), method=method).reason == "MP-like"
        assert fitted(columns(seed, shape, 0.25), method=method).reason in ("column scales differ", "heavy tail")
        assert fitted(student(seed, shape, 2), method=method).reason == "heavy tail"
        assert fitted(orthogonal(seed, shape), method=method).reason == "other structure"


def uneven(seed, shape, spread):
    """Uniform column scales, and the mean square of one entry."""
    scales = 1 + spread * math.sqrt(3) * rng(seed).uniform(-1, 1, size=shape[1])
    return rng(seed + 1000).normal(size=shape) * scales, float(np.mean(scales**2))


@pytest.mark.parametrize("shape", SHAPES)
def test_fair_lies_between_good_and_poor(shape):
    grades, errors = [], []
    for seed in range(40):
        matrix, square = uneven(seed, shape, 0.004 * (seed + 1))
        fit = fitted(matrix)
        told = explain(fit, entry_stats(matrix))
        grades.append(fit.grade)
        assert told.grade == fit.grade in GRADES
        start = {"good": "MP-like", "fair": "nearly MP-like: ", "poor": "not MP-like: "}[fit.grade]
        assert fit.verdict.startswith(start) and told.verdict.startswith(start)
        assert fit.mp_like == (fit.grade == "good")
        if fit.grade == "fair":
            assert f"(p*KS {fit.rigidity:.1f}, limit {fit.rigidity_limit:.1f}" in told.verdict
            assert fit.rigidity_limit < fit.rigidity <= 1.5 * fit.rigidity_limit
            errors.append(abs(math.sqrt(fit.variance / square) - 1))
    assert grades.count("fair") >= 4 and grades[:8] == ["good"] * 8 and set(grades[-4:]) <= {"fair", "poor"}
    assert max(errors) < 0.03
    poor = fitted(uneven(0, shape, 0.3)[0])
    assert poor.grade == "poor" and poor.rigidity > 1.5 * poor.rigidity_limit


def test_small_layers_are_hardly_ever_fair():
    # a gap above the limit of noise is more than 5 % of 40 eigenvalues
    grades = {fitted(uneven(seed, (80, 40), 0.4)[0]).grade for seed in range(20)}
    assert "poor" in grades and "fair" not in grades


def test_grades_of_layers_without_a_sound_bulk():
    assert no_fit((30, 20), 0, "nothing there").grade == "none"
    assert fit_bulk(noise_spectrum(rng(0), (40, 7)), (40, 7), strict=False).grade == "none"
    thin = rng(1).normal(size=(100, 20)) @ rng(2).normal(size=(20, 60))
    assert fitted(thin).reason == "low rank" and fitted(thin).grade == "poor"
    unsettled = columns(0, (768, 256), 1.5)
    assert fitted(unsettled).grade == "poor"
