"""The Marchenko–Pastur law against quadrature, its own inverse, and matrices."""

import math
from pathlib import Path

import numpy as np
import pytest
from scipy.integrate import quad

import mpviz.rmt as rmt
from mpviz.errors import SpectrumError
from mpviz.rmt import MarchenkoPastur

ASPECTS = [0.01, 0.25, 0.5, 0.9, 0.999, 0.999999, 1.0, 1.000001, 1.001, 1.5, 4.0, 50.0]
VARIANCES = [1.0, 0.0037]


def density_by_hand(x: float, aspect: float, variance: float) -> float:
    """The textbook density, written once more and without the package."""
    low, high = variance * (1 - math.sqrt(aspect)) ** 2, variance * (1 + math.sqrt(aspect)) ** 2
    return math.sqrt(max(high - x, 0) * max(x - low, 0)) / (2 * math.pi * aspect * variance * x)


def mass_by_quadrature(x: float, aspect: float, variance: float) -> float:
    """Integral of the density from the lower edge to x, in u with x = λ₋ + u², which removes the root at the edge."""
    low = variance * (1 - math.sqrt(aspect)) ** 2
    end = math.sqrt(x - low)
    # near c = 1 the density climbs within √λ₋ of the edge: quad is told where
    corner = [p for p in (math.sqrt(low) * f for f in (0.3, 1, 3, 10, 100)) if 0 < p < end]
    return quad(
        lambda u: density_by_hand(low + u * u, aspect, variance) * 2 * u if u > 0 else 0.0,
        0.0,
        end,
        points=corner or None,
        epsabs=1e-13,
        epsrel=1e-12,
        limit=500,
    )[0]


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("aspect", ASPECTS)
def test_cdf_equals_quadrature(aspect, variance):
    law = MarchenkoPastur(aspect, variance)
    low, high = law.edges
    points = low + (high - low) * np.array([1e-6, 1e-3, 0.03, 0.2, 0.5, 0.8, 0.97, 0.999, 0.999999])
    expected = [law.atom + mass_by_quadrature(float(x), aspect, variance) for x in points]
    np.testing.assert_allclose(law.cdf(points), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("aspect", ASPECTS)
def test_pdf_is_the_textbook_density_and_the_slope_of_cdf(aspect):
    law = MarchenkoPastur(aspect, 2.0)
    low, high = law.edges
    x = np.linspace(low, high, 51)[1:-1]
    expected = [density_by_hand(float(point), aspect, 2.0) for point in x]
    np.testing.assert_allclose(law.pdf(x), expected, rtol=1e-9)
    step = 1e-5 * (high - low)
    slope = (law.cdf(x + step) - law.cdf(x - step)) / (2 * step)
    np.testing.assert_allclose(slope, law.pdf(x), rtol=1e-4)
    assert law.pdf([high * 1.01, -1.0]).tolist() == [0.0, 0.0]
    np.testing.assert_allclose(law.pdf_nonzero(x) * (1 - law.atom), law.pdf(x), rtol=1e-14)


@pytest.mark.parametrize("aspect", ASPECTS)
def test_total_mass_mean_and_atom(aspect):
    law = MarchenkoPastur(aspect, 3.0)
    low, high = law.edges
    assert law.edges == (rmt.lower_edge(3.0, aspect), rmt.upper_edge(3.0, aspect))
    assert law.atom == pytest.approx(max(0.0, 1 - 1 / aspect), abs=1e-15)
    assert law.cdf([-1e-9, high, np.inf]).tolist() == [0.0, 1.0, 1.0]
    assert law.cdf(0.0) == pytest.approx(law.atom, abs=1e-15)
    assert law.cdf(low) == pytest.approx(law.atom, abs=1e-12)
    # the trace of X says that the mean is σ², atom included
    q = (np.arange(20000) + 0.5) / 20000
    assert np.mean(law.ppf(q)) == pytest.approx(3.0, rel=2e-3)


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("aspect", ASPECTS)
def test_ppf_is_the_inverse(aspect, variance):
    law = MarchenkoPastur(aspect, variance)
    q = np.concatenate([[0.0, 1e-12, 1e-9, 1e-6, 1e-4], np.linspace(0.001, 0.999, 999), [1 - 1e-9, 1.0]])
    x = law.ppf_nonzero(q)
    np.testing.assert_allclose(law.cdf_nonzero(x), q, rtol=0, atol=1e-10)
    np.testing.assert_allclose(law.cdf(law.ppf(q)), np.maximum(q, law.atom), rtol=0, atol=1e-10)
    np.testing.assert_allclose(law.ppf_nonzero(law.cdf_nonzero(x)), x, rtol=0, atol=1e-10 * law.edges[1])
    assert np.all(np.diff(x) > 0)
    assert law.ppf(0.5 * law.atom) == 0.0 or law.atom == 0.0
    assert law.ppf(1.0) == law.edges[1]


def test_wide_law_is_the_transpose_scaled():
    tall, wide = MarchenkoPastur(0.25, 1.0), MarchenkoPastur(4.0, 1.0)
    q = np.linspace(0, 1, 101)
    # λ of WᵀW/N for N × 4N is 4 λ of the transpose, whose Gram matrix is divided by 4N
    np.testing.assert_allclose(wide.ppf_nonzero(q), 4 * tall.ppf(q), rtol=1e-12)
    np.testing.assert_allclose(wide.cdf_nonzero([2.0, 5.0]), tall.cdf([0.5, 1.25]), rtol=1e-12)


def test_shapes_are_kept_and_empty_is_fine():
    law = MarchenkoPastur(0.5)
    for method in (law.pdf, law.cdf, law.ppf, law.ppf_nonzero, law.cdf_nonzero):
        assert method(0.5).shape == ()
        assert method(np.full((2, 3), 0.5)).shape == (2, 3)
        assert method([]).shape == (0,)


def test_square_density_is_infinite_at_zero_only_there():
    law = MarchenkoPastur(1.0)
    assert np.isinf(law.pdf(0.0))
    assert np.isfinite(law.pdf([1e-12, 1.0])).all()


@pytest.mark.parametrize("shape", [(900, 300), (500, 500), (300, 900)])
def test_law_describes_a_matrix(shape):
    noise = np.random.default_rng(1).normal(scale=1.7, size=shape)
    eigs = np.linalg.svd(noise, compute_uv=False) ** 2 / shape[0]
    law = MarchenkoPastur(shape[1] / shape[0], 1.7**2)
    steps = (np.argsort(np.argsort(eigs)) + 0.5) / len(eigs)
    assert np.max(np.abs(law.cdf_nonzero(eigs) - steps)) < 5 / len(eigs)


@pytest.mark.parametrize("aspect", [0.0, -1.0, math.nan, math.inf])
def test_bad_aspect(aspect):
    with pytest.raises(SpectrumError, match="aspect"):
        MarchenkoPastur(aspect)


@pytest.mark.parametrize("variance", [0.0, -1.0, math.nan, math.inf])
def test_bad_variance(variance):
    with pytest.raises(SpectrumError, match="variance"):
        MarchenkoPastur(0.5, variance)


def test_bad_points():
    law = MarchenkoPastur(0.5)
    for method in (law.pdf, law.pdf_nonzero, law.cdf, law.cdf_nonzero):
        with pytest.raises(SpectrumError, match="x holds NaN"):
            method([1.0, math.nan])
    for method in (law.ppf, law.ppf_nonzero):
        with pytest.raises(SpectrumError, match="q holds NaN"):
            method(math.nan)
        with pytest.raises(SpectrumError, match=r"q must lie in \[0, 1\]"):
            method([0.5, 1.1])
        with pytest.raises(SpectrumError, match=r"q must lie in \[0, 1\]"):
            method(-1e-9)


def test_no_public_name_shadows_a_module():
    modules = {path.stem for path in Path(rmt.__file__).parent.glob("*.py")}
    assert modules.isdisjoint(rmt.__all__)
    assert all(hasattr(rmt, name) for name in rmt.__all__)
    assert len(rmt.__all__) == len(set(rmt.__all__)) >= 12
