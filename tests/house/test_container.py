"""The Containerfile fits pyproject.toml, environment.yml and the command it starts. No image is built here."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from mpviz import cli
from mpviz.workbench.policy import is_local


@pytest.fixture(scope="module")
def lines(root: Path) -> list[tuple[str, str]]:
    """[(instruction, what follows)], continued lines joined."""
    text = re.sub(r"\\\n\s*", " ", (root / "Containerfile").read_text())
    found = [line.split(None, 1) for line in text.splitlines() if line.strip() and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Z]+", one[0]) for one in found)
    return [(one[0], one[1]) for one in found]


def of(lines: list[tuple[str, str]], instruction: str) -> list[str]:
    return [rest for name, rest in lines if name == instruction]


@pytest.fixture(scope="module")
def project(root: Path) -> dict:
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]


def test_its_python_is_one_that_mpviz_and_conda_take(lines: list[tuple[str, str]], project: dict, root: Path) -> None:
    (image,) = of(lines, "FROM")
    name, _, tag = image.partition(":")
    version = re.fullmatch(r"(\d+\.\d+)-slim", tag)
    assert name == "python" and version and SpecifierSet(project["requires-python"]).contains(version[1])
    conda = yaml.safe_load((root / "environment.yml").read_text())["dependencies"]
    python = next(Requirement(one) for one in conda if isinstance(one, str) and one.startswith("python>"))
    assert python.specifier.contains(version[1])


def test_it_installs_the_extra_of_the_dashboard_with_our_versions(
    lines: list[tuple[str, str]], project: dict, root: Path
) -> None:
    install = next(one for one in of(lines, "RUN") if one.startswith("pip install"))
    extras = re.search(r"'\.\[([\w,]+)\]'", install)
    assert extras and set(extras[1].split(",")) <= set(project["optional-dependencies"]) and "lab" in extras[1]
    assert "-c constraints.txt" in install
    lab = {Requirement(one).name for one in project["optional-dependencies"]["lab"]}
    pins = {line.split("==")[0] for line in (root / "constraints.txt").read_text().splitlines() if "==" in line}
    conda = yaml.safe_load((root / "environment.yml").read_text())["dependencies"]
    assert {"panel", "tornado"} <= lab <= pins
    assert lab <= {Requirement(one).name for one in conda if isinstance(one, str)}


def test_what_it_copies_is_there_and_all_that_the_build_needs(
    lines: list[tuple[str, str]], project: dict, root: Path
) -> None:
    copied = [word for rest in of(lines, "COPY") for word in rest.split()[:-1]]
    assert all((root / word).exists() for word in copied)
    needed = {"pyproject.toml", "mpviz", "data", "constraints.txt", project["readme"], *project["license-files"]}
    assert needed <= set(copied)


def test_it_runs_as_nobody_of_importance(lines: list[tuple[str, str]]) -> None:
    names = [name for name, _ in lines]
    (user,) = of(lines, "USER")
    assert user not in ("root", "0") and any(
        one.startswith("useradd --create-home") and one.endswith(f" {user}") for one in of(lines, "RUN")
    )
    assert names.index("USER") < names.index("CMD"), "and is that before anything is started"


def test_its_command_is_one_that_mpviz_takes(lines: list[tuple[str, str]]) -> None:
    command, *options = json.loads(of(lines, "CMD")[-1])
    assert command == "mpviz"
    arguments = cli._parser().parse_args(options)
    assert not is_local(arguments.address) and arguments.public and not arguments.any_file
    assert [str(arguments.port)] == of(lines, "EXPOSE")
    (health,) = of(lines, "HEALTHCHECK")
    assert f"http://127.0.0.1:{arguments.port}/health" in health
    assert json.loads(health[health.index("[") :])[0] == "python"
    compile(json.loads(health[health.index("[") :])[2], "HEALTHCHECK", "exec")
    assert of(lines, "STOPSIGNAL") == ["SIGTERM"]


def test_the_options_that_its_words_and_the_readme_name_exist(root: Path) -> None:
    readme = (root / "README.md").read_text()
    section = readme.split("## On a server")[1].split("\n## ")[0]
    known = cli._parser()._subparsers._group_actions[0].choices["dashboard"].format_help()  # type: ignore[union-attr]
    named = set(re.findall(r"--[a-z][a-z-]+", section + (root / "Containerfile").read_text()))
    own = {"--no-cache-dir", "--create-home", "--home-dir", "--uid", "--interval", "--timeout", "--start-period"}
    assert len(named - own) >= 12
    assert all(re.search(rf"{option}\b", known) for option in named - own)
