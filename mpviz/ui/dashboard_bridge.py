"""The dashboard's way from job threads to the page's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterable

import panel as pn
from bokeh.document import Document


class Bridge:
    """Changes from any thread → one repaint on the page's event loop, with the newest values.

    Names of what changed are collected; a repaint that waits takes up all that came meanwhile, so neither a slow
    browser nor a fast job makes a queue. document: of the session; None paints at once, in the calling thread. Must be
    made on the event loop when there is a document.
    """

    def __init__(self, document: Document | None, paint: Callable[[set[str]], None]) -> None:
        self._document, self._paint = document, paint
        self._loop = None if document is None else asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._changed: set[str] = set()
        self._closed = False

    def mark(self, names: Iterable[str]) -> None:
        """These have changed. Returns at once; from any thread."""
        with self._lock:
            waiting = bool(self._changed)
            self._changed.update(names)
            if waiting or self._closed or not self._changed:
                return
        if self._loop is None or self._document is None:
            self.flush()
            return
        # The document is touched on its own thread only: while that thread collects changes, a callback that another
        # thread adds can get lost.
        with contextlib.suppress(RuntimeError):  # the server has ended
            self._loop.call_soon_threadsafe(self._document.add_next_tick_callback, self.flush)

    def soon(self, action: Callable[[], None]) -> None:
        """Do it on the page's event loop; from any thread."""
        if self._loop is None or self._document is None:
            action()
            return
        with contextlib.suppress(RuntimeError):  # the server has ended
            self._loop.call_soon_threadsafe(self._document.add_next_tick_callback, action)

    def flush(self) -> None:
        """Repaint what has changed since the last time, in one message to the browser."""
        with self._lock:
            changed, self._changed = self._changed, set()
            if self._closed:
                return
        with pn.io.hold(self._document):
            self._paint(changed)

    def close(self) -> None:
        """Paint no more: the page is gone."""
        with self._lock:
            self._closed = True
