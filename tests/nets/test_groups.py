"""Grouped and depthwise convolutions: every group is a matrix, the layer is their medians."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import mpviz as mp
from mpviz.nets.layer_spectrum import medians, pooled_fit
from mpviz.nets.spectra import layer_spectra

GROUPS, ROWS, CHANNELS = 8, 64, 7


@pytest.fixture(scope="module")
def model() -> nn.Sequential:
    """A stem, a convolution of 8 groups of 64 × 63, of which two have spikes and one is heavy-tailed, and the rest."""
    rng = np.random.default_rng(0)
    conv = nn.Conv2d(CHANNELS * GROUPS, ROWS * GROUPS, 3, groups=GROUPS, bias=False)
    weights = rng.normal(size=(GROUPS, ROWS, CHANNELS * 9)) * np.linspace(0.5, 1.2, GROUPS)[:, None, None]
    weights[2, :, 5] += 3.0
    weights[3, 7] += 4.0
    weights[6] = rng.standard_t(1.5, size=weights[6].shape)
    conv.weight.data = torch.from_numpy(weights).float().reshape(conv.weight.shape)
    return nn.Sequential(
        nn.Conv2d(3, CHANNELS * GROUPS, 1),
        conv,
        nn.Conv2d(512, 512, 3, groups=512),
        nn.Conv2d(512, 1024, 3, groups=512),
    )


def test_the_row_of_a_grouped_convolution_is_the_median_of_its_groups(model):
    layer = layer_spectra(model)["1.weight"]
    assert layer.info.groups == GROUPS and len(layer.parts) == GROUPS
    for i, part in enumerate(layer.parts):
        matrix = model[1].weight.detach()[ROWS * i : ROWS * (i + 1)].reshape(ROWS, -1)
        np.testing.assert_allclose(part.eigenvalues, mp.spectrum(matrix), rtol=1e-6, atol=1e-12)
        expected = mp.fit_bulk(mp.spectrum(matrix), shape=(ROWS, CHANNELS * 9), strict=False)
        assert part.fit.n_spikes == expected.n_spikes and part.fit.variance == pytest.approx(expected.variance)
        assert (part.info.part, part.info.prunable) == (f"group {i + 1} of {GROUPS}", False)
    assert [part.fit.n_spikes > 0 for part in layer.parts][2:4] == [True, True]
    every = np.sort(np.concatenate([part.eigenvalues for part in layer.parts]))
    assert np.array_equal(layer.eigenvalues, every)
    for name in ("variance", "sigma_plus", "threshold", "rigidity", "p_value", "bulk_fraction"):
        assert getattr(layer.fit, name) == pytest.approx(np.median([getattr(part.fit, name) for part in layer.parts]))
    for name in ("alpha", "stable_rank", "entropy", "soft_rank"):
        assert getattr(layer, name) == pytest.approx(np.median([getattr(part, name) for part in layer.parts]))
    assert layer.tail.alpha == pytest.approx(np.median([part.tail.alpha for part in layer.parts]))
    assert layer.norms.spectral == pytest.approx(np.median([part.norms.spectral for part in layer.parts]))
    assert len(layer.spikes) == sum(part.fit.n_spikes for part in layer.parts)
    assert (np.diff(layer.spikes.eigenvalue) <= 0).all()


def test_the_verdict_counts_the_groups(model):
    table = mp.analyze(model)
    row = table.loc["1.weight"]
    parts = layer_spectra(model)["1.weight"].parts
    good = sum(part.fit.reason == "MP-like" for part in parts)
    assert 5 <= good < GROUPS
    assert row["verdict"].startswith(f"8 groups: {good} MP-like, ") and row["mp_like"] and row["reason"] == "MP-like"
    assert not row["prunable"] and "8 groups" in row["why"] and row["groups"] == 8
    assert (row["rows"], row["cols"], row["aspect"]) == (512, 63, 63 / 64)
    split = mp.analyze(model, layers=["1"], split=("groups",))
    assert list(split.index) == [f"1.weight[group {i}]" for i in range(1, 9)]
    assert (split["reason"] == [part.fit.reason for part in parts]).all()
    assert split["sigma_plus"].median() == pytest.approx(row["sigma_plus"]) and not split["prunable"].any()


def test_depthwise_convolutions_are_listed_without_numbers(model):
    table = mp.analyze(model, split="groups")
    row = table.loc["2.weight"]
    assert row["verdict"] == "512 groups: a 1 x 9 group has one eigenvalue and no bulk"
    assert row["reason"] == "too few eigenvalues" and row["role"] == "depthwise" and not row["prunable"]
    assert row[["variance", "sigma_plus", "alpha", "stable_rank", "kurtosis"]].isna().all() and row["groups"] == 512
    twins = mp.analyze(model, layers=["3"]).loc["3.weight"]  # two rows a group
    assert twins["verdict"].startswith("512 groups: 512 too few eigenvalues (") and math.isnan(twins["sigma_plus"])


def test_a_state_dict_knows_depthwise_by_its_shape(model):
    table = mp.analyze(model.state_dict())
    assert table.loc["2.weight", "groups"] == 512 and table.loc["1.weight", "groups"] == 1


def test_one_broken_group_is_the_layer_s_reason(model):
    weight = model[1].weight.detach().clone()
    weight[100, 0, 0, 0] = math.nan
    broken = nn.Sequential(nn.Conv2d(3, 56, 1), nn.Conv2d(56, 512, 3, groups=8), nn.Linear(512, 30))
    broken[1].weight.data = weight
    table = mp.analyze(broken)
    assert "1.weight: the matrix has 1 NaN" in table.loc["1.weight", "verdict"]
    assert math.isfinite(table.loc["2.weight", "sigma_plus"])


def test_the_null_and_the_fast_arithmetic_reach_the_groups(model):
    layer = layer_spectra(model, ["1"], shuffled=3, precision="fast")["1.weight"]
    assert "float64: float32 would lose" in layer.engine
    assert len(layer.shuffled.eigenvalues) == len(layer.eigenvalues) and layer.shuffled.seed == 3
    assert layer.shuffled.fit.verdict.startswith("8 groups: ")
    for part in layer.parts:
        assert part.shuffled.eigenvalues.sum() == pytest.approx(part.eigenvalues.sum())
        assert not np.allclose(part.shuffled.eigenvalues, part.eigenvalues)


def test_medians_leave_out_what_is_not_there():
    noise = np.random.default_rng(0).normal(size=(3, 80, 40))
    fits = [mp.fit_bulk(mp.spectrum(one), shape=(80, 40)) for one in noise]
    nothing = mp.fit_bulk(np.zeros(40), shape=(80, 40), strict=False)
    both = pooled_fit([*fits, nothing])
    assert (
        both.variance == np.median([fit.variance for fit in fits])
        and both.verdict == "4 groups: 3 MP-like, 1 " + nothing.reason
    )
    assert both.law is not None and both.edges[1] == pytest.approx(np.median([fit.edges[1] for fit in fits]))
    assert both.mp_like and both.n_spikes == 0
    assert both.grade == "good" and pooled_fit([nothing, nothing]).grade == "none"
    uneven = np.random.default_rng(1).normal(size=(300, 128)) * np.linspace(0.8, 1.2, 128)
    fair = mp.fit_bulk(mp.spectrum(uneven), shape=uneven.shape)
    assert fair.grade == "fair"
    mixed = pooled_fit([fair, fair, replace(fair, grade="good", mp_like=True, reason="MP-like")])
    assert mixed.grade == "fair" and not mixed.mp_like
    assert mixed.verdict == f"nearly MP-like: 3 groups: 2 {fair.reason}, 1 MP-like"
    none = medians([nothing, nothing])
    assert math.isnan(none.variance) and none.law is None and not none.mp_like
