"""Figures and tables as files to take away: self-contained HTML, CSV and Parquet. Pure: plain values in, bytes out.

PNG and SVG are made by the browser, which has drawn the figure already.
"""

from __future__ import annotations

import base64
import io
import math
import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from mpviz.errors import MpvizError, nearest
from mpviz.ui import text
from mpviz.ui.theme import CONFIG, Json

if TYPE_CHECKING:
    from mpviz.workbench.views import CurveView, SpectrumView

TYPES = {"html": "text/html", "csv": "text/csv", "parquet": "application/vnd.apache.parquet"}
_LONGEST = 96  # characters of a file name without its ending
_SPIKE_COLUMNS = ("rank", "singular_value", "eigenvalue", "strength", "overlap_left", "overlap_right")


@dataclass(frozen=True)
class File:
    """A file for the browser's download folder. name: without a folder, harmless on every system."""

    name: str
    data: bytes

    @property
    def message(self) -> dict[str, str]:
        """The file as a message to the page."""
        ending = self.name.rpartition(".")[2]
        return {
            "kind": "file",
            "name": self.name,
            "type": TYPES.get(ending, "application/octet-stream"),
            "base64": base64.b64encode(self.data).decode(),
        }


def figure_html(figure: Json, title: str = "mpviz") -> str:
    """A figure as one HTML page that needs no other file and no network; plotly.js is inside, 5 MB.

    figure: {"data": […], "layout": {…}}, and "frames" for an animation. title: of the browser's tab; escaped here.
    """
    from plotly.io import to_html  # slow to import, and only this needs it; it changes the config it is given

    layout = {key: value for key, value in figure["layout"].items() if key not in ("width", "height")}
    page = to_html(
        {**figure, "layout": layout}, config=dict(CONFIG), include_plotlyjs=True, full_html=True, validate=False,
        auto_play=False,
    )  # fmt: skip
    head = f'<html lang="en"><head><title>{text.escape(title)}</title>'
    return re.sub(r"<html>\s*<head>", lambda _: head, page, count=1)


def table_csv(table: pd.DataFrame) -> bytes:
    """A table as comma-separated UTF-8 text with its index as first column; numbers with all their digits."""
    return table.to_csv(lineterminator="\n").encode()


def table_parquet(table: pd.DataFrame) -> bytes:
    """A table as Parquet, types and index kept. Raises MpvizError when pyarrow is not installed."""
    buffer = io.BytesIO()
    try:
        table.to_parquet(buffer, engine="pyarrow")
    except ImportError as error:
        raise MpvizError("Parquet files need pyarrow; pip install pyarrow, or take the table away as CSV") from error
    return buffer.getvalue()


def table_file(table: pd.DataFrame, stem: str, form: str) -> File:
    """A table as a file. form: "csv" or "parquet". Raises MpvizError for another."""
    writers = {"csv": table_csv, "parquet": table_parquet}
    if form not in writers:
        raise MpvizError(f"a table cannot be written as {form!r}; {nearest(str(form), writers)}")
    return File(f"{stem}.{form}", writers[form](table))


def file_stem(*parts: str) -> str:
    """A file's name without its ending, of letters, digits, dots and dashes only: no folder, no option, no escape.

    >>> file_stem("spectrum", "blocks.3.mlp.fc1.weight"), file_stem("../../etc", "a b/c"), file_stem("", "…")
    ('spectrum-blocks.3.mlp.fc1.weight', 'etc-a-b-c', 'mpviz')
    """
    kept = []
    for part in parts:
        plain = unicodedata.normalize("NFKD", part).encode("ascii", "ignore").decode()
        words = "".join(letter if letter.isalnum() or letter in "._" else "-" for letter in plain)
        words = re.sub(r"\.{2,}", ".", words)  # a way up to the folder above
        kept.append("-".join(filter(None, (word.strip(".") for word in words.split("-")))))
    return "-".join(filter(None, kept))[:_LONGEST].strip("-.") or "mpviz"


def layer_table(table: pd.DataFrame, budgets: pd.DataFrame | None = None) -> pd.DataFrame:
    """All layers with all their columns, and what the plan takes from each: weight, removed, sparsity, locked.

    A layer that is not prunable loses nothing and has no weight.
    """
    if budgets is None:
        return table
    new = [name for name in budgets.columns if name not in table.columns]
    joined = table.join(budgets[new])
    nothing: dict[str, float | bool] = {"removed": 0, "sparsity": 0.0, "locked": False}
    return joined.fillna(nothing).astype({name: budgets[name].dtype for name in nothing})


def spike_table(view: SpectrumView | None) -> pd.DataFrame:
    """The spikes of one layer, the largest first.

    Columns: rank, singular_value and strength on the scale of W, eigenvalue of X = WᵀW / N, overlap_left and
    overlap_right 0 … 1 (Benaych-Georges & Nadakuditi 2012).
    """
    rows = []
    for spike in () if view is None else view.spikes:
        overlap = spike["overlap"]
        left, right = overlap if isinstance(overlap, (tuple, list)) else (overlap, overlap)
        value = float(spike["eigenvalue"])
        rows.append((int(spike["rank"]), math.sqrt(view.shape[0] * value) if view else math.nan, value,
                     float(spike["strength"]), float(left), float(right)))  # fmt: skip
    return pd.DataFrame(rows, columns=list(_SPIKE_COLUMNS)).set_index("rank")


def curve_table(curve: CurveView) -> pd.DataFrame:
    """What is measured along the sparsity slider: coverage, unchanged, accuracy, 0 … 1; NaN where nothing is yet."""
    columns = {name: getattr(curve, name) for name in ("coverage", "unchanged", "accuracy")}
    return pd.DataFrame(columns, index=pd.Index(curve.positions, name="sparsity"))
