"""How a report looks: what it says as a plain record, and the page that is made of it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from mpviz.ui import figures, tables, text
from mpviz.ui._certificates import TIER_WORDS as TIER_NAMES
from mpviz.ui.page import filled_page, footer
from mpviz.ui.theme import CONFIG, Json
from mpviz.workbench.views import CurveView, SpectrumView

if TYPE_CHECKING:
    import pandas as pd

    from mpviz.workbench.proof_views import CertificateView

SPECTRA_LIMIT = 2_000_000  # characters of JSON: plotly.js has 4.8 million, and the page should stay below 8
MINUS = "−"


@dataclass(frozen=True, eq=False)
class Content:
    """What a report says. headline, details, caveat, curve_note: words, not escaped; an empty one is left out.

    tier: how the numbers of the headline are known. comparison: before and after, None when nothing was pruned.
    table, budgets: of all and of the prunable layers. views: one a layer. recipe: TOML. proofs: of this very plan.
    layer: the one that is shown first; "" for the one with most spikes.
    """

    model: str
    data: str
    headline: str
    details: str
    tier: str
    table: pd.DataFrame
    budgets: pd.DataFrame
    views: Iterable[SpectrumView]
    recipe: str
    comparison: pd.DataFrame | None = None
    caveat: str = ""
    curve: CurveView | None = None
    curve_note: str = ""
    proofs: CertificateView | None = None
    layer: str = ""


def page(content: Content, theme: str, when: datetime) -> str:
    """The whole page. Raises MpvizError for an unknown theme."""
    spectra, left_out = spectrum_figures(content.views, theme)
    model = text.escape(content.model)
    parts = {
        "title": f"mpviz: {model}",
        "eyebrow": f"mpviz report · {model} on {text.escape(content.data)}",
        "finding": text.escape(content.headline).replace(model, f"<span>{model}</span>"),
        "details": text.escape(content.details),
        "tiers": f"{tables.chip(content.tier, theme)} {TIER_WORDS.get(content.tier, '')}" if content.tier else "",
        "comparison": _comparison(content.comparison, theme),
        "caveat": text.escape(content.caveat),
        "left_out": text.escape(left_out),
        "coverage": _coverage(content.curve, content.curve_note),
        "proofs": _proofs(content.proofs, theme),
        "layers": tables.layers_table(content.table, content.budgets, theme=theme),
        "recipe": "\n".join(map(text.escape, content.recipe.split("\n"))),
        "footer": footer(when),
    }
    return filled_page("report.html", parts, _figures(content, spectra, theme), theme)


TIER_WORDS = {
    "measured": "exact, for these masks on these images",
    "estimate": "between measured positions of the curve",
}


def points(change: float) -> str:
    """A change of a share, in percentage points with its sign.

    >>> points(-0.003), points(0.0)
    ('−0.30 points', '±0 points')
    """
    if change == 0:
        return "±0 points"
    return f"{100 * change:+.2f} points".replace("-", MINUS)


def share(value: float) -> str:
    """A share in percent with one decimal, so that a column of them is aligned; never rounded to all or nothing.

    >>> share(0.93), share(1.0)
    ('93.0\u202f%', '100.0\u202f%')
    """
    shown = f"{100 * value:.1f}"
    if (shown == "100.0" and value < 1) or (shown == "0.0" and value > 0):
        return text.percent(value)
    return f"{shown}{text.THIN}%"


def comparison_head(comparison: pd.DataFrame) -> tuple[str, ...]:
    """What stands above the columns of `comparison_rows`."""
    return ("", "dense", *_networks(comparison), "change", "known as")


def _networks(comparison: pd.DataFrame) -> list[str]:
    return [name for name in ("pruned", "recovered") if name in comparison]


def comparison_rows(comparison: pd.DataFrame) -> list[tuple[str, ...]]:
    """Before and after as words: quantity, dense, pruned (and recovered), change, tier.

    Shares are floats, counts are whole numbers. The change is that of the last network over the dense one.
    """
    rows = []
    for row in comparison.to_dict("records"):
        dense, after = row["dense"], [row[name] for name in _networks(comparison)]
        last, shown = after[-1], [_amount(value) for value in (dense, *after)]
        if last is None or dense is None:
            change = ""
        elif isinstance(dense, float):
            change = points(last - dense)
        else:
            change = f"{MINUS}{share((dense - last) / dense)}" if dense > last else "±0"
        rows.append((str(row["quantity"]), *shown, change, str(row["tier"])))
    return rows


def _amount(value: float | int | None) -> str:
    if value is None:
        return ""
    return share(value) if isinstance(value, float) else text.count(value)


def _comparison(comparison: pd.DataFrame | None, theme: str) -> str:
    if comparison is None:
        return tables.comparison_table(None, theme)
    rows = [[*map(text.escape, row[:-1]), tables.chip(row[-1], theme)] for row in comparison_rows(comparison)]
    return tables.html_table(comparison_head(comparison), rows, theme)


def _coverage(curve: CurveView | None, note: str) -> str:
    if curve is None:
        return ""
    words = "Certified: margin > 2η, so that the label cannot have changed. Unchanged: it is in fact the same."
    return (
        f'<h2>How much can go</h2>\n<p class="quiet">{text.escape(f"{words} {note}")}</p>\n'
        '<div id="coverage" class="figure" role="figure" aria-label="Coverage against sparsity"></div>'
    )


def _proofs(view: CertificateView | None, theme: str) -> str:
    """What is known beyond this one mask: a figure along the slider, and a row a tier."""
    if view is None:
        return ""
    e = text.escape
    rows = [
        [e(TIER_NAMES.get(name, name)), _about(tier), share(tier["share"]) if "share" in tier else text.NONE,
         tables.chip(tier["tier"], theme)]
        for name, tier in view.summary()["tiers"].items()
    ]  # fmt: skip
    words = (
        f"At {text.percent(view.sparsity)} sparsity, on {text.count(len(view.samples))} {view.split} images: what "
        "cannot change for whole sets of masks and inputs, not for one mask only, and what that says of images unseen."
    )
    if view.scope != "all layers":
        words += f" Bounds speak about {view.scope}, the other layers dense: {view.scope_why}."
    table = tables.html_table(("", "about", "predictions", "known as"), rows, theme)
    return (
        f'<h2>What is proved</h2>\n<p class="quiet">{e(words)}</p>\n'
        '<div id="proofs" class="figure" role="figure" aria-label="What is proved, tier by tier"></div>\n'
        f'<div class="scroll wrap" tabindex="0" role="region" aria-label="What is proved, in numbers">{table}</div>'
    )


def _about(tier: Mapping[str, Any]) -> str:
    return text.escape(". ".join(filter(None, (tier["about"], tier.get("why", "")))))


def spectrum_figures(views: Iterable[SpectrumView], theme: str = "light") -> tuple[dict[str, dict[str, Json]], str]:
    """Spectrum figures {layer: {scale: figure}} in the order of the network, and what was left out, in words.

    Where the page would grow too large, the layers with most spikes stay: they have most to tell.
    """
    views = list(views)
    drawn: dict[str, dict[str, Json]] = {}
    size = 0
    for view in sorted(views, key=lambda view: -view.n_spikes if view.fitted else math.inf):
        pair = {scale: compact(figures.spectrum(view, scale, theme=theme)) for scale in ("singular", "eigenvalue")}
        size += len(json.dumps(pair))
        if size > SPECTRA_LIMIT and drawn:
            break
        drawn[view.layer] = pair
    kept = {view.layer: drawn[view.layer] for view in views if view.layer in drawn}
    if len(kept) == len(views):
        return kept, ""
    return kept, f"The {len(kept)} of {len(views)} layers with most spikes can be chosen; the table has all."


def compact(value: Any) -> Any:
    """The same lists and dicts with floats to five digits, a tenth of a pixel, and null for what is not finite.

    >>> compact({"x": [0.123456789, float("nan"), 2]})
    {'x': [0.12346, None, 2]}
    """
    if isinstance(value, Mapping):
        return {key: compact(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [compact(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value


def _figures(content: Content, spectra: Mapping[str, Mapping[str, Json]], theme: str) -> dict[str, Any]:
    """All that the page draws; frames: the strip's mark around each layer that can be chosen."""
    table = content.table
    return {
        "config": CONFIG,
        "strip": compact(figures.strip(table, None, theme)),
        "frames": {name: compact(figures.strip(table, name, theme)["layout"]["shapes"]) for name in spectra},
        "spectra": spectra,
        "proofs": None if content.proofs is None else compact(figures.tiers(content.proofs, theme)),
        "first": content.layer
        if content.layer in spectra
        else max(spectra, key=lambda name: (table.at[name, "prunable"], table.at[name, "n_spikes"])),
        "coverage": None if content.curve is None else compact(figures.coverage(content.curve, theme)),
        "budgets": compact(figures.budgets(content.budgets, None, theme)),
    }
