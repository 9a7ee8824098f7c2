"""What stands between a workbench and its widgets: painting what changed, in order, and errors as sentences."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ipywidgets as w

from mpviz.ui.theme import Json
from mpviz.ui.widgets.figure import Figure, apply_figure, shelf
from mpviz.workbench.jobs import sentence

logger = logging.getLogger(__name__)

Paint = Callable[[], None]
_LOW = 260  # pixels, the least that the figures are made for
PAUSE = 0.06  # seconds between two paintings that nobody's hand asked for


class Desk:
    """Keeps widgets in step with one workbench.

    A change of the state only marks paintings as due. They are done at once after somebody moved a control, else by a
    thread of the desk: whatever came meanwhile is painted once, with the newest values. One painting runs at a time,
    and none while the state is locked, so neither order nor threads matter to a widget.
    workbench: a Workbench, or any other param.Parameterized with a parameter `error`. theme: "light", "dark", or None
    for the look of the page.
    """

    def __init__(self, workbench: Any, theme: str | None = None) -> None:
        self.workbench = workbench
        self._theme = theme
        self._shelf = shelf()
        self._paints: list[tuple[frozenset[str], Paint]] = []
        self._due: set[Paint] = set()
        self._behind: dict[Paint, Callable[[], bool]] = {}  # what may be out of sight, and whether it is seen
        self._seen: Callable[[], bool] | None = None
        self._later: set[Paint] = set()  # due, but out of sight
        self._wake, self._closed = threading.Condition(), False
        self._brush = threading.RLock()
        self._hand = threading.local()
        self._said = ""
        self._watcher: Any = None
        self.closing: list[Callable[[], None]] = []  # what else ends with the panels
        self._thread = threading.Thread(target=self._run, name="mpviz-desk", daemon=True)
        if theme is None:
            self._shelf.observe(self._on_theme, "dark")

    @property
    def theme(self) -> str:
        """The theme of figures and page."""
        return self._theme or ("dark" if self._shelf.dark else "light")

    # --- painting -------------------------------------------------------------------------------------------------

    def paint(self, names: tuple[str, ...], paint: Paint) -> None:
        """Call `paint` now, and after each change of one of these parameters of the workbench or of the "theme"."""
        self._paints.append((frozenset(names), paint))
        if self._seen is not None:
            self._behind[paint] = self._seen
        with self._brush:
            self._hand.painting = True
            try:
                paint()
            finally:
                self._hand.painting = False

    @contextmanager
    def face(self, seen: Callable[[], bool]) -> Iterator[None]:
        """What is made inside is painted only while `seen()`; `flush` after that has changed paints what waited."""
        self._seen = seen
        try:
            yield
        finally:
            self._seen = None

    def figure(self, names: tuple[str, ...], draw: Callable[[Any, str], Json], height: int) -> Figure:
        """A figure that follows these parameters. draw: (workbench, theme) → plain figure. height: pixels."""

        def sized() -> Json:
            figure = draw(self.workbench, self.theme)
            compact(figure["layout"], height)
            return figure

        widget = Figure(sized())
        self.paint((*names, "theme"), lambda: apply_figure(widget, sized()))
        return widget

    def start(self) -> None:
        """Follow the workbench from now on."""
        names = sorted(frozenset().union(*(names for names, _ in self._paints)) & set(self.workbench.param))
        self._watcher = self.workbench.param.watch(self._on_change, names)
        self._thread.start()
        self._mark(frozenset(names))  # what changed while the widgets were made

    def close(self) -> None:
        """Stop following."""
        for end in self.closing:
            end()
        if self._watcher is not None:
            self.workbench.param.unwatch(self._watcher)
            self._watcher = None
        if self._theme is None:
            self._shelf.unobserve(self._on_theme, "dark")
        with self._wake:
            self._closed = True
            self._wake.notify()

    def flush(self) -> None:
        """Paint what is due. One that fails leaves the others alone, and says so in the error line."""
        failed: Exception | None = None
        with self._brush:
            with self._wake:
                due, self._due = self._due | self._later, set()
                self._later = {paint for paint in due if paint in self._behind and not self._behind[paint]()}
                due -= self._later
            before = getattr(self._hand, "painting", False)  # a painting may turn a face, which is painted then
            self._hand.painting = True
            for _, paint in self._paints:
                if paint not in due:
                    continue
                try:
                    paint()
                except Exception as error:  # nobody above could show it
                    logger.exception("a panel could not be painted")
                    failed = error
            self._hand.painting = before
        if failed is not None:
            self.workbench.error = f"a panel could not be drawn ({sentence(failed)})"

    def _on_change(self, *events: Any) -> None:
        self._mark(frozenset(event.name for event in events))

    def _on_theme(self, _: Any) -> None:
        self._mark(frozenset(["theme"]))

    def _mark(self, names: frozenset[str]) -> None:
        with self._wake:
            self._due.update(paint for wanted, paint in self._paints if wanted & names)
            if not getattr(self._hand, "acting", False):
                self._wake.notify()

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._due or self._closed)
                if self._closed:
                    return
            self.flush()
            time.sleep(PAUSE)

    # --- controls -------------------------------------------------------------------------------------------------

    def act(self, action: Callable[..., Any], *arguments: Any) -> None:
        """Do what a control asks for, then paint. An error becomes the sentence in the error line."""
        if getattr(self._hand, "painting", False):  # the control follows the state here, nobody moved it
            return
        workbench = self.workbench
        self._hand.acting = True
        try:
            action(*arguments)
            if self._said and workbench.error == self._said:
                workbench.error = self._said = ""
        except Exception as error:  # a widget's callback is the last place where its error can be shown
            logger.debug("a control failed", exc_info=True)
            workbench.error = self._said = sentence(error)
        finally:
            self._hand.acting = False
            self.flush()

    def bind(
        self,
        control: Any,
        name: str,
        read: Callable[[Any], Any] = lambda value: value,
        write: Callable[[Any], Any] = lambda value: value,
    ) -> None:
        """Tie a control's value to a parameter. read: control → parameter; write: parameter → control."""
        workbench = self.workbench

        def follow() -> None:
            value = write(getattr(workbench, name))
            if control.value != value:
                control.value = value

        control.observe(lambda change: self.act(setattr, workbench, name, read(change["new"])), "value")
        self.paint((name,), follow)


def compact(layout: Json, height: int) -> None:
    """Fit a figure to a notebook: this many pixels high, a smaller title that starts over the labels of the y axis."""
    layout["height"] = height
    title, margin = layout["title"], layout["margin"]
    title |= {"xref": "container", "x": 0, "font": title["font"] | {"size": 13}}
    title["pad"] = {"b": title["pad"]["b"] - 3}
    margin |= {"t": margin["t"] - 4, "b": max(4, margin["b"] - 4)}
    if height < _LOW:  # neighbouring labels would touch
        layout["annotations"] = [
            note | {"font": note.get("font", {}) | {"size": 11}} for note in layout.get("annotations", [])
        ]


class View(w.VBox):
    """Panels that follow a workbench until they are closed."""

    def __init__(self, desk: Desk, children: list[w.Widget], title: str = "", **settings: Any) -> None:
        self.desk, self._title = desk, title
        super().__init__(children, **settings)

    def __repr__(self) -> str:
        return f"panels of {self._title or self.desk.workbench.model}; run this cell in a notebook to use them"

    def close(self) -> None:
        """Stop following the workbench, and leave the page."""
        if self.comm is not None:
            self.desk.close()
        super().close()
