"""What can be set on a workbench, and what it shows: names, bounds and defaults that every face binds to."""

from __future__ import annotations

import param

from mpviz.workbench.measure import EMPTY_CURVE
from mpviz.workbench.names import TIERS_SHOWN, VIEWS
from mpviz.workbench.views import JobStatus


class Settings(param.Parameterized):
    """Settings first, then outputs, which only the workbench itself sets."""

    model = param.String("fashion-vit", doc="name of the network that is loaded", constant=True)
    data = param.String("fashion-mnist", doc="name of the data set", constant=True)
    layer = param.String("", doc="parameter name of the layer in view")
    sparsity = param.Number(0.5, bounds=(0.0, 0.99), doc="share of prunable weights removed")
    signal = param.Selector(default="sigma_plus", objects=["sigma_plus", "alpha"], doc="what tells layers apart")
    beta = param.Number(1.25, bounds=(0.0, 3.0), doc="β: how strongly the signal counts")
    decay_end = param.Number(0.7, bounds=(0.05, 1.0), doc="s_d: sparsity at which the signal stops to count")
    beta_attention = param.Number(None, bounds=(0.0, 3.0), allow_None=True, doc="β of attention layers, None = β")
    beta_mlp = param.Number(None, bounds=(0.0, 3.0), allow_None=True, doc="β of MLP layers, None = β")
    locked = param.List([], item_type=str, doc="layers that lose nothing")
    split = param.Selector(default="test", objects=["test", "calibration"], doc="samples that are measured")
    samples = param.Integer(1000, bounds=(1, None), doc="how many of them the preview uses")
    scale = param.Selector(default="singular", objects=["eigenvalue", "singular"], doc="axis of the spectrum")
    log_y = param.Boolean(False, doc="logarithmic density")
    view = param.Selector(default="histogram", objects=list(VIEWS), doc="how the spectrum is drawn")
    shuffled = param.Boolean(False, doc="draw the same entries in random order beside it")

    sample = param.Integer(0, bounds=(0, None), doc="row of the proved samples that is looked at")
    tiers = param.List(list(TIERS_SHOWN), item_type=str, doc="tiers that are drawn and explained")

    undoable = param.Boolean(False, doc="whether there is a step to undo")
    redoable = param.Boolean(False, doc="whether there is a step to redo")
    table = param.DataFrame(None, doc="of mp.analyze")
    budgets = param.DataFrame(None, doc="one row a prunable layer")
    spectrum = param.Parameter(None, doc="SpectrumView of the layer in view")
    curve = param.Parameter(EMPTY_CURVE, doc="CurveView: coverage over sparsity")
    comparison = param.DataFrame(None, doc="before and after the last finished pruning")
    proofs = param.Parameter(None, doc="CertificateView of the last finished certify()")
    job = param.Parameter(JobStatus(), doc="JobStatus")
    error = param.String("", doc="what went wrong, as a sentence; empty when all is well")
    info = param.Dict({}, doc="device, versions, dense accuracy")
