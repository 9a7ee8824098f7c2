"""Eigenvalues of the layers of a network, and the table of what the Marchenko–Pastur fit says of each."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from mpviz.errors import SpectrumError, nearest
from mpviz.nets.analysis import Plan, Progress, Stop, run
from mpviz.nets.engine import PRECISIONS, real_stack, shuffle_entries, solve
from mpviz.nets.layer_spectrum import FitArguments, LayerSpectrum, Shuffled
from mpviz.nets.layers import as_matrix, infos_of
from mpviz.nets.table import table_of
from mpviz.nets.weights import Weights, as_tensor, open_weights
from mpviz.rmt.checks import check_arguments

__all__ = [
    "LayerSpectrum",
    "Shuffled",
    "analyze",
    "layer_spectra",
    "shuffled_spectrum",
    "spectrum",
    "table_of",
]


def spectrum(weight: Any) -> np.ndarray:
    """Eigenvalues of X = WᵀW / N, ascending: Float64["min(N, M)"], N = rows of W.

    weight: numpy, torch or cupy array Float["N M"]; convolutions Float["out in kh kw"] are unfolded. Half precision
    is raised to float64 first. Runs where the array lives. Equals ``scipy.linalg.svdvals(W)[::-1]**2 / N`` (the
    Gram matrix of the smaller side loses singular values below about 1e-8 of the largest).
    Raises SpectrumError for NaN, infinite, empty or one-dimensional input.

    >>> spectrum(np.array([[2.0, 0.0], [0.0, 4.0]]))
    array([2., 8.])
    """
    return solve(_matrix(weight)[None]).eigenvalues[0]


def shuffled_spectrum(weight: Any, seed: int) -> np.ndarray:
    """Eigenvalues of the same entries in random order, as of `spectrum`: the null hypothesis of no structure.

    weight: as for `spectrum`. seed: of the order, which does not depend on where the array lives.

    >>> rank_one = np.outer(np.arange(1.0, 9.0), np.ones(8))
    >>> [bool(values[-2] > 1) for values in (spectrum(rank_one), shuffled_spectrum(rank_one, seed=0))]
    [False, True]
    """
    stack = _matrix(weight)[None]
    return solve(shuffle_entries(stack, _seed(seed)).to(stack.device)).eigenvalues[0]


def _matrix(weight: Any) -> Tensor:
    tensor = real_stack(as_tensor(weight))
    if tensor.ndim < 2 or tensor.numel() == 0:
        raise SpectrumError(f"a spectrum needs a matrix; got an array of shape {tuple(tensor.shape)}")
    return as_matrix(tensor)


def _seed(seed: int) -> int:
    try:
        number = operator.index(seed)
    except TypeError:
        number = -1
    if number < 0:
        raise SpectrumError(f"shuffled takes a seed, a whole number of at least 0; got {seed!r}")
    return number


def layer_spectra(
    model: Weights,
    layers: Sequence[str] | None = None,
    device: str | None = None,
    level: float = 0.99,
    trim: float = 0.1,
    method: str = "bema",
    split: Sequence[str] | str = (),
    precision: str = "float64",
    shuffled: int | None = None,
    cache: bool = True,
    progress: Progress | None = None,
    cancelled: Stop | None = None,
) -> dict[str, LayerSpectrum]:
    """Spectrum, fit and signals of each layer, keyed by parameter name; the arguments are those of `analyze`.

    level, trim: of `fit_bulk`. A layer that cannot be analysed is there with the reason as its fit's verdict.
    Raises ModelError for unknown layers, SpectrumError for unknown methods, Cancelled when asked to stop.
    """
    arguments = _checked(method, level, trim, precision, shuffled)
    source = open_weights(model)
    plan = Plan(source, arguments, precision, device, cache, cancelled)
    return run(plan, infos_of(source.matrices, layers, split), progress)


def analyze(
    model: Weights,
    layers: Sequence[str] | None = None,
    device: str | None = None,
    *,
    method: str = "bema",
    split: Sequence[str] | str = (),
    precision: str = "float64",
    shuffled: int | None = None,
    cache: bool = True,
    progress: Progress | None = None,
    cancelled: Stop | None = None,
) -> pd.DataFrame:
    """One row a layer, indexed by parameter name: the Marchenko–Pastur fit and what follows from it.

    model: a module, a state dict {name: tensor} (also under "state_dict" or "model"), or the path of a .safetensors
    file, of which only the wanted tensors are read, one at a time. layers: names to keep. device: move each weight
    there first ("cuda"); None leaves it where it is. method: of `fit_bulk`. split: "qkv" gives q, k and v of fused
    attention weights a row each, "groups" every group of a convolution. precision: "float64", or "fast" for float32
    where that is enough. shuffled: a seed; the fit is then judged beside that of the same entries in random order.
    cache: reuse results for equal weights, from memory or $MPVIZ_CACHE (~/.cache/mpviz); keys are the content.

    Columns. Layer: role, kind, rows (N), cols (M), aspect (M/N), params, prunable, why (not prunable).
    Fit: variance σ̂², lambda_minus, lambda_plus and threshold on the scale of X = WᵀW/N; sigma_plus = √(N λ₊) on the
    scale of singular values; fit_error (largest CDF gap over the central window), mp_like, grade ("good" where
    mp_like, "fair" close to it, "poor", "none"; see BulkFit), verdict; bulk_fraction over min(N, M), n_spikes. With
    k spikes the edges are those of the bulk that is left, a (N−k) × (M−k) block: below σ̂²(1+√c)² when k is large.
    Signals: Hill alpha, stable_rank.
    Quality: method, reason (one word of mpviz.rmt.REASONS), rigidity (p·KS), p_value, sigma_plus_low and
    sigma_plus_high (95 % interval), rank. Tail: tail_alpha (maximum likelihood), tail_x_min, tail_ks, no_tail (the
    exponent means nothing). Whole spectrum: entropy, soft_rank, and the norms frobenius, spectral, nuclear of W.
    Entries: kurtosis (excess), column_spread, row_spread. groups: of a convolution, whose numbers are medians over
    them. engine: the arithmetic and why. attrs["skipped"]: {tensor: why} of the tensors that are no matrices.

    Layers that cannot be analysed (too small, NaN, cut off in the file) keep their row, with NaN and the reason as
    verdict. Raises ModelError for unknown layers or a model without matrices, CheckpointError for an unreadable file,
    SpectrumError for an unknown method or precision, Cancelled when asked to stop.
    """
    arguments = _checked(method, 0.99, 0.1, precision, shuffled)
    source = open_weights(model)
    plan = Plan(source, arguments, precision, device, cache, cancelled)
    return table_of(run(plan, infos_of(source.matrices, layers, split), progress), source.skipped)


def _checked(method: str, level: float, trim: float, precision: str, seed: int | None) -> FitArguments:
    """The arguments of the fit. Raises SpectrumError for those that no layer could be fitted with."""
    check_arguments(method, trim, level)
    if precision not in PRECISIONS:
        raise SpectrumError(f"unknown precision '{precision}'; {nearest(str(precision), PRECISIONS)}")
    return FitArguments(method, level, trim, None if seed is None else _seed(seed))
