"""Random-matrix theory of one layer's spectrum: law, edge, fit, spikes, tail and signals. NumPy and SciPy only."""

from mpviz.rmt.checks import GRADES, METHODS, REASONS
from mpviz.rmt.edge import lower_edge, threshold, tracy_widom_quantile, upper_edge
from mpviz.rmt.entries import EntryStats, entry_stats, explain
from mpviz.rmt.fit import BulkFit, fit_bulk, no_fit
from mpviz.rmt.law import MarchenkoPastur
from mpviz.rmt.signals import Norms, entropy, hill_alpha, norms, soft_rank, stable_rank
from mpviz.rmt.spikes import SpikeStrengths, bbp_roots, spike_strengths
from mpviz.rmt.tail import PowerLawTail, power_law_tail

__all__ = [
    "GRADES",
    "METHODS",
    "REASONS",
    "BulkFit",
    "EntryStats",
    "MarchenkoPastur",
    "Norms",
    "PowerLawTail",
    "SpikeStrengths",
    "bbp_roots",
    "entropy",
    "entry_stats",
    "explain",
    "fit_bulk",
    "hill_alpha",
    "lower_edge",
    "no_fit",
    "norms",
    "power_law_tail",
    "soft_rank",
    "spike_strengths",
    "stable_rank",
    "threshold",
    "tracy_widom_quantile",
    "upper_edge",
]
