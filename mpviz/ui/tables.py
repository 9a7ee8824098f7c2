"""Tables and tier chips as HTML: every outside string escaped, colours inline, so that no style sheet is needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING

from mpviz.ui import text
from mpviz.ui.theme import FONT, Colour, Palette, palette

if TYPE_CHECKING:
    import pandas as pd

EMPTY_COMPARISON = "Prune to see the network before and after."
_FIT = {"good": "● good", "fair": "▼ fair", "poor": "▲ poor"}


def chip(tier: str, theme: str = "light") -> str:
    """A tier as a small chip in its colour; the dotted frame of an estimate can be told apart in grey print."""
    colours = palette(theme)
    colour = colours.tier(tier)
    frame = "dotted" if tier == "estimate" else "solid"
    return (
        f'<span class="mp-chip" style="border:1px {frame} {colour.line};color:{colour.text};'
        f'background:{colours.paper};border-radius:8px;padding:0 7px;font-size:11px;white-space:nowrap">'
        f"{text.escape(tier)}</span>"
    )


def cell(value: object) -> str:
    """One value for a table: integers with thin spaces, other numbers with three digits, words escaped.

    >>> cell(1234), cell(0.91351), cell(None), cell(True), cell("<b>")
    ('1\u202f234', '0.914', '–', 'yes', '&lt;b&gt;')
    """
    if value is None:
        return text.NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Integral) or (isinstance(value, float) and value.is_integer()):
        # a column of shares and counts holds its counts as floats
        return text.count(int(value))
    if isinstance(value, Real):
        return text.significant(float(value))
    return text.escape(value)


def bar(share: float, colour: Colour, colours: Palette) -> str:
    """A share 0 … 1 as a small inline bar with its value beside it; nothing but a dash for NaN."""
    if not math.isfinite(share):
        return text.NONE
    filled = 100 * min(max(share, 0.0), 1.0)
    return (
        f"{text.percent(share, 2)} "
        f'<span style="display:inline-block;width:56px;height:9px;border:1px solid {colour.line};'
        f'background:linear-gradient(to right,{colour.fill} {filled:.1f}%,{colours.paper} {filled:.1f}%)"></span>'
    )


def html_table(headers: Sequence[str], rows: Sequence[Sequence[str]], theme: str = "light", marked: int = -1) -> str:
    """A quiet HTML table: the first column left, the others right in digits of equal width.

    headers are escaped here; cells are HTML already, made by `cell`, `bar`, `chip` or `text.escape`. marked: the row
    to emphasise.
    """
    colours = palette(theme)
    side = ["left"] + ["right"] * (len(headers) - 1)
    head = "".join(
        f'<{"th" if h else "td"} style="text-align:{s};padding:3px 10px;color:{colours.muted};font-weight:500">'
        f"{text.escape(h)}</{'th' if h else 'td'}>"  # a heading without words is none
        for s, h in zip(side, headers, strict=True)
    )
    body = []
    for i, row in enumerate(rows):
        frame = f"outline:2px solid {colours.ink};outline-offset:-2px" if i == marked else ""
        cells = (f'<td style="text-align:{s};padding:3px 10px">{c}</td>' for s, c in zip(side, row, strict=True))
        body.append(f'<tr style="border-top:1px solid {colours.grid};{frame}">{"".join(cells)}</tr>')
    return (
        f'<table class="mp-table" style="border-collapse:collapse;background:{colours.paper};color:{colours.ink};'
        f'font-family:{text.escape(FONT)};font-size:13px;font-variant-numeric:tabular-nums">'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    )


def comparison_table(frame: pd.DataFrame | None, theme: str = "light") -> str:
    """Before and after, each row with the chip of its tier.

    frame: columns quantity, dense, pruned, tier. Floats 0 … 1 are shares and shown in percent, integers are counts,
    words stay words. None or empty: a sentence that invites.
    """
    if frame is None or len(frame) == 0:
        return f'<p style="color:{palette(theme).muted}">{EMPTY_COMPARISON}</p>'
    columns = (frame[column].tolist() for column in ("quantity", "dense", "pruned", "tier"))
    rows = [
        [text.escape(quantity), _quantity(dense), _quantity(pruned), chip(str(tier), theme) if tier else ""]
        for quantity, dense, pruned, tier in zip(*columns, strict=True)
    ]
    return html_table(("", "dense", "pruned", "known as"), rows, theme)


def _quantity(value: object) -> str:
    return text.percent(value) if isinstance(value, float) and 0 <= value <= 1 else cell(value)


def layers_table(
    table: pd.DataFrame, budgets: pd.DataFrame | None = None, selected: str | None = None, theme: str = "light"
) -> str:
    """All layers with inline bars: shape, σ₊, bulk, spikes, α, fit, and what the budgets remove.

    table: as made by `analyze`. budgets: columns sparsity and locked, indexed by parameter name, or None.
    """
    colours = palette(theme)
    names = [str(name) for name in table.index]
    removed = _removed(budgets, colours)
    edges, alphas = (text.aligned(table[column].tolist()) for column in ("sigma_plus", "alpha"))
    columns = (table[c].tolist() for c in ("role", "rows", "cols", "bulk_fraction", "n_spikes", "grade", "prunable"))
    rows = []
    for name, edge, alpha, role, n, m, bulk, spikes, grade, prunable in zip(
        names, edges, alphas, *columns, strict=True
    ):
        known = math.isfinite(bulk)
        rows.append(
            [
                f'<span title="{text.escape(name)}">{text.escape(text.short_name(name))}</span>',
                text.escape(role),
                f"{n} × {m}",
                edge,
                bar(bulk, colours.bulk, colours),
                text.count(spikes) if known else text.NONE,
                alpha,
                _FIT.get(grade, text.NONE),
                removed.get(name, text.NONE) if prunable else "not prunable",
            ]
        )
    headers = ("layer", "role", "shape", "σ₊", "bulk", "spikes", "α", "MP fit", "removed")
    return html_table(headers, rows, theme, names.index(selected) if selected in names else -1)


def _removed(budgets: pd.DataFrame | None, colours: Palette) -> dict[str, str]:
    """The last cell of each layer that has a budget."""
    if budgets is None:
        return {}
    columns = (budgets.index, budgets["sparsity"].tolist(), budgets["locked"].tolist())
    return {
        str(name): "locked" if locked else bar(float(sparsity), colours.removed, colours)
        for name, sparsity, locked in zip(*columns, strict=True)
    }
