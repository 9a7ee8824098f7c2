"""A grid of methods as one HTML page: as the report of a run, and as a page of the dashboard."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlencode

from mpviz.errors import DataError, MpvizError, nearest
from mpviz.grid_results import GridResult, committed_grid, committed_grids, read_grid, spectra_after
from mpviz.ui import text
from mpviz.ui.comparison import comparison_html
from mpviz.ui.page import filled_page, named_folders, pages_nav
from mpviz.ui.theme import THEMES


def grid_html(result: GridResult, theme: str = "light", nav: str = "") -> str:
    """What a grid came to, as a page of its own. nav: HTML at its head. Raises MpvizError for an unknown theme.

    Spectra come from the checkpoints of the cells; where these are gone, the page says so in their place.
    """
    model, remark = result.recipe.model.name, ""
    try:
        spectra = spectra_after(result)
    except MpvizError as error:
        spectra, remark = None, f"Spectra before and after are left out: {error}."
    about = {"model": model, "data": result.recipe.data.name, **result.environment}
    words = {key: str(value) for key, value in about.items() if value is not None}
    title = f"{model}: methods side by side"
    return comparison_html(result.metrics, result.layers, title, words, theme, spectra=spectra, nav=nav, remark=remark)


def compare_page(
    folders: Sequence[Path], asked: str | None = None, theme: str = "light", seen: str = ""
) -> tuple[bool, str]:
    """The dashboard's page of one grid, and whether there is such a grid; links lead to the others.

    folders: of `mpviz run`, read anew each time, so that a grid that is running can be watched. asked: the last
    part of one of their paths or one of `committed_grids`; None for the first, or for the first of the network
    `seen`, that of the page that led here. Nothing else is ever opened.
    """
    theme = theme if theme in THEMES else "light"
    own = named_folders(folders)
    known = {key: f"{key}, of this machine" for key in own} | committed_grids()
    first = [name for name in known if name.rpartition("/")[2] == seen] + list(known) + [""]
    name = first[0] if asked is None else asked
    nav = _nav(known, name, theme)
    try:
        if name not in known:
            raise DataError(f"there is no grid '{name}' here; {nearest(name, known)}")
        result = read_grid(own[name]) if name in own else committed_grid(name)
        return True, grid_html(result, theme, nav)
    except MpvizError as error:
        parts = {"nav": nav, "title": "Nothing to compare here yet", "message": text.escape(str(error))}
        return name in known, filled_page("notice.html", parts, None, theme)


def _nav(known: dict[str, str], shown: str, theme: str) -> str:
    def link(words: str, current: bool = False, **query: str) -> str:
        here = ' aria-current="page"' if current else ""
        return f'<a href="?{text.escape(urlencode(query))}"{here}>{text.escape(words)}</a>'

    links = [link(words, name == shown, grid=name, theme=theme) for name, words in known.items()]
    return f'{pages_nav("compare", {"grid": shown}, theme)}<nav aria-label="Grids">{"".join(links)}</nav>'
