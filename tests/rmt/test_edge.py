"""Edges, Tracy–Widom quantiles and the threshold."""

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import airy

from mpviz.errors import SpectrumError
from mpviz.rmt import lower_edge, threshold, tracy_widom_quantile, upper_edge
from mpviz.rmt.edge import TRACY_WIDOM_TABLE


def tracy_widom_cdf(s: float, nodes: int = 60, reach: float = 16.0) -> float:
    """F₁(s) = det(1 − Ai(x + y + s)) on L²(0, ∞) by Gauss–Legendre quadrature (Ferrari & Spohn; Bornemann)."""
    x, w = np.polynomial.legendre.leggauss(nodes)
    x, root = (x + 1) * reach / 2, np.sqrt(w * reach / 2)
    kernel = airy(x[:, None] + x[None, :] + s)[0]
    return float(np.linalg.det(np.eye(nodes) - root[:, None] * kernel * root[None, :]))


def quantile_by_determinant(level: float) -> float:
    return brentq(lambda s: tracy_widom_cdf(s) - level, -3.0, 8.0, xtol=1e-10)


@pytest.mark.parametrize(("level", "quantile"), TRACY_WIDOM_TABLE)
def test_table_is_the_determinant(level, quantile):
    assert quantile_by_determinant(level) == pytest.approx(quantile, abs=1e-6)
    assert tracy_widom_quantile(level) == pytest.approx(quantile, abs=1e-9)


def test_published_values():
    assert tracy_widom_quantile(0.95) == pytest.approx(0.9793, abs=5e-5)
    assert tracy_widom_quantile(0.99) == pytest.approx(2.0234, abs=5e-5)


@pytest.mark.parametrize("level", [0.523, 0.62, 0.777, 0.8642, 0.931, 0.973, 0.9876, 0.9911, 0.9964, 0.99931, 0.99985])
def test_between_the_table_entries(level):
    assert tracy_widom_quantile(level) == pytest.approx(quantile_by_determinant(level), abs=1e-4)


@pytest.mark.parametrize("level", [0.0, 0.49, 0.99991, 1.0, 5, -1, math.nan])
def test_level_outside(level):
    with pytest.raises(SpectrumError, match=r"choose one from 0.5 to 0.9999"):
        tracy_widom_quantile(level)


def test_edges():
    assert upper_edge(2.0, 4.0) == pytest.approx(18.0)
    assert lower_edge(2.0, 4.0) == pytest.approx(2.0)
    assert lower_edge(1.0, 1.0) == 0.0
    assert upper_edge(0.0, 1.0) == 0.0  # an all-zero layer has edge 0


@pytest.mark.parametrize("edge", [upper_edge, lower_edge])
@pytest.mark.parametrize(
    ("variance", "aspect", "word"),
    [(-1.0, 1.0, "variance"), (math.nan, 1.0, "variance"), (1.0, 0.0, "aspect"), (1.0, math.inf, "aspect")],
)
def test_bad_edges(edge, variance, aspect, word):
    with pytest.raises(SpectrumError, match=word):
        edge(variance, aspect)


@pytest.mark.parametrize("shape", [(400, 100), (200, 200)])
def test_threshold_by_hand(shape):
    rows, cols = shape
    a, b = math.sqrt(rows - 0.5), math.sqrt(cols - 0.5)
    expected = 1.5 * ((a + b) ** 2 + 2.023449 * (a + b) * (1 / a + 1 / b) ** (1 / 3)) / rows
    assert threshold(1.5, shape, level=0.99) == pytest.approx(expected, rel=1e-6)
    assert threshold(1.5, shape, level=0.95) < threshold(1.5, shape, level=0.99)


def test_threshold_of_the_transpose():
    # the Gram spectrum is the same, only the division by rows differs
    assert threshold(1.0, (100, 400)) * 100 == pytest.approx(threshold(1.0, (400, 100)) * 400, rel=1e-14)


def test_threshold_tends_to_the_edge():
    gaps = [threshold(1.0, (4 * side, side)) / upper_edge(1.0, 0.25) - 1 for side in (10, 100, 1000, 100_000)]
    assert all(a > b > 0 for a, b in pairwise(gaps))
    assert gaps[-1] < 1e-3


def test_threshold_refuses_an_empty_shape():
    with pytest.raises(SpectrumError, match="0 x 5"):
        threshold(1.0, (0, 5))


@pytest.mark.parametrize(("shape", "level"), [((90, 60), 0.95), ((60, 60), 0.95), ((40, 160), 0.9)])
def test_largest_eigenvalue_of_noise_stays_below_as_often_as_promised(shape, level):
    rng = np.random.default_rng(7)
    draws = 500
    side = min(shape)
    noise = rng.normal(size=(draws, side, max(shape)))
    top = np.linalg.eigvalsh(noise @ noise.transpose(0, 2, 1))[:, -1] / shape[0]
    share = float(np.mean(top > threshold(1.0, shape, level)))
    spread = math.sqrt(level * (1 - level) / draws)
    assert abs(share - (1 - level)) < 3 * spread
