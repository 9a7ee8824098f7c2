"""The shell of a page that is one file: head, style, plotly.js and the drawn figures."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from typing import Any

from mpviz import __version__
from mpviz.ui import text
from mpviz.ui.css import read_shared
from mpviz.ui.theme import FONT, palette


def filled_page(body: str, parts: Mapping[str, str], figures: Any, theme: str) -> str:
    """The page whose body is the file `body` of this folder, each {{mark}} replaced by its part: HTML that is safe.

    figures: JSON data for the page's script. Raises MpvizError for an unknown theme.
    """
    shared = {
        "theme": theme,
        "colours": _colours(theme),
        "font": FONT,
        "plotly": (files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8"),
        "figures": _embedded(figures),
    }
    both = shared | dict(parts)
    # one pass: what a part holds is never read for further marks
    return re.sub(r"\{\{(\w+)\}\}", lambda mark: both[mark.group(1)], _template(body))


def footer(when: datetime) -> str:
    """When the page was made and by which versions, escaped."""
    versions = [f"mpviz {__version__}", f"Python {platform.python_version()}"]
    for package in ("torch", "timm", "numpy", "plotly"):
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:  # vendored or unpacked by hand
            continue
    return text.escape(f"{when:%Y-%m-%d %H:%M %Z} · " + ", ".join(versions))


@cache
def _template(body: str) -> str:
    return read_shared("page.html").replace("{{page}}", read_shared(body))


def _colours(theme: str) -> str:
    colours = palette(theme)
    names = {name: getattr(colours, name) for name in ("paper", "ink", "muted", "axis", "grid")}
    return " ".join(f"--{name}: {value};" for name, value in (names | {"focus": colours.measured.line}).items())


def _embedded(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
