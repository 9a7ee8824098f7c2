"""What is told of a projection: its groups, and the certificates of what came back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import mpviz as mp
from mpviz.certificates.budgets import data_path_budget
from mpviz.certificates.objective import Penalty
from mpviz.errors import ModelError, MpvizError, PatternError
from mpviz.nets.calibrate import second_moments
from mpviz.nets.layers import list_layers, weight_of
from mpviz.nets.paths import data_root
from mpviz.nets.tome import merge_tokens, schedule_of
from mpviz.prune.cast import project
from mpviz.structured import (
    Groups,
    committed_cells,
    explore,
    mac_stages,
    pattern_layers,
    pattern_view,
    restore_certificates,
)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return mp.load_data("fashion-mnist").calibration.sample(48)[0]


def test_a_view_shows_the_mask_its_scores_and_the_cost_of_each_group(images: Tensor) -> None:
    model = mp.load_model("fashion-mlp")
    found = project(model, "2:4", images, permute="hungarian")
    view = pattern_view(model, found, images, "features.fc2", rows=5)
    name = "features.fc2.weight"
    gram, weight, mask = second_moments(model, images, [name])[name].gram, weight_of(model, name), found.masks[name]
    assert view.rows.tolist() == [0, 128, 256, 383, 511] and view.pattern == "2:4" and view.layer == name
    assert np.array_equal(view.after.columns.reshape(-1), found.permutations[name].numpy())
    score = weight.abs() * gram.diagonal().sqrt().float()
    for side in (view.before, view.after):
        columns = torch.from_numpy(side.columns)
        np.testing.assert_allclose(side.score, score[view.rows][:, columns].numpy(), rtol=1e-4, atol=1e-7)
        assert (side.kept.sum(axis=2) == 2).all()
    assert np.array_equal(view.after.kept, mask[view.rows][:, torch.from_numpy(view.after.columns)].numpy())
    removed = (weight * ~mask).double()
    for group, columns in enumerate(view.after.columns[:10]):
        r = removed[:, torch.from_numpy(columns)]
        assert view.after.cost[group] == pytest.approx(float((r @ gram[columns][:, columns] * r).sum()), rel=1e-4)
    assert view.after.cost.sum() == pytest.approx(found.cost.loc[name, "cost"], rel=1e-6)
    plain = project(model, "2:4", images)
    assert view.before.cost.sum() == pytest.approx(plain.cost.loc[name, "cost"], rel=1e-6)
    assert view.before.rule == "none" and view.after.rule == "hungarian"


def test_a_view_of_a_merging_network_is_measured_on_the_merged_graph(images: Tensor) -> None:
    model = mp.load_model("fashion-vit")
    found = project(model, "2:4", images, tome=8)
    view = pattern_view(model, found, images, "blocks.5.mlp.fc1")
    assert view.after.cost.sum() == pytest.approx(found.cost.loc["blocks.5.mlp.fc1.weight", "cost"], rel=1e-6)
    assert schedule_of(model) == () and np.array_equal(view.before.kept, view.after.kept)
    merge_tokens(model, 4)  # what the model merges itself is put aside, and back
    again = pattern_view(model, found, images, "blocks.5.mlp.fc1")
    assert schedule_of(model) == (4,) * 6 and np.array_equal(view.after.cost, again.after.cost)
    with pytest.raises(PatternError, match="was not projected; did you mean"):
        pattern_view(model, found, images, "blocks.5.mlp.fc3")


def test_restoring_pays_exactly_when_the_budget_falls_by_more_than_the_price(images: Tensor) -> None:
    model = mp.load_model("fashion-mlp")
    ser = mp.prune_model(model, "magnitude", 0.6)
    found = project(model, "2:4", images, source=ser.of(model), source_masks=ser.masks)
    penalty = Penalty(lambda2=1e-6)
    table = restore_certificates(model, found, ser.masks, images[:12], penalty)
    assert list(table.index) == list(found.masks) and set(table["tier"]) == {"bound"}
    for name, row in table.iterrows():
        mask, other, weight = found.masks[name], ser.masks[name], weight_of(model, name).double()
        q = torch.where(mask & ~other, weight, 0.0)
        p = torch.where(mask, torch.zeros_like(weight), weight)
        assert row["restored"] == int((mask & ~other).sum()) > 0
        both, alone = (data_path_budget(model, name, removed, images[:12]).budget for removed in (q + p, p))
        assert row["budget_with"] == pytest.approx(both) and row["budget_without"] == pytest.approx(alone)
        assert row["price"] == pytest.approx(1e-6 * float(q.square().sum()))
        assert row["restore"] == (both - alone > row["price"])
        assert row["moved"] == 0 and row["why"] == ""
    mended = project(model, "2:4", images, source=ser.of(model), source_masks=ser.masks, repair=True)
    told = restore_certificates(model, mended, ser.masks, images[:4], penalty)
    for name, row in told.iterrows():
        kept = mended.masks[name]
        change = (weight_of(mended.model, name) - weight_of(model, name))[kept].abs().max()
        assert row["moved"] == pytest.approx(float(change)) and row["moved"] > 0
        assert row["why"].startswith("holds for the dense values; the projection moved what it keeps by up to")
    costly = restore_certificates(model, found, ser.masks, images[:4], Penalty(lambda2=1e6))
    assert not costly["restore"].any()
    with pytest.raises(ModelError, match="give masks for all projected layers"):
        restore_certificates(model, found, {}, images[:4], penalty)


def test_without_a_bound_the_least_budgets_are_measured_and_prove_nothing(images: Tensor) -> None:
    model = mp.load_model("fashion-vit")
    ser = mp.prune_model(model, "magnitude", 0.5)
    found = project(model, "2:4", images, source=ser.of(model), source_masks=ser.masks, layers=["blocks.0.mlp.fc1"])
    row = restore_certificates(model, found, ser.masks, images[:8], Penalty(lambda2=1e-6)).iloc[0]
    assert row["tier"] == "measured" and row["restore"] is None and "no rule" in row["why"]
    name = "blocks.0.mlp.fc1.weight"
    with torch.no_grad(), mp.apply_masks(model, {name: found.masks[name]}):
        pruned = model(images[:8])
    with torch.no_grad():
        change = (pruned - model(images[:8])).abs().amax(dim=1).mean()
    assert row["budget_without"] == pytest.approx(2 * float(change), rel=1e-4)


# --- of bundled networks --------------------------------------------------------------------------------------------


def test_the_layers_to_look_into_are_those_that_are_pruned() -> None:
    assert pattern_layers("fashion-mlp") == ("features.fc1.weight", "features.fc2.weight")
    for name in ("fashion-vit", "fashion-resnet"):
        layers = pattern_layers(name)
        assert list(layers) == [info.name for info in list_layers(mp.load_model(name)) if info.prunable]
        assert not any("head" in layer or "stem" in layer for layer in layers) and len(layers) == 24
    with pytest.raises(ModelError, match="unknown model 'fashion-mpl'; did you mean 'fashion-mlp'"):
        pattern_layers("fashion-mpl")


def test_a_layer_is_explored_as_it_is_viewed() -> None:
    view = explore("fashion-mlp", "4:8", "snake", "features.fc2", images=24)
    model, split = mp.load_model("fashion-mlp"), mp.load_data("fashion-mnist", folder="bundled").calibration
    found = project(model, "4:8", split, permute="snake", layers=["features.fc2"], images=24)
    expected = pattern_view(model, found, split, "features.fc2", images=24)
    assert (view.layer, view.pattern, view.power) == ("features.fc2.weight", "4:8", expected.power)
    assert view.after.rule == "snake" and np.array_equal(view.rows, expected.rows)
    for one, other in ((view.before, expected.before), (view.after, expected.after)):
        assert isinstance(one, Groups) and one.rule == other.rule
        assert all(np.array_equal(getattr(one, n), getattr(other, n)) for n in ("columns", "score", "kept", "cost"))
    for asked in (("fashion-mlp", "3:9", "none", "features.fc1"), ("fashion-mlp", "2:4", "none", "features.fc9"),
                  ("fashion-mlp", "2:4", "snale", "features.fc1")):  # fmt: skip
        with pytest.raises(MpvizError):
            explore(*asked)


def test_stages_of_multiply_adds_each_have_all_savings_so_far() -> None:
    vit, mlp = mp.load_model("fashion-vit"), mp.load_model("fashion-mlp")
    names, tables = zip(*mac_stages("fashion-vit", "2:4", 4), strict=True)
    assert names == ("dense", "merging 4", "2:4")
    counted = [mp.count_macs(vit), mp.count_macs(vit, tome=4), mp.count_macs(vit, pattern="2:4", tome=4)]
    assert [table["sparse"].sum() for table in tables] == [one.sparse for one in counted]
    assert {table["dense"].sum() for table in tables} == {counted[0].dense}
    (dense, first), (pattern, last) = mac_stages("fashion-mlp", "8:16")
    assert (dense, pattern) == ("dense", "8:16")
    assert (first["sparse"].sum(), last["sparse"].sum()) == (
        mp.count_macs(mlp).dense, mp.count_macs(mlp, pattern="8:16").sparse
    )  # fmt: skip


def test_committed_cells_are_those_of_the_record_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = json.loads((data_root() / "benchmarks" / "structured-grid.json").read_text(encoding="utf-8"))
    cells = committed_cells()
    assert len(cells) == len(record["cells"]) > 0
    assert cells["accuracy"].tolist() == [cell["accuracy"] for cell in record["cells"]]
    assert {"network", "pattern", "criterion", "order", "tome", "repair", "seed", "epochs", "share"} <= set(cells)
    (tmp_path / "fashion-mnist").mkdir()
    monkeypatch.setenv("MPVIZ_DATA", str(tmp_path))
    assert committed_cells().empty and {"network", "epochs", "tome"} <= set(committed_cells())
