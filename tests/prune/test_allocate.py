"""SEB weights against the formula, and what they refuse."""

import numpy as np
import pandas as pd
import pytest
import torch

import mpviz as mp
from mpviz.errors import BudgetError


def table(signals=(1.0, 2.0, 3.0, 6.0), roles=("attention", "mlp", "mlp", "head"), prunable=(True, True, True, False)):
    names = [f"layer{i}.weight" for i in range(len(signals))]
    return pd.DataFrame(
        {"role": roles, "prunable": prunable, "sigma_plus": signals, "alpha": signals[::-1]}, index=names
    )


def test_weights_follow_the_formula_over_prunable_layers_only():
    w = mp.allocate(table(), sparsity=0.35, beta=1.25, decay_end=0.7)
    z = (np.array([1.0, 2.0, 3.0]) - 2.0) / np.std([1.0, 2.0, 3.0])
    np.testing.assert_allclose(w.to_numpy(), np.maximum(0.1, 1 + 1.25 * 0.5 * z))
    assert list(w.index) == ["layer0.weight", "layer1.weight", "layer2.weight"]


def test_floor_decay_and_roles():
    assert mp.allocate(table(), 0.1, beta=3.0).min() == 0.1
    assert (mp.allocate(table(), 0.7, decay_end=0.7) == 1.0).all()
    assert (mp.allocate(table(), 0.3, beta=0.0) == 1.0).all()
    by_role = mp.allocate(table(), 0.3, beta=1.0, beta_by_role={"attention": 0.0})
    assert by_role.iloc[0] == 1.0 and by_role.iloc[2] != 1.0
    assert (mp.allocate(table(signals=(2.0, 2.0, 2.0, 5.0)), 0.3) == 1.0).all()


def test_signal_alpha_and_layers_without_a_fit():
    assert mp.allocate(table(), 0.3, signal="alpha").iloc[0] > 1.0
    w = mp.allocate(table(signals=(1.0, np.nan, 3.0, 6.0)), 0.3)
    assert w.iloc[1] == 1.0 and w.iloc[0] < 1.0 < w.iloc[2]


def test_locked_layers_have_weight_zero_and_others_stay():
    w, free = mp.allocate(table(), 0.3, locked=["layer1"]), mp.allocate(table(), 0.3)
    assert w["layer1.weight"] == 0.0
    assert (w.drop("layer1.weight") == free.drop("layer1.weight")).all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sparsity": 1.0}, r"\[0, 1\)"),
        ({"sparsity": 0.5, "signal": "sigma_pls"}, "did you mean 'sigma_plus'"),
        ({"sparsity": 0.5, "locked": ["layer9.weight"]}, "did you mean 'layer"),
        ({"sparsity": 0.5, "beta_by_role": {"attenton": 1.0}}, "did you mean 'attention'"),
        ({"sparsity": 0.5, "beta": -1.0}, "at least 0"),
        ({"sparsity": 0.5, "beta": float("nan")}, "at least 0"),
        ({"sparsity": 0.5, "decay_end": 0.0}, "decay_end"),
    ],
)
def test_refusals(arguments, words):
    with pytest.raises(BudgetError, match=words):
        mp.allocate(table(), **arguments)


def test_a_table_without_prunable_layers():
    with pytest.raises(BudgetError, match="no prunable layer"):
        mp.allocate(table(prunable=(False,) * 4), 0.5)


def test_a_layer_that_could_not_be_analysed_has_no_budget():
    model = mp.load_model("fashion-mlp")
    with torch.no_grad():
        model.features.fc1.weight[0, 0] = torch.nan
    with pytest.raises(BudgetError, match=r"features\.fc1\.weight has no budget.*NaN"):
        mp.allocate(mp.analyze(model), 0.5)
