"""The commands that the README promises exist, and CI runs the same ones."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

TARGETS = ["setup", "dashboard", "lab", "notebooks", "docs", "test", "check", "bench", "clean", "help"]


def _make(root: Path, *words: str) -> str:
    # A make that runs the tests hands its flags down; this one has its own.
    clean = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    done = subprocess.run(["make", *words], cwd=root, env=clean, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_exists_and_help_names_it(root: Path, target: str) -> None:
    assert re.search(rf"^{target}:.*## \S", (root / "Makefile").read_text(), re.MULTILINE)
    assert re.search(rf"make {target} ", _make(root, "help"))


def test_targets_install_what_they_need(root: Path, tmp_path: Path) -> None:
    """In a clone without .venv each target first makes it, from the constraints."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(root / name, tmp_path)
    for target in ("setup", "dashboard", "lab", "notebooks", "docs", "test", "check", "bench"):
        plan = _make(tmp_path, "--dry-run", target)
        assert "-m venv .venv" in plan and "-c constraints.txt -e '.[lab" in plan, target
    assert ".ci/browser" in _make(tmp_path, "--dry-run", "test")


def test_the_site_and_the_notebooks_are_made_as_they_say(root: Path) -> None:
    assert "mkdocs build --strict" in _make(root, "--dry-run", "docs")
    plan = _make(root, "--dry-run", "notebooks")
    assert "MPVIZ_FULL=1" in plan and "--output-dir runs/notebooks notebooks/*.ipynb" in plan
    ignored = (root / ".gitignore").read_text().splitlines()
    assert {"site/", "runs/"} <= set(ignored)


def test_the_dashboard_takes_a_port(root: Path) -> None:
    assert "mpviz dashboard --port 5006" in _make(root, "--dry-run", "dashboard")
    assert "mpviz dashboard --port 6001" in _make(root, "--dry-run", "dashboard", "PORT=6001")


def test_ci_runs_make_test(root: Path) -> None:
    script = root / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text().splitlines()[-1] == "make test"
    subprocess.run(["bash", "-n", script], check=True)


def _look_for_browser(root: Path, machine: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the script on a machine that has only the programs in the folder `machine`, bash and cat."""
    for tool in ("bash", "cat"):
        (machine / tool).symlink_to(shutil.which(tool))
    script = ["bash", root / ".ci" / "browser"]
    return subprocess.run(script, env={"PATH": str(machine), **variables}, capture_output=True, text=True, timeout=60)


def _program(path: Path, text: str) -> None:
    path.write_text(f"#!{shutil.which('bash')}\n{text}\n")
    path.chmod(0o755)


@pytest.mark.parametrize("ci", ["true", ""])
def test_a_missing_browser_fails_in_ci_only_and_says_how(root: Path, tmp_path: Path, ci: str) -> None:
    done = _look_for_browser(root, tmp_path, CI=ci)
    assert "apt-get install chromium" in done.stderr
    assert done.returncode == (1 if ci else 0)


def test_the_browser_comes_through_apt_where_it_may(root: Path, tmp_path: Path) -> None:
    _program(tmp_path / "id", "echo 0")
    _program(tmp_path / "apt-get", f"echo apt-get $* >> {tmp_path}/said")
    assert _look_for_browser(root, tmp_path, CI="true").returncode == 0
    update, install = (tmp_path / "said").read_text().splitlines()
    assert "update" in update and install.endswith("chromium")


def test_a_browser_that_is_there_is_used(root: Path, tmp_path: Path) -> None:
    _program(tmp_path / "browser", "exit 0")
    assert _look_for_browser(root, tmp_path, CI="true", MPVIZ_CHROMIUM=str(tmp_path / "browser")).returncode == 0
