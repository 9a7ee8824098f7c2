"""Masked forward passes: equal to weights set to zero by hand, and nobody else is disturbed."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Subset

import mpviz as mp
from mpviz.errors import BudgetError, Cancelled, DataError, ModelError
from mpviz.nets.data import Split
from mpviz.nets.forward import logits, masked_copy, split_logits

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


# --- of a split, a batch at a time ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "seed", "batch"), [(150, 0, 64), (150, 7, 40), (64, 1, 64), (1, 0, 64), (5000, 0, 300)]
)
def test_logits_of_a_split_are_those_of_its_samples(count, seed, batch):
    model, split = mp.load_model("fashion-mlp"), mp.load_data("fashion-mnist", folder="bundled").calibration
    images, truth = split.sample(count, seed)
    found, labels = split_logits(model, split, count, seed, batch=batch)
    assert torch.equal(labels, truth) and len(found) == min(count, 1000)
    assert torch.equal(found, logits(model, images, batch=batch))  # the same batches, so the same bits


def test_a_whole_split_and_parts_of_parts():
    model, split = mp.load_model("fashion-mlp"), mp.load_data("digits").calibration
    part = replace(split, dataset=Subset(Subset(split.dataset, range(50, 90)), range(0, 40, 2)))
    wide = torch.nn.Sequential(torch.nn.Upsample((28, 28)), model).eval()
    found, labels = split_logits(wide, part)
    assert len(found) == len(labels) == 20
    images, truth = split.sample()
    assert torch.equal(labels, truth[50:90:2]) and torch.allclose(found, logits(wide, images[50:90:2]), atol=1e-5)


def test_image_files_are_read_a_batch_at_a_time(tmp_path):
    for i in range(7):
        (tmp_path / "val" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 255, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "val" / "ab"[i % 2] / f"{i}.png")
        (tmp_path / "train" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "train" / "ab"[i % 2] / f"{i}.png")
    model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, 2)).eval()
    split = mp.load_data(str(tmp_path)).test
    seen = []
    model.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    found, labels = split_logits(model, split, batch=3)
    assert seen == [3, 3, 1]
    images, truth = split.sample()
    assert labels.tolist() == truth.tolist() and sorted(labels.tolist()) == [0, 0, 0, 0, 1, 1, 1]
    assert torch.allclose(found, logits(model, images), atol=1e-5)
    assert torch.equal(split_logits(model, split, batch=3, workers=1)[0], found)


def test_progress_of_a_split_rises_to_all_and_it_can_be_stopped():
    model, split = mp.load_model("fashion-mlp"), mp.load_data("fashion-mnist", folder="bundled").calibration
    said = []
    split_logits(model, split, 100, batch=32, progress=said.append)
    assert said == [0.32, 0.64, 0.96, 1.0]
    with pytest.raises(Cancelled):
        split_logits(model, split, 100, batch=32, progress=said.append, cancelled=lambda: len(said) > 5)
    assert len(said) == 6
    with pytest.raises(DataError, match="the calibration split is empty"):
        split_logits(model, Split("calibration", Subset(split.dataset, []), split.classes))
    with pytest.raises(DataError, match="asked for 0 samples"):
        split_logits(model, split, 0)
    with pytest.raises(ModelError, match="training mode"):
        split_logits(model.train(), split, 4)
