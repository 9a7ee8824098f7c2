"""``import mpviz`` is quick, and loads what is heavy only when a name that needs it is used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HEAVY = ["torch", "timm", "numpy", "scipy", "pandas", "param", "plotly", "panel", "bokeh", "ipywidgets", "IPython"]


def _python(root: Path, code: str) -> str:
    """What `code` prints in an interpreter of its own: the one that runs the tests has loaded everything already."""
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _loaded_by(root: Path, code: str) -> set[str]:
    return set(_python(root, f"import sys\n{code}\nprint(*[m for m in {HEAVY!r} if m in sys.modules])").split())


def test_import_loads_nothing_heavy(root: Path) -> None:
    assert _loaded_by(root, "import mpviz; dir(mpviz); mpviz.MpvizError; mpviz.__version__") == set()


def test_random_matrix_theory_loads_numpy_and_scipy_only(root: Path) -> None:
    assert _loaded_by(root, "import mpviz; mpviz.MarchenkoPastur, mpviz.fit_bulk") <= {"numpy", "scipy"}


def test_the_numeric_core_and_the_state_load_no_toolkit(root: Path) -> None:
    toolkits = {"plotly", "panel", "bokeh", "ipywidgets", "IPython"}
    assert not toolkits & _loaded_by(root, "import mpviz; mpviz.analyze, mpviz.certify, mpviz.run, mpviz.Workbench")


def test_the_command_line_answers_help_without_torch(root: Path) -> None:
    code = """
import contextlib, io, mpviz.cli
with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
    mpviz.cli.main(["--help"])
assert "analyze" in said.getvalue()"""
    assert not {"torch", "plotly", "panel", "ipywidgets"} & _loaded_by(root, code)
