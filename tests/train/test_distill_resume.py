"""A recovery that is killed, cancelled or damaged goes on as if nothing had happened."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mpviz as mp
from mpviz.errors import Cancelled, CheckpointError
from mpviz.train.checkpoints import newest, random_state, read, restore_random
from mpviz.train.distill import Recovery, distill
from mpviz.train.metrics import Metrics
from tests.train.recovery_case import digest, digits, mlp, recover


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def python(root: Path, *arguments: str, timeout: int = 280) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=root, env=environment, capture_output=True, text=True, timeout=timeout,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def assert_survived(report: dict, kills: int) -> None:
    assert report["same_weights"] and report["same_curve"] and report["same_history"]
    assert len(report["found"]) == kills
    for checkpoint, metrics in report["found"]:
        assert checkpoint <= report["steps"] and metrics - checkpoint <= 2, "at most the current interval is lost"
    last = report["steps"]
    assert report["left"] == ["metrics.csv", f"step-{last - 2:08d}.safetensors", f"step-{last:08d}.safetensors"]


def test_killed_twenty_times_at_random_moments_it_ends_with_the_same_bits(root: Path, tmp_path: Path) -> None:
    """Dropout, mixup, shifts, clipping: everything random is in play. Files are read after each kill."""
    assert_survived(json.loads(python(root, "tests/train/recovery_kills.py", str(tmp_path), "20", "2", "12")), 20)


@pytest.mark.parametrize("case", ["mlp-mixed", "dropout", "stem-vit"])
def test_a_run_goes_on_from_the_middle_of_an_epoch(case: str, tmp_path: Path) -> None:
    asked = iter([False, False, True])
    with pytest.raises(Cancelled):
        recover(case, tmp_path, cancelled=lambda: next(asked), epochs=1)
    torch.rand(3)  # what else happens in the process does not matter
    assert_same(recover(case, tmp_path, epochs=1), recover(case, epochs=1))


def assert_same(one: Recovery, other: Recovery) -> None:
    assert digest(one.model) == digest(other.model)
    assert one.curve.equals(other.curve)
    assert one.history.drop(columns="seconds").equals(other.history.drop(columns="seconds"))


def test_a_damaged_newest_checkpoint_costs_one_interval(tmp_path: Path) -> None:
    asked = iter([False] * 9 + [True])
    with pytest.raises(Cancelled):
        recover("mlp", tmp_path, cancelled=lambda: next(asked), every=4)
    before, last = sorted(tmp_path.glob("step-*.safetensors"))
    assert (before.stem, last.stem) == ("step-00000008", "step-00000010")
    last.write_bytes(last.read_bytes()[:5000])
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("11,1,0.0")  # half a row
    saved = newest(tmp_path)
    assert saved is not None and saved.path == before
    assert_same(recover("mlp", tmp_path, every=4), recover("mlp"))
    assert len(sorted(tmp_path.glob("step-*.safetensors"))) == 2


def test_a_folder_of_ruins_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "step-00000008.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* can be read"):
        recover("mlp", tmp_path)
    assert (tmp_path / "step-00000008.safetensors").read_bytes() == b"nothing"
    mp.save(tmp_path / "model", mlp(1))
    with pytest.raises(CheckpointError, match="no whole checkpoint of a recovery"):
        read(tmp_path / "model.safetensors")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot make the folder"):
        recover("mlp", tmp_path / "file")


def test_a_finished_run_is_read_not_repeated(tmp_path: Path) -> None:
    run = recover("mlp", tmp_path, epochs=1)
    steps: list[float] = []
    again = recover("mlp", tmp_path, epochs=1, progress=lambda share, text: steps.append(share))
    assert_same(again, run)
    assert not steps and again.seconds == run.seconds and again.checkpoint == run.checkpoint


def test_the_metrics_are_a_plain_table(tmp_path: Path) -> None:
    run = recover("mlp", tmp_path, epochs=1)
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines[0] == "step,epoch,learning_rate,loss,accuracy" and len(lines) == 1 + len(run.curve)
    assert Metrics(tmp_path, until=5, write=False).table().equals(run.curve.iloc[:5])


def test_generators_come_back_exactly() -> None:
    import random

    import numpy as np

    random.gauss(0, 1), np.random.standard_normal()  # both then hold the second number of a pair

    def draw() -> list:
        return [random.gauss(0, 1), random.random(), *np.random.standard_normal(3), *torch.rand(3).tolist()]

    state = random_state(torch.device("cpu"))
    first = draw()
    assert draw() != first
    restore_random(state, torch.device("cpu"))
    assert draw() == first


def test_a_checkpoint_opens_in_a_fresh_process_with_the_same_logits(root: Path, tmp_path: Path) -> None:
    student = mp.load_model("fashion-mlp")
    data = mp.load_data("fashion-mnist", folder="bundled")
    masks = mp.magnitude_masks(student, sparsity=0.8)
    run = distill(student, student, data.train, masks=masks, epochs=1, batch=1000, out=tmp_path, device="cpu")
    images, _ = data.test.sample(20)
    code = (
        "import sys, torch, mpviz as mp; c = mp.load(sys.argv[1]); "
        "x, _ = mp.load_data('fashion-mnist', folder='bundled').test.sample(20); torch.set_num_threads(1); "
        "print(c.model(x).detach().numpy().tobytes().hex()); print(sum(int(m.sum()) for m in c.masks.values()))"
    )
    found, kept = python(root, "-c", code, str(run.checkpoint)).split()
    with torch.no_grad():
        assert found == run.model(images).numpy().tobytes().hex()
    assert int(kept) == sum(int(mask.sum()) for mask in masks.values())


def test_parts_of_epochs_train_as_many_steps(tmp_path: Path) -> None:
    whole = mp.distill(mlp(0), mlp(1), digits(), epochs=2, batch=128, learning_rate=1e-3, optimizer="sgd")
    per = whole.steps // 2
    part = mp.distill(
        mlp(0), mlp(1), digits(), epochs=1.5, batch=128, learning_rate=1e-3, optimizer="sgd", out=tmp_path
    )
    assert part.steps == round(1.5 * per)
    assert list(part.history["steps"]) == [per, part.steps]
    again = mp.distill(
        mlp(0), mlp(1), digits(), epochs=1.5, batch=128, learning_rate=1e-3, optimizer="sgd", out=tmp_path
    )
    assert again.steps == part.steps
    assert all(torch.equal(a, b) for a, b in zip(part.model.parameters(), again.model.parameters(), strict=True))
