"""`mpviz run` for who watches it: a status file, a log with times, and a stop that keeps a checkpoint."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import mpviz as mp
from mpviz import cli
from mpviz.recipe import BudgetPlan, CertifyPlan, ModelPlan, Recipe, RecoverPlan
from mpviz.run_status import read_status

SMALL = Recipe(ModelPlan("fashion-mlp"), budget=BudgetPlan(0.5), certify=CertifyPlan(samples=50))
TRAINS = Recipe(SMALL.model, budget=SMALL.budget, certify=SMALL.certify, recover=RecoverPlan(epochs=5, batch=32))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def arguments(recipe: Recipe) -> list[str]:
    Path("plan.toml").write_text(recipe.to_toml())
    return ["run", "plan.toml", "--out", "out", "--status", "status.json", "--curve", "0"]


def test_a_run_that_ends_well_says_so(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments(SMALL)) == 0
    status = read_status(here / "status.json")
    assert status is not None and (status.state, status.progress, status.error) == ("done", 1.0, "")
    out, err = capsys.readouterr()
    assert "known as" in out and re.match(r"\d\d:\d\d:\d\d    0 %  loading the model\n", err)
    assert err.splitlines()[-1].endswith("100 %  done")


def test_a_refusal_keeps_its_sentence_and_where_it_came_from(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = Recipe(ModelPlan("fashion-mlp"), budget=BudgetPlan(0.5, locked=["nothing"]), certify=SMALL.certify)
    assert cli.main(arguments(plan)) == 2
    status = read_status(here / "status.json")
    assert status is not None and status.state == "failed" and re.match(r"failed at \d+ %", status.message)
    assert f"mpviz: {status.error}" in capsys.readouterr().err and "nothing" in status.error
    assert status.traceback.startswith("Traceback") and "BudgetError" in status.traceback


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ZeroDivisionError("x / 0"), "ZeroDivisionError: x / 0; this is no error that mpviz knows"),
        (MemoryError(), "MemoryError: without a word; the memory was full: make recover.batch smaller"),
        (RuntimeError("CUDA out of memory.\nTried"), "RuntimeError: CUDA out of memory. Tried; the memory was full"),
        (OSError(28, "No space left on device"), "No space left on device; look at the disk"),
    ],
)
def test_what_nobody_foresaw_is_a_sentence_with_a_remedy_too(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("mpviz.pipeline.layer_spectra", broken)
    with pytest.raises(SystemExit) as left:
        cli.main(arguments(SMALL))
    status = read_status(here / "status.json")
    assert left.value.code == 1 and status is not None and status.state == "failed" and words in status.error
    assert status.traceback.rstrip().endswith(str(error).splitlines()[-1] if str(error) else "MemoryError")
    err = capsys.readouterr().err
    assert f"mpviz: {status.error}" in err and "Traceback" not in err
    with pytest.raises(type(error)):  # who watches nothing gets all of it at once
        cli.main([word for word in arguments(SMALL) if word not in ("--status", "status.json")])


def test_a_status_file_that_cannot_be_is_refused_before_any_work(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "status.json").mkdir()
    assert cli.main(arguments(SMALL)) == 2
    assert "cannot write status.json" in capsys.readouterr().err and not (here / "out").exists()


def test_a_signal_keeps_a_checkpoint_and_the_same_command_goes_on(here: Path) -> None:
    command = [sys.executable, "-m", "mpviz", *arguments(TRAINS)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = here / "out" / "recovery" / "metrics.csv"
    end = time.monotonic() + 90
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 4:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    status = read_status(here / "status.json")
    assert process.returncode == 130 and status is not None and status.state == "cancelled"
    step = int(re.search(r"cancelled after step (\d+); the last good checkpoint is ", status.message)[1])  # type: ignore[index]
    assert f"mpviz: {status.message}" in err and "stopping at the next step" in err and "Traceback" not in err
    assert (here / "out" / "recovery" / f"step-{step:08d}.safetensors").exists()
    assert len(metrics.read_text().splitlines()) == step + 1
    # from there, in one step of an epoch: the plan itself must stay as it was
    said: list[str] = []
    with pytest.raises(mp.MpvizError, match="cancelled"):
        mp.run(TRAINS, here / "out", progress=lambda _, words: said.append(words), cancelled=lambda: len(said) > 60)
    first = next(words for words in said if "step" in words)
    assert int(re.search(r"step (\d+)", first)[1]) == step + 1  # type: ignore[index]
    assert json.loads((here / "status.json").read_text())["state"] == "cancelled"
