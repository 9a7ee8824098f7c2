"""Masks remove exactly what they say, by the rule of |W|/w, and come off again."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import mpviz as mp
from mpviz.errors import BudgetError
from mpviz.prune.masks import Ranking

SPARSITIES = np.random.default_rng(7).uniform(0, 0.99, 20).round(4).tolist()


def oracle(model, sparsity, weights):
    """Sort every prunable entry by (|W|/w, layer order, index) and remove the first round(s·n)."""
    names = list(mp.analyze(model).query("prunable").index)
    entries = []
    for order, name in enumerate(names):
        w = weights.get(name, 1.0)
        flat = dict(model.named_parameters())[name].detach().double().abs().reshape(-1).tolist()
        entries += [(a / w if w > 0 else float("inf"), order, i) for i, a in enumerate(flat)]
    removed = {name: [] for name in names}
    for _, order, i in sorted(entries)[: round(sparsity * len(entries))]:
        removed[names[order]].append(i)
    return removed


def small_model(seed, quantised=False):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(9, 12), nn.Linear(12, 10), nn.Linear(10, 8), nn.Linear(8, 3))
    if quantised:  # many ties, zeros among them
        with torch.no_grad():
            for p in model.parameters():
                p.copy_((p * 12).round() / 12)
    return model


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 5),
    sparsity=st.floats(0, 0.999),
    weights=st.lists(st.floats(0.1, 3.0), min_size=3, max_size=3),
    locked=st.sampled_from([None, 0, 2]),
    quantised=st.booleans(),
)
def test_masks_equal_the_sorted_list(seed, sparsity, weights, locked, quantised):
    model = small_model(seed, quantised)
    w = dict(zip(["0.weight", "1.weight", "2.weight"], weights, strict=True))
    if locked is not None:
        w[f"{locked}.weight"] = 0.0
    total = 9 * 12 + 12 * 10 + 10 * 8
    free = total - (0 if locked is None else [108, 0, 80][locked])
    if round(sparsity * total) > free:
        with pytest.raises(BudgetError, match="unlock a layer"):
            mp.magnitude_masks(model, sparsity, w)
        return
    masks = mp.magnitude_masks(model, sparsity, w)
    for name, indices in oracle(model, sparsity, w).items():
        assert sorted((~masks[name]).reshape(-1).nonzero().reshape(-1).tolist()) == sorted(indices)


@pytest.mark.parametrize("name", ["fashion-mlp", "fashion-vit", "fashion-resnet"])
def test_exactly_round_s_n_entries_go(name):
    model = mp.load_model(name)
    table, ranking = mp.analyze(model), Ranking(model)
    for sparsity in SPARSITIES:
        for weights in (None, mp.allocate(table, sparsity)):
            masks = ranking.masks(ranking.counts(sparsity, weights))
            assert sum(int((~m).sum()) for m in masks.values()) == round(sparsity * ranking.total)


def test_smaller_weights_are_cut_first_within_a_layer():
    model = mp.load_model("fashion-resnet")
    masks = mp.magnitude_masks(model, 0.6, mp.allocate(mp.analyze(model), 0.6))
    for name, mask in masks.items():
        weight = dict(model.named_parameters())[name].detach().abs()
        assert weight.shape == mask.shape
        if mask.any() and not mask.all():
            assert weight[~mask].max() <= weight[mask].min()


def test_layers_are_cut_at_q_times_w():
    model = mp.load_model("fashion-vit")
    weights = mp.allocate(mp.analyze(model), 0.5)
    masks = mp.magnitude_masks(model, 0.5, weights)
    parameters = dict(model.named_parameters())
    cuts = [float(parameters[n].detach().abs()[~m].max()) / weights[n] for n, m in masks.items() if not m.all()]
    assert max(cuts) == pytest.approx(min(cuts), rel=2e-2)


def test_apply_and_remove_leave_every_bit(tmp_path):
    model = mp.load_model("fashion-mlp")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    masks = mp.magnitude_masks(model, 0.7)
    handle = mp.apply_masks(model, masks)
    for name, mask in masks.items():
        weight = dict(model.named_parameters())[name]
        assert not weight[~mask].any() and torch.equal(weight[mask], before[name][mask])
    handle.remove()
    handle.remove()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    with pytest.raises(ZeroDivisionError), mp.apply_masks(model, masks):
        raise ZeroDivisionError
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    wrong = {**masks, "head.weight": torch.ones(3, 3, dtype=torch.bool)}
    with pytest.raises(BudgetError, match=r"head\.weight has shape"):
        mp.apply_masks(model, wrong)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("sparsity", [-0.01, 1.0, 1.5, float("nan"), "half", None])
def test_impossible_sparsities(sparsity):
    with pytest.raises(BudgetError, match=r"\[0, 1\)"):
        mp.magnitude_masks(small_model(0), sparsity)


def test_impossible_weights_and_models():
    model = small_model(0)
    with pytest.raises(BudgetError, match="no prunable layer of this model"):
        mp.magnitude_masks(model, 0.5, {"9.weight": 1.0})
    with pytest.raises(BudgetError, match="finite"):
        mp.magnitude_masks(model, 0.5, {"0.weight": float("nan")})
    with torch.no_grad():
        model[1].weight[0, 0] = float("nan")
    with pytest.raises(BudgetError, match=r"1\.weight has NaN"):
        mp.magnitude_masks(model, 0.5)
    with pytest.raises(BudgetError, match="no prunable layer"):
        mp.magnitude_masks(nn.Sequential(nn.Linear(4, 2)), 0.5)


def test_masks_come_off_in_the_order_they_went_on():
    model = small_model(3)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    outer = mp.apply_masks(model, mp.magnitude_masks(model, 0.3))
    inner = mp.apply_masks(model, mp.magnitude_masks(model, 0.6))
    with pytest.raises(BudgetError, match="put on this model later"):
        outer.remove()
    inner.remove()
    outer.remove()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
