"""Two versions of a network side by side."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import mpviz as mp
from mpviz.errors import Cancelled, ModelError
from mpviz.nets.compare import compare, leading_vectors, overlap


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(96, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))


def spiked(strengths: tuple[float, ...], directions: np.random.Generator) -> torch.Tensor:
    """A 128 × 96 noise matrix with a planted signal; the noise is always the same."""
    noise = np.random.default_rng(7).normal(size=(128, 96)) / np.sqrt(128)
    k = len(strengths)
    left, _ = np.linalg.qr(directions.normal(size=(128, k)))
    right, _ = np.linalg.qr(directions.normal(size=(96, k)))
    return torch.from_numpy(noise + left @ np.diag(strengths) @ right.T).float()


def test_a_network_compared_with_itself_has_not_changed() -> None:
    table = compare(network(), network())
    assert list(table.index) == ["0.weight", "2.weight", "4.weight"]
    np.testing.assert_allclose(table["edge_ratio"].dropna(), 1.0)
    np.testing.assert_allclose(table[["overlap_left", "overlap_right"]], 1.0, atol=1e-9)
    assert (table["moved"] == 0).all() and table["update_stable_rank"].isna().all()


def test_numbers_equal_plain_linear_algebra() -> None:
    base, other = network(0), network(1)
    row = compare(base, other, k=5).loc["2.weight"]
    a, b = (m[2].weight.detach().double().numpy() for m in (base, other))
    (ua, _, va), (ub, _, vb) = np.linalg.svd(a), np.linalg.svd(b)
    assert row["overlap_left"] == pytest.approx(np.linalg.norm(ua[:, :5].T @ ub[:, :5]) ** 2 / 5)
    assert row["overlap_right"] == pytest.approx(np.linalg.norm(va[:5] @ vb[:5].T) ** 2 / 5)
    assert row["chance_left"] == 5 / 64 and row["chance_right"] == 5 / 128
    assert row["moved"] == pytest.approx(np.linalg.norm(b - a) / np.linalg.norm(a))
    s = np.linalg.svd(b - a, compute_uv=False)
    assert row["update_stable_rank"] == pytest.approx(np.sum(s**2) / s[0] ** 2)


def test_learned_directions_are_told_from_new_ones() -> None:
    base, same, new = network(), network(), network()
    with torch.no_grad():
        base[0].weight.copy_(spiked((6.0, 5.0), np.random.default_rng(1)))
        same[0].weight.copy_(1.5 * spiked((6.0, 5.0), np.random.default_rng(1)))
        new[0].weight.copy_(spiked((6.0, 5.0), np.random.default_rng(2)))
    kept = compare(base, same, ["0.weight"]).iloc[0]
    assert kept["n_spikes_base"] == kept["k"] == 2
    assert kept["overlap_left"] == pytest.approx(1.0) and kept["edge_ratio"] == pytest.approx(1.5)
    turned = compare(base, new, ["0.weight"]).iloc[0]
    assert turned["overlap_left"] < 0.15, "random directions overlap by about k / n"
    assert turned["update_stable_rank"] < 5, "two directions went and two came"


def test_dense_and_pruned() -> None:
    model = mp.load_model("fashion-mlp")
    pruned = copy.deepcopy(model)
    masks = mp.magnitude_masks(model, sparsity=0.5)
    with torch.no_grad():
        for name, mask in masks.items():
            dict(pruned.named_parameters())[name].mul_(mask)
    table = compare(model, pruned, list(masks))
    for name, mask in masks.items():
        assert table.loc[name, "sparsity_other"] == pytest.approx(1 - mask.double().mean().item())
        assert table.loc[name, "sparsity_base"] < 0.01
        assert 0.8 < table.loc[name, "overlap_left"] <= 1


def test_layers_that_do_not_match_are_named() -> None:
    torch.manual_seed(0)
    other = nn.Sequential(
        nn.Linear(96, 128), nn.ReLU(), nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 10), nn.Linear(10, 9)
    )
    table = compare(network(), other)
    assert list(table.index) == ["0.weight"]
    assert "64 x 128 in the base" in table.attrs["skipped"]["2.weight"]
    assert table.attrs["skipped"]["5.weight"] == "only in the other network"


def test_nothing_in_common_is_an_error() -> None:
    with pytest.raises(ModelError, match="two versions of one network"):
        compare(network(), nn.Sequential(nn.Linear(8, 8)))
    with pytest.raises(ModelError, match="at least 1"):
        compare(network(), network(), k=0)


def test_files_state_dicts_and_parts_of_attention(tmp_path: Path) -> None:
    model = mp.load_model("fashion-vit")
    path = mp.save(tmp_path / "vit.safetensors", model)
    table = compare(path, model.state_dict(), ["blocks.0.attn.qkv.weight"], split="qkv")
    assert list(table.index) == [f"blocks.0.attn.qkv.weight[{part}]" for part in "qkv"]
    assert (table["rows"] == 128).all() and (table["moved"] == 0).all()
    np.testing.assert_allclose(table["overlap_left"], 1.0, atol=1e-9)


def test_a_layer_with_nan_keeps_its_row() -> None:
    broken = network()
    with torch.no_grad():
        broken[2].weight[0, 0] = float("nan")
    table = compare(network(), broken)
    assert np.isnan(table.loc["2.weight", "overlap_left"]) and "NaN" in table.loc["2.weight", "verdict_other"]
    assert table.loc["2.weight", "grade_other"] == "none" != table.loc["2.weight", "grade_base"]
    assert table.loc["0.weight", "overlap_left"] == pytest.approx(1.0)


def test_cancel() -> None:
    with pytest.raises(Cancelled):
        compare(network(), network(), cancelled=lambda: True)


@pytest.mark.parametrize("shape", [(50, 20), (20, 50), (30, 30)])
def test_leading_vectors_are_those_of_the_svd(shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(3).normal(size=shape)
    left, right = leading_vectors(matrix, 4)
    u, _, vt = np.linalg.svd(matrix, full_matrices=False)
    np.testing.assert_allclose(np.abs(np.sum(left * u[:, :4], axis=0)), 1.0, atol=1e-9)
    np.testing.assert_allclose(np.abs(np.sum(right * vt[:4].T, axis=0)), 1.0, atol=1e-9)
    assert overlap(left, u[:, :4]) == pytest.approx(1.0)


def test_one_layer_that_cannot_be_compared_leaves_the_others(tmp_path: Path) -> None:
    huge = network()
    with torch.no_grad():
        huge[2].weight.mul_(1e18)
    table = compare(network(), huge)
    assert table.loc["2.weight", "overlap_left"] == pytest.approx(1.0), "a scale turns no direction"
    states = [network().state_dict(), network().state_dict()]
    states[1]["2.weight"] = states[1]["2.weight"].to("meta")
    table = compare(*states)
    assert np.isnan(table.loc["2.weight", "overlap_left"]) and "2.weight" in table.attrs["skipped"]
    assert table.loc["0.weight", "overlap_left"] == pytest.approx(1.0)
    with pytest.raises(ModelError, match="whole number"):
        compare(network(), network(), k=2.5)  # type: ignore[arg-type]
