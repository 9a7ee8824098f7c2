"""Values of a recipe: checked against the fields of a dataclass, and written as TOML."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from numbers import Integral, Real
from pathlib import PurePath
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from mpviz.errors import RecipeError, nearest

Plan = TypeVar("Plan")
_WORDS = {tuple: "list", Mapping: "dict"}  # what a TOML file holds in their place


def built(cls: type[Plan], given: Any, where: str) -> Plan:
    """A dataclass from a table of keys, each value of the type that its field names.

    where: the table's own key, "" for the whole recipe. Whole numbers stand for floats, lists for tuples. Raises
    RecipeError for something else than a table, unknown keys (with the nearest) and wrong types.
    """
    if not isinstance(given, Mapping):
        raise RecipeError(f"[{where}] must be a table of keys; got {type(given).__name__}")
    known = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    hints = get_type_hints(cls)
    values = {}
    for key, value in given.items():
        name = f"{where}.{key}" if where else key
        if key not in known:
            raise RecipeError(f"unknown recipe key '{name}'; {nearest(key, known) if known else 'there is none'}")
        values[key] = _typed(hints[key], value, name)
    return cls(**values)


def _typed(hint: Any, value: Any, name: str) -> Any:
    if get_origin(hint) in (Union, UnionType):  # of one type and None
        return None if value is None else _typed(get_args(hint)[0], value, name)
    if is_dataclass(hint):
        return built(hint, value, name)  # type: ignore[arg-type]
    wanted = get_origin(hint) or hint
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError as error:
            raise RecipeError(f"recipe key '{name}' is too large a number") from error
    if not isinstance(value, (list, tuple) if wanted is tuple else wanted) or (
        wanted in (int, float) and isinstance(value, bool)
    ):
        raise RecipeError(f"recipe key '{name}' must be {_WORDS.get(wanted, wanted.__name__)}; got {value!r}")
    inner: tuple[Any, ...] = get_args(hint)
    if wanted in (list, tuple):
        return wanted(_typed(inner[0], v, f"{name}[{i}]") for i, v in enumerate(value))
    if isinstance(value, Mapping) and inner[-1] is not Any:
        return {k: _typed(inner[1], v, f"{name}.{k}") for k, v in value.items()}
    return value


def toml_section(path: tuple[str, ...], values: Mapping[str, Any]) -> str:
    """A table of TOML and those below it. Raises RecipeError for a value that TOML cannot hold."""
    lines = ["[" + ".".join(map(_key, path)) + "]"]
    empty = [key for key, value in values.items() if isinstance(value, Mapping) and not value]
    lines += [f"{_key(k)} = {{}}" if k in empty else f"{_key(k)} = {_value(v)}" for k, v in values.items()
              if k in empty or not isinstance(v, Mapping)]  # fmt: skip
    text = "\n".join(lines) + "\n"
    for key, inner in values.items():
        if isinstance(inner, Mapping) and inner:
            text += "\n" + toml_section((*path, key), inner)
    return text


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Integral):
        return repr(int(value))
    if isinstance(value, Real):
        return repr(float(value))
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value(v) for v in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + "}"
    if not isinstance(value, (str, PurePath)):
        raise RecipeError(f"a recipe holds text, numbers, true, false, lists and tables; got {value!r}")
    return '"' + "".join(_escaped(letter) for letter in str(value)) + '"'


def _escaped(letter: str) -> str:
    if 0xD800 <= ord(letter) < 0xE000:
        raise RecipeError(f"a recipe is UTF-8 text, which cannot hold {letter!r}; rename the file or folder")
    if ord(letter) < 32 or ord(letter) == 127:
        return f"\\u{ord(letter):04X}"
    return "\\" + letter if letter in '\\"' else letter


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _value(key)
