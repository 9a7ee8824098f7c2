"""Measuring a curve in the background: the chosen position first, then the rest, and new ones after every change."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from mpviz.certificates.anchored import AnchoredPreview
from mpviz.certificates.margins import compare_logits
from mpviz.certificates.preview import POSITIONS, Point, Preview
from mpviz.errors import Cancelled
from mpviz.nets.data import Split
from mpviz.nets.forward import logits
from mpviz.workbench.jobs import Loop
from mpviz.workbench.views import CurveView

SETTLE = 0.12  # seconds a slider must rest before its position is measured
# coarse positions first, so that the curve's shape is there early
ORDER = tuple(POSITIONS[i] for i in (0, 10, 20, 5, 15, 12, 18, 8, 14, 16, 2, 4, 6, 1, 3, 7, 9, 11, 13, 17, 19))
_UNKNOWN = np.full(len(POSITIONS), np.nan)
EMPTY_CURVE = CurveView(np.array(POSITIONS), _UNKNOWN, _UNKNOWN, _UNKNOWN)


@dataclass(frozen=True, eq=False)
class Samples:
    """Images and labels of a split with the dense logits on them."""

    split: str
    network: nn.Module
    images: Tensor
    labels: Tensor
    dense: Tensor

    @property
    def dense_accuracy(self) -> float:
        """Share of these samples that the dense network gets right."""
        return compare_logits(self.dense, self.dense, self.labels).accuracy


def open_samples(
    network: nn.Module, split: Split, n: int | None, seed: int = 0, cancelled: Callable[[], bool] | None = None
) -> Samples:
    """Draw n samples of the split and run the dense network on them.

    Raises DataError when labels lie outside the classes: now, not when a slider moves.
    """
    images, labels = split.sample(n, seed)
    dense = logits(network, images, cancelled=cancelled)
    compare_logits(dense, dense, labels, split.name)
    return Samples(split.name, network, images, labels, dense)


@dataclass(frozen=True, eq=False)
class Aim:
    """Where the sliders stand. family: what the masks depend on beside the sparsity. limit: the most that can go.

    counts: entries removed from each layer, for tables that know what any vector of layer budgets does.
    """

    sparsity: float
    family: tuple
    masks_at: Callable[[float], Mapping[str, Tensor]]
    limit: float = 1.0
    counts: Mapping[str, int] | None = None


class Measurer:
    """Keeps the points that are measured for the present samples and family of masks. Thread-safe.

    on_change runs after each new point, on_error for what goes wrong, both in the background thread.
    """

    def __init__(self, on_change: Callable[[], None], on_error: Callable[[BaseException], None]) -> None:
        self._on_change = on_change
        self._lock = threading.RLock()
        self._draw: Callable[[], Samples] | None = None
        self._samples: Samples | None = None
        self._preview: Preview | None = None
        self._aim: Aim | None = None
        self._moved = 0.0
        self._old: CurveView | None = None
        self._tables: tuple[Samples, AnchoredPreview] | None = None
        self._running = False
        self._loop = Loop(self._step, on_error)

    def use(self, draw: Callable[[], Samples], samples: Samples | None = None) -> None:
        """Other samples from now on: those given, or what `draw` returns when they are first needed."""
        with self._lock:
            self._draw, self._samples, self._preview, self._aim, self._old = draw, samples, None, None, None

    def use_tables(self, samples: Samples, tables: AnchoredPreview) -> None:
        """Estimate from these tables what is not measured yet, as long as the samples are those they were made on."""
        with self._lock:
            self._tables = (samples, tables)

    def _now(self, preview: Preview, aim: Aim, samples: Samples) -> dict[str, Any] | None:
        """The chosen position: measured where it is; else from the tables, else between measured neighbours."""
        now = preview.at(aim.sparsity)
        tables = self._tables
        if (now is None or now.tier != "measured") and tables is not None and tables[0] is samples and aim.counts:
            reading = tables[1].at(aim.counts)
            known = {name: getattr(reading, name) for name in ("coverage", "unchanged", "accuracy", "tier")}
            error = reading.error[0].coverage if reading.error else None
            return {"sparsity": aim.sparsity, **known, "error": error}
        return None if now is None else {**vars(now), "error": None}

    def aim(self, aim: Aim) -> None:
        """The sliders moved. Measured points stay while the family is the same."""
        with self._lock:
            changed = self._aim is None or aim.family != self._aim.family
            if changed and self._preview is not None and self._preview.points():
                self._old = self.curve()
            self._aim, self._moved = aim, time.monotonic()
            if changed:
                self._preview = None if self._samples is None else self._family_preview(self._samples, aim)
        if self._running:
            self._loop.wake()

    @staticmethod
    def _family_preview(samples: Samples, aim: Aim) -> Preview:
        return Preview(samples.network, samples.images, samples.labels, aim.masks_at, samples.dense)

    def samples(self) -> Samples:
        """The samples, drawn now when they were not yet."""
        with self._lock:
            if self._samples is not None:
                return self._samples
            draw = self._draw
        assert draw is not None
        drawn = draw()
        with self._lock:
            if draw is not self._draw:  # other samples were asked for meanwhile
                return self.samples()
            if self._samples is None:
                self._samples = drawn
                if self._aim is not None:
                    self._preview = self._family_preview(drawn, self._aim)
            return self._samples

    def point(self) -> Point:
        """The chosen position: measured, estimated, or measured now when nothing is known of it."""
        self.samples()
        with self._lock:
            preview, aim = self._preview, self._aim
        assert preview is not None and aim is not None
        return preview.at(aim.sparsity) or preview.measure(aim.sparsity)

    def start(self) -> None:
        """Measure in the background from now on."""
        self._running = True
        self._loop.start()

    def wait(self, timeout: float) -> bool:
        """Block until everything is measured; False after `timeout` seconds."""
        return self._loop.wait_idle(timeout)

    def close(self) -> None:
        """End the background thread."""
        self._running = False
        self._loop.stop()

    def _step(self) -> bool:
        if self._draw is None:
            return False
        self.samples()
        resting = time.monotonic() - self._moved
        if resting < SETTLE:
            time.sleep(SETTLE - resting)
            return True
        with self._lock:
            preview, aim = self._preview, self._aim
        if preview is None or aim is None:
            return False
        known = {point.sparsity for point in preview.points()}
        todo = [s for s in (aim.sparsity, *ORDER) if s not in known and s <= aim.limit]
        if not todo:
            return False
        try:
            preview.measure(todo[0], cancelled=lambda: self._loop.stopped or self._preview is not preview)
        except Cancelled:
            return True
        if self._preview is preview:
            self._on_change()
        return True

    def curve(self) -> CurveView:
        """What is known so far; the curve of the family before, marked stale, until the first new point is there."""
        with self._lock:
            samples, preview, aim, old = self._samples, self._preview, self._aim, self._old
        points = {} if preview is None else {point.sparsity: point for point in preview.points()}
        if not points:
            limit = 1.0 if aim is None else aim.limit
            now = None if preview is None or aim is None or samples is None else self._now(preview, aim, samples)
            return replace(EMPTY_CURVE if old is None else old, current=now, stale=old is not None, limit=limit)

        def along(name: str) -> np.ndarray:
            return np.array([getattr(points[s], name) if s in points else np.nan for s in POSITIONS])

        assert preview is not None and aim is not None and samples is not None
        return CurveView(
            positions=np.array(POSITIONS),
            coverage=along("coverage"),
            unchanged=along("unchanged"),
            accuracy=along("accuracy"),
            current=self._now(preview, aim, samples),
            n_samples=len(samples.labels),
            split=samples.split,
            limit=aim.limit,
        )
