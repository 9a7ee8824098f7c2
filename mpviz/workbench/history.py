"""Steps of what was set, to walk back and forth through them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

MERGE = 0.7  # seconds: what a slider passes through in one pull is one step
MOST = 200  # steps that are kept

Step = Mapping[str, Any]


class History:
    """Snapshots of settings in the order they were made. Changes of the same settings within `MERGE` are one step.

    >>> history = History({"beta": 1.0})
    >>> history.record({"beta": 2.0})
    >>> history.undo(), history.undo(), history.redo()
    ({'beta': 1.0}, None, {'beta': 2.0})
    """

    def __init__(self, first: Step, clock: Callable[[], float] = time.monotonic) -> None:
        self._steps, self._at, self._clock = [dict(first)], 0, clock
        self._changed: frozenset[str] = frozenset()
        self._moment = 0.0

    @property
    def undoable(self) -> bool:
        """Whether there is a step before."""
        return self._at > 0

    @property
    def redoable(self) -> bool:
        """Whether a step was undone, and nothing was set since."""
        return self._at + 1 < len(self._steps)

    def record(self, now: Step) -> None:
        """Keep what is set now; nothing where that is the present step already. What was undone is forgotten."""
        last = self._steps[self._at]
        if now == last:
            return
        changed = frozenset(name for name in now if now[name] != last.get(name))
        moment = self._clock()
        del self._steps[self._at + 1 :]
        if self._at and changed == self._changed and moment - self._moment < MERGE:
            self._steps[-1] = dict(now)
        else:
            self._steps.append(dict(now))
            del self._steps[:-MOST]
        self._at, self._changed, self._moment = len(self._steps) - 1, changed, moment

    def undo(self) -> Step | None:
        """The step before, which is then the present one; None where there is none."""
        return self._walk(-1) if self.undoable else None

    def redo(self) -> Step | None:
        """The step that was undone last; None where there is none."""
        return self._walk(1) if self.redoable else None

    def _walk(self, by: int) -> Step:
        self._at += by
        self._changed = frozenset()  # what is set next is a step of its own
        return self._steps[self._at]
