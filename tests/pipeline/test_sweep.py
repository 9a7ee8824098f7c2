"""Sweeps: what they run and under which names, what they refuse before anything begins, and how they go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

import mpviz as mp
from mpviz import cli
from mpviz.errors import Cancelled, CheckpointError, MpvizError, RecipeError
from mpviz.pipeline import run
from mpviz.recipe import BudgetPlan, CertifyPlan, DataPlan, GridPlan, ModelPlan, Recipe, RecoverPlan, read_recipe
from mpviz.sweep_engines import _minutes
from mpviz.sweep_folder import read_sweep, recipe_path, status_path
from mpviz.sweep_life import LifeFile, read_life
from mpviz.sweep_plan import plan_runs
from mpviz.sweep_watch import cancel_sweep, sweep_status

TINY = Recipe(ModelPlan("fashion-mlp"), DataPlan(folder="bundled"), certify=CertifyPlan(samples=60))
TRAINED = Recipe(
    TINY.model, TINY.data, BudgetPlan(0.9), TINY.certify,
    recover=RecoverPlan(6, optimizer="sgd", learning_rate=0.01, batch=200, options={"every": 20}),
)  # fmt: skip


def until(true: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)


# --- which runs -------------------------------------------------------------------------------------------------------


def test_every_combination_is_a_run_with_a_readable_name(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(TINY.to_toml())
    (tmp_path / "other.toml").write_text(TINY.to_toml())
    settings = ["budget.sparsity=0.5, 0.7", "grid.seeds=[0,1],[2]", "certify.samples=40"]
    found = plan_runs([tmp_path / "plan.toml", TINY], settings[:1])
    assert [one.name for one, _ in found] == [f"{a}-sparsity={s}" for a in ("plan", "recipe-2") for s in (0.5, 0.7)]
    assert [recipe.budget.sparsity for _, recipe in found] == [0.5, 0.7, 0.5, 0.7]
    grid = tmp_path / "grid.toml"
    grid.write_text(Recipe(TINY.model, TINY.data, grid=GridPlan(["magnitude"], [0.5])).to_toml())
    found = plan_runs([grid], [settings[1], "grid.sparsities=[0.3,0.5],[0.9]", settings[2]])
    assert [(r.grid.seeds, r.grid.sparsities, r.certify.samples) for _, r in found] == [
        (seeds, sparsities, 40) for seeds in ([0, 1], [2]) for sparsities in ([0.3, 0.5], [0.9])
    ]
    assert found[0][0].name == "grid-seeds=0+1-sparsities=0.3+0.5"
    assert len({one.name for one, _ in found}) == 4
    twice = plan_runs([tmp_path / "plan.toml", str(tmp_path / "plan.toml")])
    assert [one.name for one, _ in twice] == ["plan", "plan-2"]


def test_keys_that_share_their_last_word_are_told_apart_and_one_value_is_not_named() -> None:
    found = plan_runs([TRAINED], ["model.name=fashion-mlp,fashion-vit", "data.name=fashion-mnist,mpviz"])
    assert found[1][0].name == "recipe-1-model.name=fashion-mlp-data.name=mpviz"
    found = plan_runs([TRAINED], ["budget.beta=1.0,1.5", "budget.sparsity=0.5"])
    known = [(one.name, recipe.budget.sparsity) for one, recipe in found]
    assert known == [("recipe-1-beta=1.0", 0.5), ("recipe-1-beta=1.5", 0.5)]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("budget.sparsity=0.5,1.5", "recipe-1-sparsity=1.5: recipe key 'budget.sparsity' must be in [0, 1); got 1.5"),
        ("budget.sparsty=0.5", "unknown recipe key 'budget.sparsty'; did you mean 'sparsity'?"),
        ("model.name=fashion-mlp,fashion-mlq", "recipe key 'model.name': unknown model 'fashion-mlq'; did you mean"),
        ("data.name=fashion-mnits", "recipe key 'data.name' names the unknown 'fashion-mnits'; did you mean"),
        ("data.folder=nowhere", "recipe key 'data.folder' names nowhere, which is not there"),
        ("model.weights=none.safetensors", "recipe key 'model.weights' names none.safetensors, which is not there"),
        ("grid.methods=['magnitud']", "recipe key 'grid.methods' names the unknown 'magnitud'"),
        ("recover.options.labels=1", "unknown recipe key 'recover.options.labels'"),
        ("budget.sparsity", "a setting looks like budget.sparsity=0.5,0.7; got 'budget.sparsity'"),
        ("budget.sparsity=0.5,,0.7", "has an empty value between its commas"),
        ("budget.sparsity=0.5,0.5", "names 0.5 twice"),
    ],
)
def test_a_bad_recipe_is_one_sentence_and_nothing_begins(tmp_path: Path, setting: str, said: str) -> None:
    with pytest.raises(RecipeError) as raised:
        mp.sweep([TINY], tmp_path / "s", [setting], engine="here")
    assert said in str(raised.value) and "\n" not in str(raised.value)
    assert not (tmp_path / "s").exists()


def test_the_command_line_says_which_recipe_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "good.toml").write_text(TINY.to_toml())
    (tmp_path / "bad.toml").write_text("[recover]\nepochs = -1.0\n")
    asked = ["sweep", str(tmp_path / "good.toml"), str(tmp_path / "bad.toml"), "--out", str(tmp_path / "s")]
    assert cli.main(asked) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path / 'bad.toml'}: recipe key 'recover.epochs' counts epochs, 0 = none; got -1.0" in said
    assert not (tmp_path / "s").exists()


def test_engines_and_folders_that_cannot_be_had_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for options, said in (
        ({"engine": "slrum"}, "did you mean 'slurm'"), ({"engine": "slurm"}, "no srun on the PATH"),
        ({"processes": 0}, "processes is a number"), ({"slurm": {"time": "1"}}, "choose the engine 'slurm'"),
        ({"engine": "slurm", "slurm": {"Partition": "x"}}, "looks like partition=gpu"),
        ({"engine": "slurm", "slurm": {"time": "soon"}}, "a time for SLURM looks like"),
    ):  # fmt: skip
        with pytest.raises(MpvizError, match=said):
            mp.sweep([TINY], tmp_path / "s", **options)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=r"recover\.epochs' is 0, and 2 processes"):
        mp.sweep([TINY], tmp_path / "s", engine="here", processes=2)
    (tmp_path / "t" / "recipe-1").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="holds recipe-1, which no sweep made"):
        mp.sweep([TINY], tmp_path / "t", engine="here")
    for look in (sweep_status, cancel_sweep, read_sweep):
        with pytest.raises(CheckpointError, match="is no sweep"):
            look(tmp_path)
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(CheckpointError, match="is damaged"):
        sweep_status(tmp_path)


def test_times_are_read_as_sbatch_reads_them() -> None:
    known = {"90": 90, "2:00:00": 120, "1-12": 2160, "1-12:30": 2190, "1-00:00:00": 1440, "30:00": 30, "0:30": 1}
    assert {words: _minutes(words) for words in known} == known


# --- how a run says how it stands -------------------------------------------------------------------------------------


def test_a_status_follows_a_block_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    with LifeFile(path) as status:
        first = read_life(path)
        assert first is not None and (first.state, first.pid) == ("running", os.getpid())
        status.show(0.4, "pruning")
        until(lambda: (read_life(path) or first).message == "pruning")
    done = read_life(path)
    assert done is not None and (done.state, done.progress) == ("done", 1.0) and done.ended >= done.started > 0
    for error, state, said in (
        (RecipeError("no such\nkey"), "failed", "no such key"), (ValueError("x"), "failed", "ValueError: x"),
        (Cancelled("was cancelled"), "stopped", "was cancelled"), (KeyboardInterrupt(), "stopped", "keyboard"),
        (SystemExit(144), "stopped", "goes on when it is begun again"),
    ):  # fmt: skip
        with pytest.raises(type(error)), LifeFile(path):
            raise error
        ended = read_life(path)
        assert ended is not None and ended.state == state and said in ended.message
    path.write_text("{")
    assert read_life(path) is None and read_life(tmp_path / "none") is None


def test_a_process_that_is_gone_is_not_running(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    code = f"import time; from pathlib import Path; from mpviz.sweep_life import LifeFile\n" \
           f"with LifeFile(Path({str(path)!r})): time.sleep(60)"  # fmt: skip
    process = subprocess.Popen([sys.executable, "-c", code])
    until(lambda: read_life(path) is not None)
    process.kill()
    process.wait()
    found = read_life(path)
    assert found is not None and found.state == "stopped" and "was killed" in found.message
    values = json.loads(path.read_text()) | {"host": "another", "pid": os.getpid()}
    path.write_text(json.dumps(values))  # of another machine only its silence tells
    assert (read_life(path) or found).state == "running"
    os.utime(path, (0, time.time() - 3600))
    assert (read_life(path) or found).state == "stopped"


# --- from end to end --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_one_after_another_and_again_only_what_is_missing(tmp_path: Path) -> None:
    told: list[tuple[float, str]] = []
    state = mp.sweep(
        [TINY], tmp_path / "s", ["budget.sparsity=0.5,0.9"], "here", progress=lambda *now: told.append(now)
    )
    assert (
        state.counts == {"done": 2} and not state.moving and [one[0] for one in told] == sorted(one[0] for one in told)
    )
    for one, sparsity in zip(state.runs, (0.5, 0.9), strict=True):
        assert read_recipe(one.folder / "recipe.toml").budget.sparsity == sparsity
        (row,) = one.measured
        assert row["accuracy"] == pd.read_csv(one.folder / "metrics.csv")["accuracy"].iloc[0]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "s").glob("*/*.csv")}
    (state.runs[0].folder / "metrics.csv").unlink()
    status_path(tmp_path / "s", state.runs[0].name).unlink()
    again = mp.sweep([TINY], tmp_path / "s", ["budget.sparsity=0.5,0.9"], "here")
    assert again.counts == {"done": 2} and (state.runs[0].folder / "metrics.csv").exists()
    assert all(path.stat().st_mtime_ns == then for path, then in before.items() if "0.9" in str(path))
    with pytest.raises(CheckpointError, match="holds another recipe for the run recipe-1"):
        mp.sweep([Recipe(TINY.model, TINY.data)], tmp_path / "s", ["budget.sparsity=0.5,0.9"], "here")


@pytest.mark.slow
def test_runs_side_by_side_are_watched_killed_cancelled_and_go_on_to_the_same_bits(
    tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, plan = tmp_path / "s", tmp_path / "plan.toml"
    plan.write_text(TRAINED.to_toml())
    asked = [str(plan), "--set", "budget.sparsity=0.8,0.9", "--out", str(folder)]
    driver = subprocess.Popen(
        [sys.executable, "-m", "mpviz", "sweep", *asked], stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    names = ["plan-sparsity=0.8", "plan-sparsity=0.9"]
    try:
        until(lambda: all(list((folder / name / "recovery").glob("step-*.safetensors")) for name in names))
        until(lambda: all("epoch" in one.message for one in sweep_status(folder).runs))
        state = sweep_status(folder)
        assert [one.state for one in state.runs] == ["running", "running"] and state.driven
        assert all(0 < one.progress < 1 and one.job for one in state.runs)
        with pytest.raises(CheckpointError, match="is under way"):
            mp.sweep([plan], folder)
        victim = read_life(status_path(folder, names[0]))
        assert victim is not None
        (child,) = Path(f"/proc/{victim.pid}/task/{victim.pid}/children").read_text().split()
        os.kill(int(child), signal.SIGKILL)
        until(lambda: sweep_status(folder).runs[0].state == "failed")
        assert cli.main(["sweep", "cancel", str(folder)]) == 0
        assert driver.wait(120) == 130
    finally:
        if (folder / "jobs").is_dir():
            (folder / "jobs" / ".stop").touch()  # the runs are no children of the driver
        driver.kill()
    assert "was cancelled" in (driver.stderr.read() if driver.stderr else "")
    killed, stopped = sweep_status(folder).runs
    assert "SIGKILL" in killed.message and stopped.state == "stopped" and "was cancelled" in stopped.message
    assert all(list((folder / name / "recovery").glob("step-*.safetensors")) for name in names), "what to go on from"
    capsys.readouterr()
    assert cli.main(["sweep", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "2 done" in said
    whole = run(read_recipe(recipe_path(folder, names[0])))
    kept = mp.load(folder / names[0] / "pruned.safetensors").model.state_dict()
    assert all(bool((kept[name] == value).all()) for name, value in whole.model.state_dict().items())


@pytest.mark.slow
def test_two_processes_run_a_plan_as_one_does(tmp_path: Path) -> None:
    """A grid in two processes is in tests/train/test_two_processes.py: each start of two takes long."""
    recover = RecoverPlan(0.5, optimizer="sgd", learning_rate=0.01, batch=200)
    plan = Recipe(TINY.model, TINY.data, BudgetPlan(0.9), TINY.certify, recover=recover)
    state = mp.sweep([plan], tmp_path / "s", engine="here", processes=2)
    assert state.counts == {"done": 1}, [one.message for one in state.runs]
    (first,) = state.runs
    alone = run(plan)
    assert alone.recovered is not None
    curve = pd.read_csv(first.folder / "recovery.csv", index_col="step")
    assert curve["loss"].tolist() == pytest.approx(alone.recovered.curve["loss"].tolist(), abs=1e-3)
    assert (first.folder / "report.html").exists() and not (first.folder / "recovery").exists()
