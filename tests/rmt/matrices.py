"""Matrices and spectra that several test modules draw."""

from __future__ import annotations

import numpy as np
from scipy.linalg import eigvalsh_tridiagonal


def spectrum(matrix: np.ndarray) -> np.ndarray:
    """Ascending eigenvalues of WᵀW / rows from the Gram matrix of the smaller side."""
    rows, cols = matrix.shape
    gram = matrix @ matrix.T if rows < cols else matrix.T @ matrix
    return np.linalg.eigvalsh(gram) / rows


def noise_spectrum(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Exactly the spectrum of a standard Gaussian W, from a bidiagonal matrix (Dumitriu & Edelman 2002): fast."""
    p, n = min(shape), max(shape)
    diagonal, below = rng.chisquare(n - np.arange(p)), rng.chisquare(p - 1 - np.arange(p - 1))
    total = diagonal.copy()
    total[1:] += below
    return np.maximum(eigvalsh_tridiagonal(total, np.sqrt(diagonal[:-1] * below)), 0.0) / shape[0]


def signal(rng: np.random.Generator, shape: tuple[int, int], strengths: np.ndarray) -> np.ndarray:
    """A matrix with these singular values and uniformly random singular vectors."""
    left = np.linalg.qr(rng.normal(size=(shape[0], len(strengths))))[0]
    right = np.linalg.qr(rng.normal(size=(shape[1], len(strengths))))[0]
    return (left * strengths) @ right.T


def spiked(rng: np.random.Generator, shape: tuple[int, int], factors: np.ndarray, sigma: float = 1.0) -> np.ndarray:
    """Noise and spikes of `factors` times the BBP transition."""
    transition = sigma * (shape[0] * shape[1]) ** 0.25
    return rng.normal(scale=sigma, size=shape) + signal(rng, shape, np.asarray(factors) * transition)
