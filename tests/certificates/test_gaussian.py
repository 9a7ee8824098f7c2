"""The gaussian tier: drawn R break it no more often than δ says, and each factor in it is needed."""

import math
from dataclasses import replace

import numpy as np
import pytest
from gaussian_tier import Setting, failures, too_often
from hypothesis import given, settings
from hypothesis import strategies as st

from mpviz.certificates.gaussian import (
    GaussianLayer,
    gaussian_budget,
    gaussian_budget_of_edge,
    gaussian_budget_of_layers,
)
from mpviz.errors import DataError, MpvizError
from mpviz.rmt.edge import upper_edge

SETTINGS = [Setting(30, 30, 5), Setting(20, 60, 5), Setting(60, 20, 5), Setting(1, 10, 1)]


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize("delta", [0.05, 0.5])
def test_drawn_noise_breaks_it_no_more_often_than_delta(setting, delta):
    found = failures(setting, delta, draws=300, seed=1)
    for kind in ("eta", "budget", "edge", "labels", "layers"):
        assert not too_often(found[kind], 300, delta), f"{kind}: {found[kind]} of 300"
    assert found["certified"] > 0 or setting.rows == 1
    assert found["eta"] >= found["budget"] and found["largest"] > 0.5, "the bound is near what is drawn"


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_mutations_would_be_noticed(setting):
    """Half the variance, no union over rows and samples: each fails far more often than δ."""
    assert too_often(failures(setting, 0.05, draws=300, seed=2, g_factor=0.25)["eta"], 300, 0.05)
    if setting.rows > 1:
        setting = replace(setting, samples=30)
        assert too_often(failures(setting, 0.001, draws=300, seed=2, union=False)["eta"], 300, 0.001)


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(1, 500), cols=st.integers(1, 500), g=st.floats(1e-6, 10.0))
def test_the_edge_form_is_the_same_statement(rows, cols, g):
    norms = [0.5, 2.0, 1.0]
    edge = math.sqrt(rows * upper_edge(g / rows, cols / rows))
    one, other = gaussian_budget(norms, 3.0, g, rows), gaussian_budget_of_edge(norms, 3.0, edge, (rows, cols))
    assert one.budget == pytest.approx(other.budget, rel=1e-9)
    assert one.budget == pytest.approx(2 * 3.0 * np.mean(norms) * math.sqrt(2 * g / rows * math.log(6 * rows / 0.05)))
    assert one.tier == "gaussian" and len(one.hypotheses) == 4


def test_patches_count_in_the_union_and_the_largest_decides():
    one = gaussian_budget([[1.0, 3.0], [2.0, 2.0]], 1.0, 1.0, 10)
    assert one.events == 40
    np.testing.assert_allclose(one.size / [3.0, 2.0], one.size[0] / 3.0)
    assert one.size[0] > gaussian_budget([3.0, 2.0], 1.0, 1.0, 10).size[0]


def test_layers_split_delta():
    layer = GaussianLayer("fc1", [1.0, 2.0], 2.0, 0.5, 20)
    both, half = gaussian_budget_of_layers([layer, layer], 0.1), gaussian_budget([1.0, 2.0], 2.0, 0.5, 20, 0.05)
    np.testing.assert_allclose(both.eta, 2 * half.eta)
    assert len(both.hypotheses) == 5


def test_a_constant_that_depends_on_the_removed_weights_is_refused():
    with pytest.raises(MpvizError, match="global product of norms"):
        gaussian_budget([1.0], 1.0, 1.0, 10, lipschitz_kind="segment")
    with pytest.raises(MpvizError, match="unknown kind"):
        gaussian_budget([1.0], 1.0, 1.0, 10, lipschitz_kind="local")
    with pytest.raises(MpvizError, match="global product of norms"):
        gaussian_budget_of_layers([GaussianLayer("a", [1.0], 1.0, 1.0, 10, "segment")])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: gaussian_budget([], 1.0, 1.0, 10), "for one at least"),
        (lambda: gaussian_budget([1.0, 2.0], [1.0], 1.0, 10), "do not fit 2 samples"),
        (lambda: gaussian_budget([math.nan], 1.0, 1.0, 10), "norms hold NaN"),
        (lambda: gaussian_budget([1.0], -1.0, 1.0, 10), "constants hold NaN, infinite or negative"),
        (lambda: gaussian_budget([1.0], 1.0, -1.0, 10), "g is -1.0"),
        (lambda: gaussian_budget([1.0], 1.0, 1.0, 10, kappa=0.0), "kappa is 0.0"),
        (lambda: gaussian_budget([1.0], 1.0, 1.0, 0), "0 rows"),
        (lambda: gaussian_budget([1.0], 1.0, 1.0, 10, delta=1.0), "between 0 and 1"),
        (lambda: gaussian_budget_of_edge([1.0], 1.0, math.nan, (3, 4)), "edge of nan"),
        (lambda: gaussian_budget([1.0], 1.0, 1.0, 10).certified([1.0, 2.0]), "do not fit 1 samples"),
        (lambda: gaussian_budget_of_layers([]), "one at least"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises((DataError, MpvizError), match=words):
        call()
