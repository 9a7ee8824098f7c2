"""Plain results → plotly figures as dicts {"data": […], "layout": {…}}, for every screen alike.

Pure functions: the same input gives the same dict, made of lists, numbers and strings only, with trace types and
attributes that plotly.js 3 and 4 share. Clicks carry their target in `customdata`. No height is set: the figures read
well between 260 and 380 px, the strip from 150.
"""

from mpviz.ui._certificates import TIER_WORDS, aged, attribution, margins, tiers
from mpviz.ui._coverage import coverage
from mpviz.ui._distribution import distribution, quantiles
from mpviz.ui._evolution import animated, evolution, limit_bulk, limit_spikes
from mpviz.ui._layers import budgets, strip
from mpviz.ui._spectrum import spectrum
from mpviz.ui._tail import tail
from mpviz.ui.theme import CONFIG, empty

__all__ = [
    "CONFIG",
    "TIER_WORDS",
    "aged",
    "animated",
    "attribution",
    "budgets",
    "coverage",
    "distribution",
    "empty",
    "evolution",
    "limit_bulk",
    "limit_spikes",
    "margins",
    "quantiles",
    "spectrum",
    "strip",
    "tail",
    "tiers",
]
