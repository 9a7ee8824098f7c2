"""Eigenvalues of the layers of a network, and the table of what the Marchenko–Pastur fit says of each."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from mpviz.errors import Cancelled, SpectrumError
from mpviz.nets.layers import LayerInfo, as_matrix, list_layers, weight_of
from mpviz.rmt.fit import BulkFit, fit_bulk
from mpviz.rmt.signals import hill_alpha, stable_rank
from mpviz.rmt.spikes import SpikeStrengths, spike_strengths

if TYPE_CHECKING:
    from threadpoolctl import threadpool_limits

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class LayerSpectrum:
    """What is known of one layer: eigenvalues Float64["min(rows, cols)"] ascending, their fit and spikes."""

    info: LayerInfo
    eigenvalues: np.ndarray
    fit: BulkFit
    spikes: SpikeStrengths
    alpha: float
    stable_rank: float


def spectrum(weight: Any) -> np.ndarray:
    """Eigenvalues of X = WᵀW / N, ascending: Float64["min(N, M)"], N = rows of W.

    weight: numpy, torch or cupy array Float["N M"]; convolutions Float["out in kh kw"] are unfolded. Half precision
    is raised to float64 first. Runs where the array lives. Equals ``scipy.linalg.svdvals(W)[::-1]**2 / N`` (the
    Gram matrix of the smaller side loses singular values below about 1e-8 of the largest).
    Raises SpectrumError for NaN, infinite, empty or one-dimensional input.

    >>> spectrum(np.array([[2.0, 0.0], [0.0, 4.0]]))
    array([2., 8.])
    """
    if type(weight).__module__.partition(".")[0] == "cupy":
        weight = torch.from_dlpack(weight)
    tensor = weight.detach() if isinstance(weight, Tensor) else torch.as_tensor(np.asarray(weight))
    if tensor.ndim < 2 or tensor.numel() == 0:
        raise SpectrumError(f"a spectrum needs a matrix; got an array of shape {tuple(tensor.shape)}")
    if tensor.is_complex():
        raise SpectrumError("complex weights have no Marchenko–Pastur fit here; give their real and imaginary parts")
    matrix = as_matrix(tensor).double()
    bad = int((~torch.isfinite(matrix)).sum())
    if bad:
        raise SpectrumError(f"the matrix has {bad} NaN or infinite entries; load the weights again or repair them")
    rows, cols = matrix.shape
    size = float(matrix.abs().max())
    scale = size if size > 1e100 or 0 < size < 1e-100 else 1.0  # squares stay inside the range of float64
    matrix = matrix / scale
    gram = matrix.T @ matrix if cols <= rows else matrix @ matrix.T
    if gram.is_cuda:
        values = torch.linalg.eigvalsh(gram).cpu().numpy()
    else:
        # numpy's eigvalsh holds no interpreter lock and one OpenBLAS thread is enough at these sizes
        values = np.linalg.eigvalsh(gram.numpy())
    with np.errstate(over="ignore"):
        return np.clip(values, 0.0, None) / rows * scale * scale


def _or_nan(signal: Callable[[np.ndarray], float], eigenvalues: np.ndarray) -> float:
    try:
        return signal(eigenvalues)
    except SpectrumError:  # too few eigenvalues for this signal; the verdict of the fit says why
        return math.nan


def _one_layer(info: LayerInfo, weight: Tensor, level: float, trim: float) -> LayerSpectrum:
    try:
        eigenvalues = spectrum(weight)
    except SpectrumError as error:
        raise SpectrumError(f"{info.name}: {error}") from error
    fit = fit_bulk(eigenvalues, shape=(info.rows, info.cols), trim=trim, level=level, strict=False)
    return LayerSpectrum(
        info=info,
        eigenvalues=eigenvalues,
        fit=fit,
        spikes=spike_strengths(eigenvalues, fit),
        alpha=_or_nan(hill_alpha, eigenvalues),
        stable_rank=_or_nan(stable_rank, eigenvalues),
    )


def layer_spectra(
    model: nn.Module,
    layers: Sequence[str] | None = None,
    device: str | None = None,
    level: float = 0.99,
    trim: float = 0.1,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> dict[str, LayerSpectrum]:
    """Spectrum and fit of each layer, keyed by parameter name; layers run side by side, one thread each.

    device: move each weight there first ("cuda"); None leaves it where it is.
    Raises ModelError for unknown layers, SpectrumError for weights that are not finite, Cancelled when asked to stop.
    """
    infos = list_layers(model, layers)

    def work(info: LayerInfo) -> LayerSpectrum:
        if cancelled is not None and cancelled():
            raise Cancelled("the analysis was cancelled")
        weight = weight_of(model, info.name)
        return _one_layer(info, weight.to(device) if device else weight, level, trim)

    # the largest first, so that no thread is left alone with the longest
    order = sorted(infos, key=lambda info: -info.params * min(info.rows, info.cols))
    results: dict[str, LayerSpectrum] = {}
    with _single_threaded_blas(), ThreadPoolExecutor(max(1, os.cpu_count() or 1)) as pool:
        for done, result in enumerate(pool.map(work, order), start=1):
            results[result.info.name] = result
            if progress is not None:
                progress(done / len(order), result.info.name)
    return {info.name: results[info.name] for info in infos}


def _single_threaded_blas() -> threadpool_limits:
    from threadpoolctl import threadpool_limits

    return threadpool_limits(limits=1, user_api="blas")


def table_of(spectra: dict[str, LayerSpectrum]) -> pd.DataFrame:
    """The table of `analyze` from spectra that are already there."""
    rows = {}
    for name, layer in spectra.items():
        info, fit = layer.info, layer.fit
        rows[name] = {
            "role": info.role,
            "kind": info.kind,
            "rows": info.rows,
            "cols": info.cols,
            "aspect": info.aspect,
            "params": info.params,
            "prunable": info.prunable,
            "why": info.why,
            "variance": fit.variance,
            "lambda_minus": fit.edges[0],
            "lambda_plus": fit.edges[1],
            "threshold": fit.threshold,
            "sigma_plus": fit.sigma_plus,
            "fit_error": fit.fit_error,
            "mp_like": fit.mp_like,
            "verdict": fit.verdict,
            "bulk_fraction": fit.bulk_fraction,
            "n_spikes": fit.n_spikes,
            "alpha": layer.alpha,
            "stable_rank": layer.stable_rank,
        }
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index.name = "layer"
    return table


def analyze(
    model: nn.Module,
    layers: Sequence[str] | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """One row a layer, indexed by parameter name: the Marchenko–Pastur fit and what follows from it.

    Columns: role, kind, rows (N), cols (M), aspect (M/N), params, prunable, why (not prunable); variance σ̂²,
    lambda_minus, lambda_plus and threshold on the scale of X = WᵀW/N; sigma_plus = √(N λ₊) on the scale of singular
    values; fit_error (largest CDF gap over the central window), mp_like, verdict; bulk_fraction over min(N, M),
    n_spikes, Hill alpha, stable_rank. With k spikes the edges are those of the bulk that is left, a (N−k) × (M−k)
    block: below σ̂²(1+√c)² when k is large. Layers too small for a fit keep their row, with NaN and the reason.
    Raises ModelError for unknown layers or a model without matrices, SpectrumError for NaN or infinite weights.
    """
    return table_of(layer_spectra(model, layers, device, progress=progress))
