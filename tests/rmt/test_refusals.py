"""Spectra and arguments that no fit can use: a sentence with its remedy, as an error or as a verdict."""

import math

import numpy as np
import pytest

from mpviz.errors import SpectrumError
from mpviz.rmt import fit_bulk
from tests.rmt.matrices import spectrum

NOISE = spectrum(np.random.default_rng(15).normal(size=(40, 20)))


def changed(index, value):
    eigs = NOISE.copy()
    eigs[index] = value
    return eigs


def of_rank(rank, shape=(100, 60)):
    rng = np.random.default_rng(16)
    return spectrum(rng.normal(size=(shape[0], rank)) @ rng.normal(size=(rank, shape[1])))


BAD = {
    "nan": (changed(3, math.nan), (40, 20), {}, "1 of 20 eigenvalues .* NaN or infinite; check its weights"),
    "infinite": (changed(19, math.inf), (40, 20), {}, "NaN or infinite"),
    "negative": (changed(0, -0.5), (40, 20), {}, "eigenvalue -0.5, but WᵀW has none below zero"),
    "one row": ([3.0], (1, 50), {}, "1 x 50 layer has one eigenvalue"),
    "one column": ([3.0], (50, 1), {}, "50 x 1 layer has one eigenvalue"),
    "no entries": ([], (0, 50), {}, "0 x 50 layer has no entries"),
    "all zero": (np.zeros(20), (40, 20), {}, "the 40 x 20 layer is all-zero"),
    "rank one": (of_rank(1), (100, 60), {}, "low rank: only 1 of 60 eigenvalues .* leave it out"),
    "rank six": (of_rank(6), (100, 60), {}, "low rank: only 6 of 60"),
    "too small": (NOISE[:6], (30, 6), {}, "too few eigenvalues: only 4 .*too small, leave it out"),
    "trim too wide": (NOISE, (40, 20), {"trim": 0.35}, "only 6 eigenvalues in the bulk window .*lower trim to 0.3 or"),
    "wrong length": (NOISE, (40, 30), {}, r"min\(rows, cols\) = 30 eigenvalues, got 20"),
    "a matrix": (np.ones((40, 20)), (40, 20), {}, "pass the spectrum of W, not W"),
    "complex": (NOISE + 1j, (40, 20), {}, "not real numbers"),
    "words": (["a"] * 20, (40, 20), {}, "not real numbers"),
    "4-D shape": (NOISE, (40, 20, 3, 3), {}, "unfold the layer first"),
    "no shape": (NOISE, None, {}, "unfold the layer first"),
    "fractional shape": (NOISE, (40.5, 20), {}, "unfold the layer first"),
    "trim one half": (NOISE, (40, 20), {"trim": 0.5}, r"trim 0.5 leaves no window; choose it in \[0, 0.5\)"),
    "trim negative": (NOISE, (40, 20), {"trim": -0.1}, "trim -0.1"),
    "trim nan": (NOISE, (40, 20), {"trim": math.nan}, "trim nan"),
    "level": (NOISE, (40, 20), {"level": 1.0}, "level 1.0"),
    "method": (NOISE, (40, 20), {"method": "bemma"}, "unknown fit method 'bemma'; did you mean 'bema'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    eigs, shape, options, message = BAD[case]
    with pytest.raises(SpectrumError, match=message) as caught:
        fit_bulk(eigs, shape, **options)
    # the same words as a verdict, for a table that must not stop at one layer
    fit = fit_bulk(eigs, shape, strict=False, **options)
    assert fit.verdict == str(caught.value)
    assert not fit.mp_like
    assert fit.law is None
    assert fit.n_spikes == 0
    numbers = [fit.variance, *fit.edges, fit.sigma_plus, fit.threshold, fit.bulk_fraction, fit.fit_error, fit.rigidity]
    numbers += [*fit.sigma_plus_interval, fit.p_value, fit.rigidity_limit]
    assert all(math.isnan(number) for number in numbers)


def test_good_input_is_the_same_either_way():
    assert fit_bulk(NOISE, (40, 20), strict=True) == fit_bulk(NOISE, (40, 20), strict=False)


def test_rank_of_a_refused_layer_is_told():
    assert fit_bulk(of_rank(6), (100, 60), strict=False).rank == 6


def test_the_remedy_for_trim_works():
    for count in range(8, 60):
        eigs = spectrum(np.random.default_rng(count).normal(size=(80, count)))
        verdict = fit_bulk(eigs, (80, count), trim=0.49, strict=False).verdict
        remedy = float(verdict.split("lower trim to ")[1].split()[0])
        assert fit_bulk(eigs, (80, count), trim=remedy).variance > 0


def test_low_rank_that_can_be_fitted_is_called_so():
    fit = fit_bulk(of_rank(20), (100, 60), strict=False)
    assert fit.rank == 20
    assert not fit.mp_like
    assert fit.verdict == "low rank: only 20 of 60 eigenvalues are above zero"


def test_rounding_below_zero_is_forgiven():
    eigs = of_rank(40)
    assert eigs[0] < 1e-12
    assert fit_bulk(np.where(eigs < 1e-10, -1e-9, eigs), (100, 60)).rank == 40
