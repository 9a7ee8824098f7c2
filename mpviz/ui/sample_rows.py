"""The proved samples as rows of the sortable table: picture, what both networks say, and what became of the margin."""

from __future__ import annotations

import base64
import io
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from mpviz.ui import text
from mpviz.ui.rows import Cells, Column

if TYPE_CHECKING:
    from mpviz.workbench.proof_views import CertificateView

SAMPLES_EMPTY = "Press Prove to see which samples are certified, which flip, and which come near to it."
NEARLY = 0.1  # of the median dense margin: a pruned margin below it nearly flips
_LARGEST = 48  # pixels of a picture's longer side
_BOUNDS = ("slider", "path", "bracket", "sub-masks", "ball")

SAMPLE_COLUMNS = (
    Column("picture", "", "The image, over its own range; for those that flip or come nearest to it", "picture"),
    Column("sample", "sample", "Its number in the split; a click or Enter shows why it is certified or not", "head"),
    Column("label", "label", "Its class in the data set", "word"),
    Column(
        "state",
        "state",
        "▲ another prediction · ▼ the same, but its margin after pruning is below a tenth of the median dense margin · "
        "● certified, margin > 2η",
        "badge",
    ),
    Column("dense", "dense: top 2", "The two highest classes of the dense network", "word"),
    Column("pruned", "pruned: top 2", "The two highest classes of the pruned network", "word"),
    Column("margin", "margin", "Top logit minus the runner-up, dense network"),
    Column("rest", "left", "Dense prediction minus its best rival, pruned network; below 0 it has flipped"),
    Column("eta", "2η", "Twice the largest change of a logit; a margin above it cannot have changed sign"),
    *(
        Column(name, f"least: {name}", f"Least margin over the set of the tier {name}, by bounds; above 0: proved")
        for name in _BOUNDS
    ),
)


def sample_cells(view: CertificateView | None) -> Cells:
    """One row a sample, those with the least margin after pruning first. Keys: the rows of `view.samples`."""
    if view is None:
        return {column.name: {"text": [], "sort": []} for column in SAMPLE_COLUMNS} | {"row": {"text": [], "sort": []}}
    s = view.samples
    order = np.argsort(s.pruned_margin, kind="stable").tolist()
    name = lambda c: view.classes[c] if 0 <= c < len(view.classes) else f"class {c}"  # noqa: E731
    pairs = lambda top: [f"{name(int(top[i, 0]))}, {name(int(top[i, 1]))}" for i in order]  # noqa: E731
    labels, dense, pruned = [name(int(s.label[i])) for i in order], pairs(s.dense_top), pairs(s.pruned_top)
    states = _states(view)
    cells: Cells = {
        "row": {"text": [str(i) for i in order], "sort": order},
        "picture": {"text": [picture_uri(s.pictures[i]) if i in s.pictures else "" for i in order],
                    "sort": [int(i not in s.pictures) for i in order], "tip": labels},
        "sample": {"text": [str(int(s.index[i])) for i in order], "sort": [int(s.index[i]) for i in order]},
        "label": {"text": labels, "sort": labels},
        "dense": {"text": dense, "sort": dense},
        "pruned": {"text": pruned, "sort": pruned},
        "state": {"text": [_WORDS[states[i]] for i in order], "sort": [_RANK[states[i]] for i in order],
                  "state": [states[i] for i in order], "tip": [_WORDS[states[i]] for i in order]},
        "margin": _numbers(s.margin[order]),
        "rest": _numbers(s.pruned_margin[order]),
        "eta": _numbers(2 * s.eta[order]),
    }  # fmt: skip
    for tier in _BOUNDS:
        known = s.lower.get(tier)
        cells[tier] = _numbers(np.full(len(s), math.nan) if known is None else known[order])
    return cells


_WORDS = {"poor": "flipped", "fair": "nearly flips", "good": "certified", "none": "unchanged"}
_RANK = {"poor": 3, "fair": 2, "none": 1, "good": 0}


def _states(view: CertificateView) -> list[str]:
    """Each sample's state, in the words of the badges."""
    s = view.samples
    near = NEARLY * float(np.median(s.margin))
    found = np.full(len(s), "none", dtype=object)
    found[s.certified] = "good"
    found[~s.changed & (s.pruned_margin < near)] = "fair"
    found[s.changed] = "poor"
    return [str(one) for one in found]


def _numbers(values: np.ndarray) -> dict[str, list[Any]]:
    numbers = values.tolist()
    return {
        "text": [text.significant(value) for value in numbers],
        "sort": [value if math.isfinite(value) else None for value in numbers],
    }


def picture_uri(pixels: np.ndarray) -> str:
    """UInt8["h w"] or UInt8["h w 3"] as a PNG inside a data address, at most 48 pixels high or wide."""
    from PIL import Image  # only this needs it

    image = Image.fromarray(pixels)
    image.thumbnail((_LARGEST, _LARGEST))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
