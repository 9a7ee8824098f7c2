"""What a spectrum and the arguments of a fit must satisfy, each failure with its remedy."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpviz.errors import SpectrumError, nearest
from mpviz.rmt.edge import tracy_widom_quantile

METHODS = ("bema", "bema-once", "median", "trace", "ks")
DEFAULT_TRIM = 0.1
MIN_WINDOW = 8  # eigenvalues that a fit of one number needs to mean something

REASONS = (
    "MP-like",
    "column scales differ",
    "heavy tail",
    "other structure",
    "too few eigenvalues",
    "low rank",
    "no spectrum",
)
GRADES = ("good", "fair", "poor", "none")

_EPSILON = float(np.finfo(np.float64).eps)
_NEGATIVE = 1e-5  # relative to the largest: more than float32 rounding ever leaves below zero


class Refusal(SpectrumError):
    """A spectrum that is one but cannot be fitted; `reason` is the one of REASONS that says why."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def check_arguments(method: str, trim: float, level: float) -> None:
    """Refuse an unknown method, a window that is none and a level without Tracy–Widom quantile."""
    if method not in METHODS:
        raise SpectrumError(f"unknown fit method '{method}'; {nearest(str(method), METHODS)}")
    if not 0 <= trim < 0.5:  # NaN fails as well
        raise SpectrumError(f"trim {trim} leaves no window; choose it in [0, 0.5), e.g. 0.1 for the central 80 %")
    tracy_widom_quantile(level)


def check_shape(shape: Sequence[int]) -> tuple[int, int]:
    """The shape as two ints of at least 2 each."""
    try:
        rows, cols = (operator.index(side) for side in shape)
    except (TypeError, ValueError):
        raise SpectrumError(f"shape {shape!r} is not (rows, cols) of a matrix; unfold the layer first") from None
    if min(rows, cols) < 1:
        raise SpectrumError(f"a {rows} x {cols} layer has no entries; leave it out")
    if min(rows, cols) == 1:
        raise Refusal("too few eigenvalues", f"a {rows} x {cols} layer has one eigenvalue and no bulk; leave it out")
    return rows, cols


def check_eigenvalues(eigs: ArrayLike, shape: tuple[int, int]) -> NDArray[np.float64]:
    """The spectrum as float64, ascending, with rounding below zero set to zero; its length belongs to the shape."""
    name = f"the {shape[0]} x {shape[1]} layer"
    try:
        given = np.asarray(eigs)
        values = given.astype(np.float64, casting="same_kind" if given.dtype.kind in "fc" else "unsafe")
    except (TypeError, ValueError):
        raise SpectrumError(f"the eigenvalues of {name} are not real numbers; pass a list or array of floats") from None
    if values.ndim != 1:
        raise SpectrumError(
            f"eigenvalues come as one list, got an array of shape {values.shape}; pass the spectrum of W, not W"
        )
    if len(values) != min(shape):
        raise SpectrumError(
            f"{name} has min(rows, cols) = {min(shape)} eigenvalues, got {len(values)}; "
            "pass all of them, without the zeros that cols > rows adds"
        )
    broken = int(np.count_nonzero(~np.isfinite(values)))
    if broken:
        raise SpectrumError(f"{broken} of {len(values)} eigenvalues of {name} are NaN or infinite; check its weights")
    values = np.sort(values)
    if values[0] < -_NEGATIVE * abs(values[-1]):
        raise SpectrumError(
            f"{name} has an eigenvalue {values[0]:.3g}, but WᵀW has none below zero; "
            "pass squared singular values / rows"
        )
    return np.maximum(values, 0.0)


def numerical_rank(values: NDArray[np.float64], longer: int, precision: float = _EPSILON) -> int:
    """How many eigenvalues are above rounding, √longer · ε · λ_max: rounding errors of a sum grow like its root.

    values: ascending, at least 0. longer: the longer side of W. precision: ε of the numbers W was multiplied in.
    """
    return int(np.count_nonzero(values > math.sqrt(longer) * precision * values[-1]))


def check_rank(rank: int, trim: float, shape: tuple[int, int]) -> None:
    """Refuse a spectrum with too few eigenvalues above zero for a fit on its central window."""
    name, full = f"the {shape[0]} x {shape[1]} layer", min(shape)
    if rank == 0:
        raise SpectrumError(f"{name} is all-zero: no eigenvalue is above zero; leave it out or restore its weights")
    inside = len(window(rank, trim))
    if inside >= MIN_WINDOW:
        return
    if rank < MIN_WINDOW and rank < full:
        raise Refusal("low rank", f"low rank: only {rank} of {full} eigenvalues of {name} are above zero; leave it out")
    few = "too few eigenvalues"
    found = f"{few}: only {inside} eigenvalues in the bulk window of {name}, a fit needs {MIN_WINDOW}"
    if rank < MIN_WINDOW or trim <= DEFAULT_TRIM:  # nothing to lower for those who chose no trim
        raise Refusal(few, f"{found}; the layer is too small, leave it out")
    widest = widest_trim(rank)
    raise Refusal(few, f"{found}; lower trim to {widest:g}" + (" or below" if widest > 0 else ""))


def window(count: int, trim: float) -> range:
    """Ranks of the central window [trim·count, (1−trim)·count], symmetric; empty when trim takes all."""
    cut = math.ceil(trim * count - 1e-9)  # 0.1·30 must not become 4 by rounding
    return range(cut, max(cut, count - cut))


def widest_trim(count: int) -> float:
    """The largest trim, in whole per cent, that leaves enough of `count` eigenvalues."""
    return math.floor(100 * ((count - MIN_WINDOW) // 2) / count) / 100
