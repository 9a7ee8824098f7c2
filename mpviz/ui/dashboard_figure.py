"""Figures on the dashboard: panel's plotly pane, told at once what is drawn already."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace
from typing import Any

import panel as pn
from bokeh.core.serialization import Serializable, Serializer
from bokeh.models import ColumnDataSource

from mpviz.ui.figures import CONFIG, empty
from mpviz.ui.theme import Json


class Plain(Serializable):
    """A part of a figure that is plain lists and dicts, on its way to the browser.

    Bokeh looks into every list for models and encodes it number by number; of two figures that takes longer than to
    work out what is on them.
    """

    def __init__(self, value: Json) -> None:
        self.value = value

    def to_serializable(self, serializer: Serializer) -> Any:
        """The value as bokeh writes dictionaries."""
        return _encoded(self.value)


def _encoded(value: Any) -> Any:
    kind = type(value)
    if kind is dict:
        return {"type": "map", "entries": [[key, _encoded(inner)] for key, inner in value.items()]}
    if kind is list or kind is tuple:
        return [_encoded(inner) for inner in value]
    if kind is float and not math.isfinite(value):
        return None  # a gap, as in JSON
    return value


class FigurePane(pn.pane.Plotly):
    """A plotly pane for figure dicts that are right already: no validation, and no default template on top."""

    def __init__(self, object: Json, **params: Any) -> None:
        self._shown: dict[str, str] = {}  # what each model draws
        super().__init__(object, **params)

    def _to_figure(self, obj: Json) -> SimpleNamespace:
        return SimpleNamespace(_data=obj["data"], _layout=obj["layout"])

    def _update(self, ref: str, model: Any) -> None:
        data, figure_layout = self.object["data"], self.object["layout"]
        shown = json.dumps([data, figure_layout])
        if self._shown.get(ref) == shown:
            return
        self._shown[ref], sources = shown, model.data_sources
        if len(sources) < len(data):  # the page looks for one a trace
            model.data_sources = [*sources, *(ColumnDataSource() for _ in range(len(data) - len(sources)))]
        model.update(data=[Plain(trace) for trace in data], layout={k: Plain(v) for k, v in figure_layout.items()})
        model._render_count += 1


def figure_pane(**config: Any) -> FigurePane:
    """An empty figure that fills its cell. config: of plotly, over the one that all figures share.

    Without plotly's own buttons: the page has a menu in each card, which the keyboard reaches.
    """
    both = {**CONFIG, "displayModeBar": False, **config}
    return FigurePane(empty(""), config=both, sizing_mode="stretch_both", margin=0, link_figure=False)
