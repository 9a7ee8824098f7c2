"""Files that the dashboard makes of a Workbench, and the one that it takes.

Sessions are imported where they are used: they come with torch, for which the page does not wait.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpviz.errors import RecipeError

if TYPE_CHECKING:
    from mpviz.workbench.state import Workbench


def checkpoint(wb: Workbench) -> bytes:
    """The pruned network. Raises ModelError where nothing is pruned yet."""
    with tempfile.TemporaryDirectory(prefix="mpviz-") as folder:
        return wb.save(Path(folder) / "pruned.safetensors").read_bytes()


def session(wb: Workbench) -> bytes:
    """All that is set, as JSON."""
    from mpviz.workbench.session_file import session_text

    return session_text(wb.state).encode()


def read_session(value: bytes) -> dict[str, Any]:
    """The state in a session's file that was uploaded. Raises RecipeError for anything else."""
    from mpviz.workbench.session_file import parse_session

    try:
        return parse_session(value.decode())
    except UnicodeDecodeError as error:
        raise RecipeError("this is no session of mpviz; open a file that was saved as one") from error


def recipe(wb: Workbench) -> bytes:
    """The whole plan as TOML. Raises ModelError for a network without a name."""
    return wb.export_recipe().encode()
