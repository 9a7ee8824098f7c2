"""What a workbench has loaded: a network with its spectra and ranking, and a data set."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from torch import nn

from mpviz.errors import ModelError, MpvizError
from mpviz.nets.data import Splits, load_data
from mpviz.nets.spectra import LayerSpectrum, layer_spectra, table_of
from mpviz.nets.zoo import load_model
from mpviz.prune.masks import Ranking
from mpviz.workbench.jobs import Job
from mpviz.workbench.policy import Gate
from mpviz.workbench.views import SpectrumView, TailView


@dataclass(frozen=True, eq=False)
class Subject:
    """One network under study. Nothing here changes, so that several sessions may share it."""

    name: str
    network: nn.Module
    spectra: dict[str, LayerSpectrum]
    table: pd.DataFrame
    ranking: Ranking
    loadable: bool = True


_shared: dict[str, Subject] = {}
_shared_data: dict[tuple[str, str], Splits] = {}
_lock = threading.Lock()


def open_subject(model: str | Path | nn.Module, job: Job | None = None, gate: Gate | None = None) -> Subject:
    """Load and analyse a network; one named by a string is shared by all sessions of this process.

    gate: says what stands behind a name, and raises AccessError for a name that may not be opened.
    """
    if isinstance(model, nn.Module):
        if model.training:
            raise ModelError(
                f"{type(model).__name__} is in training mode, its outputs depend on the batch; call .eval()"
            )
        return replace(_analysed(type(model).__name__, model, job), loadable=False)
    name = str(model)
    place = name if gate is None else gate.model(name)
    a_file = Path(place).is_file()  # asked first: an uploaded file may be gone with its session when it is read
    with _lock:
        known = None if a_file else _shared.get(place)
    if known is not None:
        return known
    try:
        network = load_model(place)
    except MpvizError as error:
        if place == name:
            raise
        # a visitor sees the name that was offered, not where the server keeps its files
        raise type(error)(str(error).replace(place, name)) from None
    subject = _analysed(name, network, job)
    if not a_file:  # a file may change under its name
        with _lock:
            _shared.setdefault(place, subject)
    return subject


def _analysed(name: str, network: nn.Module, job: Job | None) -> Subject:
    spectra = layer_spectra(
        network,
        progress=None if job is None else lambda f, layer: job.tell(0.1 + 0.6 * f, f"spectrum of {layer}"),
        cancelled=None if job is None else job.cancelled,
    )
    return Subject(name, network, spectra, table_of(spectra), Ranking(network))


def open_data(name: str, folder: str | None, network: nn.Module, gate: Gate | None = None) -> Splits:
    """The splits of a data set; bundled sets are shared, others depend on the model's image size.

    gate: as for `open_subject`.
    """
    if gate is not None:
        name, folder = gate.data_set(name, folder)
    if name not in ("fashion-mnist", "digits"):
        return load_data(name, folder or None, network)
    key = (name, folder or "")
    with _lock:
        if key in _shared_data:
            return _shared_data[key]
    splits = load_data(name, folder or None)
    with _lock:
        return _shared_data.setdefault(key, splits)


def spectrum_view(layer: LayerSpectrum) -> SpectrumView:
    """What the spectrum figure needs of one layer."""
    info, fit = layer.info, layer.fit
    spikes = [
        {
            "rank": i + 1,
            "eigenvalue": float(layer.spikes.eigenvalue[i]),
            "strength": float(layer.spikes.strength[i]),
            "overlap": (float(layer.spikes.overlap_left[i]), float(layer.spikes.overlap_right[i])),
        }
        for i in range(len(layer.spikes.eigenvalue))
    ]
    return SpectrumView(
        layer=info.name,
        role=info.role,
        shape=info.matrix,  # of one group, where a convolution has several
        eigenvalues=layer.eigenvalues,
        law_pdf=fit.law.pdf if fit.law is not None else lambda x: np.full_like(x, np.nan, dtype=float),
        edges=fit.edges,
        threshold=fit.threshold,
        sigma_plus=fit.sigma_plus,
        n_spikes=fit.n_spikes,
        bulk_fraction=fit.bulk_fraction,
        rigidity=fit.rigidity,
        mp_like=fit.mp_like,
        grade=fit.grade,
        verdict=fit.verdict,
        spikes=spikes,
        law_cdf=None if fit.law is None else fit.law.cdf_nonzero,
        law_ppf=None if fit.law is None else fit.law.ppf_nonzero,
        rigidity_limit=fit.rigidity_limit,
        p_value=fit.p_value,
        reason=fit.reason,
        sigma_plus_interval=fit.sigma_plus_interval,
        shuffled=None if layer.shuffled is None else layer.shuffled.eigenvalues,
        tail=_tail_view(layer),
    )


def _tail_view(layer: LayerSpectrum) -> TailView | None:
    found = layer.tail
    if found is None:
        return None
    return TailView(found.alpha, found.x_min, found.ks, found.n_tail, found.no_tail, found.why)
