"""From tables to logits: any vector of layer budgets in one gather and one product."""

from __future__ import annotations

import threading

import numpy as np

from mpviz.certificates.anchors import Plan, Tables

_FINE = 8  # positions between two anchors among which the nearest is taken


class LookUp:
    """Estimated logits from the tables of an anchored preview; see `AnchoredPreview`. Thread-safe."""

    def __init__(self, plan: Plan, tables: Tables) -> None:
        self.plan, self.tables = plan, tables
        self._own = threading.local()
        layers, steps = plan.grid_counts.shape
        self._rows = tables.effects.reshape(layers * steps, -1)
        # one layer at a time: squares of all would double the memory
        self._norms = np.sqrt([(effects.astype(np.float32) ** 2).mean(axis=(1, 2)) for effects in tables.effects])
        # U(b̄) − Σ D_l(b̄_l) of every anchor, so that a look-up adds D_l(b_l) only
        rest = [tables.path[a].reshape(-1) - self._sum_of_effects(c) for a, c in enumerate(plan.anchor_counts)]
        self._rest = np.array(rest, dtype=np.float32)
        last = len(plan.anchor_counts) - 1
        self._positions = np.linspace(0, last, last * _FINE + 1)
        along = np.array([np.interp(self._positions, np.arange(last + 1), c) for c in plan.anchor_counts.T]).T
        self._along = np.array([self._sizes_of_effects(c) for c in along])  # positions, layers

    def _weights(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Grid step below each layer's count, and how far it is to the next one, in [0, 1]."""
        grid = self.plan.grid_counts
        low = np.minimum((grid <= counts[:, None]).sum(axis=1) - 1, grid.shape[1] - 2)
        layers = np.arange(len(grid))
        left, right = grid[layers, low], grid[layers, low + 1]
        return low, np.clip((counts - left) / np.maximum(right - left, 1), 0.0, 1.0)

    def _sizes_of_effects(self, counts: np.ndarray) -> np.ndarray:
        low, share = self._weights(counts)
        layers = np.arange(len(low))
        return (1 - share) * self._norms[layers, low] + share * self._norms[layers, low + 1]

    def _sum_of_effects(self, counts: np.ndarray) -> np.ndarray:
        """Σ_l D_l(b_l), Float32["n·classes"]: one gather of at most two rows a layer, one product."""
        low, share = self._weights(counts)
        first = np.arange(len(low)) * self.plan.grid_counts.shape[1] + low
        rows, weights = np.concatenate([first, first + 1]), np.concatenate([1 - share, share]).astype(np.float32)
        rows, weights = rows[weights > 0], weights[weights > 0]
        if not hasattr(self._own, "rows"):  # one buffer a thread, made once
            self._own.rows = np.empty((2 * len(low), self._rows.shape[1]), self._rows.dtype)
            self._own.floats = self._own.rows if self._rows.dtype == np.float32 else self._own.rows.astype(np.float32)
        taken = np.take(self._rows, rows, axis=0, out=self._own.rows[: len(rows)], mode="clip")
        if taken.dtype != np.float32:
            taken = self._own.floats[: len(rows)]
            taken[:] = self._own.rows[: len(rows)]
        return weights @ taken

    def positions(self, counts: np.ndarray) -> tuple[float, ...]:
        """Positions on the path whose anchored estimates are averaged, in anchors from the dense one.

        The furthest at which no layer has lost more than asked tends to estimate too low a coverage, the one of
        equal total effect (Σ of root mean squares) too high a one, not always. Where one layer alone is pruned its own
        effect is exact at the dense end.
        """
        if np.count_nonzero(counts) < 2:
            return (0.0,)
        sizes = self._sizes_of_effects(counts)
        within = (self._along <= sizes + 1e-9).all(axis=1)  # the dense end always is
        equal = np.abs(self._along.sum(axis=1) - sizes.sum()).argmin()
        return float(self._positions[within].max()), float(self._positions[equal])

    def logits(self, counts: np.ndarray) -> np.ndarray:
        """Float32["n classes"]."""
        exact = np.flatnonzero((self.plan.anchor_counts == counts).all(axis=1))
        if len(exact):
            return self.tables.path[exact[0]].astype(np.float32)
        positions = self.positions(counts)
        values = self._sum_of_effects(counts)
        for position in positions:
            low = min(int(position), len(self._rest) - 2)
            share = np.float32(position - low)
            between = (1 - share) * self._rest[low] + share * self._rest[low + 1]
            values = values + between / np.float32(len(positions))
        return values.reshape(self.tables.path.shape[1:])
