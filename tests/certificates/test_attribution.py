"""Attribution: effects add up to what was measured, whatever the order."""

import numpy as np
import pytest
import torch

import mpviz as mp
from mpviz.certificates.attribution import attribute, top_of, zero_layers
from mpviz.certificates.budgets import ordered_budgets
from mpviz.certificates.cross_entropy import exact_change
from mpviz.errors import BudgetError, Cancelled, DataError
from mpviz.nets.forward import logits


@pytest.fixture(scope="module")
def mlp():
    model = mp.load_model("fashion-mlp")
    images, labels = mp.load_data("fashion-mnist").test.sample(60, seed=2)
    masks = mp.magnitude_masks(model, 0.6)
    masks["head.weight"] = mp.load_model("fashion-mlp").head.weight.detach().abs() > 0.03
    return model, images, labels, masks


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_effects_add_up_to_what_was_measured(mlp, symmetric, reverse):
    model, images, labels, masks = mlp
    order = list(masks)[::-1] if reverse else None
    found = attribute(model, images, masks, labels, order=order, symmetric=symmetric)
    dense, pruned = logits(model, images).double(), logits(model, images, masks).double()
    np.testing.assert_allclose(found.margin.sum(axis=1), found.margin_change, atol=1e-12)
    top = dense.topk(2).indices
    by_hand = (pruned - dense).gather(1, top)
    np.testing.assert_allclose(found.margin_change, by_hand[:, 0] - by_hand[:, 1], atol=1e-12)
    np.testing.assert_array_equal(found.eta, (pruned - dense).abs().amax(1))
    assert (found.step.sum(axis=1) >= found.eta - 1e-12).all()
    assert (np.abs(found.margin) <= 2 * found.step + 1e-12).all()
    assert found.loss.sum() == pytest.approx(found.loss_change, abs=1e-12)
    assert found.loss_change == pytest.approx(exact_change(dense, pruned, labels).mean, abs=1e-12)
    assert found.share.sum() == pytest.approx(1.0) and found.tier == "measured"
    assert found.layers == tuple(masks) and len(found.orders) == 1 + symmetric


def test_each_step_is_that_layer_in_the_network_before_it(mlp):
    model, images, _, masks = mlp
    names = list(masks)
    found = attribute(model, images, masks)
    before = logits(model, images, {names[0]: masks[names[0]]}).double()
    after = logits(model, images, {name: masks[name] for name in names[:2]}).double()
    np.testing.assert_array_equal(found.step[:, 1], (after - before).abs().amax(1))
    both = attribute(model, images, masks, symmetric=True)
    back = attribute(model, images, masks, order=names[::-1])
    np.testing.assert_allclose(both.margin, 0.5 * (found.margin + back.margin), atol=1e-12)
    assert not np.allclose(found.margin, back.margin), "the order matters, so it is told"
    assert np.isnan(found.loss).all() and np.isnan(found.loss_change)


def test_two_layers_give_the_shapley_value(mlp):
    model, images, _, masks = mlp
    a, b = list(masks)[:2]
    pair = {a: masks[a], b: masks[b]}
    z = {key: logits(model, images, dict(some) or None).double() for key, some in
         {"": {}, "a": {a: pair[a]}, "b": {b: pair[b]}, "ab": pair}.items()}  # fmt: skip
    top = z[""].topk(2).indices
    v = {key: (one.gather(1, top) @ torch.tensor([1.0, -1.0], dtype=torch.float64)).numpy() for key, one in z.items()}
    shapley = 0.5 * (v["a"] - v[""]) + 0.5 * (v["ab"] - v["b"])
    np.testing.assert_allclose(attribute(model, images, pair, symmetric=True).margin[:, 0], shapley, atol=1e-12)


def test_budgets_stand_beside_the_steps_they_bound(mlp):
    model, images, _, masks = mlp
    images = images[:12]
    found = attribute(model, images, masks)
    budgets = ordered_budgets(model, masks, images)
    table = found.table(budgets)
    assert list(table.index) == list(masks)
    assert (table["budget"] >= table["least_budget"] - 1e-4).all(), "up to float32"
    np.testing.assert_allclose(table["least_budget"], [one.least_budget for one in budgets], atol=1e-4)
    assert not table["perfect"].any()
    with pytest.raises(BudgetError, match="another order"):
        attribute(model, images, masks, order=list(masks)[::-1]).table(budgets)
    with pytest.raises(BudgetError, match="another order"):
        attribute(model, images, masks, symmetric=True).table(budgets)


def test_a_layer_that_moves_nothing_is_named(mlp):
    model, images, _, masks = mlp
    kept = {name: torch.ones_like(mask) for name, mask in masks.items()}
    first = next(iter(masks))
    found = attribute(model, images, kept | {first: masks[first]})
    assert zero_layers(found) == tuple(list(masks)[1:])
    assert attribute(model, images, kept).share.tolist() == [0.0] * len(kept)


def test_progress_cancel_and_bad_input(mlp):
    model, images, _, masks = mlp
    told = []
    attribute(model, images[:4], masks, symmetric=True, progress=told.append)
    assert told == sorted(told) and told[-1] == 1.0 and len(told) == 2 * len(masks)
    with pytest.raises(Cancelled):
        attribute(model, images, masks, cancelled=lambda: True)
    with pytest.raises(BudgetError, match="one at least"):
        attribute(model, images, {})
    with pytest.raises(BudgetError, match="each masked layer once"):
        attribute(model, images, masks, order=list(masks)[:1])
    with pytest.raises(BudgetError, match="names no parameter"):
        attribute(model, images, {"fc9.weight": torch.ones(2, 2, dtype=torch.bool)})
    with pytest.raises(DataError, match="labels run from 10"):
        attribute(model, images, masks, torch.full((60,), 10))
    with pytest.raises(DataError, match="NaN"):
        attribute(model, images * torch.nan, masks)
    with pytest.raises(DataError, match="one at least"):
        top_of(np.zeros(3), 0)
    assert top_of(np.array([0.0, 2.0, -1.0]), 2).tolist() == [1, 0]
    assert top_of(np.array([0.0, 2.0, -1.0]), 1, largest=False).tolist() == [2]
