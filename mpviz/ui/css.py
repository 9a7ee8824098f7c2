"""The palettes as CSS variables, and files of style and script that both faces share."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from mpviz.ui.theme import FONT, Colour, Palette, faint

HERE = Path(__file__).parent


def variables(colours: Palette) -> str:
    """--font, --paper, --bulk-fill …: one variable for each colour of a theme.

    Beside them --quiet for surfaces that step back, --quiet-solid the same where nothing may shine through, and
    --chosen for what is selected.
    """
    lines = {
        "font": FONT,
        "quiet": faint(colours.grid, 0.45),
        "quiet-solid": blend(colours.grid, colours.paper, 0.45),
        "chosen": blend(colours.measured.fill, colours.paper, 0.1),  # each text colour keeps 4.5 on it
    }
    for part in fields(colours):
        value = getattr(colours, part.name)
        if isinstance(value, Colour):
            lines |= {f"{part.name}-{use.name}": getattr(value, use.name) for use in fields(value)}
        else:
            lines[part.name] = value
    return "".join(f"--{name}:{value};" for name, value in lines.items())


def blend(over: str, under: str, share: float) -> str:
    """This share of one hex colour over another, as a hex colour.

    >>> blend("#000000", "#FFFFFF", 0.5)
    '#808080'
    """
    pairs = ((int(over[i : i + 2], 16), int(under[i : i + 2], 16)) for i in (1, 3, 5))
    return "#" + "".join(f"{round(share * a + (1 - share) * b):02X}" for a, b in pairs)


def read_shared(*names: str) -> str:
    """The text of style sheets or scripts in this folder, one after the other."""
    return "\n".join((HERE / name).read_text(encoding="utf-8") for name in names)
