"""Matrices of which the noise is known: noise and spikes, and four kinds that strain the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

import mpviz as mp

SEED = 260602608
SHAPES = ((384, 384), (768, 768), (1536, 768), (1536, 384), (3072, 768), (768, 3072))
HOLD_OUT = ((512, 512), (1024, 640), (640, 1600), (2048, 320))
STRESS = ((384, 384), (768, 768), (1536, 384), (384, 1536))
# (spikes, weakest in units of the transition, matrices a shape)
CASES = ((0, 1.1, 10), (5, 1.1, 12), (20, 1.1, 12), (5, 1.5, 9), (20, 1.5, 9))
HOLD_OUT_CASES = ((0, 1.1, 5), (5, 1.1, 6), (20, 1.1, 6), (5, 1.5, 4), (20, 1.5, 4))
DETECTABLE_CASES = ((5, 1.5, 80), (20, 1.5, 80))
STRESS_REPEATS = 8
STRONGEST = 5.0
DETECTABLE = 1.5

Rng = np.random.Generator
Shape = tuple[int, int]
Made = tuple[np.ndarray, "Truth"]


@dataclass(frozen=True)
class Truth:
    """One matrix: σ of an entry, the strengths of its spikes in units of the transition, and its Gram eigenvalues."""

    kind: str
    shape: Shape
    sigma: float
    drawn: float  # root mean square of the noise that was drawn
    factors: np.ndarray
    gram: np.ndarray

    @property
    def detectable(self) -> bool:
        return len(self.factors) > 0 and float(self.factors.min()) >= DETECTABLE


def signal(rng: Rng, shape: Shape, strengths: np.ndarray) -> np.ndarray:
    """S with the given singular values and Haar vectors."""
    left = np.linalg.qr(rng.standard_normal((shape[0], len(strengths))))[0]
    right = np.linalg.qr(rng.standard_normal((shape[1], len(strengths))))[0]
    return (left * strengths) @ right.T


def spiked(rng: Rng, shape: Shape, spikes: int, weakest: float) -> Made:
    sigma = float(np.exp(rng.uniform(-4, 1)))
    noise = rng.normal(scale=sigma, size=shape)
    factors = np.sort(rng.uniform(weakest, STRONGEST, size=spikes))
    matrix = noise + signal(rng, shape, factors * sigma * math.sqrt(math.sqrt(shape[0] * shape[1])))
    return matrix, truth("spiked", matrix, sigma, noise, factors)


def truth(kind: str, matrix: np.ndarray, sigma: float, noise: np.ndarray, factors: np.ndarray) -> Truth:
    gram = mp.spectrum(matrix) * matrix.shape[0]
    return Truth(kind, matrix.shape, sigma, float(np.sqrt(np.mean(noise**2))), factors, gram)


def student(rng: Rng, shape: Shape) -> tuple[np.ndarray, np.ndarray, float]:
    noise = rng.standard_t(5, size=shape)
    return noise, noise, math.sqrt(5 / 3)


def half_pruned(rng: Rng, shape: Shape) -> tuple[np.ndarray, np.ndarray, float]:
    """Gaussian noise whose smaller half, by magnitude, is zero."""
    cut = float(norm.ppf(0.75))
    noise = rng.standard_normal(shape)
    noise[np.abs(noise) < cut] = 0.0
    return noise, noise, math.sqrt(2 * (cut * norm.pdf(cut) + norm.sf(cut)))


def sparse_vectors(rng: Rng, shape: Shape) -> tuple[np.ndarray, np.ndarray, float]:
    """Ten spikes whose singular vectors live on 2 % of the rows and columns."""
    noise, spikes = rng.standard_normal(shape), 10
    sides = []
    for length in shape:
        vectors = np.zeros((length, spikes))
        for column in vectors.T:
            places = rng.choice(length, max(2, length // 50), replace=False)
            column[places] = rng.standard_normal(len(places))
        sides.append(vectors / np.linalg.norm(vectors, axis=0))
    strengths = rng.uniform(1.1, STRONGEST, spikes) * (shape[0] * shape[1]) ** 0.25
    return noise + (sides[0] * strengths) @ sides[1].T, noise, 1.0


def power_law(rng: Rng, shape: Shape) -> tuple[np.ndarray, np.ndarray, float]:
    """A signal of rank p/4 with singular values 5 i^−½ transitions, eigenvalue exponent α = 2; most are hidden."""
    noise = rng.standard_normal(shape)
    ranks = np.arange(1, min(shape) // 4 + 1)
    return noise + signal(rng, shape, STRONGEST / np.sqrt(ranks) * (shape[0] * shape[1]) ** 0.25), noise, 1.0


STRESSES: dict[str, Callable[[Rng, Shape], tuple[np.ndarray, np.ndarray, float]]] = {
    "t5 noise": student,
    "half-pruned noise": half_pruned,
    "sparse singular vectors": sparse_vectors,
    "power-law signal": power_law,
}


def spiked_matrices(shapes: Sequence[Shape], cases: Sequence[tuple[int, float, int]], seed: int) -> Iterator[Made]:
    rng = np.random.default_rng([SEED, seed])
    for shape in shapes:
        for spikes, weakest, repeats in cases:
            for _ in range(repeats):
                yield spiked(rng, shape, spikes, weakest)


def stress_matrices() -> Iterator[Made]:
    rng = np.random.default_rng([SEED, 3])
    for kind, make in STRESSES.items():
        for shape in STRESS:
            for _ in range(STRESS_REPEATS):
                matrix, noise, sigma = make(rng, shape)
                yield matrix, truth(kind, matrix, sigma, noise, np.empty(0))
