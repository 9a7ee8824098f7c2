"""The command line: tables on stdout, progress and one-sentence errors on stderr, whole folders or none."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
import torch

import mpviz as mp
from mpviz import cli, terminal
from mpviz.errors import MpvizError
from mpviz.recipe import BudgetPlan, CertifyPlan, ModelPlan, Recipe, parse_recipe
from mpviz.workbench.serving import Serving
from mpviz.workbench.visits import Limits

RECIPE = Recipe(ModelPlan("fashion-mlp"), budget=BudgetPlan(0.5), certify=CertifyPlan(samples=200))
COMMANDS = ("analyze", "compare", "run", "recipe", "recipes", "bench", "dashboard", "report")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys, *arguments) -> str:
    """The one sentence with which a command is refused."""
    assert cli.main([*map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    sentences = [line for line in err.splitlines() if not re.match(r" *\d+ %", line)]  # but for progress
    assert out == "" and len(sentences) == 1 and sentences[0].startswith("mpviz: "), err
    return sentences[0]


def cells(line: str) -> list[str]:
    return re.split(r"\s{2,}", line.strip())


# --- help and mistakes in the arguments -----------------------------------------------------------------------------


def test_help_is_quick_and_names_every_command():
    program = (
        "import sys, mpviz.cli as cli\n"
        "try: cli.main(['--help'])\n"
        "finally: print([name for name in ('torch', 'numpy', 'pandas', 'panel', 'plotly') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(f"\n    {command}" in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(capsys, command):
    with pytest.raises(SystemExit) as left:
        cli.main([command, "--help"])
    assert left.value.code == 0 and f"usage: mpviz {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [[], ["prune"], ["run", "--curve", "-1"], ["analyze"], ["run", "--theme", "pink"]]
)
def test_mistakes_in_the_arguments_exit_with_2(capsys, arguments):
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    assert left.value.code == 2 and "usage: mpviz" in capsys.readouterr().err


def test_the_version(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"mpviz {mp.__version__}\n"


# --- recipe ---------------------------------------------------------------------------------------------------------


def test_recipe_prints_the_default_one(capsys):
    assert cli.main(["recipe"]) == 0
    assert parse_recipe(capsys.readouterr().out) == Recipe()
    assert (
        cli.main(["recipe", "--set", "budget.sparsity=0.6", "model.name=fashion-mlp", "--set", "certify.samples=9"])
        == 0
    )
    changed = parse_recipe(capsys.readouterr().out)
    assert (changed.budget.sparsity, changed.model.name, changed.certify.samples) == (0.6, "fashion-mlp", 9)


def test_a_module_and_a_program_of_that_name():
    done = subprocess.run([sys.executable, "-m", "mpviz", "recipe"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and parse_recipe(done.stdout) == Recipe()
    done = subprocess.run(
        [sys.executable, "-m", "mpviz", "recipe", "--set", "budget.sparsty=1"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "mpviz: unknown recipe key 'budget.sparsty'; did you mean 'sparsity'?\n"


# --- analyze --------------------------------------------------------------------------------------------------------


def test_analyze_prints_an_aligned_table_with_three_digits(capsys, here):
    assert cli.main(["analyze", "fashion-mlp", "--csv", "deep/table.csv"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    table = mp.analyze(mp.load_model("fashion-mlp"))
    assert len(lines) == 2 + len(table) and "100 %" in err
    assert cells(lines[0])[:3] == ["layer", "role", "rows"]
    row = dict(zip(cells(lines[0]), cells(lines[2]), strict=True))
    first = table.iloc[0]
    assert row["layer"] == "features.fc1" and row["role"] == "mlp" and row["rows"] == "512"
    assert float(row["σ₊"]) == pytest.approx(first["sigma_plus"], rel=5e-3) and len(row["σ₊"].lstrip("0.")) == 3
    assert row["spikes"] == str(first["n_spikes"]) and first["verdict"] in row["verdict"]
    end = lines[0].index("spikes") + len("spikes")
    shown = [line[:end].split()[-1] for line in lines[2:]]  # numbers end where their headline ends
    assert shown == [str(n) for n in table["n_spikes"]] and all(line[end] == " " for line in lines[2:])
    assert "head" in lines[-1] and "not pruned: head" in lines[-1]
    written = pd.read_csv(here / "deep" / "table.csv", index_col="layer")
    assert list(written.columns) == list(table.columns) and len(written) == len(table)
    assert written["sigma_plus"].to_numpy() == pytest.approx(table["sigma_plus"].to_numpy(), rel=1e-15)


def test_analyze_takes_layers_weights_and_checkpoints(capsys, here):
    assert cli.main(["analyze", "fashion-mlp", "--layers", "features.fc2", "head.weight"]) == 0
    chosen = capsys.readouterr().out
    assert [cells(line)[0] for line in chosen.splitlines()[2:]] == ["features.fc2", "head"]
    assert cli.main(["analyze", "fashion-mlp", "--random"]) == 0
    random = capsys.readouterr().out.splitlines()
    assert cells(random[2])[7] == "0" and "MP" in random[2]
    model = mp.load_model("fashion-mlp")
    path = mp.save(here / "a", model)
    assert cli.main(["analyze", str(path), "--layers", "features.fc2", "head"]) == 0
    assert capsys.readouterr().out == chosen
    from safetensors.torch import save_file

    save_file(model.state_dict(), here / "weights.safetensors")
    assert (
        cli.main(["analyze", "fashion-mlp-l1", "--weights", "weights.safetensors", "--layers", "features.fc2", "head"])
        == 0
    )
    assert capsys.readouterr().out == chosen


def test_analyze_refuses_in_one_sentence(capsys, here):
    assert "did you mean 'fashion-mlp'?" in refused(capsys, "analyze", "fashion-mpl")
    assert "unknown layer 'features.fc3'; did you mean 'features.fc" in refused(
        capsys, "analyze", "fashion-mlp", "--layers", "features.fc3"
    )
    assert "no weights at gone" in refused(capsys, "analyze", "fashion-mlp", "--weights", "gone")
    (here / "broken.safetensors").write_bytes(b"\x80\x04pickle")
    assert "broken.safetensors is no safetensors file" in refused(capsys, "analyze", "broken.safetensors")
    model = mp.load_model("fashion-mlp")
    with torch.no_grad():
        model.features.fc1.weight[0, 0] = torch.nan
    assert cli.main(["analyze", str(mp.save("nan", model))]) == 0
    said = capsys.readouterr().out
    assert "features.fc1.weight: the matrix has 1 NaN or infinite entries" in said
    assert "features.fc2" in said, "the other layers are still analysed"


def test_a_csv_file_that_cannot_be_written(capsys, here):
    (here / "file").write_text("mine")
    assert cli.main(["analyze", "fashion-mlp", "--csv", "file/table.csv"]) == 2
    assert "mpviz: cannot write file/table.csv" in capsys.readouterr().err
    assert [path.name for path in here.iterdir()] == ["file"] and (here / "file").read_text() == "mine"


# --- run and report -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with a recipe, and beside it what `mpviz run` made of it."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "half.toml").write_text(RECIPE.to_toml(), encoding="utf-8")
    out, err, before = io.StringIO(), io.StringIO(), (sys.stdout, sys.stderr)
    sys.stdout, sys.stderr = out, err
    try:
        code = cli.main(["run", str(folder / "half.toml"), "--set", "budget.sparsity=0.6", "--curve", "50"])
    finally:
        sys.stdout, sys.stderr = before
    assert code == 0, err.getvalue()
    return folder / "half-run", out.getvalue(), err.getvalue()


def test_run_writes_its_folder_and_prints_before_and_after(finished):
    folder, out, err = finished
    assert {path.name for path in folder.iterdir()} == {
        "recipe.toml", "layers.csv", "budgets.csv", "samples.csv", "comparison.csv", "curve.csv", "pruned.safetensors",
        "results.json", "report.html", "metrics.csv", "environment.json",
    }  # fmt: skip
    results = json.loads((folder / "results.json").read_text())
    assert results["sparsity"] == pytest.approx(0.6, abs=1e-6) and results["samples"] == 200
    rows = {cells(line)[0]: cells(line)[1:] for line in out.splitlines()[2:-3]}
    shown = [float(text.removesuffix("\u202f%")) for text in rows["test accuracy, 200 images"][:2]]
    assert shown == pytest.approx([100 * results["dense_accuracy"], 100 * results["pruned_accuracy"]], abs=0.05)
    assert float(rows["predictions certified unchanged"][1].removesuffix("\u202f%")) == pytest.approx(
        100 * results["coverage"], abs=0.05
    )
    assert rows["prunable weights"] == ["663\u202f552", "265\u202f421", "−60.0\u202f%", "measured"]
    assert all(row[-1] == "measured" for row in rows.values()) and len(rows) == 5
    assert out.splitlines()[-2:] == [str(folder / "report.html"), str(folder / "pruned.safetensors")]
    percents = [int(line[:3]) for line in err.splitlines()]
    assert percents == sorted(percents) and percents[0] == 0 and percents[-1] == 100 and len(percents) <= 11


def test_run_without_a_recipe_uses_the_default_one(capsys, here, monkeypatch):
    seen = {}

    def fake_run(recipe, out, progress, cancelled, curve_samples, report):
        seen.update(recipe=recipe, curve=curve_samples, out=out)
        raise MpvizError("seen enough")

    monkeypatch.setattr("mpviz.pipeline.run", fake_run)
    assert "seen enough" in refused(capsys, "run", "--set", "model.name=fashion-mlp", "--curve", "0")
    assert seen == {"recipe": Recipe(ModelPlan("fashion-mlp")), "curve": 0, "out": Path("mpviz-run")}
    assert list(here.iterdir()) == []


def test_run_refuses_in_one_sentence_and_writes_nothing(capsys, here):
    (here / "good.toml").write_text(RECIPE.to_toml(), encoding="utf-8")
    (here / "typo.toml").write_text("[budget]\nsparsty = 0.5\n")
    (here / "file").write_text("mine")
    before = sorted(path.name for path in here.iterdir())
    for arguments, words in (
        (["gone.toml"], "cannot read the recipe gone.toml"),
        (["typo.toml"], "typo.toml: unknown recipe key 'budget.sparsty'; did you mean 'sparsity'?"),
        (["good.toml", "--set", "budget.sparsity=1"], "'budget.sparsity' must be in [0, 1); got 1.0"),
        (["good.toml", "--set", "model.name=fashion-mpl"], "did you mean 'fashion-mlp'?"),
        (["good.toml", "--set", "data.folder=gone"], "no train-images-idx3-ubyte.gz in gone"),
        (["good.toml", "--set", "budget.locked=['features.fc9']"], "unknown locked layer 'features.fc9'"),
        (["good.toml", "--set", "certify.tiers=['proved']"], "unknown tier 'proved'"),
        (["good.toml", "--out", "file"], "file is a file where the run needs a folder"),
    ):
        assert words in refused(capsys, "run", *arguments), arguments
        assert sorted(path.name for path in here.iterdir()) == before, arguments


def test_a_disk_that_is_full_leaves_nothing(capsys, here, monkeypatch):
    (here / "good.toml").write_text(RECIPE.to_toml(), encoding="utf-8")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mpviz.nets.store.save_file", full)
    assert "cannot write the run into good-run" in refused(capsys, "run", "good.toml", "--curve", "0")
    assert [path.name for path in here.iterdir()] == ["good.toml"]


@pytest.mark.skipif(os.name == "nt", reason="signals as on POSIX")
def test_ctrl_c_ends_a_run_with_130_and_nothing_written(tmp_path):
    arguments = ["run", "--set", "model.name=fashion-mlp", "--curve", "10000", "--out", str(tmp_path / "out")]
    process = subprocess.Popen(
        [sys.executable, "-m", "mpviz", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell that starts the tests in the background makes its children deaf to Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "dense network" in line:
            break
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out == ""
    assert re.fullmatch(r"mpviz: the (run|evaluation) was cancelled; nothing was written", err.splitlines()[-1])
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_writing_leaves_the_folder_as_it_was(capsys, finished, tmp_path, monkeypatch):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("mpviz.nets.store.save_file", interrupted)
    arguments = [
        "run",
        str(folder / "recipe.toml"),
        "--out",
        str(folder),
        "--curve",
        "0",
    ]
    assert cli.main(arguments) == 130
    assert "stopped" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_report_writes_the_page_again(capsys, finished, tmp_path):
    folder = finished[0]
    assert cli.main(["report", str(folder), "--out", str(tmp_path / "again.html")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'again.html'}\n"
    footer = re.compile(r"<footer>.*</footer>")
    first, again = ((path).read_text(encoding="utf-8") for path in (folder / "report.html", tmp_path / "again.html"))
    assert footer.sub("", first) == footer.sub("", again)
    assert cli.main(["report", str(folder), "--out", str(tmp_path / "dark.html"), "--theme", "dark"]) == 0
    assert "color-scheme: dark" in (tmp_path / "dark.html").read_text(encoding="utf-8")


def test_run_compares_methods_where_the_recipe_has_a_grid(capsys, here):
    plan = ["grid.methods=['magnitude','haar']", "grid.sparsities=[0.4,0.6]", "model.name=fashion-mlp"]
    assert cli.main(["run", "--out", "g", "--set", *plan, "certify.samples=100"]) == 0
    out = capsys.readouterr().out
    assert out.count("magnitude") == out.count("haar") == 2
    written = {path.name for path in (here / "g").iterdir()}
    assert written == {
        "cells",
        "recipe.toml",
        "environment.json",
        "metrics.csv",
        "layers.csv",
        "log.csv",
        "report.html",
    }
    accuracy = pd.read_csv(here / "g/metrics.csv").set_index(["method", "sparsity"])["accuracy"]
    kept = mp.load(here / "g/cells/haar/seed-0/stage-0.6000.safetensors").model
    images, labels = mp.load_data().test.sample(100, 0)
    assert accuracy["haar", 0.6] == float((kept(images).argmax(1) == labels).double().mean())
    assert cli.main(["report", "g", "--out", "again.html"]) == 0
    assert "haar" in (here / "again.html").read_text()
    capsys.readouterr()
    assert "did you mean 'haar'" in refused(capsys, "run", "--out", "h", "--set", "grid.methods=['har']")
    assert not (here / "h").exists()


def test_report_refuses_what_is_no_run(capsys, finished, here):
    assert "cannot read the recipe" in refused(capsys, "report", "gone")
    folder = shutil.copytree(finished[0], here / "copy")
    (folder / "budgets.csv").unlink()
    assert "copy is no whole run folder" in refused(capsys, "report", "copy")
    assert "recipe.toml is no report of mpviz" in refused(capsys, "report", "copy/recipe.toml", "--out", "a.pdf")
    said = refused(capsys, "report", "copy/report.html", "--out", "a.html")
    assert "copy/report.html holds a report that was written with its run" in said
    assert {path.name for path in here.iterdir()} == {"copy"}


def test_report_is_printed_where_the_file_is_no_html(capsys, finished, projected, monkeypatch, tmp_path):
    printed = {}
    monkeypatch.setattr("mpviz.ui.printing.print_page", lambda html, out: printed.setdefault(out.name, html) and out)
    folder, projection = finished[0], projected[0]
    assert cli.main(["report", str(folder), "--out", str(tmp_path / "new.pdf"), "--theme", "dark"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'new.pdf'}\n"
    assert "color-scheme: dark" in printed["new.pdf"]
    for source in (folder / "report.html", projection / "report.html", projection):
        assert cli.main(["report", str(source), "--out", str(tmp_path / "as-it-lies.png")]) == 0
        page = source if source.is_file() else source / "report.html"
        assert printed.pop("as-it-lies.png") == page.read_text(encoding="utf-8")


# --- projections, and the paper's rows -----------------------------------------------------------------------------


PROJECTION = [
    "model.name=fashion-mlp", "data.folder=bundled", "certify.samples=80", "project.images=16", "project.pattern=2:4"
]  # fmt: skip


@pytest.fixture(scope="module")
def projected(tmp_path_factory):
    """What `mpviz run` made of a recipe with a pattern, and what it said."""
    folder = tmp_path_factory.mktemp("cli") / "p"
    out, err, before = io.StringIO(), io.StringIO(), (sys.stdout, sys.stderr)
    sys.stdout, sys.stderr = out, err
    settings = [*PROJECTION, "recover.epochs=0.05", "recover.batch=100", "recover.optimizer=sgd"]
    try:
        code = cli.main(["run", "--out", str(folder), "--theme", "dark", "--set", *settings])
    finally:
        sys.stdout, sys.stderr = before
    assert code == 0, err.getvalue()
    return folder, out.getvalue(), err.getvalue()


def test_run_projects_where_the_recipe_has_a_pattern(projected):
    folder, out, err = projected
    assert {path.name for path in folder.iterdir()} == {
        "recipe.toml", "environment.json", "layers.csv", "macs.csv", "metrics.csv", "samples.csv", "recovery.csv",
        "recovered-samples.csv", "results.json", "projected.safetensors", "report.html",
    }  # fmt: skip
    results = json.loads((folder / "results.json").read_text())
    lines = out.splitlines()
    assert cells(lines[0]) == ["accuracy", "dense", "certified", "unchanged", "samples"]
    rows = {cells(line)[0]: cells(line)[1:] for line in lines[2:4]}
    for phase in ("projected", "recovered"):
        numbers = results["measured"][phase]
        names = ("accuracy", "dense_accuracy", "coverage", "unchanged")
        shown = [float(value.removesuffix("\u202f%")) for value in rows[phase][:4]]
        assert shown == pytest.approx([100 * numbers[name] for name in names], abs=0.005) and rows[phase][4] == "80"
    dense = 784 * 512 + 512 * 512 + 512 * 10
    saved = 100 * (784 * 512 + 512 * 512) / 2 / dense
    assert lines[4].startswith(f"{saved:.2f}\u202f% of {dense:,} multiply–adds") and "no speed" in lines[4]
    assert lines[-2:] == [str(folder / "report.html"), str(folder / "projected.safetensors")]
    assert "color-scheme: dark" in (folder / "report.html").read_text(encoding="utf-8")
    percents = [int(line[:3]) for line in err.splitlines()]
    assert percents == sorted(percents) and percents[-1] == 100 and len(percents) <= 11


def test_run_of_a_pattern_refuses_in_one_sentence_and_writes_nothing(capsys, here):
    for settings, words in (
        (["project.pattern=5:4"], "recipe table [project]: 5:4 is no k:n pattern"),
        (["project.pattern=3:9"], "3:9 needs a multiple of 9 inputs; features.fc1.weight has 784"),
        (["project.source=sre"], "'project.source' is 'sre', no method and no .safetensors file; did you mean 'ser'"),
        (["grid.methods=['seb']"], "'project.pattern' and 'grid.methods' exclude each other"),
        (["grid.seeds=[0,1]"], "'grid.seeds' has 2 seeds; a projection runs with one"),
        (["certify.tiers=['path']"], "'certify.tiers': a projection is measured"),
    ):
        assert words in refused(capsys, "run", "--set", *PROJECTION, *settings)
        assert list(here.iterdir()) == []


def test_the_report_of_a_projection_is_not_written_again(capsys, projected, here):
    folder = projected[0]
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    said = refused(capsys, "report", folder, "--out", here / "again.html")
    assert said == (
        f"mpviz: {folder} holds a report that was written with its run: open {folder / 'report.html'}, "
        "or print it with --out report.pdf"
    )
    assert list(here.iterdir()) == [] and {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_recipes_lists_the_rows_of_the_paper(capsys):
    assert cli.main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert cells(lines[0])[:4] == ["row", "network", "source", "method"] and len(lines) == 2 + 22 + 1
    rows = [cells(line) for line in lines[2:24]]
    assert [row[0] for row in rows] == [str(number) for number in range(1, 23)]
    assert rows[2] == ["3", "ViT-B/16", "ser@0.35", "CAST", "6:12", "–", "yes", "85.11", "83.74", "–"]
    assert rows[21][5:] == ["–", "no", "85.11", "–", "2.705"]
    assert "as printed in arXiv:2606.02608" in lines[-1]


def test_recipes_prints_a_row_as_a_recipe(capsys):
    from mpviz.paper import paper_recipe

    assert cli.main(["recipes", "3"]) == 0
    assert parse_recipe(capsys.readouterr().out) == paper_recipe(3)
    assert cli.main(["recipes", "22", "--data", "my/photos"]) == 0
    recipe = parse_recipe(capsys.readouterr().out)
    assert recipe == paper_recipe(22, "my/photos") and recipe.data.name == "my/photos"
    done = subprocess.run([sys.executable, "-m", "mpviz", "recipes", "9"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and parse_recipe(done.stdout) == paper_recipe(9)


def test_recipes_writes_all_rows_or_one(capsys, here):
    from mpviz.paper import paper_recipe

    assert cli.main(["recipes", "--out", "deep/rows", "--data", "d"]) == 0
    paths = [f"deep/rows/row-{number:02d}.toml" for number in range(1, 23)]
    assert capsys.readouterr().out.splitlines() == [str(Path(path)) for path in paths]
    assert sorted(path.name for path in (here / "deep/rows").iterdir()) == [Path(path).name for path in paths]
    for number, path in enumerate(paths, start=1):
        assert parse_recipe((here / path).read_text()) == paper_recipe(number, "d")
    assert cli.main(["recipes", "5", "--out", "one"]) == 0
    assert capsys.readouterr().out == f"{Path('one/row-05.toml')}\n"
    assert [path.name for path in (here / "one").iterdir()] == ["row-05.toml"]


def test_recipes_refuses_in_one_sentence(capsys, here):
    (here / "file").write_text("mine")
    for row in ("23", "0"):
        assert f"the paper's tables have no row {row}; give 1 to 22" in refused(capsys, "recipes", row)
        assert "have no row" in refused(capsys, "recipes", row, "--out", "rows")
    for place in ("file", "file/deep"):
        assert f"cannot write {Path(place) / 'row-01.toml'}: " in refused(capsys, "recipes", "--out", place)
    assert [path.name for path in here.iterdir()] == ["file"] and (here / "file").read_text() == "mine"
    with pytest.raises(SystemExit) as left:
        cli.main(["recipes", "three"])
    assert left.value.code == 2 and "invalid int value: 'three'" in capsys.readouterr().err


# --- dashboard ------------------------------------------------------------------------------------------------------


@pytest.fixture
def served(monkeypatch):
    """What `mpviz dashboard` hands to the server, which is not started."""
    module, calls = ModuleType("mpviz.ui.dashboard"), []
    module.serve = lambda **options: calls.append(options)
    monkeypatch.setitem(sys.modules, "mpviz.ui.dashboard", module)
    monkeypatch.setattr("mpviz.ui.dashboard", module, raising=False)
    return calls


def test_dashboard_passes_its_arguments_on(served):
    assert cli.main(["dashboard"]) == 0
    assert (
        cli.main(
            [
                "dashboard",
                "resnet18",
                "--data",
                "imgs",
                "--folder",
                "f",
                "--port",
                "0",
                "--show",
                "--grid",
                "a",
                "--grid",
                "b/c",
                "--runs",
                "r",
                "--sweep",
                "s",
            ]
        )
        == 0
    )
    reports = [call.pop("report") for call in served]
    plain = {"address": "localhost", "websocket_origin": [], "serving": Serving()}
    assert [{key: call.pop(key) for key in plain} for call in served] == [plain, plain]
    assert [call.pop("runs") for call in served] == [Path("runs"), Path("r")]
    assert [call.pop("sweeps") for call in served] == [[], [Path("s")]]
    assert served == [
        {"model": "fashion-vit", "data": "fashion-mnist", "folder": None, "port": 5006, "show": False, "grids": []},
        {
            "model": "resnet18",
            "data": "imgs",
            "folder": "f",
            "port": 0,
            "show": True,
            "grids": [Path("a"), Path("b/c")],
        },
    ]
    bench = mp.Workbench("fashion-mlp", samples=50)
    assert all("fashion-mlp" in report(bench) for report in reports[:1])
    bench.close()


def test_dashboard_for_visitors(served, capsys):
    words = (
        "dashboard --address 0.0.0.0 --websocket-origin a.example:443 --public --allow-model runs "
        "--allow-model resnet18 --allow-data imgs --basic-auth users.json --allow-user ada --max-sessions 9 "
        "--max-jobs 2 --max-samples 500 --uploads --max-upload 50 --log-json"
    )
    assert cli.main(words.split()) == 0 and cli.main(["dashboard", "--any-file", "--oauth", "github"]) == 0
    assert served[0]["address"] == "0.0.0.0" and served[0]["websocket_origin"] == ["a.example:443"]
    assert served[0]["serving"] == Serving(
        True, ("runs", "resnet18"), ("imgs",), Limits(9, 2, 500, 50), Path("users.json"), None, ("ada",), True
    )
    assert served[1]["serving"] == Serving(public=False, oauth="github")
    for wrong in (["--public", "--any-file"], ["--max-sessions", "0"], ["--max-upload", "-1"]):
        with pytest.raises(SystemExit):
            cli.main(["dashboard", *wrong])
    assert "1 or more" in capsys.readouterr().err


def test_dashboard_refuses_in_one_sentence(capsys, served, monkeypatch):
    def taken(**_):
        raise MpvizError("cannot serve on localhost:5006 (Address already in use); choose another port")

    monkeypatch.setattr(sys.modules["mpviz.ui.dashboard"], "serve", taken)
    assert "choose another port" in refused(capsys, "dashboard")

    def stopped(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["mpviz.ui.dashboard"], "serve", stopped)
    assert cli.main(["dashboard"]) == 130


# --- the terminal ---------------------------------------------------------------------------------------------------


def test_a_terminal_gets_one_line_that_overwrites_itself(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("COLUMNS", "40")
    line = terminal.ProgressLine()
    line.show(0.25, "a message that is far longer than this narrow terminal is wide")
    line.show(1.0, "done")
    line.clear()
    said = sys.stderr.getvalue()
    assert "\n" not in said and said.endswith("\r\x1b[K")
    parts = said.split("\r\x1b[K")[1:-1]
    assert parts[0].startswith("█████░░░░░░░░░░░░░░░  25 %") and all(len(part) < 40 for part in parts)
    assert parts[1] == f"{'█' * 20} 100 %  done"


def test_a_reader_that_leaves_early_is_no_error():
    process = subprocess.Popen(
        [sys.executable, "-m", "mpviz", "recipe"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()  # long before the recipe is printed
    assert process.stderr.read() == "" and process.wait(timeout=60) == 0
    process.stderr.close()


def test_a_terminal_of_few_letters_gets_question_marks():
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from mpviz import cli; sys.exit(cli.main(['recipe', '--set', 'σ₊=1']))"],
        capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.startswith(b"mpviz: unknown recipe key '??'")


def test_columns_end_at_their_right_edge():
    text = terminal.columns(("name", "n"), [("a", "1"), ("bcdef", "1000")])
    assert text == "name      n\n─────  ────\na         1\nbcdef  1000"


def test_the_program_is_installed():
    program = Path(sys.executable).with_name("mpviz")
    if not program.exists():
        pytest.skip("run from the source tree, without an installation")
    done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == f"mpviz {mp.__version__}\n"


# --- analyze on files, and compare ----------------------------------------------------------------------------------


def test_analyze_reads_a_plain_safetensors_file_and_writes_parquet(tmp_path, capsys):
    from safetensors.torch import save_file

    path, out = tmp_path / "weights.safetensors", tmp_path / "table.parquet"
    save_file({"blocks.0.attn.qkv.weight": torch.randn(96, 32), "norm.weight": torch.randn(32)}, path)
    assert cli.main(["analyze", str(path), "--split", "qkv", "--parquet", str(out)]) == 0
    assert "blocks.0.attn.qkv.weight[q]" in capsys.readouterr().out
    table = pd.read_parquet(out)
    assert list(table.index) == [f"blocks.0.attn.qkv.weight[{part}]" for part in "qkv"]


def test_analyze_refuses_an_unknown_method(capsys):
    assert cli.main(["analyze", "fashion-mlp", "--method", "bemma"]) == 2
    assert "bema" in capsys.readouterr().err


def test_compare_prints_what_moved(tmp_path, capsys):
    model = mp.load_model("fashion-mlp")
    mp.apply_masks(model, mp.magnitude_masks(model, 0.5))
    path, out = mp.save(tmp_path / "half", model), tmp_path / "moved.csv"
    assert cli.main(["compare", "fashion-mlp", str(path), "--csv", str(out)]) == 0
    said = capsys.readouterr().out
    assert "features.fc1" in said and "overlap out" in said
    assert 0.3 < pd.read_csv(out, index_col=0).loc["features.fc2.weight", "sparsity_other"] < 0.9


def test_compare_refuses_networks_without_a_common_layer(capsys):
    assert cli.main(["compare", "fashion-mlp", "fashion-resnet"]) == 2
    assert "two versions of one network" in capsys.readouterr().err
