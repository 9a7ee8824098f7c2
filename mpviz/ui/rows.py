"""Tables as columns of words, sort keys and shares, for the sortable table of both faces. Pure: no toolkit, no HTML.

A table is {column: {"text": […], "sort": […], "share": […], "tip": […], "state": […]}} with an entry a row. text is
shown as it is, never read as HTML; sort holds numbers or words, None always comes last; share 0 … 1 draws a bar; tip is
said on hover; state is one of a few words that give a mark its look.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mpviz.ui import text

if TYPE_CHECKING:
    import pandas as pd

    from mpviz.workbench.views import SpectrumView

Cells = dict[str, dict[str, list[Any]]]
BGN = "Benaych-Georges & Nadakuditi (2012)"


@dataclass(frozen=True)
class Column:
    """One column. kind: how its cells look; "head", "word", "number", "bar", "badge", "lock" or "picture".

    The text of a picture is a PNG as data address.
    """

    name: str
    title: str
    tip: str
    kind: str = "number"

    @property
    def plain(self) -> dict[str, str]:
        """What the page gets."""
        return asdict(self)


LAYER_COLUMNS = (
    Column("layer", "layer", "Parameter name; a click or Enter shows its spectrum", "head"),
    Column("role", "role", "What the layer is for", "word"),
    Column("shape", "shape", "Rows × columns of W, N × M; sorted by the number of weights"),
    Column("sigma_plus", "σ₊", "Edge of the bulk, σ₊ = √(N λ₊), λ₊ = σ²(1 + √c)². Marchenko & Pastur (1967)"),
    Column("bulk", "bulk", "Share of the eigenvalues that the law explains", "bar"),
    Column("spikes", "spikes", "Eigenvalues above the Tracy–Widom threshold. Johnstone (2001), Ma (2012)"),
    Column(
        "fit",
        "fit, p·KS",
        "p · sup |F_empirical − F|: ● good, below the limit of true noise; ▼ fair, near it; ▲ poor; and why",
        "badge",
    ),
    Column("alpha", "α", "Tail exponent of the larger half, for any spectrum. Hill (1975)"),
    Column("tail", "tail α", "Maximum-likelihood exponent from x_min on. Clauset, Shalizi & Newman (2009)"),
    Column("stable_rank", "st. rank", "Stable rank ‖W‖²_F / ‖W‖²₂. Rudelson & Vershynin (2007)"),
    Column("sparsity", "removed", "Share of the weights that the plan removes", "bar"),
    Column("lock", "lock", "A locked layer loses nothing; the others make up for it. Press L on its row", "lock"),
)
SPIKE_COLUMNS = (
    Column("rank", "spike", "Rank from the largest on", "head"),
    Column("singular", "s", "Singular value of W, s = √(N λ)"),
    Column("eigenvalue", "λ", "Eigenvalue of X = WᵀW / N"),
    Column(
        "strength",
        "strength θ",
        "Singular value of the signal behind the spike: θ = t σ √n solves λ ∝ (1 + t²)(c + t²) / t², so that "
        f"θ < s. Inverse BBP map, {BGN}",
    ),
    Column("left", "overlap left", f"Expected cos² between the left singular vector and the signal's. {BGN}", "bar"),
    Column("right", "overlap right", f"Expected cos² between the right singular vector and the signal's. {BGN}", "bar"),
)


def layer_cells(table: pd.DataFrame) -> Cells:
    """What does not change while the network stays: one row a layer, as made by `analyze`."""
    names = [str(name) for name in table.index]
    roles, shapes = table["role"].astype(str).tolist(), list(zip(table["rows"], table["cols"], strict=True))
    verdicts = table["verdict"].astype(str).tolist()
    return {
        "layer": {"text": [text.short_name(name) for name in names], "sort": list(names), "tip": list(names)},
        "role": {"text": roles, "sort": roles},
        "shape": {"text": [f"{n} × {m}" for n, m in shapes], "sort": [int(n) * int(m) for n, m in shapes]},
        "sigma_plus": _numbers(table["sigma_plus"]),
        "bulk": _shares(table["bulk_fraction"]),
        "spikes": _counts(table["n_spikes"], table["bulk_fraction"]),
        "fit": _badges(_column(table, "rigidity"), table["grade"].astype(str).tolist(), _reasons(table), verdicts),
        "alpha": _numbers(table["alpha"]),
        "tail": _tails(table),
        "stable_rank": _numbers(table["stable_rank"]),
    }


def budget_cells(table: pd.DataFrame, budgets: pd.DataFrame | None) -> Cells:
    """What follows the sliders: the last two columns, in the rows of `table`."""
    shares = {} if budgets is None else dict(zip(budgets.index, budgets["sparsity"].tolist(), strict=True))
    locked = set() if budgets is None else set(budgets.index[budgets["locked"].astype(bool)])
    names, why = list(table.index), table["why"].astype(str).tolist()
    states = ["none" if name not in shares else "locked" if name in locked else "open" for name in names]
    tips = [
        {"locked": "locked: loses nothing", "open": "lock this layer"}.get(state, f"not prunable: {reason}")
        for state, reason in zip(states, why, strict=True)
    ]
    lock: dict[str, list[Any]] = {
        "text": ["" for _ in names],
        "sort": [None if state == "none" else int(state == "locked") for state in states],
        "state": states,
        "tip": tips,
    }
    return {"sparsity": _shares([shares.get(name, math.nan) for name in names]), "lock": lock}


def spike_cells(view: SpectrumView | None) -> Cells:
    """One row a spike of the layer in view, the largest first."""
    spikes = [] if view is None else list(view.spikes)
    rows = 1 if view is None else view.shape[0]
    values = [float(spike["eigenvalue"]) for spike in spikes]
    pairs = [_pair(spike["overlap"]) for spike in spikes]
    return {
        "rank": {"text": [str(spike["rank"]) for spike in spikes], "sort": [int(spike["rank"]) for spike in spikes]},
        "singular": _numbers([math.sqrt(rows * value) for value in values]),
        "eigenvalue": _numbers(values),
        "strength": _numbers([float(spike["strength"]) for spike in spikes]),
        "left": _shares([left for left, _ in pairs]),
        "right": _shares([right for _, right in pairs]),
    }


def keys(cells: Cells, column: str) -> list[str]:
    """What each row is called in messages between page and state."""
    return [str(key) for key in cells[column]["sort"]]


def toggled(names: Sequence[str], name: str) -> list[str]:
    """The names without this one when it was among them, else with it."""
    others = [other for other in names if other != name]
    return others if name in names else [*others, name]


def _pair(overlap: float | Sequence[float]) -> tuple[float, float]:
    left, right = overlap if isinstance(overlap, Sequence) else (overlap, overlap)
    return float(left), float(right)


def _column(table: pd.DataFrame, name: str) -> list[float]:
    return table[name].tolist() if name in table else [math.nan] * len(table)


def _reasons(table: pd.DataFrame) -> list[str]:
    return table["reason"].astype(str).tolist() if "reason" in table else [""] * len(table)


def _sort(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _numbers(values: Collection[float]) -> dict[str, list[Any]]:
    numbers = [float(value) for value in values]
    return {"text": [text.significant(value) for value in numbers], "sort": [_sort(value) for value in numbers]}


def _counts(values: Collection[float], known: Collection[float]) -> dict[str, list[Any]]:
    """Whole numbers; a layer without a fit has none."""
    numbers = [float(value) if math.isfinite(share) else math.nan for value, share in zip(values, known, strict=True)]
    words = [text.count(value) if math.isfinite(value) else text.NONE for value in numbers]
    return {"text": words, "sort": [_sort(value) for value in numbers]}


def _shares(values: Collection[float]) -> dict[str, list[Any]]:
    shares = [float(value) for value in values]
    return {
        "text": [text.percent(share, 2) for share in shares],
        "sort": [_sort(share) for share in shares],
        "share": [min(max(share, 0.0), 1.0) if math.isfinite(share) else 0.0 for share in shares],
    }


def _badges(
    rigidity: Sequence[float], grades: Sequence[str], reasons: Sequence[str], verdicts: Sequence[str]
) -> dict[str, list[Any]]:
    """The grade is the state, whose mark the page draws; the words are p·KS and, unless the fit is good, the reason."""
    words = []
    for value, grade, reason in zip(rigidity, grades, reasons, strict=True):
        number = text.significant(value, 2) if grade != "none" or not reason else ""
        words.append(" ".join(filter(None, (number, "" if grade == "good" else reason))))
    return {"text": words, "sort": [_sort(value) for value in rigidity], "state": list(grades), "tip": list(verdicts)}


def _tails(table: pd.DataFrame) -> dict[str, list[Any]]:
    exponents = _column(table, "tail_alpha")
    none = table["no_tail"].astype(bool).tolist() if "no_tail" in table else [True] * len(table)
    shown = [math.nan if absent else float(value) for value, absent in zip(exponents, none, strict=True)]
    words = ["no tail" if absent else text.significant(value) for value, absent in zip(shown, none, strict=True)]
    return {"text": words, "sort": [_sort(value) for value in shown]}
