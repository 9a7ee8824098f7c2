"""pyproject.toml, environment.yml and constraints.txt say the same."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

CONDA_NAMES = {"torch": "pytorch", "cupy-cuda13x": "cupy", "xxhash": "python-xxhash"}
FOR_PEOPLE = ("lab", "train", "gpu")  # the extras that environment.yml carries


@pytest.fixture(scope="module")
def project(root: Path) -> dict:
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def conda(root: Path) -> dict:
    return yaml.safe_load((root / "environment.yml").read_text())


def _requirements(project: dict, *extras: str) -> list[Requirement]:
    lines = project["dependencies"] + [line for extra in extras for line in project["optional-dependencies"][extra]]
    return [Requirement(line) for line in lines]


def test_environment_has_the_names_and_ranges_of_pyproject(project: dict, conda: dict) -> None:
    expected = {CONDA_NAMES.get(r.name, r.name): r.specifier for r in _requirements(project, *FOR_PEOPLE)}
    lines = [Requirement(line) for line in conda["dependencies"] if isinstance(line, str)]
    found = {line.name: line.specifier for line in lines if line.name not in ("python", "pip")}
    assert found == expected


def test_environment_asks_for_the_same_python_and_installs_mpviz_itself(project: dict, conda: dict) -> None:
    assert f"python{project['requires-python']}" in conda["dependencies"]
    assert {"pip": ["-e ."]} in conda["dependencies"]
    assert conda["name"] == project["name"] and conda["channels"] == ["conda-forge"]


def test_constraints_are_exact_and_within_the_ranges(root: Path, project: dict) -> None:
    lines = [line.split("#")[0].strip() for line in (root / "constraints.txt").read_text().splitlines()]
    pins = {pin.name: pin for pin in map(Requirement, filter(None, lines))}
    assert all(re.fullmatch(r"==[^,*]+", str(pin.specifier)) for pin in pins.values())
    for wanted in _requirements(project, "lab", "train", "test"):
        assert wanted.name in pins, f"{wanted.name} has no exact version"
        version = str(pins[wanted.name].specifier).removeprefix("==")
        assert wanted.specifier.contains(version), f"{wanted} leaves out {version}"
    assert {"torch", "torchvision"} <= set(pins)  # unpinned, torchvision would take a torch of its own liking


def test_the_gpu_extras_are_apart(project: dict) -> None:
    extras = project["optional-dependencies"]
    assert {"lab", "gpu", "test"} <= set(extras)
    rest = [line for name, lines in extras.items() if not name.startswith("gpu") for line in lines]
    assert not [line for line in rest + project["dependencies"] if "cupy" in line or "nvidia" in line]
