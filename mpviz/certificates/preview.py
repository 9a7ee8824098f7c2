"""Coverage over sparsity: measured at positions of a slider, estimated in between, never one for the other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from mpviz.certificates.margins import Certificate, compare_logits
from mpviz.nets.forward import logits

POSITIONS = (*(round(0.05 * i, 2) for i in range(20)), 0.99)
MasksAt = Callable[[float], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Point:
    """Shares in [0, 1] at one sparsity; tier "measured" or "estimate"."""

    sparsity: float
    coverage: float
    unchanged: float
    accuracy: float
    tier: str


class Preview:
    """Measured points of one family of masks on one set of samples. Thread-safe.

    masks_at: sparsity → masks; the family is fixed for the life of the preview (make a new one when β changes).
    """

    def __init__(
        self, model: nn.Module, images: Tensor, labels: Tensor, masks_at: MasksAt, dense: Tensor | None = None
    ):
        self.model, self.images, self.labels, self.masks_at = model, images, labels, masks_at
        self.dense = logits(model, images) if dense is None else dense
        self._points: dict[float, Point] = {}
        self._lock = threading.Lock()

    def certificate(self, sparsity: float, cancelled: Callable[[], bool] | None = None) -> Certificate:
        """Run the pruned network at this sparsity. Raises Cancelled when asked to stop."""
        pruned = logits(self.model, self.images, self.masks_at(sparsity), cancelled=cancelled)
        return compare_logits(self.dense, pruned, self.labels)

    def measure(self, sparsity: float, cancelled: Callable[[], bool] | None = None) -> Point:
        """The measured point at this sparsity; run once, remembered after."""
        key = float(sparsity)
        with self._lock:
            known = self._points.get(key)
        if known is not None:
            return known
        cert = self.certificate(float(sparsity), cancelled)
        point = Point(key, cert.coverage, cert.unchanged, cert.accuracy, "measured")
        with self._lock:
            self._points[key] = point
        return point

    def points(self) -> list[Point]:
        """All measured points so far, by sparsity."""
        with self._lock:
            return [self._points[key] for key in sorted(self._points)]

    def at(self, sparsity: float) -> Point | None:
        """Measured where measured; a linear estimate between measured neighbours; None where there are none."""
        key = float(sparsity)
        points = self.points()
        for point in points:
            if point.sparsity == key:
                return point
        if len(points) < 2 or not points[0].sparsity < key < points[-1].sparsity:
            return None
        x = [p.sparsity for p in points]
        values = {
            f: float(np.interp(key, x, [getattr(p, f) for p in points])) for f in ("coverage", "unchanged", "accuracy")
        }
        return replace(points[0], sparsity=key, tier="estimate", **values)


def coverage_curve(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    masks_at: MasksAt,
    positions: tuple[float, ...] = POSITIONS,
    progress: Callable[[float, str], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> list[Point]:
    """Measured points at all positions. Raises Cancelled when asked to stop."""
    with torch.no_grad():
        preview = Preview(model, images, labels, masks_at)
        for done, position in enumerate(positions, start=1):
            preview.measure(position, cancelled)
            if progress is not None:
                progress(done / len(positions), f"sparsity {position:.2f}")
    return preview.points()
