"""Whether the fields of an options record hold what their types say: options come from recipes and keyboards."""

from __future__ import annotations

import numbers
import types
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, Union, get_args, get_origin, get_type_hints

_NUMBERS = {int: numbers.Integral, float: numbers.Real}
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", tuple: "a list",
          Mapping: "a table", Callable: "a function", type(None): "none"}  # fmt: skip


def misfit(record: Any) -> str | None:
    """Half a sentence on the first field of a dataclass that holds another kind of value; None when all fit.

    >>> from mpviz.prune.magnitude import SEB
    >>> misfit(SEB(beta="strong"))
    "beta = 'strong'; give a number"
    """
    hints = get_type_hints(type(record))
    for field in fields(record):
        value, wanted = getattr(record, field.name), hints[field.name]
        if not _fits(value, wanted):
            return f"{field.name} = {value!r}; give {_words(wanted)}"
    return None


def _fits(value: Any, wanted: Any) -> bool:
    origin, inside = get_origin(wanted), get_args(wanted)
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in inside)
    if origin is tuple:
        return isinstance(value, tuple | list) and all(_fits(one, inside[0]) for one in value)
    if origin is Mapping:
        return isinstance(value, Mapping) and all(_fits(one, inside[1]) for one in value.values())
    if origin is Callable:
        return callable(value)
    if wanted in _NUMBERS:
        return isinstance(value, _NUMBERS[wanted]) and not isinstance(value, bool)
    return isinstance(value, wanted)


def _words(wanted: Any) -> str:
    if get_origin(wanted) in (Union, types.UnionType):
        return " or ".join(_words(one) for one in get_args(wanted))
    if get_origin(wanted) is tuple:
        return f"a list of {_WORDS.get(get_args(wanted)[0], 'values').removeprefix('a ')}s"
    kind = get_origin(wanted) or wanted
    return _WORDS.get(kind, getattr(kind, "__name__", "another value"))
