"""The four ways to look at one layer's spectrum: their names, what they show, and the figure of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mpviz.errors import MpvizError, nearest
from mpviz.ui import figures
from mpviz.ui.theme import Json

if TYPE_CHECKING:
    from mpviz.workbench.views import SpectrumView


@dataclass(frozen=True)
class Look:
    """One way to look. label: on its button. tip: formula and source. log_y: whether the density can be logarithmic."""

    name: str
    label: str
    tip: str
    log_y: bool = False


LOOKS = (
    Look(
        "histogram",
        "histogram",
        "Density of the eigenvalues over the fitted law f(λ) = √((λ₊ − λ)(λ − λ₋)) / (2π σ² c λ). "
        "Marchenko & Pastur (1967)",
        log_y=True,
    ),
    Look(
        "distribution",
        "distribution",
        "Share of the bulk up to λ, over the law's F(λ), and the residual p (F_empirical − F): eigenvalues of noise "
        "are rigid, and 99 of 100 noise layers stay inside the limit. Pillai & Yin (2014)",
    ),
    Look(
        "quantiles",
        "Q–Q",
        "The i-th of p bulk eigenvalues against the law's quantile F⁻¹((i − ½) / p): on the diagonal the law fits. "
        "Wilk & Gnanadesikan (1968)",
    ),
    Look(
        "tail",
        "tail",
        "Share of eigenvalues ≥ λ on logarithmic axes: a power law λ^−α is a line of slope −(α − 1), α by maximum "
        "likelihood. Clauset, Shalizi & Newman (2009)",
    ),
)
SHUFFLED_TIP = (
    "The same entries of W in random order (seed 0): what they had to say to each other is gone, their distribution "
    "stays. Martin & Mahoney (2021)"
)


def look(name: str) -> Look:
    """The way to look of this name. Raises MpvizError for an unknown one."""
    for one in LOOKS:
        if one.name == name:
            return one
    raise MpvizError(f"unknown view {name!r}; {nearest(str(name), [one.name for one in LOOKS])}")


def layer_figure(view: SpectrumView | None, name: str, scale: str, log_y: bool, theme: str = "light") -> Json:
    """The figure of one layer. name: of a `Look`. scale: "eigenvalue" or "singular". log_y: for the histogram alone.

    Raises MpvizError for an unknown name, scale or theme.
    """
    if look(name).log_y:
        return figures.spectrum(view, scale, log_y, theme)
    draw = {"distribution": figures.distribution, "quantiles": figures.quantiles, "tail": figures.tail}[name]
    return draw(view, scale, theme)
