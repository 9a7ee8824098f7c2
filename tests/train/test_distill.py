"""Recovery training: masks hold, and micro-batches do not change its course."""

from __future__ import annotations

import contextlib
import math
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import mpviz as mp
from mpviz.errors import TrainingError
from mpviz.nets.data import Split
from mpviz.train.augment import FlipShift
from mpviz.train.distill import distill
from mpviz.train.objectives import recovery_loss
from mpviz.train.plan import make_plan
from mpviz.train.processes import placed
from mpviz.train.recovery import Setting, Training
from tests.train.recovery_case import digest, digits, mlp, recover, vit


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("more", [{}, {"optimizer": "adamw", "learning_rate": 1e-2, "clip": 0.5, "weight_decay": 0.1}])
def test_removed_entries_stay_exactly_zero_and_kept_ones_learn(more: dict) -> None:
    run = recover("mlp", **more)
    before, weights = dict(mlp(1).named_parameters()), dict(run.model.named_parameters())
    assert run.masks
    for name, mask in run.masks.items():
        assert torch.equal(weights[name] != 0, mask | (weights[name] != 0)), (
            "a kept entry may be zero, a removed one not"
        )
        assert not weights[name][~mask].any() and not torch.signbit(weights[name][~mask]).any()
        assert not torch.equal(weights[name][mask], before[name][mask])


def test_momentum_would_regrow_zeros_but_for_the_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the masks after each step the same run is found out at the end of the epoch."""

    def forgetful(self: Training) -> None:
        self.optimizer.step()

    monkeypatch.setattr(Training, "_update", forgetful)
    with pytest.raises(TrainingError, match=r"removed entries of features\.fc1\.weight are not zero after epoch 1"):
        recover("mlp", epochs=1)


def test_a_pruned_network_gets_its_accuracy_back() -> None:
    data = mp.load_data("digits")
    dense = distill(mlp(1), None, data.train, epochs=12, batch=32, learning_rate=3e-3, device="cpu").model
    masks = mp.magnitude_masks(dense, sparsity=0.9)
    run = distill(dense, dense, data.train, masks=masks, epochs=4, batch=32, learning_rate=3e-3, device="cpu")

    def accuracy(model: nn.Module) -> float:
        images, labels = data.test.sample()
        with torch.no_grad():
            return float((model(images).argmax(1) == labels).double().mean())

    with mp.apply_masks(dense, masks):
        pruned = accuracy(dense)
    assert accuracy(dense) > 0.9 > pruned + 0.05
    assert accuracy(run.model) > pruned + 0.05
    assert (run.history["loss"].iloc[-1] < run.history["loss"].iloc[0]) and run.steps == 4 * math.ceil(1097 / 32)


def test_the_callers_networks_are_left_as_they_were() -> None:
    student, teacher = mlp(1).train(), mlp(2).train()
    before = digest(student), digest(teacher)
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    state = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    run = distill(student, teacher, digits(), epochs=1, batch=256, device="cpu")
    assert (digest(student), digest(teacher)) == before and student.training and teacher.training
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == state
    assert not run.model.training and digest(run.model) != before[0]
    again = distill(student, teacher, digits(), epochs=1, batch=256, device="cpu", in_place=True)
    assert again.model is student and digest(student) == digest(run.model)


@pytest.mark.parametrize("more", [{}, {"mixup": 0.4, "augment": FlipShift(shift=1)}, {"clip": 0.1}])
def test_micro_batches_make_the_large_batch(more: dict) -> None:
    """batch is what one step sees, in however many pieces; the last batch of 9 goes into 5 as well."""
    whole, pieces = recover("mlp", epochs=1, **more), recover("mlp", epochs=1, accumulate=5, **more)
    np.testing.assert_allclose(pieces.curve["loss"], whole.curve["loss"], rtol=1e-5)
    for a, b in zip(whole.model.parameters(), pieces.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


class Second:
    """Stands for accelerate's Accelerator of another process, whose device is "meta"."""

    device, num_processes, process_index, scaler, is_main_process = torch.device("meta"), 1, 0, None, False

    def prepare_optimizer(self, optimizer: object, **_: object) -> object:
        return optimizer

    def prepare_model(self, model: nn.Module) -> nn.Module:
        return model


def test_each_process_has_the_teacher_on_its_own_device() -> None:
    teacher = mlp(2)
    setting = Setting(mlp(1), teacher, {}, digits(), 10, make_plan(), {}, None, 10, 0)
    training = Training(setting, Second(), contextlib.ExitStack())
    assert training.teacher is not None
    for network in (training.model, training.teacher):
        assert {parameter.device.type for parameter in network.parameters()} == {"meta"}
    assert {parameter.device.type for parameter in teacher.parameters()} == {"cpu"}, "the caller's stays"
    near = placed(teacher, torch.device("cpu"))
    assert near is teacher, "no copy where it is there already"


def test_removed_entries_have_no_say_in_the_norm_of_the_gradient() -> None:
    """Oracle: one step of plain SGD, the gradient of what is kept scaled to the norm asked for."""
    clip, rate = 0.01, 0.5
    run = recover("mlp", epochs=1e-9, clip=clip, learning_rate=rate, momentum=0.0, weight_decay=0.0, batch=1097)
    student, (images, labels) = mlp(1), digits().sample()
    with mp.apply_masks(student, run.masks):
        recovery_loss(student(images), labels, mlp(2)(images).detach()).mean().backward()
        gradients = {
            name: torch.where(run.masks.get(name, torch.ones(1).bool()), parameter.grad, 0.0)
            for name, parameter in student.named_parameters()
        }
        norm = torch.cat([gradient.flatten() for gradient in gradients.values()]).norm()
        assert run.steps == 1 and norm > clip
        for name, parameter in run.model.named_parameters():
            expected = student.get_parameter(name) - rate * clip / norm * gradients[name]
            torch.testing.assert_close(parameter, expected, atol=1e-7, rtol=1e-4)


def test_half_precision_trains_and_float16_needs_a_gpu() -> None:
    run = recover("vit", epochs=1, precision="bf16")
    plain = recover("vit", epochs=1)
    assert run.curve["loss"].iloc[0] == pytest.approx(plain.curve["loss"].iloc[0], rel=0.02)
    assert run.curve["loss"].tolist() != plain.curve["loss"].tolist()
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}
    with pytest.raises(TrainingError, match="bf16"):
        recover("mlp", precision="fp16")


def test_the_teacher_too_answers_in_half_precision() -> None:
    seen: set[torch.dtype] = set()
    teacher = vit(2)
    teacher.head.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    data = Split("train", torch.utils.data.Subset(digits().dataset, range(64)), digits().classes)
    distill(vit(1), teacher, data, epochs=1, batch=64, precision="bf16", device="cpu")
    assert seen == {torch.float32, torch.bfloat16}, "float32 where the classes are counted, bfloat16 in training"


def test_a_function_may_augment() -> None:
    seen = []

    def darken(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        seen.append(float(torch.rand(1, generator=generator)))
        return images * 0

    run = recover("mlp", epochs=1, augment=darken)
    assert len(set(seen)) == len(run.curve) == 18
    first = list(seen)
    recover("mlp", epochs=1, augment=darken)
    assert seen[18:] == first


def test_progress_and_epochs_are_told() -> None:
    rows, shares = [], []
    run = recover("mlp", after_epoch=rows.append, progress=lambda share, text: shares.append((share, text)))
    assert pd.DataFrame(rows).set_index("epoch").equals(run.history)
    assert shares[-1][0] == 1.0 and "epoch 2 of 2" in shares[-1][1]
    seen = run.curve.groupby("epoch")["loss"].size()
    assert seen.tolist() == [18, 18] and run.history["steps"].tolist() == [18, 36]
    sizes = np.array([64] * 17 + [9])
    first = run.curve["loss"].to_numpy()[:18]
    assert run.history["loss"].iloc[0] == pytest.approx((first * sizes).sum() / 1097)
    assert run.why["device"].startswith("CPU") and run.why["weight_decay"] == "the paper's for sgd"


def test_an_accelerator_of_the_caller_is_left_as_it_was() -> None:
    from accelerate import Accelerator

    own = Accelerator(cpu=True, mixed_precision="no")
    recover("mlp", epochs=1, precision="bf16")
    assert own.mixed_precision == "no" and own.state.num_processes == 1
    model = nn.Linear(2, 2)
    optimizer = own.prepare(torch.optim.SGD(model.parameters(), lr=1.0))
    own.backward(model(torch.ones(1, 2)).sum())
    before = model.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(before, model.weight)


def test_two_recoveries_at_once_take_turns() -> None:
    """Torch draws from one generator a process: runs side by side would change each other's dropout."""
    students = [vit(1, dropout=0.2), vit(2, dropout=0.2)]  # made before: making them draws from that generator too
    data = digits()

    def train(student: nn.Module) -> str:
        return digest(distill(student, None, data, epochs=1, batch=128, learning_rate=1e-3, device="cpu").model)

    alone = list(map(train, students))
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(train, students)) == alone
