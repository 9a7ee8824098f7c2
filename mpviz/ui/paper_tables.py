"""The paper's tables of accuracies against sparsity, as HTML beside a grid; none of their numbers was measured here."""

from __future__ import annotations

from collections.abc import Collection

import pandas as pd

from mpviz.nets.paths import data_root
from mpviz.ui import tables, text

NEAR = 0.0251  # half of the paper's step between sparsities
TUNED, PLAIN = "vitb_sparsity_grid.csv", "seb_no_finetune_grid.csv"
_WORDS = {
    TUNED: ("after fine-tuning", "ViT-B/16 on ImageNet."),
    PLAIN: ("without fine-tuning", "magnitude and SEB; which network it was is not recorded with these numbers."),
}


def read_paper(file: str) -> pd.DataFrame:
    """A table of data/paper: top-1 in per cent, a row a method, a column a sparsity. Source: arXiv:2606.02608."""
    frame = pd.read_csv(data_root() / "paper" / file)
    if "method" in frame:
        return frame.set_index("method").rename(columns=float)
    return frame.set_index("sparsity").rename(columns=lambda name: str(name).removesuffix("_top1")).T


def paper_tables(sparsities: Collection[float], phases: Collection[str], theme: str = "light") -> str:
    """The paper's accuracies of the same kind as a grid's, at its sparsities next to those of the grid.

    phases: of the grid. "recovered" has the paper's table after fine-tuning beside it, "pruned" the one without, and
    what the grid does not have is said to be left out.
    """
    shown = [file for file, phase in ((TUNED, "recovered"), (PLAIN, "pruned")) if phase in phases]
    parts = [_table(file, sparsities, theme) for file in shown]
    if TUNED not in shown:
        parts.append(_quiet("Its table after fine-tuning is left out: this grid shows networks as they were pruned."))
    elif PLAIN not in shown:
        parts.append(
            _quiet("Its table without fine-tuning is left out: this grid shows networks that were trained again.")
        )
    return "".join(parts)


def _table(file: str, sparsities: Collection[float], theme: str) -> str:
    theirs, (kind, what) = read_paper(file), _WORDS[file]
    known = [float(sparsity) for sparsity in theirs.columns]
    near = [s for s in known if any(abs(s - asked) <= NEAR for asked in sparsities)]
    head = _quiet(f"{kind.capitalize()}: {what}")
    if not near:
        span = f"{100 * known[0]:g} to {100 * known[-1]:g} %"
        return head + _quiet(f"It goes from {span} and has none of this grid's sparsities.")
    rows = [[text.escape(str(method)), *(f"{row[s]:.2f}" for s in near)] for method, row in theirs.iterrows()]
    made = tables.html_table(("top-1, %", *(f"{100 * s:g} %" for s in near)), rows, theme)
    return f'{head}<div class="scroll" tabindex="0" role="region" aria-label="Theirs {kind}">{made}</div>'


def _quiet(words: str) -> str:
    return f'<p class="quiet">{text.escape(words)}</p>'
