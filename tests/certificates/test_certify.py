"""Tiers of one certificate: each says what it knows, how, and why nothing where nothing is proved."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

import mpviz as mp
from mpviz.certificates.bounds import Options
from mpviz.certificates.certify import Slider
from mpviz.errors import DataError, ModelError, MpvizError
from mpviz.nets.data import Splits
from mpviz.nets.forward import pruned_copy
from mpviz.prune.masks import Ranking
from mpviz.recipe import BudgetPlan, CertifyPlan, ModelPlan, Recipe

PROOFS = ("path", "sub-masks", "bracket", "slider", "ball")


@pytest.fixture(scope="module")
def splits() -> Splits:
    return mp.load_data("fashion-mnist")


@pytest.fixture(scope="module")
def ranking(model: nn.Module) -> Ranking:
    return Ranking(model)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return mp.load_model("fashion-mlp")


def test_all_tiers_on_the_bundled_mlp(model: nn.Module, ranking: Ranking, splits: Splits) -> None:
    slider = Slider(lambda s: ranking.masks(ranking.counts(s)), 0.3, 0.31)
    pruned = pruned_copy(model, slider.masks_at(0.3))
    cert = mp.certify(
        model, pruned, splits.test, ("measured", "population", *PROOFS), samples=300, slider=slider, radius=0.005
    )
    coverage = {name: tier.coverage for name, tier in cert.tiers.items()}
    assert cert.violations == 0
    assert coverage["slider"] >= 0.95
    assert coverage["path"] >= 0.95
    assert coverage["bracket"] < coverage["slider"]
    assert coverage["sub-masks"] < 0.5
    assert all(tier.tier == "bound" and tier.about for name, tier in cert.tiers.items() if name != "population")
    population = cert.tiers["population"]
    assert population.tier == "population"
    assert 0.9 < population.low < cert.unchanged
    assert {"path", "slider"} <= set(cert.table().columns)


def test_population_needs_samples_that_nobody_used(model: nn.Module, splits: Splits) -> None:
    with pytest.raises(DataError, match="calibration split may have shaped"):
        mp.certify(model, model, splits.calibration, ("population",), samples=20)


def test_a_transformer_says_what_holds_and_why_nothing_else(splits: Splits) -> None:
    vit = mp.load_model("fashion-vit")
    names = [f"blocks.5.{part}.weight" for part in ("attn.proj", "mlp.fc1", "mlp.fc2")]
    masks = {name: vit.get_parameter(name).abs() > vit.get_parameter(name).abs().median() for name in names}
    cert = mp.certify(vit, pruned_copy(vit, masks), splits.test, ("path", "sub-masks"), samples=100)
    assert cert.tiers["path"].coverage >= cert.tiers["sub-masks"].coverage > 0.9
    early = {"blocks.0.mlp.fc1.weight": vit.get_parameter("blocks.0.mlp.fc1.weight").abs() > 0.01}
    nothing = mp.certify(vit, pruned_copy(vit, early), splits.test, ("path",), samples=20).tiers["path"]
    assert nothing.why.startswith("no proved bound: blocks.0.mlp.fc1.weight changed")
    assert math.isnan(nothing.coverage)


def test_weights_that_were_trained_again_have_a_path_but_no_masks(model: nn.Module, splits: Splits) -> None:
    other = pruned_copy(model, {})
    with torch.no_grad():
        other.get_parameter("features.fc2.weight").add_(1e-4)
    cert = mp.certify(model, other, splits.test, ("path", "sub-masks"), samples=50)
    assert "trained again" in cert.tiers["sub-masks"].why
    assert cert.tiers["path"].coverage > 0.9


def test_networks_that_do_not_fit_are_refused(model: nn.Module, splits: Splits) -> None:
    with pytest.raises(ModelError, match="is in one network only"):
        mp.certify(model, mp.load_model("fashion-resnet"), splits.test, ("path",), samples=5)
    resnet = mp.load_model("fashion-resnet")
    moved = pruned_copy(resnet, {})
    moved.get_buffer("bn1.running_mean").add_(1.0)
    with pytest.raises(ModelError, match=r"buffer bn1\.running_mean differs"):
        mp.certify(resnet, moved, splits.test, ("path",), samples=5)


def test_a_stretch_of_the_slider_must_be_given(model: nn.Module, splits: Splits) -> None:
    with pytest.raises(MpvizError, match="give slider=Slider"):
        mp.certify(model, model, splits.test, ("slider",), samples=5)
    with pytest.raises(MpvizError, match="did you mean 'bracket'"):
        mp.certify(model, model, splits.test, ("brackets",), samples=5)


def test_a_violation_of_any_tier_is_counted(model: nn.Module, splits: Splits) -> None:
    other = pruned_copy(model, {})
    with torch.no_grad():
        other.get_parameter("head.bias").copy_(torch.linspace(-30, 30, 10))
    cert = mp.certify(model, other, splits.test, samples=100)
    assert cert.changed.any()
    assert cert.violations == 0
    lie = mp.certify(model, model, splits.test, ("path",), samples=100, options=Options(pieces=1)).tiers["path"]
    assert dataclasses.replace(cert, tiers={"path": lie}).violations == int((cert.changed & lie.certified).sum()) > 0


def test_a_run_writes_its_tiers_and_reads_them_back(tmp_path) -> None:  # type: ignore[no-untyped-def]
    from mpviz.run_results import read_run

    tiers = ["measured", "population", "slider", "path"]
    plan = Recipe(ModelPlan("fashion-mlp"), budget=BudgetPlan(0.3), certify=CertifyPlan(tiers, samples=60))
    result = mp.run(plan, tmp_path)
    again = read_run(tmp_path).certificate
    assert result.certificate.tiers["slider"].coverage > 0.9
    assert set(again.tiers) == {"population", "slider", "path"}
    for name, tier in result.certificate.tiers.items():
        assert again.tiers[name].about == tier.about
        np.testing.assert_equal(again.tiers[name].coverage, tier.coverage)
    words = result.comparison["quantity"].tolist()
    assert "predictions certified for every slider position from 30 % to 31 %" in words
