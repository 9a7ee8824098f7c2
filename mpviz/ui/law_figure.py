"""The lecture's figure: one random matrix, the law it must follow, and the place where its spikes must stand."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mpviz.ui import figures, text
from mpviz.ui.theme import Json, note, palette

if TYPE_CHECKING:
    from mpviz.workbench.law import LawDraw


def law_figure(done: LawDraw, scale: str = "singular", theme: str = "light") -> Json:
    """Histogram, known law, edge and threshold; a dotted line where theory expects the planted spikes.

    scale: "singular" or "eigenvalue".  Raises MpvizError for an unknown scale or theme.
    """
    figure = figures.spectrum(done.view, scale, False, theme)
    layout, colours = figure["layout"], palette(theme)
    layout["uirevision"] = f"law|{scale}"
    if math.isfinite(done.expected):
        place = done.expected if scale == "singular" else done.expected**2 / done.plan.rows
        line = {"color": colours.spike.line, "width": 1.5, "dash": "dot"}
        layout["shapes"].append({"type": "line", "x0": place, "x1": place, "y0": 0, "y1": 0.82, "yref": "paper",
                                 "line": line})  # fmt: skip
        place_of = {"x": place, "y": 0.82, "yref": "paper", "xanchor": "left", "yanchor": "top", "xshift": 4}
        hint = "where the planted spikes must stand<br>Benaych-Georges & Nadakuditi (2012)"
        words = f"expected {text.significant(place)}"
        layout["annotations"].append(note(words, colours.spike.text, **place_of, hovertext=hint))
        low, high = layout["xaxis"]["range"]
        layout["xaxis"]["range"] = [low, max(high, 1.12 * place)]
    return figure


def law_words(done: LawDraw) -> str:
    """What is seen against what was planted, and why; plain words."""
    plan = done.plan
    planted = f"{text.plural(plan.spikes, 'spike')} planted"
    seen = f"{done.seen if done.seen else 'none'} seen"
    fitted = (
        f"σ = {text.significant(plan.sigma)}, fitted from the spectrum alone {text.significant(done.fitted_sigma, 4)}"
    )
    if plan.spikes == 0:
        return f"Pure noise: {seen} above the threshold; {fitted}."
    if plan.strength <= 1:
        why = f"at {text.significant(plan.strength)} × the BBP threshold, where a spike drowns in the bulk"
    else:
        why = (
            f"at {text.significant(plan.strength)} × the BBP threshold; theory expects them at "
            f"s = {text.significant(done.expected)}, the edge is at {text.significant(done.view.sigma_plus)}"
        )
    return f"{planted} {why}: {seen}; {fitted}."
