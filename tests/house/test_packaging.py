"""An installation that is not editable has the bundled networks and data too."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_wheel_carries_the_data(root: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("mpviz-*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    data = root / "data"
    bundled = {f"mpviz/_data/{path.relative_to(data).as_posix()}" for path in data.rglob("*") if path.is_file()}
    assert bundled <= inside
    assert {"mpviz/__init__.py", "mpviz/py.typed"} <= inside
    assert not [name for name in inside if name.startswith(("tests/", "data/", "notebooks/"))]
