"""k:n patterns by themselves: keep k of every n inputs."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from mpviz.errors import PatternError

LARGEST = 32  # inputs of a group


@dataclass(frozen=True, order=True)
class KN:
    """Keep k of every n consecutive inputs of a row, so density k/n.

    >>> KN.parse("2:4"), KN(8, 16).count, str(KN(8, 16)), KN(2, 4).masks()[0].tolist()
    (KN(k=2, n=4), 12870, '8:16', [True, True, False, False])
    """

    k: int
    n: int

    def __post_init__(self) -> None:
        if not 0 < self.k <= self.n:
            raise PatternError(
                f"{self.k}:{self.n} is no k:n pattern; write 2:4 for two kept of every four, with 0 < k ≤ n"
            )
        if self.n > LARGEST:
            raise PatternError(f"{self.k}:{self.n} has groups of {self.n} inputs; groups of up to {LARGEST} are known")

    @classmethod
    def parse(cls, text: str | KN) -> KN:
        """A pattern from "k:n". Raises PatternError for anything else."""
        if isinstance(text, KN):
            return text
        found = re.fullmatch(r"\s*([0-9]+)\s*:\s*([0-9]+)\s*", str(text))
        if found is None:
            raise PatternError(f"'{text}' is no k:n pattern; write 2:4 for two kept of every four, with 0 < k ≤ n")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.k}:{self.n}"

    @property
    def density(self) -> float:
        """Share of the entries that stay, k/n."""
        return self.k / self.n

    @property
    def removed(self) -> int:
        """Entries that go from each group."""
        return self.n - self.k

    @property
    def count(self) -> int:
        """How many masks there are, n choose k."""
        return math.comb(self.n, self.k)

    def masks(self) -> Tensor:
        """Bool["count n"]: all of them, True = kept, those that keep earlier inputs first. Not for n of 32."""
        return _masks(self.k, self.n)


@lru_cache(maxsize=16)
def _masks(k: int, n: int) -> Tensor:
    masks = torch.zeros(math.comb(n, k), n, dtype=torch.bool)
    chosen = torch.tensor(list(itertools.combinations(range(n), k)), dtype=torch.int64).reshape(-1, k)
    return masks.scatter_(1, chosen, True)
