"""The bundled networks are what their cards say, on all 10 000 test images; pruned ones on some of them."""

import json

import pytest
import torch

import mpviz as mp
from mpviz.nets.forward import logits, masked_copy
from mpviz.nets.layers import list_layers
from mpviz.nets.paths import data_root
from mpviz.nets.zoo import bundled_names, model_card
from mpviz.train.bundled import SCHEDULES

FLOORS = {"fashion-mlp": 0.895, "fashion-mlp-l1": 0.895, "fashion-vit": 0.91, "fashion-resnet": 0.93}


@pytest.mark.slow
@pytest.mark.parametrize("name", FLOORS)
def test_accuracy_is_the_card_s(name):
    images, labels = mp.load_data("fashion-mnist").test.sample()
    accuracy = float((logits(mp.load_model(name), images).argmax(dim=1) == labels).double().mean())
    # another CPU may round a tie of logits the other way
    assert len(labels) == 10_000 and accuracy == pytest.approx(model_card(name)["test_accuracy"], abs=3e-4)
    assert accuracy >= FLOORS[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", FLOORS)
def test_half_the_weights_cost_at_most_two_points(name):
    model, test = mp.load_model(name), mp.load_data("fashion-mnist").test
    masks = mp.magnitude_masks(model, 0.5, mp.allocate(mp.analyze(model), 0.5))
    cert = mp.certify(model, masked_copy(model, masks), test, samples=2000)
    assert cert.accuracy >= cert.dense_accuracy - 0.02
    assert cert.violations == 0 and cert.coverage <= cert.unchanged


@pytest.mark.parametrize("name", FLOORS)
def test_cards_hold_the_objective_and_the_recipe(name):
    card = model_card(name)
    assert card["recipe"] == json.loads(json.dumps(SCHEDULES[name].__dict__)), "the card's recipe is the script's"
    assert card["recipe"]["lambda2"] > 0 and (card["recipe"]["lambda1"] > 0) == (name == "fashion-mlp-l1")
    assert card["parameters"] == sum(p.numel() for p in mp.load_model(name).parameters())
    assert len(card["history"]) == card["recipe"]["epochs"]


def test_sizes_and_widths():
    assert set(bundled_names()) == set(FLOORS)
    total = sum(file.stat().st_size for file in data_root().rglob("*") if file.is_file())
    assert total < 24e6
    vit = mp.load_model("fashion-vit")
    assert type(vit).__name__ == "VisionTransformer" and len(vit.blocks) >= 6 and vit.embed_dim >= 128
    assert vit(torch.zeros(1, 1, 28, 28)).shape == (1, 10) and vit.pos_embed.shape[1] == 50
    for name in ("fashion-vit", "fashion-resnet"):
        for info in list_layers(mp.load_model(name)):
            if info.prunable:
                assert info.rows % 16 == 0 and info.cols % 16 == 0
