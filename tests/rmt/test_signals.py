"""Hill exponent, ranks, entropy and norms."""

import math

import numpy as np
import pytest

from mpviz.errors import SpectrumError
from mpviz.rmt import entropy, fit_bulk, hill_alpha, norms, soft_rank, stable_rank
from tests.rmt.matrices import noise_spectrum, spectrum, spiked


@pytest.mark.parametrize("alpha", [1.5, 2.0, 3.5, 6.0])
def test_hill_finds_the_exponent_of_a_power_law(alpha):
    uniform = np.random.default_rng(0).uniform(size=20000)
    eigs = uniform ** (-1 / (alpha - 1))  # density ~ λ^−α above 1
    # standard error of the estimate: (α − 1) / √k
    assert hill_alpha(eigs) == pytest.approx(alpha, abs=4 * (alpha - 1) / 100)
    assert hill_alpha(eigs, tail=0.1) == pytest.approx(alpha, abs=4 * (alpha - 1) / math.sqrt(2000))


def test_hill_by_hand():
    # five values, the largest two above the reference 4: α = 1 + 2 / (log 2 + log 4)
    eigs = [1.0, 16.0, 2.0, 8.0, 4.0]
    assert hill_alpha(eigs) == pytest.approx(1 + 2 / (math.log(2) + math.log(4)), rel=1e-12)
    assert hill_alpha([0.0, *eigs, 0.0, 1e-30]) == hill_alpha(eigs)
    assert hill_alpha([7e-9 * e for e in eigs]) == pytest.approx(hill_alpha(eigs), rel=1e-12)


def test_hill_without_any_spread_is_infinite():
    assert hill_alpha(np.ones(10)) == math.inf


def test_stable_rank():
    matrix = np.random.default_rng(1).normal(size=(60, 40))
    eigs = np.linalg.eigvalsh(matrix.T @ matrix) / 60
    expected = np.linalg.norm(matrix) ** 2 / np.linalg.norm(matrix, 2) ** 2
    assert stable_rank(eigs) == pytest.approx(expected, rel=1e-12)
    assert stable_rank(eigs * 1e-200) == pytest.approx(expected, rel=1e-9)
    assert stable_rank([0.0, 0.0, 5.0]) == 1.0


@pytest.mark.parametrize("signal", [hill_alpha, stable_rank, entropy])
@pytest.mark.parametrize(
    ("eigs", "message"),
    [
        ([1.0, math.nan, 2.0], "NaN or infinite"),
        ([1.0, math.inf], "NaN or infinite"),
        ([0.0, 0.0], "all-zero"),
        ([], "all-zero"),
    ],
)
def test_bad_spectra(signal, eigs, message):
    with pytest.raises(SpectrumError, match=message):
        signal(eigs)


@pytest.mark.parametrize("tail", [0.0, 1.0, -0.2, math.nan])
def test_bad_tail(tail):
    with pytest.raises(SpectrumError, match="between 0 and 1"):
        hill_alpha([1.0, 2.0, 3.0], tail=tail)


def test_tail_without_eigenvalues():
    with pytest.raises(SpectrumError, match="holds none"):
        hill_alpha([1.0, 2.0, 3.0], tail=0.1)
    with pytest.raises(SpectrumError, match="holds none"):
        hill_alpha([5.0])


@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (50, 50)])
def test_norms_are_those_of_the_matrix(shape):
    matrix = np.random.default_rng(2).normal(scale=0.02, size=shape)
    found = norms(np.linalg.svd(matrix, compute_uv=False) ** 2 / shape[0], shape)
    assert found.frobenius == pytest.approx(np.linalg.norm(matrix), rel=1e-12)
    assert found.spectral == pytest.approx(np.linalg.norm(matrix, 2), rel=1e-12)
    assert found.nuclear == pytest.approx(np.linalg.norm(matrix, "nuc"), rel=1e-12)
    assert 10**found.log_frobenius == pytest.approx(found.frobenius)
    assert 10**found.log_spectral == pytest.approx(found.spectral)
    assert found.spectral <= found.frobenius <= found.nuclear


def test_norms_at_the_ends():
    zero = norms(np.zeros(20), (30, 20))
    assert (zero.frobenius, zero.spectral, zero.nuclear) == (0.0, 0.0, 0.0)
    assert zero.log_spectral == zero.log_frobenius == -math.inf
    assert norms([1e300, 1e300], (4, 2)).frobenius == pytest.approx(math.sqrt(8e300), rel=1e-12)
    with pytest.raises(SpectrumError, match=r"min\(rows, cols\) = 20 eigenvalues, got 3"):
        norms([1.0, 2.0, 3.0], (30, 20))


def test_entropy():
    eigs = np.random.default_rng(3).exponential(size=50)
    share = eigs / eigs.sum()
    assert entropy(eigs) == pytest.approx(-np.sum(share * np.log(share)) / np.log(50), rel=1e-12)
    assert entropy(1e-200 * eigs) == pytest.approx(entropy(eigs), rel=1e-9)
    assert entropy(np.full(30, 7.0)) == pytest.approx(1.0, abs=1e-12)
    assert entropy([0.0, 0.0, 2.0]) == 0.0
    assert 0 < entropy([1.0, 1e6]) < entropy([1.0, 2.0]) < 1


def test_soft_rank():
    rng = np.random.default_rng(4)
    noise = noise_spectrum(rng, (1200, 800))
    fit = fit_bulk(noise, (1200, 800))
    assert soft_rank(noise, fit) == pytest.approx(fit.edges[1] / noise[-1], rel=1e-12)
    assert 0.95 < soft_rank(noise, fit) < 1.05
    eigs = spectrum(spiked(rng, (300, 200), [5.0]))
    assert soft_rank(eigs, fit_bulk(eigs, (300, 200))) < 0.3
    assert math.isnan(soft_rank([1.0, 2.0], fit_bulk([1.0, 2.0], (3, 2), strict=False)))
