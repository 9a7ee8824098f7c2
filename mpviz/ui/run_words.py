"""Runs of the queue in words: what they are doing, how long they still take, what they came to. No toolkit."""

from __future__ import annotations

import csv
import json
import math
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpviz.ui import tables, text
from mpviz.ui.rows import Cells, Column

if TYPE_CHECKING:
    from mpviz.workbench.run_store import Run

EMPTY_QUEUE = "Submit a recipe: it runs here while you look at something else, and keeps its state."
EXAMPLE = """# a small recipe: prunes the bundled MLP by 80 %, then trains it for one epoch
[model]
name = "fashion-mlp"

[budget]
sparsity = 0.8

[recover]
epochs = 1.0
learning_rate = 1e-4
batch = 64
"""
_PATH = re.compile(r"(?<![\w/])(?:/[^\s/:'\",;()]+){2,}")


RUN_COLUMNS = (
    Column("run", "run", "Network, what is removed, and how long it trains; a click or Enter shows it", "head"),
    Column("state", "state", "What it does; those that wait start in this order", "word"),
    Column("progress", "progress", "Share of its work that is done", "bar"),
    Column("left", "time", "How long it still takes, or took", "word"),
)


def run_cells(runs: Sequence[Run]) -> Cells:
    """Runs as cells of the sortable table, in their order."""
    shares, left = [run.progress for run in runs], [left_words(run).removeprefix("about ") for run in runs]
    return {
        "name": {"text": [run.name for run in runs]},
        "run": {"text": [run.title for run in runs], "tip": [run.name for run in runs],
                "sort": [run.title for run in runs]},
        "state": {"text": [state_words(run) for run in runs], "sort": [run.state for run in runs]},
        "progress": {"text": [text.percent(share, 2) for share in shares], "share": shares, "sort": shares},
        "left": {"text": left, "sort": [run.seconds_left for run in runs]},
    }  # fmt: skip


def in_order(runs: Sequence[Run]) -> list[Run]:
    """What is at work, then what waits in its order, then what has ended, the last one first."""
    first = [run for run in runs if run.state == "running"]
    waiting = [run for run in runs if run.state == "queued"]
    ended = [run for run in runs if run.state not in ("running", "queued")]
    return [*first, *waiting, *sorted(ended, key=lambda run: run.ended, reverse=True)]


def ordinal(number: int) -> str:
    """
    >>> [ordinal(number) for number in (1, 2, 3, 4, 11, 22)]
    ['1st', '2nd', '3rd', '4th', '11th', '22nd']
    """
    last = 0 if 10 < number % 100 < 14 else number % 10
    return f"{number}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(last, 'th') }"


def state_words(run: Run) -> str:
    """The state of a run, as its chip says it."""
    if run.state == "queued":
        return "next" if run.place == 1 else f"{ordinal(run.place)} in the queue"
    return "cancelling" if run.stopping else run.state


def left_words(run: Run) -> str:
    """How long a run still takes, or took; "" while that cannot be told."""
    if run.state == "running" and run.seconds_left is not None:
        return f"about {duration(run.seconds_left)} left"
    if run.state == "done" and run.ended > run.started > 0:
        return f"took {duration(run.ended - run.started)}"
    return ""


def duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> duration(0.4), duration(42), duration(200), duration(4000)
    ('1 s', '42 s', '3 min 20 s', '1 h 6 min')
    """
    whole = max(1, math.ceil(seconds))
    minutes, rest = divmod(whole, 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{whole} s"


def dates(run: Run) -> str:
    """When a run was submitted, started and ended, in this machine's time."""
    told = (("submitted", run.submitted), ("started", run.started), ("ended", run.ended))
    known = [f"{word} {time.strftime('%Y-%m-%d %H:%M', time.localtime(when))}" for word, when in told if when > 0]
    return ", ".join(known)


def without_places(words: str) -> str:
    """A visitor's text without the folders of the server: only the last part of each path.

    >>> without_places("kept in /srv/runs/run-001/step-7.safetensors; 3/4 of it")
    'kept in …/step-7.safetensors; 3/4 of it'
    """
    return _PATH.sub(lambda found: "…/" + found[0].rpartition("/")[2], words)


def results_table(folder: Path, theme: str = "light") -> str:
    """What a finished plan or projection came to, as an HTML table; "" where nothing is written yet."""
    rows = _rows(folder / "comparison.csv")
    if rows:
        columns = [name for name in ("dense", "pruned", "recovered") if name in rows[0]]
        body = [
            [text.escape(text.spaced(row["quantity"])), *(_amount(row[name], row["dense"]) for name in columns),
             tables.chip(row["tier"], theme) if row["tier"] else ""]
            for row in rows
        ]  # fmt: skip
        return tables.html_table(("", *columns, "known as"), body, theme)
    rows = [row for row in _rows(folder / "metrics.csv") if "method" not in row]
    if not rows or "phase" not in rows[0]:
        return ""
    shares = ("dense_accuracy", "accuracy", "coverage", "unchanged")
    body = [
        [
            text.escape(row["phase"]),
            *(text.percent(float(row[name])) for name in shares),
            tables.chip("measured", theme),
        ]
        for row in rows
    ]
    return tables.html_table(("", "dense accuracy", "accuracy", "certified", "unchanged", "known as"), body, theme)


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except (OSError, ValueError):
        return []


def _amount(value: str, dense: str) -> str:
    """A share or a count: no network has a single weight, so what is above 1 before pruning is counted."""
    try:
        number, before = float(json.loads(value)), float(json.loads(dense))
    except (ValueError, TypeError):
        return text.NONE
    return text.count(number) if before > 1 else text.percent(number)
