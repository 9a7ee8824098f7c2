"""Random-matrix theory of one layer's spectrum: law, edge, fit, spikes and scalar signals. NumPy and SciPy only."""

from mpviz.rmt.edge import lower_edge, threshold, tracy_widom_quantile, upper_edge
from mpviz.rmt.fit import RIGIDITY_LIMIT, BulkFit, fit_bulk
from mpviz.rmt.law import MarchenkoPastur
from mpviz.rmt.signals import hill_alpha, stable_rank
from mpviz.rmt.spikes import SpikeStrengths, bbp_roots, spike_strengths

__all__ = [
    "RIGIDITY_LIMIT",
    "BulkFit",
    "MarchenkoPastur",
    "SpikeStrengths",
    "bbp_roots",
    "fit_bulk",
    "hill_alpha",
    "lower_edge",
    "spike_strengths",
    "stable_rank",
    "threshold",
    "tracy_widom_quantile",
    "upper_edge",
]
