"""Panels by their public names: made a floor above, where the notebook's toolkit is, and only when asked for."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpviz.workbench.run_queue import RunQueue

if TYPE_CHECKING:
    from mpviz.workbench.state import Workbench


def RunPanel(of: RunQueue | Workbench | str | Path = "runs", theme: str | None = None) -> Any:
    """The queue of runs in a notebook: list, progress, time left, live loss and accuracy, log, and buttons.

    of: a RunQueue, the folder of one, or a Workbench, whose plan a button then submits to the queue in "runs". theme:
    "light", "dark", or None to follow the page. Runs go on without the panel, and one that is made anew, in this
    notebook or another, shows them as they are.
    """
    widgets = import_module("mpviz.ui.widgets")
    if isinstance(of, (RunQueue, str, Path)):
        return widgets.run_view(of, theme=theme)
    return widgets.run_view(workbench=of, theme=theme)
