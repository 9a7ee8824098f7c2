"""Figures in a notebook: plotly's FigureWidget on one shared copy of plotly.js, and changing one by a plain dict."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from mpviz.ui.css import read_shared
from mpviz.ui.export import File, figure_html, file_stem
from mpviz.ui.theme import CONFIG, Json

# plotly imports nbformat, that jsonschema, and that a package which compiles 38 grammars: two seconds, needed only to
# check international addresses in notebook files. Without it jsonschema leaves that check out.
_GRAMMARS = "rfc3987_syntax"
_blocked = _GRAMMARS not in sys.modules
if _blocked:
    sys.modules[_GRAMMARS] = None  # type: ignore[assignment]
try:
    import plotly
    from plotly.graph_objects import FigureWidget
finally:
    if _blocked:
        del sys.modules[_GRAMMARS]

HERE = Path(__file__).parent


class Shelf(anywidget.AnyWidget):
    """Carries plotly.js to the page once for all figures of a kernel, and tells whether the page is dark."""

    _esm = HERE / "shelf.js"

    key = traitlets.Unicode().tag(sync=True)
    source = traitlets.Unicode().tag(sync=True)
    dark = traitlets.Bool(False).tag(sync=True)


@cache
def _library() -> tuple[str, str]:
    """Name and text of the plotly.js that the installed plotly brings along."""
    source = (Path(plotly.__file__).parent / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
    return f"mpviz-plotly-{plotly.__version__}", source


_shelf: Shelf | None = None


def shelf() -> Shelf:
    """The shelf of this kernel; a new one when somebody closed all widgets."""
    global _shelf
    if _shelf is None or _shelf.comm is None:
        key, source = _library()
        _shelf = Shelf(key=key, source=source)
    return _shelf


class Figure(FigureWidget):
    """A FigureWidget whose page always gets the whole figure.

    All of plotly's Python interface works. Its own page script would send 5 MB with every figure, lose the changes
    made before it is loaded, and answer each change with one of its own; this one keeps a single trait, `picture`,
    and draws it with `Plotly.react`. Zooming stays in the page, for as long as `layout.uirevision` does.
    """

    _esm = read_shared("download.js", "widgets/figure.js")

    library = traitlets.Unicode().tag(sync=True)
    picture = traitlets.Dict().tag(sync=True)

    def __init__(self, figure: Json, config: Json = CONFIG) -> None:
        self._shown: Json = {"data": [], "layout": {}}
        self._holding = True
        super().__init__()
        self.layout.template = None  # plotly's own look would shine through
        self._config = config
        self._holding = False
        apply_figure(self, figure)
        self.on_msg(self._on_message)

    @traitlets.default("library")
    def _name_of_library(self) -> str:
        return shelf().key

    def _on_message(self, _: Any, content: Any, __: Any) -> None:
        if isinstance(content, dict) and content.get("want") == "html":
            stem = file_stem(str(self.picture["layout"].get("meta") or ""))
            self.send(File(f"{stem}.html", figure_html(self.picture, stem).encode()).message)

    def on_pick(self, callback: Callable[[Any], None]) -> None:
        """Call back with the `customdata` of the mark that was clicked."""

        def pick(change: Any) -> None:
            points = (change["new"] or {}).get("points")
            if not points or not points["trace_indexes"]:
                return
            targets = self.data[points["trace_indexes"][0]].customdata
            if targets is not None:
                callback(targets[points["point_indexes"][0]])

        self.observe(pick, "_js2py_pointsCallback")

    @contextmanager
    def one_message(self) -> Iterator[None]:
        """Send what changes inside as one message, at the end."""
        if self._holding:
            yield
            return
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
            self._publish()

    def _publish(self, *_: Any, **__: Any) -> None:
        if not self._holding:
            self.picture = self.to_dict()

    # the hooks that plotly calls after a change
    _send_addTraces_msg = _send_moveTraces_msg = _send_deleteTraces_msg = _publish
    _send_restyle_msg = _send_relayout_msg = _send_update_msg = _send_animate_msg = _publish


def apply_figure(widget: Figure, figure: Json) -> None:
    """Make a widget show a plain figure {"data": […], "layout": {…}}, changing only what differs from the last one.

    As many traces of the same types: their changed attributes are set. Otherwise the traces are replaced.
    """
    old, new = widget._shown, figure
    if old == new:
        return
    same_traces = [trace["type"] for trace in old["data"]] == [trace["type"] for trace in new["data"]]
    with widget.one_message():
        if not same_traces:
            widget.data = []
            widget.add_traces(new["data"])
        with widget.batch_update():
            if same_traces:
                for trace, before, after in zip(widget.data, old["data"], new["data"], strict=True):
                    _set(trace, changes(before, after))
            _set(widget.layout, changes(old["layout"], new["layout"]))
        widget._shown = new


def _set(target: Any, values: Json) -> None:
    for path, value in values.items():
        target[path] = value


def changes(old: Json, new: Json, prefix: str = "") -> Json:
    """What turns one nested dict into another, by dotted path; None takes an entry away. Lists change as a whole.

    >>> changes({"x": [1], "line": {"width": 1, "dash": "dot"}}, {"x": [1], "line": {"width": 2}})
    {'line.width': 2, 'line.dash': None}
    """
    found: Json = {}
    for key in [*new, *(key for key in old if key not in new)]:
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            found |= changes(before, after, f"{prefix}{key}.")
        elif before != after:
            found[f"{prefix}{key}"] = after
    return found
