"""A grid of methods: what it measures, what it keeps, going on where it stopped, and what it refuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch.nn import functional as F

import mpviz as mp
from mpviz.errors import Cancelled, CheckpointError, DataError, RecipeError
from mpviz.grid import run_grid
from mpviz.grid_results import GridResult, read_grid, spectra_after
from mpviz.nets.forward import logits
from mpviz.projecting import run_projection
from mpviz.recipe import CertifyPlan, DataPlan, GridPlan, ModelPlan, Recipe, RecoverPlan, parse_recipe, read_recipe

PLAN = Recipe(
    ModelPlan("fashion-mlp"), DataPlan(folder="bundled"), certify=CertifyPlan(samples=300, seed=3),
    grid=GridPlan(["magnitude", "wanda"], [0.3, 0.6], [0, 1], calibration=64),
)  # fmt: skip
RECIPES = Path(__file__).parents[2] / "data" / "recipes"
TRAINED = replace(
    PLAN, grid=GridPlan(["magnitude", "ser"], [0.3, 0.6]),
    recover=RecoverPlan(0.3, 0.3, optimizer="sgd", learning_rate=0.01, batch=900, options={"smoothing": 0.0}),
)  # fmt: skip


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> GridResult:
    return run_grid(PLAN, tmp_path_factory.mktemp("grid") / "a")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> GridResult:
    return run_grid(TRAINED, tmp_path_factory.mktemp("grid") / "b")


def cells(result: GridResult) -> dict[str, bytes]:
    return {str(p.relative_to(result.folder)): p.read_bytes() for p in result.folder.glob("cells/*/*/cell-*.json")}


def test_what_is_random_runs_with_every_seed_and_the_rest_once(plain: GridResult) -> None:
    assert plain.metrics.groupby("method")["seed"].unique().map(list).to_dict() == {"magnitude": [0], "wanda": [0, 1]}
    assert set(plain.metrics["phase"]) == {"pruned"}
    wanda = plain.metrics[(plain.metrics["method"] == "wanda") & (plain.metrics["sparsity"] == 0.6)]
    assert wanda["budget"].nunique() == 2  # other calibration images, other masks


def test_the_numbers_are_those_of_the_kept_network(plain: GridResult) -> None:
    dense, test = mp.load_model("fashion-mlp"), mp.load_data(folder="bundled").test
    images, labels = test.sample(300, 3)
    before = logits(dense, images)
    for _, row in plain.metrics.iterrows():
        kept = mp.load(
            plain.folder / f"cells/{row['method']}/seed-{row['seed']}/stage-{row['sparsity']:.4f}.safetensors"
        )
        after = logits(kept.model, images)
        assert row["accuracy"] == float((after.argmax(1) == labels).double().mean())
        assert row["dense_accuracy"] == float((before.argmax(1) == labels).double().mean())
        change = F.cross_entropy(after.double(), labels) - F.cross_entropy(before.double(), labels)
        assert row["cross_entropy_change"] == pytest.approx(float(change), abs=1e-9)
        assert row["unchanged"] == float((after.argmax(1) == before.argmax(1)).double().mean())
        assert row["budget"] == pytest.approx(2 * float((after - before).abs().amax(1).double().mean()))
        total = sum(mask.numel() for mask in kept.masks.values())
        assert row["removed"] == round(row["sparsity"] * total) == sum(int((~m).sum()) for m in kept.masks.values())
        layers = plain.layers[
            (plain.layers["method"] == row["method"]) & (plain.layers["seed"] == row["seed"])
            & (plain.layers["sparsity"] == row["sparsity"])
        ]  # fmt: skip
        assert layers["removed"].sum() == row["removed"]
        assert layers["params"].sum() == total


def test_the_folder_says_all_that_was_done(plain: GridResult) -> None:
    assert parse_recipe((plain.folder / "recipe.toml").read_text()) == PLAN
    assert pd.read_csv(plain.folder / "metrics.csv").shape == plain.metrics.shape
    assert pd.read_csv(plain.folder / "layers.csv").shape == plain.layers.shape
    written = json.loads((plain.folder / "environment.json").read_text())
    assert written["torch"].startswith(torch.__version__.split("+")[0])
    assert written["seconds"] > 0


def test_each_method_sees_the_same_number_of_images_before_and_after(trained: GridResult) -> None:
    assert trained.metrics.groupby(["method", "sparsity"])["phase"].agg(set).map(len).tolist() == [2, 2, 2, 2]
    for method, selection in (("magnitude", 0), ("ser", 1)):
        for sparsity in (0.2, 0.3, 0.6):  # 20 %: where a hybrid starts to restore
            place = trained.folder / f"cells/{method}/seed-0"
            steps = pd.read_csv(place / f"recovery-{sparsity:.4f}/metrics.csv")
            assert len(steps) == (2 - selection) * 3  # of 9 000 images three tenths, 900 a step
        assert set(trained.metrics["sparsity"]) == {0.3, 0.6}
        assert not list(trained.folder.glob("cells/*/*/recovery-*/*.safetensors"))
    back = trained.metrics.groupby("method")["restored"].sum()
    assert back["magnitude"] == 0 < back["ser"]
    assert trained.layers["restored"].sum() == back["ser"] / 2  # metrics has a row for each of two phases


def test_a_grid_that_stopped_goes_on_where_it_was(trained: GridResult, tmp_path: Path) -> None:
    def stop() -> bool:
        return len(list(tmp_path.glob("out/cells/*/*/cell-*.json"))) >= 3

    with pytest.raises(Cancelled):
        run_grid(TRAINED, tmp_path / "out", cancelled=stop)
    early = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("cells/*/*/cell-*.json")}
    assert len(early) == 3
    assert not (tmp_path / "out/metrics.csv").exists()
    result = run_grid(TRAINED, tmp_path / "out")
    assert all(path.stat().st_mtime_ns == when for path, when in early.items())
    assert cells(result) == cells(trained)


def test_more_methods_and_seeds_join_a_finished_grid(plain: GridResult, tmp_path: Path) -> None:
    folder = tmp_path / "more"
    shutil.copytree(plain.folder, folder)
    more = replace(PLAN, grid=replace(PLAN.grid, methods=["magnitude", "wanda", "haar"], sparsities=[0.3, 0.45, 0.6]))
    result = run_grid(more, folder)
    assert cells(plain).items() <= cells(result).items()
    assert len(result.metrics) == 3 + 6 + 3
    assert read_grid(folder).metrics.equals(result.metrics)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"grid": GridPlan(["magnitud"])}, "did you mean 'magnitude'"),
        ({"grid": GridPlan([])}, "has no grid.methods"),
        ({"grid": GridPlan(["magnitude"], [0.5, 0.3])}, "grid.sparsities"),
        ({"grid": GridPlan(["magnitude"], seeds=[])}, "grid.seeds"),
        ({"grid": GridPlan(["magnitude", "magnitude"])}, "twice"),
        ({"grid": GridPlan(["magnitude"], options={"magnitude": {"scop": "layer"}})}, "did you mean 'scope'"),
        ({"grid": GridPlan(["magnitude"], options={"ser": {}})}, "of no method"),
        ({"certify": CertifyPlan(["measured", "path"])}, "a grid measures"),
        ({"recover": RecoverPlan(-1)}, "recover.epochs"),
        ({"recover": RecoverPlan(ratio=0.5)}, "recover.ratio"),
    ],
)
def test_senseless_grids_are_refused_before_anything_is_written(change: dict, words: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=words):
        run_grid(replace(PLAN, **change), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_single_run_refuses_a_grid() -> None:
    with pytest.raises(RecipeError, match=r"mp\.run_grid"):
        mp.run(PLAN)


def test_another_recipe_does_not_mix_into_a_folder(plain: GridResult) -> None:
    before = cells(plain)
    with pytest.raises(CheckpointError, match=r"another recipe \(model\.name: 'fashion-.*' there, 'fashion-mlp-l1'"):
        run_grid(replace(PLAN, model=ModelPlan("fashion-mlp-l1")), plain.folder)
    assert cells(plain) == before


def test_a_damaged_cell_is_named(plain: GridResult, tmp_path: Path) -> None:
    shutil.copytree(plain.folder, tmp_path / "c")
    broken = next((tmp_path / "c").glob("cells/*/*/cell-*.json"))
    broken.write_text("{")
    with pytest.raises(CheckpointError, match=broken.name):
        read_grid(tmp_path / "c")
    with pytest.raises(CheckpointError, match="no finished cells"):
        read_grid(tmp_path)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda p: p.stem)
def test_the_recipes_of_the_project_can_be_run(path: Path, tmp_path: Path) -> None:
    recipe = read_recipe(path)
    run_it = run_projection if recipe.project.pattern else run_grid
    with pytest.raises(Cancelled):  # all its checks pass before the first moment at which it can stop
        run_it(recipe, tmp_path / "out", cancelled=lambda: True)
    assert parse_recipe(recipe.to_toml()) == recipe


def test_spectra_are_those_of_the_dense_network_and_of_the_kept_checkpoints(plain: GridResult) -> None:
    found = spectra_after(plain, layers=2)
    lost = plain.layers.query("sparsity == 0.6").groupby("layer")["removed"].sum()
    assert list(dict.fromkeys(found["layer"])) == lost.nlargest(2).index.tolist()
    assert found["method"].tolist() == ["dense", "magnitude", "wanda"] * 2
    for row in found.itertuples():
        kept = plain.folder / f"cells/{row.method}/seed-0/stage-0.6000.safetensors"
        network = mp.load_model("fashion-mlp") if row.method == "dense" else mp.load(kept).model
        exact = torch.linalg.svdvals(network.get_parameter(row.layer).detach().double()).flip(0)
        torch.testing.assert_close(torch.tensor(row.values, dtype=torch.float64), exact, rtol=1e-6, atol=1e-5)
    assert set(spectra_after(plain, 0.3, layers=1, seed=1)["method"]) == {"dense", "wanda"}
    with pytest.raises(DataError, match=r"sparsity 0\.4"):
        spectra_after(plain, 0.4)
