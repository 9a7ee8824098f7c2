"""Hill exponent and stable rank."""

import math

import numpy as np
import pytest

from mpviz.errors import SpectrumError
from mpviz.rmt import hill_alpha, stable_rank


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


@pytest.mark.parametrize("signal", [hill_alpha, stable_rank])
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
