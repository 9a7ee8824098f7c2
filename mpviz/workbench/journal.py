"""What a server writes down: one event a line, as JSON where that was asked for."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

NAME = "mpviz.server"
FIELDS = ("session", "user", "model")
_logger = logging.getLogger(NAME)
_logger.addHandler(logging.NullHandler())  # on one's own machine the page says it all


class JsonLines(logging.Formatter):
    """A record as one JSON object: time (UTC, ISO 8601), level, event, message, and session, user, model if known.

    What a visitor typed stays inside its string: JSON has no raw line breaks.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The object, on one line. A traceback goes into `traceback`, never to a page."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": getattr(record, "event", record.name),
            **{name: value for name in FIELDS if (value := getattr(record, name, None))},
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def write_json(stream: TextIO | None = None) -> logging.Handler:
    """Write all records of this process, its libraries' from warnings on, as JSON lines. stream: stderr otherwise.

    Gives the handler, for who wants to take it off the root logger again.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    _logger.setLevel(logging.INFO)
    for name in ("tornado.access", "panel", "bokeh"):  # what they write goes the same way, once
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.WARNING)
    return handler


def note(event: str, message: str, level: int = logging.INFO, **fields: str | None) -> None:
    """Write down an event. fields: session, user and model, where they are known."""
    _logger.log(level, "%s", message, extra={"event": event, **fields})


def short_id(session: str) -> str:
    """A name for a session that tells it from others and opens none: whoever has the id itself can join the session.

    >>> short_id("abc")
    'ba7816bf8f01'
    """
    return hashlib.sha256(session.encode()).hexdigest()[:12]
