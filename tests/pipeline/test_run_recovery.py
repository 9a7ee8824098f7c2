"""A plan that trains after pruning: what is trained, measured and kept, and going on after a kill."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import mpviz as mp
from mpviz import cli
from mpviz.errors import Cancelled, CheckpointError, RecipeError, TrainingError
from mpviz.nets.forward import pruned_copy
from mpviz.pipeline import run
from mpviz.recipe import BudgetPlan, CertifyPlan, DataPlan, GridPlan, ModelPlan, Recipe, RecoverPlan, parse_recipe
from mpviz.run_results import RunResult, read_run
from mpviz.train.augment import FlipShift
from mpviz.ui.report import comparison_rows, report_html

PLAN = Recipe(
    ModelPlan("fashion-mlp"), DataPlan(folder="bundled"), BudgetPlan(0.95),
    CertifyPlan(["measured", "population", "path", "slider"], samples=100, seed=3), GridPlan(seeds=[5]),
    RecoverPlan(1, optimizer="sgd", learning_rate=0.01, batch=500, options={"smoothing": 0.0, "every": 4}),
)  # fmt: skip

# The same pruning and training, and less that is measured of them.
LEAN = dataclasses.replace(PLAN, certify=CertifyPlan(samples=20))


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return run(PLAN, tmp_path_factory.mktemp("runs") / "a", report=report_html, curve_samples=20)


def state(network: torch.nn.Module) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in network.state_dict().items()}


def test_the_pruned_network_is_trained_as_the_recipe_says(result: RunResult) -> None:
    assert result.folder is not None and result.recovered is not None
    dense, train = mp.load_model("fashion-mlp"), mp.load_data(folder="bundled").train
    masks = mp.magnitude_masks(dense, 0.95, mp.allocate(mp.analyze(dense), 0.95))
    expected = mp.distill(
        pruned_copy(dense, masks), dense, train, masks, 1, optimizer="sgd", seed=5, learning_rate=0.01, batch=500,
        smoothing=0.0, augment=FlipShift(),
    )  # fmt: skip
    kept = mp.load(result.folder / "pruned.safetensors")
    assert state(kept.model) == state(expected.model) == state(result.model)
    assert state(result.pruned) == state(pruned_copy(dense, masks))
    for name, mask in kept.masks.items():
        assert torch.equal(mask, masks[name])
        assert not kept.model.get_parameter(name)[~mask].any()
    pd.testing.assert_frame_equal(result.recovered.curve, expected.curve)


def test_both_networks_are_measured_each_number_with_its_tier(result: RunResult) -> None:
    assert result.folder is not None and result.recovered is not None
    dense, test = mp.load_model("fashion-mlp"), mp.load_data(folder="bundled").test
    written = json.loads((result.folder / "results.json").read_text())
    for network, numbers, accuracy in (
        (result.pruned, written, written["pruned_accuracy"]),
        (result.model, written["recovered"], written["recovered"]["accuracy"]),
    ):
        cert = mp.certify(dense, network, test, samples=100, seed=3)
        assert numbers["tier"] == "measured"
        assert (accuracy, numbers["coverage"], numbers["unchanged"], numbers["violations"]) == (
            cert.accuracy, cert.coverage, cert.unchanged, 0,
        )  # fmt: skip
    assert written["recovered"]["accuracy"] > written["pruned_accuracy"] + 0.1
    # the slider's masks are on the dense weights, which training has left; the path's end moved with the biases
    assert set(written["tiers"]) == {"measured", "population", "path", "slider"} - {"measured"}
    assert set(written["recovered"]["tiers"]) == {"population", "path"}
    assert written["recovered"]["tiers"]["population"]["tier"] == "population"
    assert "which is no weight" in written["recovered"]["tiers"]["path"]["why"]
    metrics = pd.read_csv(result.folder / "metrics.csv")
    assert metrics["phase"].tolist() == ["pruned", "recovered"] and metrics["seed"].tolist() == [5, 5]
    assert metrics["accuracy"].tolist() == [written["pruned_accuracy"], written["recovered"]["accuracy"]]
    assert (metrics["removed"] == result.budgets["removed"].sum()).all()


def test_the_metrics_have_the_columns_of_a_grid(result: RunResult, tmp_path: Path) -> None:
    grid = Recipe(PLAN.model, PLAN.data, certify=CertifyPlan(samples=50), grid=GridPlan(["magnitude"], [0.5]))
    assert list(mp.run_grid(grid, tmp_path / "grid").metrics) == list(result.metrics)


def test_the_folder_says_all_that_was_done(result: RunResult) -> None:
    assert result.folder is not None
    assert {path.name for path in result.folder.iterdir()} == {
        "recipe.toml", "environment.json", "metrics.csv", "layers.csv", "budgets.csv", "samples.csv", "comparison.csv",
        "curve.csv", "recovery.csv", "recovered-samples.csv", "pruned.safetensors", "results.json", "report.html",
    }  # fmt: skip
    assert parse_recipe((result.folder / "recipe.toml").read_text()) == PLAN
    about = json.loads((result.folder / "environment.json").read_text())
    assert about["torch"].startswith(torch.__version__.split("+")[0]) and about["seconds"] > 0
    assert len(pd.read_csv(result.folder / "recovery.csv")) == 18  # 9 000 images, 500 a step


def test_all_training_images_are_trained_on_where_the_recipe_says_so() -> None:
    whole = run(dataclasses.replace(LEAN, recover=dataclasses.replace(LEAN.recover, whole=True)))
    assert whole.recovered is not None and len(whole.recovered.curve) == 20  # 10 000 images


def test_a_run_with_training_comes_back_from_its_folder(result: RunResult) -> None:
    assert result.folder is not None and result.recovered is not None
    back = read_run(result.folder)
    assert back.recovered is not None and back.environment == result.environment
    for name in ("table", "budgets", "comparison", "metrics", "curve"):
        pd.testing.assert_frame_equal(getattr(back, name), getattr(result, name), check_exact=True, obj=name)
    pd.testing.assert_frame_equal(back.recovered.curve, result.recovered.curve, check_exact=True)
    assert state(back.pruned) == state(result.pruned) and state(back.model) == state(result.model)
    for one, other in (
        (back.certificate, result.certificate),
        (back.recovered.certificate, result.recovered.certificate),
    ):
        assert np.array_equal(one.eta, other.eta) and np.array_equal(one.pruned_prediction, other.pruned_prediction)
        assert {name: tier.why for name, tier in one.tiers.items()} == {n: t.why for n, t in other.tiers.items()}


def test_the_report_says_both(result: RunResult) -> None:
    assert result.folder is not None
    page = (result.folder / "report.html").read_text(encoding="utf-8")
    assert "trained again" in page and "without any training" not in page
    assert "of pruning alone, without training" in page
    rows = {row[0]: row for row in comparison_rows(result.comparison)}
    assert len(rows["test accuracy, 100 images"]) == 6
    assert rows["prunable weights"][2] == rows["prunable weights"][3]
    slider = next(row for name, row in rows.items() if "slider" in name or "between" in name)
    assert slider[3] == "" == slider[4]  # nothing is said of the trained network
    assert any(name.startswith("recovered: no proved bound") for name in rows)


def test_a_stopped_training_goes_on_where_it_was(result: RunResult, tmp_path: Path) -> None:
    folder = tmp_path / "out"

    def stop() -> bool:
        return bool(list(folder.glob("recovery/step-00000008.safetensors")))

    with pytest.raises(Cancelled):
        run(LEAN, folder, cancelled=stop)
    assert [path.name for path in folder.iterdir()] == ["recovery"]  # no half-written run
    done = max(folder.glob("recovery/step-*.safetensors")).stem.removeprefix("step-").lstrip("0")
    said: list[str] = []
    again = run(LEAN, folder, progress=lambda _, words: said.append(words))
    first = next(words for words in said if ", step " in words)
    assert f", step {int(done) + 1} of 18," in first
    assert state(again.model) == state(result.model) and not (folder / "recovery").exists()


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(result: RunResult, tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(LEAN.to_toml(), encoding="utf-8")
    folder, command = tmp_path / "plan-run", ["run", str(tmp_path / "plan.toml")]
    process = subprocess.Popen(
        [sys.executable, "-m", "mpviz", *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not list(folder.glob("recovery/step-*.safetensors")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "results.json").exists()
    assert cli.main(command) == 0  # another process than the one that was killed
    assert state(mp.load(folder / "pruned.safetensors").model) == state(result.model)


def test_another_training_in_the_folder_is_not_mixed_in(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with pytest.raises(Cancelled):
        run(LEAN, folder, cancelled=lambda: bool(list(folder.glob("recovery/step-*.safetensors"))))
    other = dataclasses.replace(LEAN, recover=dataclasses.replace(LEAN.recover, learning_rate=0.02))
    with pytest.raises(CheckpointError, match=r"holds another recovery .*learning_rate"):
        run(other, folder)
    kept = list(folder.glob("recovery/step-*.safetensors"))
    run(dataclasses.replace(LEAN, recover=RecoverPlan()), folder)
    assert list(folder.glob("recovery/step-*.safetensors")) == kept  # another's work is not tidied away


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    wild = dataclasses.replace(LEAN, recover=dataclasses.replace(LEAN.recover, learning_rate=1e20))
    with pytest.raises(TrainingError, match=r"at step \d+ of 18.*; the last good checkpoint is ") as caught:
        run(wild, tmp_path / "out")
    kept = max((tmp_path / "out" / "recovery").glob("step-*.safetensors"))
    assert str(caught.value).endswith(str(kept)) and [path.name for path in (tmp_path / "out").iterdir()] == [
        "recovery"
    ]
    network = mp.load(kept, model=mp.load_model("fashion-mlp")).model
    assert all(torch.isfinite(values).all() for values in network.state_dict().values())


@pytest.mark.parametrize("name", ["torch/image_folder", ""])
def test_an_image_that_cannot_be_read_stops_the_run_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture
) -> None:
    images = tmp_path / "images"
    for number, place in enumerate((part, kind, i) for part in ("train", "val") for kind in "ab" for i in range(6)):
        path = images / place[0] / place[1] / f"{place[2]}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (9 * number, 90, 20)).save(path)
    data = DataPlan(name, str(images)) if name else DataPlan(str(images))
    recipe = Recipe(
        ModelPlan("test_vit", pretrained=False, options={"num_classes": 2}), data, BudgetPlan(0.3),
        CertifyPlan(samples=4), recover=RecoverPlan(1, batch=1, options={"every": 1, "device": "cpu"}),
    )  # fmt: skip
    train = mp.load_data(data.name, data.folder or None).train.dataset
    damaged = Path(train.dataset.files()[train.indices[-1]])  # type: ignore[attr-defined]
    damaged.write_bytes(damaged.read_bytes()[:60])
    (tmp_path / "plan.toml").write_text(recipe.to_toml(), encoding="utf-8")
    assert cli.main(["run", str(tmp_path / "plan.toml"), "--out", str(tmp_path / "out"), "--curve", "0"]) == 2
    sentence = capsys.readouterr().err.splitlines()[-1]
    kept = max((tmp_path / "out" / "recovery").glob("step-*.safetensors"))
    assert (
        f"mpviz: cannot read the image {damaged} (" in sentence and "; repair it or take it out; stopped at" in sentence
    )
    assert sentence.endswith(f"the last good checkpoint is {kept}")


def test_bounds_that_training_makes_impossible_are_said_to_be(tmp_path: Path) -> None:
    plan = Recipe(
        ModelPlan("fashion-resnet"), DataPlan(folder="bundled"), BudgetPlan(0.3),
        CertifyPlan(["measured", "path"], samples=4), recover=RecoverPlan(0.01, batch=50),
    )  # fmt: skip
    found = run(plan)
    assert found.recovered is not None and found.folder is None
    assert "buffer" in found.recovered.certificate.tiers["path"].why  # the batch norms' statistics moved


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"grid": GridPlan(seeds=[0, 1])}, "'grid.seeds' has 2 seeds"),
        ({"recover": RecoverPlan(1, options={"seed": 3})}, r"'recover.options.seed' follows from grid\.seeds"),
        ({"recover": RecoverPlan(1, options={"temperature": "hot"})}, "'recover.options.temperature' must be float"),
        ({"recover": RecoverPlan(0, options={"temperature": -1.0})}, "temperature = -1.0; it must be above 0"),
        ({"recover": RecoverPlan(float("inf"))}, "epochs = inf"),
    ],
)
def test_senseless_training_is_refused_before_anything_is_written(change: dict, words: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=words):
        run(dataclasses.replace(PLAN, **change), tmp_path / "new")
    assert not (tmp_path / "new").exists()
