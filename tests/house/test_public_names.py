"""The public names: each resolves, and the three lists that hold them agree."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import mpviz


@pytest.mark.parametrize("name", mpviz.__all__)
def test_a_public_name_resolves_to_something_documented(name: str) -> None:
    assert getattr(mpviz, name).__doc__


def test_the_lists_of_names_agree(root: Path) -> None:
    tree = ast.parse((root / "mpviz" / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))  # if TYPE_CHECKING
    typed = {alias.name: line.module for line in block.body if isinstance(line, ast.ImportFrom) for alias in line.names}
    assert typed == mpviz._HOMES
    assert sorted(mpviz.__all__) == sorted(typed)
    assert set(mpviz.__all__) <= set(dir(mpviz))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="load_modell"):
        _ = mpviz.load_modell
