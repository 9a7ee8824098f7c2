"""What the command line prints: tables for a terminal, and one line of progress."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from mpviz.benchmark.ledger import BenchReport
    from mpviz.nets.macs import Macs
    from mpviz.paper import PaperRow
    from mpviz.sweep_folder import SweepState


def layer_lines(table: pd.DataFrame) -> str:
    """The table of `mp.analyze` for a terminal: numbers right-aligned with three digits, verdicts last."""
    from mpviz.ui import text

    headers = ("layer", "role", "rows", "cols", "σ", "σ₊", "bulk", "spikes", "α", "stable rank", "verdict")
    rows = []
    for name, row in table.iterrows():
        fitted = row["variance"] == row["variance"]  # NaN where nothing could be fitted
        rows.append(
            (
                str(name).removesuffix(".weight"),
                row["role"],
                text.count(row["rows"]),
                text.count(row["cols"]),
                text.significant(row["variance"] ** 0.5),
                text.significant(row["sigma_plus"]),
                text.percent(row["bulk_fraction"]),
                text.count(row["n_spikes"]) if fitted else text.NONE,
                text.significant(row["alpha"]),
                text.significant(row["stable_rank"]),
                row["verdict"] if row["prunable"] else f"{row['verdict']} (not pruned: {row['role']})",
            )
        )
    return columns(headers, rows, left=(0, 1, len(headers) - 1))


def columns(headers: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Rows of words as a table for a terminal; all columns but those in `left` end at their right edge."""
    widths = [max(len(row[i]) for row in (headers, *rows)) for i in range(len(headers))]
    lines = []
    for row in (headers, tuple("─" * width for width in widths), *rows):
        cells = (
            cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def change_lines(table: pd.DataFrame) -> str:
    """The table of `mp.compare` for a terminal."""
    from mpviz.ui import text

    headers = [
        "layer",
        "role",
        "σ₊",
        "→",
        "spikes",
        "→",
        "moved",
        "zeros",
        "k",
        "overlap out",
        "in",
        "chance out",
        "in",
    ]
    rows = [
        (
            str(name).removesuffix(".weight"),
            row["role"],
            *(text.significant(row[f"sigma_plus_{end}"]) for end in ("base", "other")),
            *(text.count(row[f"n_spikes_{end}"]) for end in ("base", "other")),
            *(text.percent(row[column]) for column in ("moved", "sparsity_other")),
            text.count(row["k"]),
            *(text.significant(row[f"{kind}_{side}"]) for kind in ("overlap", "chance") for side in ("left", "right")),
        )
        for name, row in table.iterrows()
    ]
    return columns(headers, rows, left=(0, 1))


def projection_lines(metrics: pd.DataFrame, macs: Macs) -> str:
    """What a projection measured and counted, for a terminal."""
    from mpviz.ui import text

    headers = ("", "accuracy", "dense", "certified", "unchanged", "samples")
    shares = ("accuracy", "dense_accuracy", "coverage", "unchanged")
    rows = [(row["phase"], *(text.percent(row[name], 4) for name in shares), str(row["samples"]))
            for row in metrics.to_dict("records")]  # fmt: skip
    return f"{columns(headers, rows)}\n{macs}"


def paper_lines(rows: Sequence[PaperRow]) -> str:
    """The rows of the paper's structured tables for a terminal; all numbers are theirs."""

    def number(value: float | None, digits: int = 2) -> str:
        return "–" if value is None else f"{value:.{digits}f}"

    headers = ("row", "network", "source", "method", "pattern", "merged", "permuted", "dense top-1", "top-1", "speed")
    cells = [(str(one.row), one.architecture, one.source, one.method, one.pattern, str(one.tome or "–"),
              one.permute or "–", number(one.dense_top1), number(one.top1), number(one.speedup, 3))
             for one in rows]  # fmt: skip
    note = "top-1 in % and speed as printed in arXiv:2606.02608; `mpviz recipes ROW` prints a recipe"
    return f"{columns(headers, cells, left=(1, 2, 3, 4))}\n{note}"


def bench_lines(report: BenchReport) -> str:
    """What a benchmark measured, for a terminal: endpoints, ratios with their number types, limits, packing."""
    from mpviz.ui import text

    headers = ("batch", "merged", "endpoint", "arithmetic", "ms", "quartiles", "images/s", "off by", "")
    rows = []
    for one in report.table.to_dict("records"):
        timed = not one["why"]
        between = f"{text.significant(one['low_ms'])}–{text.significant(one['high_ms'])}" if timed else text.NONE
        off = text.NONE if one["error"] != one["error"] else f"{one['error']:.1e}"
        shown = [text.significant(one[name]) if timed else text.NONE for name in ("median_ms", "images_per_s")]
        rows.append((str(one["batch"]), str(one["tome"] or "–"), one["endpoint"], one["arithmetic"], shown[0], between,
                     shown[1], off, one["why"]))  # fmt: skip
    packs = report.packing[report.packing["packs"]]
    exact = int(packs["exact"].sum())
    share = packs["bytes_packed"].sum() / packs["bytes_dense"].sum()
    lines = [columns(headers, rows, left=(2, 3, 8)), ""]
    for cell in report.cells:
        arms = [arm.endpoint for arm in cell.arms if arm.timing is not None]
        lines += [f"measured: {cell.ratio(arm, arms[0])}" for arm in arms[1:]]
        merged = f" with {cell.tome} pairs merged" if cell.tome else ""
        lines.append(f"estimate: by multiply–adds alone 2:4 makes batch {cell.batch}{merged} {cell.limit:.2f} × faster")
    lines += [
        f"\nweights: {report.about['weights']}",
        f"packing: {exact} of {len(packs)} layers come back with the same bits; {100 * share:.1f}\u202f% of the bytes",
    ]
    return "\n".join(lines)


def sweep_lines(state: SweepState) -> str:
    """How the runs of a sweep stand, for a terminal."""
    from mpviz.ui.sweep_page import accuracy_words

    rows = [
        (run.name, run.state, f"{100 * run.progress:.0f} %", accuracy_words(run), run.message) for run in state.runs
    ]
    counts = ", ".join(f"{count} {name}" for name, count in state.counts.items())
    return f"{columns(('run', 'state', '', 'accuracy', ''), rows, left=(0, 1, 4))}\n\n{counts} · {state.folder}"


class ProgressLine:
    """One line on stderr that overwrites itself on a terminal; elsewhere a line for each tenth of the work."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._tenth = -1

    def show(self, fraction: float, message: str) -> None:
        """Say how far the work is, 0 … 1, and what it does."""
        percent = f"{100 * fraction:3.0f} %"
        if self._live:
            filled = round(20 * fraction)
            line = f"{'█' * filled}{'░' * (20 - filled)} {percent}  {message}"
            width = shutil.get_terminal_size().columns - 1
            sys.stderr.write(f"\r\x1b[K{line[:width]}")
            sys.stderr.flush()
        elif int(10 * fraction) > self._tenth:
            self._tenth = int(10 * fraction)
            print(f"{percent}  {message}", file=sys.stderr)

    def clear(self) -> None:
        """Take the line away, before something else is printed."""
        if self._live:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


class TimedLines:
    """Lines for a log: what a run does and when, one every `pause` seconds at most, and the last before it ends."""

    def __init__(self, pause: float = 2.0) -> None:
        self._pause, self._printed, self._last = pause, -pause, ""

    def show(self, fraction: float, message: str) -> None:
        """Say how far the work is, 0 … 1, and what it does."""
        self._last = f"{time.strftime('%H:%M:%S')}  {100 * fraction:3.0f} %  {message}"
        if time.monotonic() - self._printed >= self._pause:
            self.clear()

    def clear(self) -> None:
        """Print what was not printed yet, before something else is."""
        if self._last:
            print(self._last, file=sys.stderr, flush=True)
        self._last, self._printed = "", time.monotonic()


@contextlib.contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM ask the run to stop at its next step, where it keeps a checkpoint; a second one ends it."""
    told: list[int] = []

    def ask(number: int, _: Any) -> None:
        told.append(number)
        if len(told) > 1:
            raise KeyboardInterrupt
        line = b"\n" if sys.stderr.isatty() else b""  # where a progress line stands
        # print could be at work on the same stream just now
        os.write(2, line + b"mpviz: stopping at the next step; once more stops at once\n")

    before: dict[signal.Signals, Any] = {}
    with contextlib.suppress(ValueError):  # not the main thread: who started it decides
        for one in (signal.SIGINT, signal.SIGTERM):
            before[one] = signal.signal(one, ask)
    try:
        yield lambda: bool(told)
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
