"""The layer in view: choosing it, and its spectrum with or without the shuffled entries beside it."""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import param

from mpviz.errors import ModelError, nearest
from mpviz.nets.spectra import LayerSpectrum, layer_spectra
from mpviz.workbench.jobs import Loop, sentence
from mpviz.workbench.settings import Settings
from mpviz.workbench.sources import Subject, spectrum_view

SEED = 0  # of the order of the shuffled entries
QUICK = 4e8  # multiplications, about 30 ms: what takes longer is left to the background
_nulls: WeakKeyDictionary[Subject, dict[str, np.ndarray]] = WeakKeyDictionary()  # one a network, shared like it
_nulls_lock = threading.Lock()


def known_null(subject: Subject, layer: str) -> np.ndarray | None:
    """Eigenvalues of the layer's shuffled entries, when they were computed before or are computed in no time."""
    with _nulls_lock:
        found = _nulls.get(subject, {}).get(layer)
    if found is None and _work(subject.spectra[layer]) <= QUICK:
        return compute_null(subject, layer)
    return found


def compute_null(subject: Subject, layer: str) -> np.ndarray:
    """Eigenvalues of X = WᵀW / N for the same entries in random order, ascending; empty where W has no spectrum."""
    if not len(subject.spectra[layer].eigenvalues):
        values = np.empty(0)
    else:
        null = layer_spectra(subject.network, [layer], shuffled=SEED)[layer].shuffled
        values = np.empty(0) if null is None else null.eigenvalues
    with _nulls_lock:
        return _nulls.setdefault(subject, {}).setdefault(layer, values)


def _work(spectrum: LayerSpectrum) -> float:
    """Multiplications of Gram matrix and eigenvalues: n p² + 4p³/3 in every group."""
    if not len(spectrum.eigenvalues):
        return 0.0
    small, large = sorted(spectrum.info.matrix)
    return spectrum.info.groups * (large * small**2 + 4 * small**3 / 3)


class LayerInView(Settings):
    """The part of the workbench that knows which layer is looked at. Its methods may be called from any thread."""

    _subject: Subject

    def __init__(self, **settings: Any) -> None:
        self._lock = threading.RLock()
        self._null_loop = Loop(self._next_null, lambda error: self._set(shuffled=False, error=sentence(error)))
        super().__init__(**settings)

    def __setattr__(self, name: str, value: Any) -> None:
        # param's batches are not thread-safe: two that overlap leave it batching for ever
        with self.__dict__.get("_lock") or contextlib.nullcontext():
            super().__setattr__(name, value)

    def _set(self, **outputs: Any) -> None:
        with self._lock:
            self.param.update(**outputs)

    @property
    def spectra(self) -> dict[str, LayerSpectrum]:
        """Spectrum, fit and spikes of every layer, by parameter name."""
        return self._subject.spectra

    @property
    def layers(self) -> list[str]:
        """Parameter names of all layers, in the order of the network."""
        return list(self._subject.spectra)

    def select(self, layer: str) -> None:
        """Show another layer. Raises ModelError for an unknown one, with the nearest."""
        self._known(layer)
        self.layer = layer

    def _known(self, layer: str) -> None:
        if layer not in self._subject.spectra:
            raise ModelError(f"unknown layer '{layer}'; {nearest(layer, self.layers)}")

    def next_layer(self) -> None:
        """Show the next layer; after the last comes the first."""
        self._step_layer(1)

    def previous_layer(self) -> None:
        """Show the layer before; before the first comes the last."""
        self._step_layer(-1)

    def _step_layer(self, by: int) -> None:
        self.layer = self.layers[(self.layers.index(self.layer) + by) % len(self.layers)]

    def _follow_layer(self) -> None:
        self.param.watch(self._on_layer, ["layer"])
        self.param.watch(lambda _: self._show_layer(), ["shuffled"])

    def _on_layer(self, event: param.parameterized.Event) -> None:
        if event.new not in self._subject.spectra:
            self.layer = event.old
            raise ModelError(f"unknown layer '{event.new}'; {nearest(event.new, self._subject.spectra)}")
        self._show_layer()

    # --- its spectrum ---------------------------------------------------------------------------------------------

    def _show_layer(self) -> None:
        """The spectrum of the layer; the shuffled entries join it once they are computed."""
        with self._lock:
            shown = spectrum_view(self._subject.spectra[self.layer])
            if self.shuffled:
                null = known_null(self._subject, self.layer)
                shown = replace(shown, shuffled=null)
                if null is None:
                    self._null_loop.start()
            elif shown.shuffled is not None:
                shown = replace(shown, shuffled=None)
            self.spectrum = shown

    def _next_null(self) -> bool:
        with self._lock:
            subject, layer, wanted = self._subject, self.layer, self.shuffled
            if not wanted or self.spectrum.shuffled is not None:
                return False
        null = compute_null(subject, layer)
        with self._lock:
            if subject is self._subject and layer == self.layer and self.shuffled:
                self.spectrum = replace(self.spectrum, shuffled=null)
                return False
        return True  # something else is looked at by now

    def wait_shuffled(self, timeout: float = 60.0) -> bool:
        """Block until the shuffled entries of the layer in view are there; False when it takes longer, in seconds."""
        end = time.monotonic() + timeout
        while self.shuffled and self.spectrum.shuffled is None:
            if not self._null_loop.wait_idle(max(0.0, end - time.monotonic())):
                return False
        return bool(self.shuffled)

    def _close_layer(self) -> None:
        self._null_loop.stop()
