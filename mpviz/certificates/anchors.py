"""The tables of the anchored preview: exact logits on the slider's path, and what each layer does alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from mpviz.certificates.preview_store import Content
from mpviz.certificates.resume import layer_outputs, trace
from mpviz.errors import BudgetError, Cancelled, DataError
from mpviz.nets.forward import logits

ANCHORS = (*(round(0.05 * i, 2) for i in range(20)), 0.97, 0.99)
LAYER_GRID = (0.0, 0.2, 0.35, 0.5, 0.6, 0.7, 0.8, 0.87, 0.93, 1.0)
MEMORY_LIMIT = 256 * 2**20
BATCH = 128
Progress = Callable[[float, str], None]


class Family(Protocol):
    """Nested masks told by how many entries each layer loses; `mpviz.prune` has one."""

    names: list[str]

    @property
    def sizes(self) -> Iterable[int]:
        """Entries of each layer, in the order of `names`."""

    def masks(self, counts: Mapping[str, int]) -> Mapping[str, Tensor]:
        """Bool masks, True = kept; a layer's mask depends on its own count only."""


@dataclass(frozen=True, eq=False)
class Plan:
    """Where the network is run. anchors: Float["a"], anchor_counts: Int["a layers"], grid_counts: Int["layers g"]."""

    anchors: np.ndarray
    anchor_counts: np.ndarray
    grid_counts: np.ndarray
    dtype: np.dtype
    nbytes: int


@dataclass(frozen=True, eq=False)
class Tables:
    """path: Float32["a n classes"], logits; effects: Float["layers g n classes"], change of the logits."""

    path: np.ndarray
    effects: np.ndarray


def plan_tables(
    family: Family,
    counts_at: Callable[[float], Mapping[str, int]],
    anchors: Sequence[float],
    grid: Sequence[float],
    limit: float,
    dtype: str,
    shape: Sequence[int],
    memory_limit: int,
) -> Plan:
    """Check the grid and what it takes. Raises BudgetError for a grid or path that cannot be used, or too much."""
    names, sizes = list(family.names), np.array([int(size) for size in family.sizes], dtype=np.int64)
    if dtype not in ("float32", "float16"):
        raise BudgetError(f"tables are kept as float32 or float16, not {dtype}")
    if len(names) != len(sizes) or not names or sizes.min() < 1:
        raise BudgetError(f"the family names {len(names)} layers and has {len(sizes)} sizes; both, and at least 1 each")
    shares = sorted({float(g) for g in grid} | {0.0, 1.0})
    if not (0.0 <= shares[0] and shares[-1] <= 1.0):
        raise BudgetError(f"the layers' grid holds shares in [0, 1]; got {shares[0]:g} to {shares[-1]:g}")
    positions = sorted({float(a) for a in anchors if a <= limit} | {0.0})
    if len(positions) < 2 or not (0.0 <= positions[0] and positions[-1] < 1.0):
        raise BudgetError(f"the path needs two anchors at least in [0, 1) up to the limit {limit:g}; got {positions}")
    n, classes = int(shape[0]), int(shape[1])
    width = np.dtype(dtype).itemsize
    # effects, their gather buffers, and twice the anchors' logits
    nbytes = n * classes * (len(names) * (len(shares) * width + 2 * (width + 4)) + 8 * len(positions))
    if nbytes > memory_limit:
        raise BudgetError(
            f"the preview of {len(names)} layers × {len(shares)} grid points × {n} samples × {classes} classes takes "
            f"{nbytes / 2**20:.0f} MiB, the limit is {memory_limit / 2**20:.0f}; take at most "
            f"{max(1, n * memory_limit // nbytes)} samples, fewer grid points, float16, or a higher memory_limit"
        )
    rows = []
    for s in positions:
        counts = counts_at(s)
        odd = set(counts) ^ set(names)
        if odd:
            raise BudgetError(f"the path and the family do not have the same layers: {min(odd)} is in one only")
        rows.append([int(counts[name]) for name in names])
    path = np.array(rows, dtype=np.int64)
    if (path < 0).any() or (path > sizes).any():
        raise BudgetError("the path removes more entries than a layer has; give the family and path of one network")
    steps = np.rint(np.array(shares)[None, :] * sizes[:, None]).astype(np.int64)
    return Plan(np.array(positions), path, steps, np.dtype(dtype), int(nbytes))


def content_of(model: nn.Module, images: Tensor, labels: Tensor, family: Family, plan: Plan, settings: object) -> str:
    """Key of everything that the tables depend on, the masks themselves included."""
    content = Content()
    content.network(model)
    content.tensor("images", images)
    content.tensor("labels", labels)
    content.text((list(family.names), plan.anchors.tolist(), str(plan.dtype), BATCH, settings))
    for counts in (*plan.anchor_counts, *plan.grid_counts.T):
        content.text(counts.tolist())
        masks = family.masks(dict(zip(family.names, counts.tolist(), strict=True)))
        for name in family.names:
            content.tensor(name, masks[name])
    return content.key()


@torch.no_grad()
def run_tables(
    model: nn.Module,
    images: Tensor,
    family: Family,
    plan: Plan,
    dense: Tensor,
    progress: Progress | None,
    cancelled: Callable[[], bool] | None,
) -> Tables:
    """Run the network at every anchor, and behind every layer at every grid point. Raises Cancelled, DataError."""

    def step() -> None:
        if cancelled is not None and cancelled():
            raise Cancelled("the preview was cancelled; nothing of it is kept")

    names, layers = list(family.names), len(family.names)
    # a layer's share of the work: half a run at each grid point
    work = len(plan.anchors) + 0.5 * plan.grid_counts.size
    path = [dense.numpy()]
    for i, counts in enumerate(plan.anchor_counts[1:], start=1):
        masks = family.masks(dict(zip(names, counts.tolist(), strict=True)))
        path.append(logits(model, images, masks, BATCH, cancelled=cancelled).numpy())
        _check(path[-1], f"the network pruned to {100 * plan.anchors[i]:g} %")
        if progress is not None:
            progress(i / work, f"slider at {plan.anchors[i]:.2f}")
    device = next(model.parameters()).device
    batches = [part.to(device) for part in images.split(BATCH)]
    calls = trace(model, batches[0][:2])
    effects = np.zeros((layers, plan.grid_counts.shape[1], *dense.shape), dtype=plan.dtype)
    for i, name in enumerate(names):
        others = dict.fromkeys(names, 0)
        masks_of = [family.masks(others | {name: int(c)})[name] for c in plan.grid_counts[i, 1:]]
        found = layer_outputs(model, calls, name, masks_of, batches, step)
        _check(found.numpy(), f"the network with {name} alone pruned")
        with np.errstate(over="ignore"):  # checked below
            effects[i, 1:] = (found - dense).numpy()
        _check(effects[i], f"{name} in {plan.dtype} (use float32)")
        if progress is not None:
            progress((len(plan.anchors) + 0.5 * (i + 1) * plan.grid_counts.shape[1]) / work, f"{name} alone")
    return Tables(np.stack(path).astype(np.float32), effects)


def _check(values: np.ndarray, what: str) -> None:
    if not np.isfinite(values).all():
        raise DataError(f"{what} gives NaN or infinite logits; leave such budgets out of the preview")
