"""One layer over time: its spectrum and Marchenko–Pastur fit at each of several checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mpviz.errors import ModelError, SpectrumError
from mpviz.nets.spectra import layer_spectra
from mpviz.nets.weights import Weights
from mpviz.rmt.fit import BulkFit, fit_bulk


@dataclass(frozen=True)
class Evolution:
    """Spectra of one layer at successive checkpoints.

    labels: what each checkpoint is called, e.g. "epoch 3". eigenvalues: one Float64["min(rows, cols)"] a checkpoint,
    ascending, of X = WᵀW / rows. fits: what `fit_bulk` says of each.
    """

    layer: str
    shape: tuple[int, int]
    labels: tuple[str, ...]
    eigenvalues: tuple[np.ndarray, ...]
    fits: tuple[BulkFit, ...]

    def __post_init__(self) -> None:
        if not len(self.labels) == len(self.eigenvalues) == len(self.fits):
            raise SpectrumError(
                f"{self.layer}: {len(self.labels)} labels, {len(self.eigenvalues)} spectra and {len(self.fits)} fits; "
                "an evolution needs one of each a checkpoint"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def table(self) -> pd.DataFrame:
        """One row a checkpoint, indexed by its label.

        Columns: variance σ̂², bulk_scale = σ̂ / σ̂ of the first checkpoint, sigma_plus and spike_1 (the largest singular
        value) on the scale of singular values, n_spikes, bulk_fraction, rigidity (p·KS), mp_like, grade
        ("good", "fair", "poor" or "none", see BulkFit), verdict.
        """
        rows = [self._row(values, fit) for values, fit in zip(self.eigenvalues, self.fits, strict=True)]
        table = pd.DataFrame(rows, index=pd.Index(self.labels, name="checkpoint"))
        if len(table):
            table.insert(1, "bulk_scale", np.sqrt(table["variance"] / table["variance"].iloc[0]))
        return table

    def _row(self, values: np.ndarray, fit: BulkFit) -> dict[str, object]:
        return {
            "variance": fit.variance,
            "sigma_plus": fit.sigma_plus,
            "spike_1": float(np.sqrt(self.shape[0] * values[-1])) if len(values) else float("nan"),
            "n_spikes": fit.n_spikes,
            "bulk_fraction": fit.bulk_fraction,
            "rigidity": fit.rigidity,
            "mp_like": fit.mp_like,
            "grade": fit.grade,
            "verdict": fit.verdict,
        }


def follow(layer: str, checkpoints: Mapping[str, Weights]) -> Evolution:
    """One layer through checkpoints that are kept in order: {label: module, state dict or safetensors file}.

    Raises ModelError when a checkpoint has no such layer, or it has another shape there.
    """
    found = {label: next(iter(layer_spectra(weights, [layer]).values())) for label, weights in checkpoints.items()}
    shapes = {one.info.matrix for one in found.values()}
    if len(shapes) != 1:
        raise ModelError(f"{layer} has {len(shapes)} shapes in {len(found)} checkpoints; follow one network over time")
    spectra = tuple(one.eigenvalues for one in found.values())
    return Evolution(layer, shapes.pop(), tuple(found), spectra, tuple(one.fit for one in found.values()))


def evolution(
    layer: str, shape: tuple[int, int], labels: Sequence[str], eigenvalues: Sequence[np.ndarray]
) -> Evolution:
    """Fit each spectrum and keep them in order. eigenvalues: one list of min(rows, cols) a checkpoint."""
    fits = tuple(fit_bulk(values, shape, strict=False) for values in eigenvalues)
    return Evolution(layer, shape, tuple(labels), tuple(np.asarray(v, dtype=np.float64) for v in eigenvalues), fits)
