"""What recovery refuses, and what is left when it has to stop."""

from __future__ import annotations

import copy
import dataclasses
import math
import sys
from pathlib import Path

import pytest
import torch

import mpviz as mp
from mpviz.errors import BudgetError, Cancelled, CheckpointError, DataError, ModelError, TrainingError
from mpviz.nets.forward import logits
from mpviz.train.augment import FlipShift
from mpviz.train.distill import distill
from tests.train.recovery_case import digest, digits, fashion, mlp, recover, stem_vit, vit


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_what_must_not_train_is_refused() -> None:
    data = mp.load_data("digits")
    student, options = mlp(1), {"epochs": 1, "device": "cpu"}
    with pytest.raises(DataError, match=r"refuses the test split.*splits\.train"):
        distill(student, None, data.test, **options)
    with pytest.raises(DataError, match=r"calibration"):
        distill(student, None, data.calibration, **options)
    with pytest.raises(DataError, match=r"splits\.train"):
        distill(student, None, data, **options)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="teacher has 7 classes and the student 10"):
        distill(student, mlp(2, classes=7), data.train, **options)
    with pytest.raises(BudgetError, match=r"head\.weights.*head\.weight"):
        distill(student, None, data.train, {"head.weights": torch.ones(10, 32, dtype=torch.bool)}, **options)
    with pytest.raises(BudgetError, match=r"head\.weight has shape \(32, 10\)"):
        distill(student, None, data.train, {"head.weight": torch.ones(32, 10, dtype=torch.bool)}, **options)
    with pytest.raises(DataError, match="label 9, the student 7 classes"):
        distill(mlp(1, classes=7), None, data.train, **options)
    with pytest.raises(ModelError, match="cannot take images"):
        distill(mlp(1), None, mp.load_data("fashion-mnist", folder="bundled").train, **options)
    with pytest.raises(TrainingError, match="teacher is the student itself"):
        distill(student, student, data.train, in_place=True, **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"optimizer": "adam"}, "did you mean 'adamw'"),
        ({"precision": "fp32"}, "unknown precision"),
        ({"epochs": 0}, "epochs = 0"),
        ({"batch": 2.5}, "batch = 2.5"),
        ({"weight": 1.5}, "between 0 and 1"),
        ({"temperature": 0.0}, "above 0"),
        ({"learning_rate": math.nan}, "above 0"),
        ({"weight_decay": -1.0}, "0 or more"),
        ({"learning_rates": 1.0}, "did you mean 'learning_rate'"),
        ({"augment": "flip"}, "FlipShift"),
        ({"temperature": "hot"}, "temperature = 'hot'; give a number"),
        ({"learning_rate": "fast"}, "learning_rate = 'fast'; give a number or none"),
        ({"every": "often"}, "every = 'often'"),
        ({"every": 0}, "every = 0"),
        ({"device": "tpu"}, "cuda"),
        ({"device": "cuda:99"}, "device=None"),
    ],
)
def test_an_impossible_setting_is_named(options: dict, words: str) -> None:
    with pytest.raises(TrainingError, match=words):
        distill(mlp(1), None, digits(), **({"device": "cpu"} | options))


def test_without_accelerate_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(TrainingError, match=r"pip install mpviz\[train\]"):
        recover("mlp", epochs=1)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"at step (\d+) of 36") as caught:
        recover("mlp", tmp_path, learning_rate=1e20, weight_decay=0.0, every=1)
    named = max(tmp_path.glob("step-*.safetensors"))
    assert str(named) in str(caught.value)
    checkpoint = mp.load(named, model=mlp(1))
    assert all(torch.isfinite(p).all() for p in checkpoint.model.parameters())
    with pytest.raises(TrainingError, match="nothing was kept"):
        recover("mlp", learning_rate=1e20)


@pytest.mark.parametrize(
    ("case", "options"),
    [("mlp", {"learning_rate": 1e20}), ("mlp", {"learning_rate": 1e12, "optimizer": "adamw"}),
     ("stem-vit", {"learning_rate": 1e18, "optimizer": "sgd"}), ("stem-vit", {"learning_rate": 1e22}),
     ("stem-vit", {"learning_rate": 1e19, "batch": 201, "optimizer": "sgd"})],
)  # fmt: skip
def test_the_last_good_checkpoint_answers(case: str, options: dict, tmp_path: Path) -> None:
    """The update that breaks a network may leave finite weights, and then only the next loss tells."""
    make, data = (mlp, digits()) if case == "mlp" else (stem_vit, fashion(201))
    with pytest.raises(TrainingError, match=r"step,? \d+.*; lower the.*last good checkpoint is") as caught:
        recover(case, tmp_path, weight_decay=0.0, every=1, **({"epochs": 1} | options))
    named = max(tmp_path.glob("step-*.safetensors"))
    assert str(named) in str(caught.value)
    assert torch.isfinite(logits(mp.load(named, model=make(1)).model, data.sample()[0])).all()


def test_a_network_broken_from_the_start_leaves_no_good_checkpoint_and_broken_data_do(tmp_path: Path) -> None:
    student = mlp(1)
    with torch.no_grad():
        student.head.bias.fill_(3e38)
        student.head.weight.mul_(1e38)
    options = {"epochs": 1, "batch": 64, "optimizer": "sgd", "learning_rate": 1e-3, "device": "cpu", "every": 1}
    with pytest.raises(TrainingError, match=r"no checkpoint in .* was good"):
        distill(student, None, digits(), out=tmp_path / "a", **options)
    dataset = copy.copy(digits().dataset)
    dataset.mean = math.nan
    broken = dataclasses.replace(digits(), dataset=dataset)
    with pytest.raises(TrainingError, match=r"the last good checkpoint is .*step-00000000"):
        distill(mlp(1), None, broken, out=tmp_path / "b", **options)


def test_a_cancelled_run_keeps_its_last_step(tmp_path: Path) -> None:
    asked = iter([False] * 6 + [True])
    with pytest.raises(Cancelled, match=r"after step 7; the last good checkpoint is .*step-00000007"):
        recover("mlp", tmp_path, cancelled=lambda: next(asked))
    assert digest(recover("mlp", tmp_path).model) == digest(recover("mlp").model)


def test_another_schedule_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    run = recover("mlp", tmp_path, epochs=1)
    with pytest.raises(CheckpointError, match="epochs: 1 there, 2 asked"):
        recover("mlp", tmp_path, epochs=2)
    with pytest.raises(CheckpointError, match="masks"):
        masks = mp.magnitude_masks(mlp(1), sparsity=0.4)
        options = {"epochs": 1, "batch": 64, "optimizer": "sgd", "learning_rate": 0.05}
        distill(mlp(1), mlp(2), digits(), masks=masks, device="cpu", out=tmp_path, **options)
    assert digest(recover("mlp", tmp_path, epochs=1).model) == digest(run.model)


def test_vit_dropout_differs_by_seed_and_repeats_by_seed() -> None:
    one, same, other = (recover("dropout", epochs=1, seed=seed) for seed in (0, 0, 1))
    assert digest(one.model) == digest(same.model) != digest(other.model)
    assert vit(1, 0.2).training is False


class _TurnsNaN(torch.nn.Module):
    """A network whose answers are no numbers from a call on."""

    def __init__(self, inner: torch.nn.Module, good: int) -> None:
        super().__init__()
        self.inner, self.left = inner, good

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not (torch.is_inference_mode_enabled() or self.training):
            self.left -= 1
        return self.inner(x) * (math.nan if self.left < 0 else 1.0)


@pytest.mark.parametrize("good", [3, 9])
def test_a_teacher_that_gives_no_numbers_is_named_and_costs_no_checkpoint(good: int, tmp_path: Path) -> None:
    options = {"epochs": 1, "batch": 64, "optimizer": "sgd", "learning_rate": 1e-3, "device": "cpu", "every": 1}
    with pytest.raises(
        TrainingError, match=r"the teacher's logits are not finite: give another teacher.*step-0"
    ) as caught:
        distill(mlp(1), _TurnsNaN(mlp(2), good), digits(), out=tmp_path, **options)
    step = int(str(caught.value).split("at step ")[1].split()[0])
    assert f"step-{step - 1:08d}" in str(caught.value)
    assert (tmp_path / f"step-{step - 1:08d}.safetensors").exists()


def test_images_that_are_not_finite_in_a_later_part_of_a_batch_cost_no_checkpoint(tmp_path: Path) -> None:
    options = {"epochs": 1, "batch": 64, "accumulate": 2, "optimizer": "sgd", "learning_rate": 1e-3, "device": "cpu",
               "every": 1}  # fmt: skip
    seen = 0

    class Spoils(FlipShift):
        def apply(self, images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
            nonlocal seen
            seen += 1
            return images * (math.nan if seen == 6 else 1.0)

    with pytest.raises(TrainingError, match=r"at step 3 .*some of its images are not finite.*step-00000002"):
        distill(mlp(1), mlp(2), digits(), out=tmp_path, augment=Spoils(), **options)
    assert (tmp_path / "step-00000002.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [({"seed": -1}, "seed = -1"), ({"seed": True}, "seed = True"), ({"masks": [1, 2]}, "masks are a list"),
     ({"workers": -1}, "workers = -1")],
)  # fmt: skip
def test_what_would_end_deep_inside_a_library_is_a_sentence(options: dict, words: str) -> None:
    with pytest.raises((TrainingError, BudgetError), match=words):
        distill(mlp(1), None, digits(), device="cpu", **options)
