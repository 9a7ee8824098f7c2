"""Signals behind spikes: the inverse map, strengths and overlaps on planted signals."""

import math

import numpy as np
import pytest

from mpviz.errors import SpectrumError
from mpviz.rmt import bbp_roots, fit_bulk, spike_strengths


def planted(rng, shape, factors, sigma):
    """W, its planted singular values and vectors; factors: strengths in units of the BBP threshold, descending."""
    rows, cols = shape
    left = np.linalg.qr(rng.normal(size=(rows, len(factors))))[0]
    right = np.linalg.qr(rng.normal(size=(cols, len(factors))))[0]
    strengths = np.asarray(factors) * sigma * (rows * cols) ** 0.25
    return (left * strengths) @ right.T + rng.normal(scale=sigma, size=shape), strengths, left, right


@pytest.mark.parametrize("aspect", [0.05, 0.5, 1.0])
def test_roots_invert_the_forward_map(aspect):
    signal = math.sqrt(aspect) * np.array([1.0, 1.01, 1.5, 4.0, 100.0])
    inflated = (1 + signal) * (aspect + signal) / signal
    found, twin = bbp_roots(inflated, aspect)
    np.testing.assert_allclose(found, signal, rtol=1e-6)  # the map is flat at the transition
    np.testing.assert_allclose(found[2:], signal[2:], rtol=1e-12)
    np.testing.assert_allclose(found * twin, aspect, rtol=1e-12)


def test_square_case_is_the_formula_of_the_plane():
    # noise of variance g/N: a signal θ shows as s = θ + g/θ, and θ = (s + √(s² − 4g)) / 2
    g, s = 0.7, 2.9
    signal, _ = bbp_roots(s**2 / g, 1.0)
    assert math.sqrt(signal * g) == pytest.approx((s + math.sqrt(s**2 - 4 * g)) / 2, rel=1e-12)


def test_below_the_transition_the_answer_is_the_transition():
    found, twin = bbp_roots([0.0, 1.0, (1 + 0.5) ** 2], 0.25)
    np.testing.assert_allclose(found, 0.5)
    np.testing.assert_allclose(twin, 0.5)


@pytest.mark.parametrize("shape", [(384, 384), (512, 192), (192, 512)])
def test_strengths_and_overlaps_of_planted_signals(shape):
    rng = np.random.default_rng(0)
    factors = [6.0, 4.0, 3.0, 2.0]
    strength_errors, left_errors, right_errors, rawness = [], [], [], []
    for _ in range(8):
        matrix, strengths, left, right = planted(rng, shape, factors, sigma=0.3)
        u, s, vt = np.linalg.svd(matrix, full_matrices=False)
        eigs = s[::-1] ** 2 / shape[0]
        found = spike_strengths(eigs, fit_bulk(eigs, shape))
        assert len(found) == 4
        np.testing.assert_allclose(found.eigenvalue, eigs[::-1][:4])
        assert np.all(np.diff(found.strength) < 0)
        strength_errors.append(found.strength / strengths - 1)
        rawness.append(s[:4] / strengths - 1)
        left_errors.append(found.overlap_left - np.sum(left * u[:, :4], axis=0) ** 2)
        right_errors.append(found.overlap_right - np.sum(right * vt[:4].T, axis=0) ** 2)
    assert np.max(np.abs(np.mean(strength_errors, axis=0))) < 0.02
    assert np.max(np.abs(strength_errors)) < 0.12  # four standard deviations of the weakest
    # without the inverse the weakest would be a tenth too strong or more
    assert np.mean(rawness, axis=0)[3] > 0.08
    assert np.max(np.abs(np.mean(left_errors, axis=0))) < 0.02
    assert np.max(np.abs(np.mean(right_errors, axis=0))) < 0.02


def test_the_long_side_is_the_harder_one():
    matrix, *_ = planted(np.random.default_rng(1), (800, 100), [3.0], sigma=1.0)
    eigs = np.linalg.eigvalsh(matrix.T @ matrix) / 800
    found = spike_strengths(eigs, fit_bulk(eigs, (800, 100)))
    assert found.overlap_left[0] < found.overlap_right[0] < 1
    other = spike_strengths(eigs * 8, fit_bulk(eigs * 8, (100, 800)))
    assert other.strength == pytest.approx(found.strength, rel=1e-9)
    assert other.overlap_left == pytest.approx(found.overlap_right, rel=1e-9)


def test_noise_has_none_and_an_unfitted_layer_neither():
    noise = np.random.default_rng(2).normal(size=(100, 60))
    eigs = np.linalg.eigvalsh(noise.T @ noise) / 100
    assert len(spike_strengths(eigs, fit_bulk(eigs, (100, 60)))) == 0
    zero = fit_bulk(np.zeros(60), (100, 60), strict=False)
    assert len(spike_strengths(np.zeros(60), zero)) == 0


def test_a_spectrum_of_another_layer_is_refused():
    noise = np.random.default_rng(2).normal(size=(100, 60))
    eigs = np.linalg.eigvalsh(noise.T @ noise) / 100
    fit = fit_bulk(eigs, (100, 60))
    with pytest.raises(SpectrumError, match="100 x 60 layer; pass the 60"):
        spike_strengths(eigs[:50], fit)


def test_a_low_level_gives_no_nan():
    noise = np.random.default_rng(3).normal(size=(200, 200))
    eigs = np.linalg.eigvalsh(noise.T @ noise) / 200
    fit = fit_bulk(eigs, (200, 200), level=0.5)
    assert fit.threshold < fit.edges[1]  # so an eigenvalue inside the bulk may count as a spike
    eigs[-1] = 0.5 * (fit.threshold + fit.edges[1])
    found = spike_strengths(eigs, fit)
    assert len(found) == 1
    assert np.isfinite(found.strength).all()
    assert found.overlap_left.tolist() == found.overlap_right.tolist() == [0.0]  # lost in the noise
