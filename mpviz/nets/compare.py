"""Two versions of one network side by side: base and fine-tuned, dense and pruned, one checkpoint and the next."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from mpviz.errors import Cancelled, CheckpointError, ModelError, SpectrumError
from mpviz.nets.engine import as_numpy, real_stack
from mpviz.nets.layers import LayerInfo, infos_of, part_of
from mpviz.nets.spectra import LayerSpectrum, layer_spectra, spectrum
from mpviz.nets.weights import Weights, WeightSource, open_weights
from mpviz.rmt.signals import stable_rank

Progress = Callable[[float, str], None]

_CHANGES = ("sigma_plus", "variance", "n_spikes", "bulk_fraction", "mp_like", "grade", "verdict")


def compare(
    base: Weights,
    other: Weights,
    layers: Sequence[str] | None = None,
    k: int | None = None,
    split: Sequence[str] | str = (),
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> pd.DataFrame:
    """What changed from `base` to `other`, one row a layer that both have with the same shape.

    base, other: networks, state dicts or safetensors files, as for `analyze`. k: how many leading singular directions
    are compared; None takes the spikes of the base layer, at least one. split: as for `analyze`.
    Columns: role, rows, cols; sigma_plus, variance, n_spikes, bulk_fraction, mp_like, grade ("good", "fair", "poor" or
    "none", see BulkFit) and verdict, each ending in _base and _other; edge_ratio = σ₊ of other / base;
    moved = ‖B − A‖_F / ‖A‖_F; update_stable_rank of B − A, small when the change has few directions; sparsity_base and
    sparsity_other, shares of exact zeros; k, overlap_left and overlap_right = ‖U_Aᵀ U_B‖_F² / k for the leading k left
    (output) and right (input) singular vectors, 1 when the subspaces agree; chance_left and chance_right = k / rows and
    k / cols, what random subspaces give.
    `attrs["skipped"]` says which layers only one of the two has, or with another shape.
    Raises ModelError when no layer can be compared or a wanted one is missing, Cancelled when asked to stop.
    """
    if k is not None and (operator.index(k) if hasattr(k, "__index__") else 0) < 1:
        raise ModelError(f"k = {k} leading directions cannot be compared; ask for a whole number of at least 1")
    sources = open_weights(base), open_weights(other)
    infos, skipped = _common(*sources, layers, split)
    names = list(infos)

    def part(first: float) -> Progress | None:
        return None if progress is None else lambda share, words: progress(first + 0.4 * share, words)

    before = layer_spectra(base, names, split=split, progress=part(0.0), cancelled=cancelled)
    after = layer_spectra(other, names, split=split, progress=part(0.4), cancelled=cancelled)
    rows = {}
    for done, name in enumerate(names, start=1):
        if cancelled is not None and cancelled():
            raise Cancelled("the comparison was cancelled")
        try:
            a, b = (_matrix(source, infos[name]) for source in sources)
            moved = _entries(a, b) | _subspaces(a, b, before[name].fit.n_spikes, k)
        except (SpectrumError, CheckpointError) as problem:  # the verdicts of the row say more
            moved = {}
            skipped[name] = f"only the fits: {problem}"
        rows[name] = _fits(before[name], after[name]) | moved
        if progress is not None:
            progress(0.8 + 0.2 * done / len(names), name)
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index.name = "layer"
    table.attrs["skipped"] = skipped
    return table


def _common(
    base: WeightSource, other: WeightSource, layers: Sequence[str] | None, split: Sequence[str] | str
) -> tuple[dict[str, LayerInfo], dict[str, str]]:
    """The layers to compare by name, and why the rest is left out."""
    ours = {info.name: info for info in infos_of(base.matrices, layers, split)}
    theirs = {info.name: info for info in infos_of(other.matrices, layers, split)}
    skipped = dict.fromkeys(ours.keys() - theirs.keys(), "only in the base")
    skipped |= dict.fromkeys(theirs.keys() - ours.keys(), "only in the other network")
    common = {}
    for name, info in ours.items():
        if name not in theirs or info.groups > 1:
            continue
        shape = (theirs[name].rows, theirs[name].cols)
        if shape != (info.rows, info.cols):
            skipped[name] = f"{info.rows} x {info.cols} in the base, {shape[0]} x {shape[1]} in the other"
        else:
            common[name] = info
    skipped |= {name: "grouped convolution: no single matrix" for name, info in ours.items() if info.groups > 1}
    if not common:
        raise ModelError("the two networks share no layer of equal name and shape; compare two versions of one network")
    return common, skipped


def _matrix(source: WeightSource, info: LayerInfo) -> np.ndarray:
    return as_numpy(part_of(real_stack(source.read(info.parameter)), info)[0].cpu().double())


def _fits(before: LayerSpectrum, after: LayerSpectrum) -> dict[str, object]:
    info = before.info
    row: dict[str, object] = {"role": info.role, "rows": info.rows, "cols": info.cols}
    for column in _CHANGES:
        row[f"{column}_base"] = getattr(before.fit, column)
        row[f"{column}_other"] = getattr(after.fit, column)
    row["edge_ratio"] = _ratio(after.fit.sigma_plus, before.fit.sigma_plus)
    return row


def _entries(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    update = b - a
    try:
        directions = stable_rank(spectrum(update))
    except SpectrumError:  # nothing moved, or weights that are not finite: the verdicts say which
        directions = math.nan
    return {
        "moved": _ratio(float(np.linalg.norm(update)), float(np.linalg.norm(a))),
        "update_stable_rank": directions,
        "sparsity_base": float(np.mean(a == 0)),
        "sparsity_other": float(np.mean(b == 0)),
    }


def _subspaces(a: np.ndarray, b: np.ndarray, spikes: int, k: int | None) -> dict[str, float]:
    rows, cols = a.shape
    count = min(max(1, spikes) if k is None else k, min(rows, cols))
    left = right = math.nan
    if np.isfinite(a).all() and np.isfinite(b).all() and a.any() and b.any():
        (left_a, right_a), (left_b, right_b) = leading_vectors(a, count), leading_vectors(b, count)
        left, right = overlap(left_a, left_b), overlap(right_a, right_b)
    chances = {"chance_left": count / rows, "chance_right": count / cols}
    return {"k": count, "overlap_left": left, "overlap_right": right, **chances}


def leading_vectors(matrix: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Leading k left and right singular vectors, Float64["rows k"] and Float64["cols k"], strongest first.

    From the eigenvectors of the Gram matrix of the smaller side: exact for leading directions, several times faster
    than `numpy.linalg.svd`.
    """
    from scipy.linalg import eigh

    size = float(np.abs(matrix).max())
    matrix = matrix / size if size > 0 else matrix  # squares stay inside the range of float64
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    last = tall.shape[1] - 1
    _, small = eigh(tall.T @ tall, subset_by_index=[last + 1 - k, last])
    small = small[:, ::-1]
    # the other side by multiplication; QR keeps it orthonormal where singular values are close to zero
    large, _ = np.linalg.qr(tall @ small)
    return (large, small) if tall is matrix else (small, large)


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Mean squared cosine of the principal angles between two k-dimensional subspaces, from 0 to 1.

    one, other: orthonormal bases Float64["n k"]. Two random subspaces give k / n on average.

    >>> overlap(np.eye(3)[:, :2], np.eye(3)[:, 1:])
    0.5
    """
    return float(np.sum((one.T @ other) ** 2) / one.shape[1])


def _ratio(value: float, base: float) -> float:
    return value / base if base else math.nan
