"""The selection phase: what trains, on which loss, and going on where it stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpviz.errors import Cancelled, CheckpointError, TrainingError
from mpviz.nets.forward import pruned_copy
from mpviz.prune.masks import Ranking
from mpviz.train.batches import Order
from mpviz.train.checkpoints import newest
from mpviz.train.select import movement_of
from tests.train.recovery_case import digits, fashion, mlp, stem_vit


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def case(sparsity: float = 0.7) -> tuple[nn.Module, dict[str, Tensor]]:
    """A pruned network, and the entries that it lacks."""
    model = mlp(0)
    ranking = Ranking(model)
    masks = ranking.masks(ranking.counts(sparsity))
    return pruned_copy(model, masks), {name: ~mask for name, mask in masks.items()}


def test_one_step_is_the_gradient_of_the_open_entries() -> None:
    data, (student, open_) = digits(), case(0.6)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    moved = movement_of(student, open_, data, None, epochs=1e-9, batch=len(data), learning_rate=0.1, momentum=0.0)
    x, y = data.sample()
    weights = {name: student.get_parameter(name).detach().clone().requires_grad_(True) for name in open_}
    z = torch.func.functional_call(student, weights, (x,))
    F.cross_entropy(z, y, label_smoothing=0.1).backward()
    for name, weight in weights.items():
        expected = torch.where(open_[name], -0.1 * weight.grad, 0.0)
        torch.testing.assert_close(moved[name], expected, atol=1e-6, rtol=1e-3)
        assert moved[name].abs().max() > 0
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())


@pytest.mark.parametrize("teacher", [None, mlp(5)])
def test_many_steps_move_the_open_entries_alone(teacher: nn.Module | None) -> None:
    """Oracle: SGD with momentum by hand, on the distillation loss, with everything else held where it was."""
    data, (student, open_) = digits(), case()
    moved = movement_of(student, open_, data, teacher, epochs=1.0, batch=128, learning_rate=0.05)
    weights = {name: student.get_parameter(name).detach().clone() for name in open_}
    speed = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    images, labels = data.sample()
    for chosen in Order(len(data), 128, 0).batches(0):
        x, y = images[chosen], labels[chosen]
        leaves = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
        z = torch.func.functional_call(student, leaves, (x,))
        loss = F.cross_entropy(z, y, label_smoothing=0.1)
        if teacher is not None:
            p = F.softmax(teacher(x) / 2, dim=1).detach()
            loss = 0.5 * loss + 0.5 * 4 * (p * (p.log() - F.log_softmax(z / 2, dim=1))).sum(1).mean()
        loss.backward()
        for name, leaf in leaves.items():
            speed[name] = 0.9 * speed[name] + torch.where(open_[name], leaf.grad, 0.0)
            weights[name] = weights[name] - 0.05 * speed[name]
    for name in open_:
        torch.testing.assert_close(moved[name], torch.where(open_[name], weights[name], 0.0), atol=1e-6, rtol=1e-4)
        assert moved[name].abs().max() > 0.01


def test_entries_that_are_still_there_are_refused() -> None:
    model = mlp(0)
    open_ = {name: torch.ones(shape, dtype=torch.bool) for name, shape in Ranking(model).shapes.items()}
    with pytest.raises(TrainingError, match="open entries that are not zero"):
        movement_of(model, open_, digits())


def test_renewed_batch_norms_are_measured_on_the_pruned_network() -> None:
    model, data = stem_vit(0), fashion(256)
    ranking = Ranking(model)
    masks = ranking.masks(ranking.counts(0.9))
    student = pruned_copy(model, masks)
    kept = {name: value.clone() for name, value in student.state_dict().items()}
    open_ = {name: ~mask for name, mask in masks.items()}
    few = {"epochs": 1e-9, "batch": 256, "learning_rate": 0.1, "momentum": 0.0}
    renewed = movement_of(student, open_, data, renew=True, **few)
    assert all(torch.equal(kept[name], value) for name, value in student.state_dict().items())
    by_hand = pruned_copy(model, masks).train()
    for module in by_hand.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0  # the statistics of the one batch
    with torch.no_grad():
        by_hand(data.sample()[0])
    expected = movement_of(by_hand.eval(), open_, data, **few)
    stale = movement_of(student, open_, data, **few)
    for name in open_:
        torch.testing.assert_close(renewed[name], expected[name], atol=1e-6, rtol=1e-3)
    assert any(not torch.allclose(renewed[name], stale[name], rtol=0.01) for name in open_)


def renewed(**more: object) -> dict[str, Tensor]:
    """Thirteen steps of a network with batch norms, which are measured again first."""
    model, data = stem_vit(0), fashion(201)
    ranking = Ranking(model)
    masks = ranking.masks(ranking.counts(0.9))
    open_ = {name: ~mask for name, mask in masks.items()}
    options = {"epochs": 1.0, "batch": 16, "learning_rate": 0.05, "renew": True, "teacher": stem_vit(1)}
    return movement_of(pruned_copy(model, masks), open_, data, **(options | more))


def test_a_selection_that_stopped_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    whole = renewed()
    asked = iter([False] * 9 + [True])
    with pytest.raises(Cancelled, match=r"after step 10; the last good checkpoint is .*step-00000010"):
        renewed(out=tmp_path, every=4, cancelled=lambda: next(asked))
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["step-00000008", "step-00000010"]
    (tmp_path / "step-00000010.safetensors").write_bytes(b"cut short")
    shares: list[float] = []
    again = renewed(out=tmp_path, every=4, progress=shares.append)
    assert len(shares) == 13 - 8 and shares[-1] == 1.0
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    with pytest.raises(CheckpointError, match="holds another selection"):
        renewed(out=tmp_path, seed=1)


def test_a_loss_that_is_not_finite_names_the_last_good_checkpoint(tmp_path: Path) -> None:
    student, open_ = case()
    with pytest.raises(
        TrainingError, match=r"selection is (nan|inf) at step \d+; lower its rate; the last good"
    ) as caught:
        movement_of(student, open_, digits(), epochs=2, batch=64, learning_rate=1e12, out=tmp_path, every=1)
    saved = newest(tmp_path)
    assert saved is not None and str(saved.path) in str(caught.value)
    student.load_state_dict(saved.part("model/"))
    assert torch.isfinite(student(digits().sample()[0])).all()
