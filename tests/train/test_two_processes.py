"""Two processes of gloo take the course of one: in a recovery, in a pruning in steps, and in a grid."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from mpviz.recipe import CertifyPlan, DataPlan, GridPlan, ModelPlan, Recipe, RecoverPlan
from tests.train.recovery_case import digest, recover
from tests.train.steps_case import prune

# Layer norms and batch norms, mixing and shifts, and a last batch that does not divide.
CASES = ["mlp", "mlp-mixed", "vit", "stem-vit"]
GRID = Recipe(
    ModelPlan("fashion-mlp"), DataPlan(folder="bundled"), certify=CertifyPlan(samples=60),
    grid=GridPlan(["magnitude", "support"], [0.2]),
    recover=RecoverPlan(0.1, optimizer="sgd", learning_rate=0.01, batch=200),
)  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def launched(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which two processes have written."""
    folder, script = tmp_path_factory.mktemp("launched"), root / "tests" / "train" / "two_processes.py"
    (folder / "grid.toml").write_text(GRID.to_toml())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    done = subprocess.run(
        [*command, ",".join(CASES), str(folder)], cwd=root, capture_output=True, text=True, timeout=280,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_two_processes_train_as_one(launched: Path) -> None:
    two = json.loads((launched / "recoveries.json").read_text())
    for name in CASES:
        one = recover(name)
        assert two[name]["processes"].startswith("2")
        np.testing.assert_allclose(two[name]["loss"], one.curve["loss"], atol=1e-4)
        assert len(one.curve) == len(two[name]["loss"]) > 4
    # what two processes left, one reads: the run is over and gives the weights that they had
    assert digest(recover("vit", launched / "recoveries" / "vit").model) == two["vit"]["digest"]


def test_two_processes_select_once_and_take_the_course_of_one(launched: Path, tmp_path: Path) -> None:
    first, second = (json.loads((launched / f"steps.{rank}.json").read_text()) for rank in range(2))
    assert first == second
    one = prune(tmp_path)
    assert first["removed"] == one.log["removed"].tolist()
    assert first["loss"] == pytest.approx(one.log["loss"].tolist(), abs=1e-3)
    pairs = [(torch.tensor(first["masks"][name]).bool(), mask.flatten()) for name, mask in one.masks.items()]
    assert sum(int((theirs != mine).sum()) for theirs, mine in pairs) <= 0.005 * sum(len(mine) for _, mine in pairs)


def test_two_processes_write_each_row_of_a_grid_once(launched: Path) -> None:
    metrics = pd.read_csv(launched / "grid" / "metrics.csv")
    assert len(metrics) == 4 and not metrics.duplicated(["method", "sparsity", "phase"]).any()
    assert (launched / "grid" / "report.html").exists()
