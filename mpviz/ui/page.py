"""The shell of a page that is one file: head, style, plotly.js and the drawn figures."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from mpviz import __version__
from mpviz.ui import text
from mpviz.ui.css import read_shared
from mpviz.ui.theme import FONT, palette

PAGES = (
    ("run", "Runs"), ("compare", "Compare methods"), ("patterns", "Patterns"), ("bench", "2:4 benchmark"),
    ("sweep", "Sweeps"),
)  # fmt: skip


def filled_page(body: str, parts: Mapping[str, str], figures: Any, theme: str, asks: bool = False) -> str:
    """The page whose body is the file `body` of this folder, each {{mark}} replaced by its part: HTML that is safe.

    figures: JSON data for the page's script. asks: whether the page may ask the server that it came from; others ask
    nobody. Raises MpvizError for an unknown theme.
    """
    shared = {
        "theme": theme,
        "asks": "; connect-src 'self'" if asks else "",
        "colours": _colours(theme),
        "font": FONT,
        "plotly": (files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8"),
        "figures": _embedded(figures),
        "print": read_shared("print.js"),
    }
    both = shared | dict(parts)
    # one pass: what a part holds is never read for further marks
    return re.sub(r"\{\{(\w+)\}\}", lambda mark: both[mark.group(1)], _template(body))


def pages_nav(own: str, asked: Mapping[str, str], theme: str, more: str = "") -> str:
    """Links to the other pages of the dashboard, and to the page `own` as it was asked for, in other colours.

    more: links of the page's own, as HTML that is safe.
    """
    other = "light" if theme == "dark" else "dark"
    links = [f'<a href="./{place}?{urlencode({"theme": theme})}">{words}</a>' for place, words in PAGES if place != own]
    links.append(f'<a href="?{text.escape(urlencode({**asked, "theme": other}))}">{other} colours</a>')
    return f'<nav aria-label="Pages"><a href="./">Workbench</a>{more}{"".join(links)}</nav>'


def named_folders(folders: Sequence[Path]) -> dict[str, Path]:
    """Folders by the last part of their path, numbered where it is not the only one; the rest is nobody's business."""
    found: dict[str, Path] = {}
    for folder in folders:
        name, number = folder.resolve().name, 2
        while name in found:
            name, number = f"{folder.resolve().name} ({number})", number + 1
        found[name] = folder
    return found


def choice_form(
    choices: Mapping[str, Sequence[str]], asked: Mapping[str, str], shown: Callable[[str], str] = str
) -> str:
    """A form that asks for the page again. choices: what each field offers; asked: what they stand at, and the theme.

    shown: how an offer is called.
    """
    fields = []
    for name, known in choices.items():
        options = "".join(
            f'<option value="{text.escape(one)}"{" selected" if one == asked[name] else ""}>'
            f"{text.escape(shown(one))}</option>"
            for one in known
        )
        fields.append(f'<label for="{name}">{name}</label><select id="{name}" name="{name}">{options}</select>')
    hidden = f'<input type="hidden" name="theme" value="{text.escape(asked["theme"])}">'
    return f'<form class="tools" method="get">{"".join(fields)}{hidden}<button>show</button></form>'


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
