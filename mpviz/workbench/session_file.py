"""What is set on a workbench, as plain values: in an address, in a file, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import param

from mpviz import __version__
from mpviz.errors import RecipeError, nearest
from mpviz.files import write_text
from mpviz.workbench.names import STATE
from mpviz.workbench.settings import Settings

FORMAT = 1
LARGEST = 2**20  # bytes of a session's file


def checked_state(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same values, each of the type and within the bounds of its setting.

    Raises RecipeError for a name that is no setting (with the nearest) and for values that a setting cannot have.
    """
    found = {}
    for name, value in values.items():
        if name not in STATE:
            raise RecipeError(f"unknown setting '{name}'; {nearest(str(name), STATE)}")
        found[name] = _checked_folder(value) if name == "folder" else _checked(name, value)
    return found


def _checked_folder(value: Any) -> str:
    if not isinstance(value, str):
        raise RecipeError(f"the setting 'folder' is a path; got {value!r}")
    return value


def _checked(name: str, value: Any) -> Any:
    known = Settings.param[name]
    if type(value) is int and isinstance(known, param.Number) and not isinstance(known, param.Integer):
        value = float(value)
    bounds = getattr(known, "bounds", None)
    if bounds and type(value) in (int, float):
        low, high = bounds
        if not (low <= value and (high is None or value <= high)):
            within = f"at least {low}" if high is None else f"between {low} and {high}"
            raise RecipeError(f"the setting '{name}' must be {within}; got {value}")
    try:
        Settings(**{name: value})
    except (ValueError, TypeError) as error:
        choices = getattr(known, "objects", None)
        wanted = " or ".join(map(repr, choices)) if choices else type(known).__name__.lower()
        raise RecipeError(f"the setting '{name}' must be {wanted}; got {value!r}") from error
    return value


def from_query(query: str | Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The state that `to_query` wrote. Raises RecipeError, as `checked_state`, and for a value that cannot be read."""
    asked = parse_qs(query.removeprefix("?"), keep_blank_values=True) if isinstance(query, str) else query
    found: dict[str, Any] = {}
    for name, texts in asked.items():
        if name not in STATE:
            raise RecipeError(f"unknown setting '{name}' in the address; {nearest(name, STATE)}")
        known = None if name == "folder" else Settings.param[name]
        found[name] = _read(name, known, [str(text) for text in texts])
    return checked_state(found)


def _read(name: str, known: Any, texts: list[str]) -> Any:
    if isinstance(known, param.List):
        return [text for text in texts if text]
    if len(texts) != 1:
        raise RecipeError(f"the address says '{name}' {len(texts)} times; once is enough")
    text = texts[0]
    try:
        if isinstance(known, param.Boolean):
            return {"true": True, "false": False}[text.lower()]
        if isinstance(known, param.Integer):
            return int(text)
        if isinstance(known, param.Number):
            return float(text)
    except (ValueError, KeyError) as error:
        raise RecipeError(f"the address says '{name}={text}', which is no {type(known).__name__.lower()}") from error
    return text


def session_text(state: Mapping[str, Any]) -> str:
    """A session's file as JSON text."""
    return json.dumps({"mpviz session": FORMAT, "version": __version__, "state": dict(state)}, indent=1) + "\n"


def parse_session(text: str) -> dict[str, Any]:
    """The state in a session's file. Raises RecipeError for a text that is none, or of another format."""
    if len(text) > LARGEST:
        raise RecipeError(f"a session's file is smaller than {LARGEST // 2**20} MiB; this one has {len(text)} bytes")
    try:
        found = json.loads(text)
        made = found["mpviz session"]
        state = found["state"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RecipeError("this is no session of mpviz; open a file that was saved as one") from error
    if made != FORMAT:
        raise RecipeError(f"the session has format {made}, this version reads {FORMAT}; save it again")
    if not isinstance(state, dict):
        raise RecipeError("this is no session of mpviz; its state is no table of settings")
    return checked_state(state)


def write_session(path: str | Path, state: Mapping[str, Any]) -> Path:
    """Write a session's file, whole or not at all. Raises RecipeError where that fails."""
    path = Path(path)
    try:
        write_text(path, session_text(state))
    except OSError as error:
        raise RecipeError(f"cannot write {path}: {error}; nothing was changed") from error
    return path


def read_session(path: str | Path) -> dict[str, Any]:
    """The state in a session's file. Raises RecipeError when it is missing or wrong."""
    path = Path(path)
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(LARGEST + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read the session {path}: {error}") from error
    try:
        return parse_session(text)
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from error
