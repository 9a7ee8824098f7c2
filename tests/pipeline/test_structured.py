"""What is told of a projection: its groups, and the certificates of what came back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import mpviz as mp
from mpviz.certificates.budgets import data_path_budget
from mpviz.certificates.objective import Penalty
from mpviz.errors import ModelError, PatternError
from mpviz.nets.calibrate import second_moments
from mpviz.nets.layers import weight_of
from mpviz.nets.tome import schedule_of
from mpviz.prune.cast import project
from mpviz.structured import pattern_view, restore_certificates


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
