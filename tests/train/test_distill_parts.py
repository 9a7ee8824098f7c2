"""The parts of recovery: loss, parameter groups, schedule, and the order, sharing and mixing of batches."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import mpviz as mp
from mpviz.errors import TrainingError
from mpviz.nets.data import ImageArrays, Split
from mpviz.train import batches
from mpviz.train.augment import FlipShift, Mixing
from mpviz.train.distill import distill
from mpviz.train.objectives import recovery_loss
from mpviz.train.optimizers import cosine_factor, decays, parameter_groups
from tests.train.recovery_case import digits, mlp, recover, stem_vit


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def oracle(student: np.ndarray, label: int, teacher: np.ndarray, a: float, tau: float, eps: float) -> float:
    """The formula with plain numbers, one sample."""

    def softmax(z: np.ndarray) -> np.ndarray:
        return np.exp(z) / np.exp(z).sum()

    k = len(student)
    target = np.full(k, eps / k)
    target[label] += 1 - eps
    entropy = -(target * np.log(softmax(student))).sum()
    p, q = softmax(teacher / tau), softmax(student / tau)
    return (1 - a) * entropy + a * tau**2 * (p * np.log(p / q)).sum()


@pytest.mark.parametrize(("a", "tau", "eps"), [(0.5, 2.0, 0.1), (0.0, 2.0, 0.1), (1.0, 4.0, 0.0), (0.3, 1.0, 0.2)])
def test_the_loss_is_the_formula(a: float, tau: float, eps: float) -> None:
    rng = np.random.default_rng(0)
    student, teacher, labels = rng.normal(size=(6, 5)), rng.normal(size=(6, 5)), rng.integers(0, 5, 6)
    wanted = [oracle(*row, a, tau, eps) for row in zip(student, labels, teacher, strict=True)]
    found = recovery_loss(torch.tensor(student), torch.tensor(labels), torch.tensor(teacher), a, tau, eps)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-5)


def test_without_a_teacher_only_the_labels_speak() -> None:
    student = torch.tensor([[1.0, 2.0, 0.5]])
    found = recovery_loss(student, torch.tensor([1]), None, weight=0.9)
    assert float(found) == pytest.approx(oracle(student[0].numpy(), 1, np.zeros(3), 0.0, 1.0, 0.1), rel=1e-5)


def test_a_recovery_minimises_that_loss() -> None:
    """The first step's loss is the oracle's on the first batch of the order."""
    run = recover("mlp", epochs=1)
    chosen = batches.Order(len(digits()), 64, 0).batches(0)[0]
    student, teacher = mlp(1), mlp(2)
    with mp.apply_masks(student, run.masks), torch.no_grad():
        images, labels = digits().dataset[torch.from_numpy(chosen)]
        ours, theirs = student(images).double().numpy(), teacher(images).double().numpy()
    wanted = np.mean([oracle(z, y, t, 0.5, 2.0, 0.1) for z, y, t in zip(ours, labels.tolist(), theirs, strict=True)])
    assert run.curve["loss"].iloc[0] == pytest.approx(wanted, rel=1e-5)


def test_norms_biases_and_places_do_not_decay() -> None:
    chosen = decays(stem_vit(0))
    assert chosen["blocks.0.attn.qkv.weight"] and chosen["patch_embed.proj.0.weight"] and chosen["head.weight"]
    for name in (
        "pos_embed",
        "cls_token",
        "blocks.0.norm1.weight",
        "blocks.1.mlp.fc1.bias",
        "patch_embed.proj.1.weight",
    ):
        assert not chosen[name], name


class Places(nn.Module):
    """Positions and tokens as parameters and as embeddings, and what only sounds like them."""

    def __init__(self) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, 4, 6))
        self.relative_position_bias_table = nn.Parameter(torch.zeros(9, 2))
        self.position_embeddings = nn.Embedding(4, 6)
        self.inner = nn.ModuleDict({"pos_emb": nn.Embedding(4, 6), "words": nn.Embedding(30, 6)})
        self.mask_token = nn.Embedding(1, 6)
        self.rel_pos = nn.Linear(6, 6)  # a network of positions has weights like any other


def test_tables_of_positions_and_tokens_do_not_decay() -> None:
    assert {name: decay for name, decay in decays(Places()).items() if not name.endswith("bias")} == {
        "pos_embed": False, "relative_position_bias_table": False, "position_embeddings.weight": False,
        "inner.pos_emb.weight": False, "inner.words.weight": True, "mask_token.weight": False, "rel_pos.weight": True,
    }  # fmt: skip


def test_what_the_model_exempts_does_not_decay() -> None:
    class Own(nn.Sequential):
        def no_weight_decay(self) -> set[str]:
            return {"1.weight"}

    assert decays(Own(nn.Linear(3, 4), nn.Linear(4, 2))) == {
        "0.weight": True, "0.bias": False, "1.weight": False, "1.bias": False
    }  # fmt: skip


def test_a_norm_over_two_axes_does_not_decay_and_frozen_parameters_are_left_out() -> None:
    model = nn.Sequential(nn.LayerNorm((4, 4)), nn.Flatten(), nn.Linear(16, 3), nn.Linear(3, 2))
    model[3].requires_grad_(False)
    assert decays(model) == {"0.weight": False, "0.bias": False, "2.weight": True, "2.bias": False}
    groups = parameter_groups(model, 0.05)
    assert [(group["names"], group["weight_decay"]) for group in groups] == [
        (["2.weight"], 0.05),
        (["0.weight", "0.bias", "2.bias"], 0.0),
    ]
    with pytest.raises(TrainingError, match="no trainable parameter"):
        parameter_groups(model.requires_grad_(False), 0.05)


def test_the_paper_recipes_are_the_defaults() -> None:
    short = Split("train", ImageArrays(np.zeros((4, 8, 8), np.uint8), np.arange(4), 0.0, 1.0, 16.0), ())
    adam = distill(mlp(1), None, short, epochs=1, device="cpu").plan
    sgd = distill(mlp(1), None, short, epochs=1, optimizer="sgd", device="cpu").plan
    assert (adam.learning_rate, adam.weight_decay, adam.batch) == (1e-5, 0.01, 32)
    assert (sgd.learning_rate, sgd.weight_decay, sgd.batch, sgd.momentum) == (1e-3, 1e-4, 256, 0.9)
    assert (adam.weight, adam.temperature, adam.smoothing, adam.warmup) == (0.5, 2.0, 0.1, 0.1)


def test_the_rate_rises_and_falls_once() -> None:
    factors = [cosine_factor(step, 100, 0.1) for step in range(100)]
    np.testing.assert_allclose(factors[:10], np.arange(1, 11) / 10)
    assert max(factors) == 1.0 and all(a >= b for a, b in itertools.pairwise(factors[10:]))
    assert 0 < factors[-1] < 1e-3
    assert cosine_factor(0, 1, 0.5) == 1.0
    run = recover("mlp", epochs=1, warmup=0.5)
    steps = len(run.curve)
    np.testing.assert_allclose(run.curve["learning_rate"], [0.05 * cosine_factor(i, steps, 0.5) for i in range(steps)])


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    order = batches.Order(103, 10, seed=4)
    first = np.concatenate(order.batches(0))
    assert sorted(first) == list(range(103)) and order.steps == 11
    np.testing.assert_array_equal(first, np.concatenate(order.batches(0)))
    np.testing.assert_array_equal(np.concatenate(order.batches(0, start=7)), first[70:])
    assert first.tolist() != np.concatenate(order.batches(1)).tolist()
    assert first.tolist() != np.concatenate(batches.Order(103, 10, seed=5).batches(0)).tolist()


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 16, 17])
@pytest.mark.parametrize("slots", [1, 2, 3, 8])
@pytest.mark.parametrize("paired", [False, True])
def test_each_position_is_dealt_once(size: int, slots: int, paired: bool) -> None:
    parts = batches.deal(size, slots, paired)
    assert sorted(np.concatenate(parts).tolist()) == list(range(size))
    if paired:  # turned around, each part holds its samples' partners
        assert all((size - 1 - part).tolist() == part[::-1].tolist() for part in parts)


def test_parts_are_mixed_as_the_whole() -> None:
    images = torch.arange(2 * 11.0).reshape(11, 2, 1, 1).expand(11, 2, 6, 6)
    labels = torch.arange(11) % 5
    for mixup, cutmix in ((0.5, 0.0), (0.0, 1.0), (0.5, 1.0)):
        mixing = Mixing(mixup, cutmix, 5, seed=3)
        whole, shares = mixing(images, labels, step=8)
        for part in batches.deal(11, 3, paired=True):
            mixed, part_shares = mixing(images[part], labels[part], step=8)
            torch.testing.assert_close(mixed, whole[part])
            torch.testing.assert_close(part_shares, shares[part])
        assert not torch.equal(whole, mixing(images, labels, step=9)[0])
        torch.testing.assert_close(shares.sum(1), torch.ones(11))


def test_shifts_belong_to_samples_not_to_batches() -> None:
    augment, images = FlipShift(), torch.rand(20, 1, 9, 9)
    draws = augment.draws(20, seed=1, epoch=2)
    whole = augment.apply(images, draws)
    part = np.array([7, 2, 19])
    torch.testing.assert_close(augment.apply(images[part], draws[part]), whole[part])
    mirrored, down, right = draws[7].tolist()
    image = np.pad(images[7, 0].numpy()[:, :: -1 if mirrored else 1], 2)
    np.testing.assert_array_equal(whole[7, 0].numpy(), image[down : down + 9, right : right + 9])
    assert not torch.equal(draws, augment.draws(20, seed=1, epoch=3))
