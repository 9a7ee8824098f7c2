"""How often drawn Gaussian weights break the statements of the gaussian tier, against the δ that was allowed.

``python tests/benchmarks/gaussian_tier.py`` writes data/benchmarks/gaussian-tier.json: 1 000 draws a setting.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from record import write
from scipy import stats

from mpviz.certificates.gaussian import (
    GaussianLayer,
    gaussian_budget,
    gaussian_budget_of_edge,
    gaussian_budget_of_layers,
)

DRAWS = 1000
KINDS = ("eta", "budget", "edge", "labels", "layers")


@dataclass(frozen=True)
class Setting:
    """A layer of rows × cols behind which one fixed linear map W gives 10 logits, and how many samples see it."""

    rows: int
    cols: int
    samples: int

    def __str__(self) -> str:
        return f"{self.rows}x{self.cols}, {self.samples} samples"


def too_often(count: int, draws: int, delta: float) -> bool:
    """More failures than a rate of δ explains, at one in a thousand."""
    return stats.binomtest(count, draws, delta, alternative="greater").pvalue < 1e-3


def failures(
    setting: Setting, delta: float, draws: int, seed: int, g: float = 0.7, g_factor: float = 1.0, union: bool = True
) -> dict[str, float]:
    """How many of the draws break each statement; `largest`: the largest ‖Rv‖∞ over its bound.

    g_factor, union=False: wrong statements, to see that they are noticed. The network is z = W(S + R)v, L = ‖W‖∞.
    eta: ‖Rv_x‖∞ of some sample exceeds its size. budget, edge: B_T(R) exceeds its bound. labels: a certified label of S
    changes under S + R. layers: with a second layer R₂ in front, ‖z(S, S₂) − z(S + R, S₂ + R₂)‖∞ of some sample
    exceeds the sum of both.
    """
    n, m, samples = setting.rows, setting.cols, setting.samples
    rng = np.random.default_rng([seed, n, m, samples])
    v, tail = rng.normal(size=(samples, m)), rng.normal(size=(10, n)) / n
    kept, front = 60 * rng.normal(size=(n, m)), rng.normal(size=(m, m)) / math.sqrt(m)
    norm = np.abs(tail).sum(axis=1).max()
    norms = np.linalg.norm(v, axis=1)
    share = delta if union else min(0.999, delta * n * samples)
    bound = gaussian_budget(norms, norm, g * g_factor, n, share)
    edge = gaussian_budget_of_edge(norms, norm, math.sqrt(g * g_factor) * (1 + math.sqrt(m / n)), (n, m), share)
    logits = v @ kept.T @ tail.T
    certified = bound.certified(-np.diff(np.sort(logits, axis=1)[:, -2:][:, ::-1], axis=1)[:, 0])
    both = _two_layers(v, front, norm, setting, g * g_factor, delta)
    counts, largest = dict.fromkeys(KINDS, 0), 0.0
    for _ in range(draws):
        removed = rng.normal(scale=math.sqrt(g / n), size=(n, m))
        size = np.abs(v @ removed.T).max(axis=1)
        counts["eta"] += bool((size > bound.size).any())
        counts["budget"] += bool(2 * norm * size.mean() > bound.budget)
        counts["edge"] += bool(2 * norm * size.mean() > edge.budget)
        dense = v @ (kept + removed).T @ tail.T
        counts["labels"] += bool((certified & (dense.argmax(1) != logits.argmax(1))).any())
        first = rng.normal(scale=math.sqrt(g / m), size=(m, m))
        # the earlier layer is pruned first, while the later one is still dense: its tail holds `removed`
        step = np.abs(v @ first.T).max(axis=1) * np.abs(tail @ (kept + removed)).sum(axis=1).max()
        later = np.abs(v @ front.T @ removed.T).max(axis=1) * norm
        counts["layers"] += bool((step + later > both(removed, kept, tail)).any())
        largest = max(largest, float((size / bound.size).max()))
    return counts | {"largest": largest, "certified": float(certified.mean())}


def _two_layers(v, front, norm, setting, g, delta):
    """The bound of both layers, as a function of what is behind the first: its own draw, independent of R₁."""
    norms, inner = np.linalg.norm(v, axis=1), np.linalg.norm(v @ front.T, axis=1)

    def bound(removed, kept, tail):
        behind = np.abs(tail @ (kept + removed)).sum(axis=1).max()
        first = GaussianLayer("first", norms, behind, g, len(front))
        return gaussian_budget_of_layers([first, GaussianLayer("second", inner, norm, g, setting.rows)], delta).eta

    return bound


def main() -> None:
    """Measure square, wide and tall layers at three δ and write the file."""
    rows = []
    for setting in (Setting(100, 100, 50), Setting(50, 200, 50), Setting(200, 50, 50), Setting(512, 784, 200)):
        for delta in (0.01, 0.05, 0.5):
            found = failures(setting, delta, DRAWS, seed=0)
            wrong = {kind: too_often(int(found[kind]), DRAWS, delta) for kind in KINDS}
            rows.append(
                {"setting": str(setting), "delta": delta, "draws": DRAWS} | found | {"too_often": any(wrong.values())}
            )
            print(rows[-1], flush=True)
    write("gaussian-tier", "python tests/benchmarks/gaussian_tier.py", {"rows": rows})


if __name__ == "__main__":
    main()
