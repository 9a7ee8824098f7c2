"""A notebook's view without a notebook: its parts, and what becomes so after a while."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ipywidgets as w


def parts(view: w.Widget, kind: type) -> list[Any]:
    """All widgets of a kind inside a view, from the top left."""
    found = [view] if isinstance(view, kind) else []
    for child in getattr(view, "children", ()):
        found += parts(child, kind)
    return found


def eventually(check: Callable[[], Any], seconds: float = 10.0) -> Any:
    """What `check` gives once it is true; fails after so many seconds."""
    end = time.monotonic() + seconds
    while not (value := check()):
        assert time.monotonic() < end, "it did not become so"
        time.sleep(0.02)
    return value
