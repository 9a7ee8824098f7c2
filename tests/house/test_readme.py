"""The README's code runs, its tables are the committed numbers, and what it points at is there."""

import importlib.util
import re

import pytest


@pytest.fixture
def text(root):
    return (root / "README.md").read_text(encoding="utf-8")


def test_its_python_runs_and_says_a_share(text, capsys):
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    assert len(code.strip().splitlines()) == 5 and text[: text.index("```python")].count("\n") < 30
    exec(compile(code, "README", "exec"), {})
    assert 0.2 < float(capsys.readouterr().out) <= 1.0


def test_its_tables_are_made_from_the_files(text, root):
    path = root / "tests" / "benchmarks" / "readme_tables.py"
    spec = importlib.util.spec_from_file_location("readme_tables", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.filled(text) == text, "run python tests/benchmarks/readme_tables.py"
    assert text.count("| fashion-") >= 8


def test_its_pictures_and_files_exist(text, root):
    for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text):
        assert (root / path).stat().st_size < 500_000
    for path in re.findall(r"`((?:data|tests|notebooks)/[\w./-]+)`", text):
        assert (root / path).exists(), path


def test_the_new_names_for_old_ones_are_columns_of_analyze(text):
    from mpviz.nets.table import COLUMNS

    section = text.split("## Coming from WeightWatcher")[1].split("\n## ")[0]
    rows = [line.split("|")[2] for line in section.splitlines() if line.startswith("| `")]
    named = {name for cell in rows for name in re.findall(r"`(\w+)`", cell)}
    assert len(named) >= 14 and named <= set(COLUMNS)
