"""Colours by meaning (Okabe–Ito), light and dark, and the plotly settings that every figure shares.

A meaning keeps its fill in both themes. Sky blue and orange are too light to be seen on white by themselves, so each
meaning also has a line colour (contrast with the page ≥ 3) for outlines and strokes and a text colour (≥ 4.5).
Bulk and spikes are equally bright: in grey print they differ by hatching and by shape, never by colour alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mpviz.errors import MpvizError, nearest

Json = dict[str, Any]

FONT = "Inter, -apple-system, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif"


@dataclass(frozen=True)
class Colour:
    """One meaning: fill of areas and marks, line of outlines and strokes, text for words. Hex strings."""

    fill: str
    line: str
    text: str


@dataclass(frozen=True)
class Palette:
    """All colours of one theme. paper is the page, ink the strongest text, muted the quiet text."""

    paper: str
    ink: str
    muted: str
    axis: str
    grid: str
    bulk: Colour
    spike: Colour
    edge: Colour
    threshold: Colour
    removed: Colour
    measured: Colour
    bound: Colour
    estimate: Colour
    population: Colour
    gaussian: Colour
    neutral: Colour

    def tier(self, name: str) -> Colour:
        """The colour of a tier; an unknown tier gets the neutral one, since it must not look proved."""
        tiers = ("measured", "bound", "estimate", "population", "gaussian")
        return getattr(self, name) if name in tiers else self.neutral


LIGHT = Palette(
    paper="#FFFFFF",
    ink="#1B1F24",
    muted="#5C646D",
    axis="#8A929B",
    grid="#E9ECEF",
    bulk=Colour("#56B4E9", "#2C7FB5", "#1C6A9C"),
    spike=Colour("#E69F00", "#A86E00", "#8A5A00"),
    edge=Colour("#009E73", "#009E73", "#00704F"),
    threshold=Colour("#D55E00", "#D55E00", "#B34B00"),
    removed=Colour("#CC79A7", "#B4568B", "#9A3F72"),
    measured=Colour("#0072B2", "#0072B2", "#0067A3"),
    bound=Colour("#009E73", "#009E73", "#00704F"),
    estimate=Colour("#7F858C", "#7F858C", "#62686F"),
    population=Colour("#0072B2", "#0072B2", "#0067A3"),
    gaussian=Colour("#A3A9B0", "#7F858C", "#62686F"),
    neutral=Colour("#D3D8DD", "#7F858C", "#5C646D"),
)

DARK = Palette(
    paper="#14171B",
    ink="#F2F4F6",
    muted="#A7AFB8",
    axis="#6E7782",
    grid="#282D34",
    bulk=Colour("#56B4E9", "#7CC6F0", "#7CC6F0"),
    spike=Colour("#E69F00", "#F4BB45", "#F0AE24"),
    edge=Colour("#009E73", "#12B587", "#2CC79A"),
    threshold=Colour("#D55E00", "#E8701A", "#F08A42"),
    removed=Colour("#CC79A7", "#DD97BE", "#DD97BE"),
    measured=Colour("#0072B2", "#2E9BDA", "#58B1E4"),
    bound=Colour("#009E73", "#12B587", "#2CC79A"),
    estimate=Colour("#8E959D", "#8E959D", "#A7AFB8"),
    population=Colour("#0072B2", "#2E9BDA", "#58B1E4"),
    gaussian=Colour("#6E7782", "#8E959D", "#A7AFB8"),
    neutral=Colour("#454C55", "#8E959D", "#A7AFB8"),
)

THEMES: dict[str, Palette] = {"light": LIGHT, "dark": DARK}

# Nothing leaves the machine: no cloud button, no server address. A double click first resets, then shows everything.
CONFIG: Json = {
    "displaylogo": False,
    "showSendToCloud": False,
    "plotlyServerURL": "",
    "responsive": True,
    "doubleClick": "reset+autosize",
    "modeBarButtonsToRemove": ["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "lasso2d", "select2d", "autoScale2d"],
    "toImageButtonOptions": {"format": "svg", "filename": "mpviz", "scale": 1},
}


def palette(theme: str) -> Palette:
    """The colours of "light" or "dark". Raises MpvizError for another name."""
    if theme not in THEMES:
        raise MpvizError(f"unknown theme {theme!r}; {nearest(str(theme), THEMES)}")
    return THEMES[theme]


def faint(colour: str, opacity: float) -> str:
    """A hex colour made see-through, as CSS rgba.

    >>> faint("#0072B2", 0.1)
    'rgba(0,114,178,0.1)'
    """
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity:g})"


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two hex colours, 1 … 21 (WCAG 2.2, relative luminance).

    >>> round(contrast("#000000", "#FFFFFF"), 1)
    21.0
    """
    high, low = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def axis(theme: str, title: str = "", grid: bool = True, **more: Any) -> Json:
    """One axis in the house style: quiet grid, title in the muted colour. more: plotly's own attributes."""
    colours = palette(theme)
    lines = {"gridcolor": colours.grid} if grid else {"showgrid": False}
    return {
        "title": {"text": title, "font": {"size": 12, "color": colours.muted}, "standoff": 8},
        "tickfont": {"size": 11, "color": colours.muted},
        "linecolor": colours.axis,
        "zeroline": False,
        "automargin": True,
        **lines,
        **more,
    }


def layout(theme: str, title: str = "", subtitle: str = "") -> Json:
    """The layout that every figure starts from. No height is set: the screen that shows the figure decides.

    title and subtitle are plotly rich text: escape what comes from outside.
    """
    colours = palette(theme)
    if subtitle:
        title += f"<br><span style='font-size:12px;color:{colours.muted}'>{subtitle}</span>"
    heading: Json = {
        "text": title,
        "font": {"size": 14, "color": colours.ink},
        "x": 0,
        "xref": "paper",
        "xanchor": "left",
        "y": 1,
        "yref": "paper",
        "yanchor": "bottom",
        "pad": {"b": 27 if subtitle else 10},  # plotly anchors the first line; the second hangs below it
    }
    return {
        "title": heading,
        "autosize": True,
        "paper_bgcolor": colours.paper,
        "plot_bgcolor": colours.paper,
        "font": {"family": FONT, "size": 12, "color": colours.ink},
        "margin": {"l": 56, "r": 16, "t": 52 if subtitle else 36, "b": 44},
        "showlegend": False,
        "hovermode": "closest",
        "hoverlabel": {
            "bgcolor": colours.paper,
            "bordercolor": colours.axis,
            "font": {"family": FONT, "size": 12, "color": colours.ink},
            "align": "left",
        },
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": colours.axis, "activecolor": colours.ink},
    }


def hatch(meaning: Colour, shape: str) -> Json:
    """Hatching over a bar, so that grey print tells it from a plain one. shape: plotly's name, e.g. "/"."""
    return {"shape": shape, "fgcolor": meaning.line, "size": 5, "solidity": 0.3, "fillmode": "overlay"}


def note(text: str, colour: str, **place: Any) -> Json:
    """A word in the picture: an annotation without an arrow. text is plotly rich text."""
    return {"text": text, "showarrow": False, "font": {"size": 12, "color": colour}, **place}


def empty(message: str, theme: str = "light") -> Json:
    """A figure that invites instead of showing empty axes. message is plotly rich text."""
    base = layout(theme)
    hidden = {"visible": False, "fixedrange": True, "range": [0, 1]}
    middle = note(message, palette(theme).muted, x=0.5, y=0.5, xref="paper", yref="paper")
    middle["font"]["size"] = 14
    return {"data": [], "layout": {**base, "xaxis": hidden, "yaxis": dict(hidden), "annotations": [middle]}}
