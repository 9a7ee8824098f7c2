"""Eigenvalues against scipy, and the table of analyze."""

import math
import re

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from torch import nn

import mpviz as mp
from mpviz.errors import Cancelled, SpectrumError
from mpviz.nets.engine import solve
from mpviz.nets.spectra import layer_spectra

COLUMNS = [
    *("role", "kind", "rows", "cols", "aspect", "params", "prunable", "why"),
    *("variance", "lambda_minus", "lambda_plus", "threshold", "sigma_plus", "fit_error", "mp_like", "grade", "verdict"),
    *("bulk_fraction", "n_spikes", "alpha", "stable_rank"),
    *("method", "reason", "rigidity", "p_value", "sigma_plus_low", "sigma_plus_high", "rank"),
    *("tail_alpha", "tail_x_min", "tail_ks", "no_tail", "entropy", "soft_rank", "frobenius", "spectral", "nuclear"),
    *("kurtosis", "column_spread", "row_spread", "groups", "engine"),
]


@pytest.mark.parametrize("shape", [(40, 30), (30, 40), (25, 25), (1, 7), (16, 3, 3, 3)])
@pytest.mark.parametrize("kind", ["numpy", "torch", "half"])
def test_spectrum_equals_squared_singular_values(shape, kind):
    weight = np.random.default_rng(0).normal(size=shape)
    given = {"numpy": weight, "torch": torch.tensor(weight), "half": torch.tensor(weight).bfloat16()}[kind]
    exact = given.double().numpy() if isinstance(given, torch.Tensor) else given
    singular = scipy.linalg.svdvals(exact.reshape(shape[0], -1))
    values = mp.spectrum(given)
    assert values.dtype == np.float64 and len(values) == min(shape[0], exact[0].size)
    np.testing.assert_allclose(values, singular[::-1] ** 2 / shape[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("bad", [np.zeros(3), np.zeros((0, 3)), np.full((3, 3), np.nan), np.array([[1.0, np.inf]])])
def test_spectrum_refuses(bad):
    with pytest.raises(SpectrumError):
        mp.spectrum(bad)


def test_analyze_has_the_promised_columns_and_leaves_the_model_alone():
    model = mp.load_model("fashion-mlp")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    table = mp.analyze(model)
    assert list(table.columns) == COLUMNS
    assert list(table.index) == ["features.fc1.weight", "features.fc2.weight", "head.weight"]
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    fc1 = table.loc["features.fc1.weight"]
    assert (fc1["rows"], fc1["cols"]) == (512, 784)
    assert fc1["sigma_plus"] == pytest.approx(math.sqrt(512 * fc1["lambda_plus"]))
    values = mp.spectrum(dict(model.named_parameters())["features.fc1.weight"])
    assert fc1["n_spikes"] == (values > fc1["threshold"]).sum()
    assert fc1["stable_rank"] == pytest.approx(values.sum() / values.max())
    assert 0.01 < fc1["n_spikes"] / 512 < 0.5, "a trained layer has learned signal"


def test_noise_has_no_spikes_and_training_makes_them():
    trained, random = mp.load_model("fashion-vit"), mp.load_model("fashion-vit", pretrained=False)
    both = [mp.analyze(m).query("prunable") for m in (trained, random)]
    share = [(t["n_spikes"] / t[["rows", "cols"]].min(axis=1)).mean() for t in both]
    assert share[0] > 10 * share[1] + 0.02


def test_layers_too_small_keep_their_row_with_the_reason():
    model = nn.Sequential(nn.Linear(16, 1), nn.Linear(1, 6), nn.Linear(6, 64), nn.Linear(64, 64))
    nn.init.zeros_(model[3].weight)
    table = mp.analyze(model)
    assert table["verdict"].str.len().gt(10).all()
    assert not table["mp_like"].any()
    assert table["sigma_plus"].isna().sum() >= 3
    with pytest.raises(mp.MpvizError):
        mp.fit_bulk(mp.spectrum(model[0].weight), shape=(1, 16))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_layer_that_is_not_finite_keeps_its_row_and_the_others_theirs(value):
    model = mp.load_model("fashion-mlp", pretrained=False)
    clean = mp.analyze(model)
    with torch.no_grad():
        model.features.fc2.weight[3, 4] = value
    table = mp.analyze(model)
    broken = table.loc["features.fc2.weight"]
    assert broken["verdict"] == (
        "features.fc2.weight: the matrix has 1 NaN or infinite entries; load the weights again or repair them"
    )
    assert broken["reason"] == "no spectrum" and not broken["mp_like"] and broken["no_tail"]
    numbers = [*("variance", "lambda_plus", "sigma_plus", "alpha", "stable_rank", "entropy", "frobenius", "kurtosis")]
    assert broken[numbers].isna().all() and broken["n_spikes"] == 0 and broken["rows"] == 512
    others = ["features.fc1.weight", "head.weight"]
    assert table.loc[others].equals(clean.loc[others])
    layer = layer_spectra(model)["features.fc2.weight"]
    assert len(layer.eigenvalues) == 0 and len(layer.spikes) == 0 and layer.tail is None and layer.entries is None
    # what is there is the same whether or not it is kept
    assert mp.analyze(model, cache=False).equals(table)


def test_the_numbers_are_those_of_their_functions():
    model = mp.load_model("fashion-vit")
    name = "blocks.3.mlp.fc1.weight"
    layer, row = layer_spectra(model, [name])[name], mp.analyze(model, layers=[name]).loc[name]
    weight = dict(model.named_parameters())[name].detach().double().numpy()
    singular = scipy.linalg.svdvals(weight)
    assert row["frobenius"] == pytest.approx(np.linalg.norm(weight))
    assert (row["spectral"], row["nuclear"]) == pytest.approx((singular[0], singular.sum()))
    assert row["kurtosis"] == pytest.approx(scipy.stats.kurtosis(weight, axis=None), rel=1e-6)
    share = singular**2 / np.sum(singular**2)
    assert row["entropy"] == pytest.approx(-np.sum(share * np.log(share)) / math.log(len(share)))
    assert row["soft_rank"] == pytest.approx(row["lambda_plus"] / (singular[0] ** 2 / len(weight)))
    assert row["sigma_plus_low"] < row["sigma_plus"] < row["sigma_plus_high"]
    assert (row["tail_alpha"], row["tail_x_min"]) == (layer.tail.alpha, layer.tail.x_min)
    assert row["method"] == "bema" and row["rank"] == 128 and row["groups"] == 1 and row["engine"] == "float64"
    other = mp.analyze(model, layers=[name], method="median").loc[name]
    assert other["method"] == "median" and other["variance"] != row["variance"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"method": "bmea"}, "unknown fit method 'bmea'; did you mean 'bema'"),
        ({"level": 1.5}, "1.5"),
        ({"trim": 0.7}, "trim 0.7 leaves no window"),
        ({"device": "gpu"}, "no device is called 'gpu'; use 'cuda' or 'cpu'"),
        ({"split": ["heads"]}, "unknown split 'heads'"),
    ],
)
def test_arguments_that_no_layer_could_be_analysed_with_are_refused(arguments, words):
    with pytest.raises(mp.MpvizError, match=words):
        layer_spectra(mp.load_model("fashion-mlp", pretrained=False), **arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there():
    with pytest.raises(mp.MpvizError, match="no CUDA device here; leave device out"):
        mp.analyze(mp.load_model("fashion-mlp", pretrained=False), device="cuda")


def test_q_k_and_v_are_analysed_apart_on_request():
    model = mp.load_model("fashion-vit")
    table = mp.analyze(model, layers=["blocks.0.attn.qkv", "head"], split=("qkv",))
    assert list(table.index) == [*(f"blocks.0.attn.qkv.weight[{part}]" for part in "qkv"), "head.weight"]
    weight = model.blocks[0].attn.qkv.weight.detach()
    for i, (_, row) in enumerate(table.iloc[:3].iterrows()):
        values = mp.spectrum(weight[128 * i : 128 * (i + 1)])
        assert row["spectral"] == pytest.approx(math.sqrt(128 * values[-1])) and not row["prunable"]


def test_progress_and_cancel():
    model = mp.load_model("fashion-resnet", pretrained=False)
    told = []
    layer_spectra(model, progress=lambda fraction, name: told.append((fraction, name)), cache=False)
    assert [f for f, _ in told] == sorted(f for f, _ in told) and told[-1][0] == 1.0
    assert len({name for _, name in told}) == 26
    with pytest.raises(Cancelled):
        layer_spectra(model, cancelled=lambda: True)
    with pytest.raises(Cancelled):
        mp.analyze(model, cancelled=lambda: True)
    asked, seen = [], []

    def after_five() -> bool:
        asked.append(True)
        return len(asked) > 5

    with pytest.raises(Cancelled):  # in the middle: each layer asks before it begins, so five at most are worked on
        layer_spectra(model, cache=False, progress=lambda _, name: seen.append(name), cancelled=after_five)
    assert len(asked) > 5 and len(seen) <= 5


def test_a_layer_of_rank_one_keeps_its_row():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10))
    nn.init.constant_(model[0].weight, 0.01)
    table = mp.analyze(model)
    assert "low rank" in table.loc["0.weight", "verdict"] and math.isnan(table.loc["0.weight", "alpha"])
    assert table.loc["1.weight", "mp_like"]


@pytest.mark.parametrize("size", [1e-130, 1e130])
def test_extreme_scales_do_not_overflow_on_the_way(size):
    weight = np.random.default_rng(0).normal(size=(40, 30))
    expected = mp.spectrum(weight) * size * size
    np.testing.assert_allclose(mp.spectrum(weight * size), expected, rtol=1e-9)


def test_edges_are_those_of_the_block_that_the_spikes_leave():
    table = mp.analyze(mp.load_model("fashion-mlp"))
    for _, row in table.query("prunable").iterrows():
        full = row["variance"] * (1 + math.sqrt(row["aspect"])) ** 2
        assert row["lambda_plus"] < full and row["n_spikes"] > 50


@pytest.mark.parametrize("size", [1e-200, 1e200])
@pytest.mark.parametrize("precision", ["float64", "fast"])
def test_entries_whose_squares_are_no_numbers_say_so_and_what_to_do(size, precision):
    weight = np.random.default_rng(0).uniform(-1, 1, size=(40, 30))
    weight[0, 0] = 1.0
    with pytest.raises(SpectrumError, match=re.escape(f"divide the weights by {size:.0e}")):
        mp.spectrum(weight * size)
    table = mp.analyze({"a.weight": weight * size, "b.weight": weight}, precision=precision)
    assert f"a.weight: the entries reach {size:.0e}" in table.loc["a.weight", "verdict"]
    assert "zero" not in table.loc["a.weight", "verdict"] and table.loc["b.weight", "grade"] != "none"
    grouped = torch.from_numpy(weight.reshape(2, 20, 30) * size)
    with pytest.raises(SpectrumError, match="divide the weights by"):
        solve(grouped, precision)


def test_no_advice_that_analyze_cannot_follow():
    noise = np.random.default_rng(0).normal(size=(90, 50))
    table = mp.analyze({f"a{n}.weight": noise[:, :n] for n in (3, 7, 8, 9, 10)})
    refused = table[table["sigma_plus"].isna()]
    assert len(refused) == 4 and not table["verdict"].str.contains("trim").any()
    assert refused["verdict"].str.contains("leave it out").all() and (refused["grade"] == "none").all()


@pytest.mark.parametrize("shape", [(200, 60), (60, 200)])
def test_dead_rows_of_the_longer_side_are_named(shape):
    weight = np.random.default_rng(0).normal(size=shape)
    if shape[0] > shape[1]:
        weight[[3, 5, 60]] = 0
    else:
        weight[:, [3, 5, 60]] = 0
    for cache in (False, True, True):
        verdict = mp.analyze({"a.weight": weight}, cache=cache).loc["a.weight", "verdict"]
        assert verdict.endswith(f"; 3 of 200 {'rows' if shape[0] > shape[1] else 'columns'} are zero")
    weight = np.random.default_rng(0).normal(size=shape)
    assert "zero" not in mp.analyze({"a.weight": weight}).loc["a.weight", "verdict"]
