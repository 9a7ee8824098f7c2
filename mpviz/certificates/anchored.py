"""What any vector of layer budgets does to the predictions: looked up at once, measured when there is time.

The estimate is no certificate of any set: it is anchored in exact logits of the slider's path and says its own error.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mpviz.certificates.anchors import (
    ANCHORS,
    LAYER_GRID,
    MEMORY_LIMIT,
    Family,
    Progress,
    Tables,
    content_of,
    plan_tables,
    run_tables,
)
from mpviz.certificates.lookup import LookUp
from mpviz.certificates.margins import compare_logits
from mpviz.certificates.preview_store import load, store
from mpviz.errors import BudgetError, DataError, nearest
from mpviz.nets.forward import logits

HELD_OUT = 12  # budget vectors of each kind on which the estimate is measured
REMEMBERED = 512  # measured budget vectors that are kept
OVERRIDES = 3
_KINDS = (f"slider with up to {OVERRIDES} overrides", "arbitrary budgets")


@dataclass(frozen=True)
class PreviewError:
    """How far estimates are from measured values on held-out budgets, in points (0 to 100).

    kind: "slider with up to 3 overrides" (a position between anchors; three layers, or all but one where there are
    fewer, set to a share removed uniform in [0, 0.95]) or "arbitrary budgets" (every layer uniform in [0, c], c uniform
    in [0.2, 0.9]).
    coverage, unchanged, accuracy: mean absolute error; worst: of the coverage. spread: standard deviation of the
    measured coverage over the vectors, in points; an error far below it means that the estimate tells them apart.
    """

    kind: str
    vectors: int
    coverage: float
    unchanged: float
    accuracy: float
    worst: float
    spread: float


@dataclass(frozen=True, eq=False)
class Reading:
    """What one vector of layer budgets does. Shares in [0, 1]; tier "estimate" or "measured".

    counts: {layer: entries removed}. sparsity: share of all the entries of these layers. margins: Float64["n"], logit
    of the dense network's top class minus the best other one, negative where the prediction changed. eta: Float64["n"],
    ‖z − z_dense‖∞. error: of the estimate on held-out budgets; empty for measured values, which have none.
    """

    counts: Mapping[str, int]
    sparsity: float
    coverage: float
    unchanged: float
    accuracy: float
    margins: np.ndarray
    eta: np.ndarray
    tier: str
    error: tuple[PreviewError, ...] = ()


class AnchoredPreview:
    """Estimates and measured values for any vector of layer budgets of one family, on n samples. Thread-safe.

    The estimate, for a position b̄ on the slider's path near the budgets b:
        z(b) ≈ U(b̄) + Σ_l [D_l(b_l) − D_l(b̄_l)],
    U exact logits, D_l the change of the logits when layer l alone is pruned; both linear between their grid points;
    the mean over two such positions is taken.
    It is exact, up to rounding, on the anchors and where one layer alone is pruned to a grid point.

    family: names, sizes and masks of nested masks, one count a layer (`mpviz.prune.Ranking` is one); a layer's mask
    must depend on its own count only. counts_at: sparsity → counts of the slider's path. limit: the largest sparsity
    that the path has. dense: logits on these samples, when they are known. memory_limit: bytes of all tables.
    Made by running the network (layers × grid + anchors + 2·held_out) times, much of it resumed behind the layer;
    kept on disk by content, so that a second preview of the same takes one dense run. Raises DataError for no samples
    or logits that are not finite, BudgetError when the tables do not fit in memory_limit, Cancelled.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        family: Family,
        counts_at: Callable[[float], Mapping[str, int]],
        *,
        limit: float = 1.0,
        anchors: tuple[float, ...] = ANCHORS,
        grid: tuple[float, ...] = LAYER_GRID,
        dtype: str = "float32",
        held_out: int = HELD_OUT,
        seed: int = 0,
        memory_limit: int = MEMORY_LIMIT,
        dense: Tensor | None = None,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> None:
        if len(images) == 0 or len(images) != len(labels):
            raise DataError(f"{len(images)} images and {len(labels)} labels; give one label each, one sample at least")
        self.model, self.images, self.labels, self.family = model, images, labels, family
        self.names = list(family.names)
        self.sizes = np.array([int(size) for size in family.sizes], dtype=np.int64)
        dense = logits(model, images, cancelled=cancelled) if dense is None else dense
        compare_logits(dense, dense, labels)  # shapes, labels, finite logits: now
        self._dense_logits = dense
        self._dense = dense.numpy().astype(np.float32)
        self._top = self._dense.argmax(axis=1)
        self._margin = _lead(self._dense.astype(np.float64), self._top)
        self._lock = threading.Lock()
        self._measured: OrderedDict[tuple[int, ...], Reading] = OrderedDict()
        plan = plan_tables(family, counts_at, anchors, grid, limit, dtype, dense.shape, memory_limit)
        key = content_of(model, images, labels, family, plan, (held_out, seed))
        known = load(key)
        self.error: tuple[PreviewError, ...] = ()
        self.from_cache = known is not None and _belongs(known, dense)
        if self.from_cache:
            assert known is not None
            self._look = LookUp(plan, Tables(known["path"], known["effects"]))
            self.error = _errors_from(known["errors"])
            return
        # the held-out vectors are the rest of the work, about
        part = None if progress is None else lambda done, what: progress(0.85 * done, what)
        self._look = LookUp(plan, run_tables(model, images, family, plan, dense, part, cancelled))
        self.error = self._validate(counts_at, held_out, seed, progress, cancelled)
        store(key, self._arrays())

    def _arrays(self) -> dict[str, np.ndarray]:
        errors = [(e.vectors, e.coverage, e.unchanged, e.accuracy, e.worst, e.spread) for e in self.error]
        return {
            "path": self._look.tables.path,
            "effects": self._look.tables.effects,
            "dense": self._dense_logits.numpy(),
            "errors": np.array(errors, dtype=np.float64).reshape(len(errors), 6),
        }

    # --- reading --------------------------------------------------------------------------------------------------

    @property
    def nbytes(self) -> int:
        """Bytes of the tables."""
        return self._look.plan.nbytes

    def counts_of(self, shares: Mapping[str, float]) -> dict[str, int]:
        """Entries removed from each layer for shares in [0, 1]; layers not named lose nothing."""
        self._check_names(shares)
        for name, share in shares.items():
            if not 0.0 <= share <= 1.0:
                raise BudgetError(f"{name} is to lose a share of {share}; give one in [0, 1]")
        sizes = dict(zip(self.names, self.sizes.tolist(), strict=True))
        return {name: round(shares.get(name, 0.0) * size) for name, size in sizes.items()}

    def _check_names(self, given: Mapping[str, object]) -> None:
        for name in given:
            if name not in self.names:
                raise BudgetError(f"'{name}' is no layer of this preview; {nearest(name, self.names)}")

    def _vector(self, counts: Mapping[str, int]) -> np.ndarray:
        self._check_names(counts)
        missing = [name for name in self.names if name not in counts]
        if missing:
            raise BudgetError(f"no budget for {missing[0]}; give the count of every layer, 0 leaves one alone")
        vector = np.array([counts[name] for name in self.names], dtype=np.int64)
        wrong = np.flatnonzero((vector < 0) | (vector > self.sizes))
        if len(wrong):
            i = int(wrong[0])
            raise BudgetError(f"{self.names[i]} has {self.sizes[i]} entries; {vector[i]} of them cannot be removed")
        return vector

    def at(self, counts: Mapping[str, int]) -> Reading:
        """The measured value where there is one, else the estimate. Raises BudgetError for budgets that do not fit."""
        vector = self._vector(counts)
        with self._lock:
            known = self._measured.get(tuple(vector.tolist()))
            if known is not None:
                self._measured.move_to_end(tuple(vector.tolist()))
        return known or self.estimate(counts)

    def estimate(self, counts: Mapping[str, int]) -> Reading:
        """The look-up, tier "estimate", also where a measured value is known."""
        vector = self._vector(counts)
        return self._reading(vector, self._look.logits(vector), "estimate", self.error)

    def measure(self, counts: Mapping[str, int], cancelled: Callable[[], bool] | None = None) -> Reading:
        """Run the network pruned so: exact, tier "measured", and what `at` returns from now on."""
        vector = self._vector(counts)
        key = tuple(vector.tolist())
        with self._lock:
            known = self._measured.get(key)
        if known is not None:
            return known
        pruned = logits(self.model, self.images, self.family.masks(dict(counts)), cancelled=cancelled)
        if not torch.isfinite(pruned).all():
            raise DataError("the network pruned to these budgets gives NaN or infinite logits; lower the budgets")
        reading = self._reading(vector, pruned.numpy(), "measured", ())
        with self._lock:
            self._measured[key] = reading
            while len(self._measured) > REMEMBERED:
                self._measured.popitem(last=False)
        return reading

    def _reading(self, vector: np.ndarray, values: np.ndarray, tier: str, error: tuple[PreviewError, ...]) -> Reading:
        values = values.astype(np.float64)
        eta = np.abs(values - self._dense).max(axis=1)
        predicted = values.argmax(axis=1)
        return Reading(
            counts=dict(zip(self.names, vector.tolist(), strict=True)),
            sparsity=float(vector.sum() / self.sizes.sum()),
            coverage=float((self._margin > 2 * eta).mean()),
            unchanged=float((predicted == self._top).mean()),
            accuracy=float((predicted == self.labels.numpy()).mean()),
            margins=_lead(values, self._top),
            eta=eta,
            tier=tier,
            error=error,
        )

    # --- its own error --------------------------------------------------------------------------------------------

    def held_out(
        self, counts_at: Callable[[float], Mapping[str, int]], vectors: int, seed: int
    ) -> dict[str, list[dict[str, int]]]:
        """Budget vectors that are on no grid, by kind (see PreviewError)."""
        rng = np.random.default_rng(seed)
        anchors = self._look.plan.anchors
        slider, free = [], []
        for _ in range(vectors):
            gap = int(rng.integers(0, len(anchors) - 1))
            s = float(rng.uniform(0.25, 0.75) * (anchors[gap + 1] - anchors[gap]) + anchors[gap])
            counts = {name: int(counts_at(s)[name]) for name in self.names}
            for i in rng.choice(len(self.names), min(OVERRIDES, max(1, len(self.names) - 1)), replace=False):
                counts[self.names[i]] = int(rng.uniform(0, 0.95) * self.sizes[i])
            slider.append(counts)
            ceiling = rng.uniform(0.2, 0.9)
            free.append({name: int(rng.uniform(0, ceiling) * self.sizes[i]) for i, name in enumerate(self.names)})
        return {_KINDS[0]: slider, _KINDS[1]: free}

    def _validate(
        self,
        counts_at: Callable[[float], Mapping[str, int]],
        vectors: int,
        seed: int,
        progress: Progress | None,
        cancelled: Callable[[], bool] | None,
    ) -> tuple[PreviewError, ...]:
        if vectors < 1:
            return ()
        found = []
        for k, (kind, budgets) in enumerate(self.held_out(counts_at, vectors, seed).items()):
            rows = []
            for i, counts in enumerate(budgets):
                exact, guess = self.measure(counts, cancelled), self.estimate(counts)
                rows.append([[getattr(r, f) for f in ("coverage", "unchanged", "accuracy")] for r in (exact, guess)])
                if progress is not None:
                    progress(0.85 + 0.15 * (k * vectors + i + 1) / (2 * vectors), f"trying out: {kind}")
            values = 100 * np.array(rows)  # vectors, measured or estimate, quantity
            off = np.abs(values[:, 1] - values[:, 0])
            coverage, unchanged, accuracy = off.mean(axis=0).tolist()
            worst, spread = off[:, 0].max().item(), values[:, 0, 0].std().item()
            found.append(PreviewError(kind, vectors, coverage, unchanged, accuracy, worst, spread))
        return tuple(found)


def _lead(values: np.ndarray, top: np.ndarray) -> np.ndarray:
    """Logit of the class `top` minus the best other, Float64["n"]."""
    rows = np.arange(len(values))
    others = values.copy()
    others[rows, top] = -np.inf
    return values[rows, top] - others.max(axis=1)


def _belongs(known: Mapping[str, np.ndarray], dense: Tensor) -> bool:
    """The tables' dense logits are those of this network: code outside the weights may have changed."""
    kept = known["dense"]
    return kept.shape == tuple(dense.shape) and np.allclose(kept, dense.numpy(), rtol=0, atol=1e-3)


def _errors_from(rows: np.ndarray) -> tuple[PreviewError, ...]:
    return tuple(
        PreviewError(kind, int(vectors), *others)
        for kind, (vectors, *others) in zip(_KINDS[: len(rows)], rows.tolist(), strict=True)
    )
