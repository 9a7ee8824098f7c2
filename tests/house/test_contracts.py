"""The floors of the house, held by import contracts, and what the contracts cannot see: sizes, names, dependencies."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted((ROOT / "mpviz").rglob("*.py"))
LONGEST_MODULE = 350  # lines; about 300 is the intent
LONGEST_FUNCTION = 60  # lines: a function fits a screen

# One trespass for each contract: a module, and an import that its contract forbids.
TRESPASSES = {
    "A floor imports only floors below": ("prune/masks.py", "import mpviz.certificates.margins"),
    "The numeric core draws nothing": ("nets/layers.py", "import plotly"),
    "A plan runs without a screen": ("recipe.py", "import param"),
    "The state drives without a screen": ("workbench/state.py", "import plotly"),
    "Random matrix theory needs numpy and scipy only": ("rmt/law.py", "import torch"),
    "The ui gets plain results: no torch": ("ui/figures.py", "import torch"),
    "Only ui.widgets imports the notebook's toolkit": ("ui/report.py", "import ipywidgets"),
    "Only ui.dashboard imports panel": ("ui/widgets/__init__.py", "import panel"),
    "Only nets.timm_import imports timm": ("nets/zoo.py", "import timm"),
    "Notebook, dashboard and report never import one another": ("ui/widgets/__init__.py", "import mpviz.ui.report"),
}


def _lint_imports(folder: Path) -> str:
    program = Path(sys.executable).with_name("lint-imports")
    paths = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run([program, "--no-cache"], cwd=folder, env=paths, capture_output=True, text=True, timeout=120)
    return done.stdout + done.stderr


def test_the_contracts_are_kept() -> None:
    report = _lint_imports(ROOT)
    assert re.search(r"Contracts: \d+ kept, 0 broken", report), report


def test_each_contract_catches_a_trespass(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "mpviz", tmp_path / "mpviz", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for module, line in TRESPASSES.values():
        with (tmp_path / "mpviz" / module).open("a") as file:
            file.write(f"\n{line}\n")
    report = _lint_imports(tmp_path)
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    assert {contract["name"] for contract in contracts} == set(TRESPASSES)
    missed = [name for name in TRESPASSES if f"{name} BROKEN" not in report]
    assert not missed, report


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_is_one_room(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= LONGEST_MODULE
    functions = (n for n in ast.walk(ast.parse(text)) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef)))
    long = {node.name: n for node in functions if (n := node.end_lineno - node.lineno + 1) > LONGEST_FUNCTION}
    assert not long, "functions of more lines than a screen"


def test_every_folder_of_modules_is_a_package() -> None:
    assert not [path.parent for path in MODULES if not (path.parent / "__init__.py").exists()]


def test_no_package_binds_a_name_of_one_of_its_submodules() -> None:
    # After `from mpviz.prune.allocate import allocate` in a package's __init__, mpviz.prune.allocate would be
    # the function or the module, by the order of imports.
    clashes = []
    for init in (path for path in MODULES if path.name == "__init__.py"):
        inside = {path.stem for path in init.parent.glob("*.py")} | {path.parent.name for path in _packages(init)}
        clashes += [f"{init.relative_to(ROOT)}: {name}" for name in _bound_names(init) if name in inside]
    assert not clashes


def _packages(init: Path) -> list[Path]:
    return list(init.parent.glob("*/__init__.py"))


def _bound_names(path: Path) -> set[str]:
    """Names that a module's top level defines or imports; what it lists in ``__all__`` as well."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            names |= set(ast.literal_eval(node.value))
    return names


def _imports(tree: ast.Module, inside_functions: bool) -> set[str]:
    """Packages from elsewhere that a module imports, those for type checkers left out."""
    found: set[str] = set()
    todo: list[ast.AST] = list(tree.body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo += node.orelse
        elif inside_functions or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            todo += ast.iter_child_nodes(node)
    return found - sys.stdlib_module_names - {"mpviz"}


def _declared(*extras: str) -> set[str]:
    """What is there after an installation with these extras, by the names that are imported."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + [line for extra in extras for line in project["optional-dependencies"][extra]]
    names = {Requirement(line).name.removesuffix("-cuda13x") for line in lines}
    brings = {"ipywidgets": {"IPython", "traitlets"}, "panel": {"bokeh", "tornado"}, "timm": {"torchvision", "PIL"},
              "nvidia-ml-py": {"pynvml"}}  # fmt: skip
    return names.union(*(brings.get(name, set()) for name in names))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_module_imports_is_declared(path: Path) -> None:
    tree = ast.parse(path.read_text())
    place = path.relative_to(ROOT).with_suffix("").parts[1:]
    on_import, ever = _imports(tree, inside_functions=False), _imports(tree, inside_functions=True)
    if place[0] in ("errors", "files"):
        assert not ever
    elif place[0] == "rmt":
        assert ever <= {"numpy", "scipy"}
    elif place[:2] == ("ui", "widgets") or (place[0] == "ui" and place[1:] and place[1].startswith("dashboard")):
        assert on_import <= _declared("lab")
    else:
        assert on_import <= _declared()
    assert ever <= _declared("lab", "train", "sweep", "gpu", "pretrained")
