"""Masked forward passes: equal to weights set to zero by hand, and nobody else is disturbed."""

import threading

import pytest
import torch

import mpviz as mp
from mpviz.errors import BudgetError, Cancelled, ModelError
from mpviz.nets.forward import logits, masked_copy

NAMES = ["fashion-mlp", "fashion-vit", "fashion-resnet"]


def _random_masks(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    infos = mp.analyze(model).query("prunable").index
    parameters = dict(model.named_parameters())
    return {name: torch.rand(parameters[name].shape, generator=generator) < 0.6 for name in infos}


@pytest.mark.parametrize("name", NAMES)
def test_masked_logits_equal_weights_set_to_zero(name):
    model = mp.load_model(name)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x, _ = mp.load_data("fashion-mnist").test.sample(32)
    masks = _random_masks(model)
    fast = logits(model, x, masks, batch=20)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    by_hand = mp.load_model(name)
    with torch.no_grad():
        for key, mask in masks.items():
            dict(by_hand.named_parameters())[key].mul_(mask)
    assert torch.equal(fast, logits(by_hand, x, batch=20))
    with mp.apply_masks(model, masks):
        assert torch.equal(fast, logits(model, x, batch=20))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_the_copy_shares_what_is_not_masked_and_holds_no_negative_zero():
    model = mp.load_model("fashion-mlp")
    copy = masked_copy(model, {"features.fc1.weight": torch.zeros(512, 784, dtype=torch.bool)})
    assert copy.features.fc2.weight is model.features.fc2.weight
    assert not torch.signbit(copy.features.fc1.weight).any()
    assert model.features.fc1.weight.count_nonzero() > 300_000


def test_threads_share_one_model_without_crosstalk():
    model = mp.load_model("fashion-mlp")
    x, _ = mp.load_data("fashion-mnist").test.sample(64)
    families = [None, _random_masks(model, 1), _random_masks(model, 2)]
    expected = [logits(model, x, masks) for masks in families]
    wrong = []

    def work(i):
        wrong.extend(i for _ in range(20) if not torch.equal(logits(model, x, families[i]), expected[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in (0, 1, 2, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_refusals():
    model = mp.load_model("fashion-mlp")
    x, _ = mp.load_data("fashion-mnist").test.sample(4)
    keep = torch.ones(512, 784, dtype=torch.bool)
    with pytest.raises(BudgetError, match="names no parameter"):
        logits(model, x, {"features.fc1": keep})
    with pytest.raises(BudgetError, match="shape"):
        logits(model, x, {"features.fc1.weight": keep.T})
    with pytest.raises(BudgetError, match="bool"):
        logits(model, x, {"features.fc1.weight": keep.float()})
    with pytest.raises(ModelError, match="at least one sample"):
        logits(model, x[:0])
    with pytest.raises(Cancelled):
        logits(model, x, cancelled=lambda: True)
    with pytest.raises(ModelError, match=r"MLP cannot take images of shape \(1, 8, 8\)"):
        logits(model, mp.load_data("digits").test.sample(4)[0])
    with pytest.raises(ModelError, match="training mode"):
        logits(mp.load_model("fashion-mlp").train(), x)
