"""Sweeps on SLURM, with programs of its names that write down what they are asked: there is no SLURM to test on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import mpviz as mp
from mpviz import cli
from mpviz.errors import CheckpointError, MpvizError
from mpviz.recipe import BudgetPlan, CertifyPlan, DataPlan, ModelPlan, Recipe, RecoverPlan
from mpviz.sweep_engines import _said
from mpviz.sweep_folder import status_path
from mpviz.sweep_life import read_life
from mpviz.sweep_watch import sweep_status

PLAN = Recipe(
    ModelPlan("fashion-mlp"), DataPlan(folder="bundled"), BudgetPlan(0.9), CertifyPlan(samples=60),
    recover=RecoverPlan(6, optimizer="sgd", learning_rate=0.01, batch=200, options={"every": 20}),
)  # fmt: skip
PROGRAM = """#!{python}
import pathlib, shutil, sys
place = pathlib.Path({place!r})
with (place / "calls.txt").open("a") as file:
    print("{name}", *sys.argv[1:], file=file)
if "{name}" == "sbatch":
    if (place / "refuse").exists():
        sys.exit("sbatch: error: invalid partition specified: nope")
    shutil.copy(sys.argv[1], place / "script.sh")
    print("Submitted batch job 4242")
if "{name}" == "sacct":
    print("JobID|State|NodeList")
    print((place / "states.txt").read_text())
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs that stand for SLURM's; calls.txt holds what they were asked."""
    place = tmp_path / "slurm"
    place.mkdir()
    for name in ("sbatch", "srun", "sacct", "scancel", "scontrol"):
        program = place / name
        program.write_text(PROGRAM.format(python=sys.executable, place=str(place), name=name))
        program.chmod(0o755)
    (place / "calls.txt").touch()
    (place / "states.txt").write_text("4242_[0-1]|PENDING|None")
    monkeypatch.setenv("PATH", f"{place}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    _said.clear()
    return place


def calls(slurm: Path, name: str) -> list[str]:
    return [line.strip() for line in (slurm / "calls.txt").read_text().splitlines() if line.split(" ")[0] == name]


def says(slurm: Path, states: str) -> None:
    (slurm / "states.txt").write_text(states)
    _said.clear()


def test_an_array_is_submitted_with_the_options_asked_for(
    slurm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plan.toml").write_text(PLAN.to_toml())
    folder = tmp_path / "lr sweep"
    asked = ["sweep", str(tmp_path / "plan.toml"), "--set", "recover.learning_rate=1e-2,3e-3", "--out", str(folder)]
    options = ["--slurm", "partition=gpu", "time=1-02:30:00", "mem=16G", "exclusive", "setup=module load cuda"]
    assert cli.main([*asked, "--engine", "slurm", "--parallel", "1", "--processes", "4", *options]) == 0
    said = capsys.readouterr().out
    assert (
        said.count("queued") == 3 and "plan-learning_rate=3e-3" in said and "job 4242_1 waits in SLURM's queue" in said
    )
    script = (slurm / "script.sh").read_text()
    flags = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", script, re.MULTILINE))
    expected = {"array": "0-1%1", "partition": "gpu", "time": "1590", "mem": "16G", "exclusive": "",
                "gpus-per-node": "4", "job-name": "lr-sweep", "signal": "USR2@90", "open-mode": "append"}  # fmt: skip
    assert {name: flags.get(name) for name in expected} == expected
    assert flags["output"] == f"'{folder}/jobs/%A_%a_0_log.out'"
    assert script.index("module load cuda") < script.index("srun --unbuffered")
    assert f"-m submitit.core._submit '{folder}/jobs'" in script
    state = sweep_status(folder)
    assert [one.job for one in state.runs] == ["4242_0", "4242_1"] and state.counts == {"queued": 2}
    with pytest.raises(CheckpointError, match="2 of its runs, such as plan-learning_rate=1e-2, run or wait"):
        mp.sweep([tmp_path / "plan.toml"], folder, ["recover.learning_rate=1e-2,3e-3"], "slurm")

    says(slurm, "4242_0|RUNNING|node1\n4242_1|NODE_FAIL|node2")
    assert [one.state for one in sweep_status(folder).runs] == ["running", "failed"]
    assert "SLURM says NODE_FAIL; see jobs/4242_1_0_log.err" in sweep_status(folder).runs[1].message
    says(slurm, "4242_[0-1]|PENDING|None")
    assert cli.main(["sweep", "cancel", str(folder)]) == 0
    assert calls(slurm, "scancel") == ["scancel 4242_0", "scancel 4242_1"]


def test_what_slurm_refuses_is_a_sentence(slurm: Path, tmp_path: Path) -> None:
    (slurm / "refuse").touch()
    with pytest.raises(MpvizError, match="SLURM did not take the jobs of"):
        mp.sweep([PLAN], tmp_path / "s", engine="slurm")
    assert sweep_status(tmp_path / "s").runs[0].job == ""


@pytest.mark.slow
def test_a_job_that_is_taken_away_keeps_its_last_step_is_queued_again_and_goes_on(slurm: Path, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    state = mp.sweep([PLAN], folder, ["budget.sparsity=0.9,0.95"], "slurm", slurm={"time": "60"})
    name = state.runs[0].name
    environment = {**os.environ, "SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "4243", "SLURM_ARRAY_JOB_ID": "4242",
                   "SLURM_ARRAY_TASK_ID": "0", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0",
                   "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1"}  # fmt: skip
    command = [sys.executable, "-u", "-m", "submitit.core._submit", str(folder / "jobs")]
    says(slurm, "4242_0|RUNNING|node1\n4242_1|PENDING|None")
    job = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        end = time.monotonic() + 120
        while not list((folder / name / "recovery").glob("step-*.safetensors")):
            assert job.poll() is None and time.monotonic() < end
            time.sleep(0.1)
        assert [one.state for one in sweep_status(folder).runs] == ["running", "queued"]
        os.killpg(job.pid, signal.SIGUSR2)  # as SLURM does it: every process of the job
        assert job.wait(120) != 0
    finally:
        job.kill()
    assert calls(slurm, "scontrol") == ["scontrol requeue 4242_0"]
    stopped = read_life(status_path(folder, name))
    assert stopped is not None and stopped.state == "stopped" and "goes on when it is begun again" in stopped.message
    says(slurm, "4242_0|PENDING|None\n4242_1|PENDING|None")
    assert sweep_status(folder).counts == {"queued": 2}
    assert list((folder / name / "recovery").glob("step-*.safetensors"))
    assert subprocess.run(command, env=environment, check=False, timeout=200).returncode == 0
    first = sweep_status(folder).runs[0]
    assert first.state == "done" and [row["phase"] for row in first.measured] == ["pruned", "recovered"]
