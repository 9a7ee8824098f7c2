"""The layer in view with its shuffled entries, and the lecture's random matrices."""

import math
import threading
import time

import numpy as np
import pytest

import mpviz as mp
from mpviz.errors import SpectrumError
from mpviz.nets.spectra import shuffled_spectrum
from mpviz.ui.law_figure import law_figure, law_words
from mpviz.workbench import layer as layer_module
from mpviz.workbench.law import LawPlan, draw_law, expected_spike


@pytest.fixture
def wb():
    layer_module._nulls.clear()
    bench = mp.Workbench("fashion-mlp", samples=50)
    yield bench
    bench.close()


def weight_of(wb, layer):
    return dict(wb.network.named_parameters())[layer]


def test_the_null_is_that_of_the_same_entries(wb):
    assert wb.spectrum.shuffled is None
    wb.shuffled = True
    assert wb.wait_shuffled()
    np.testing.assert_allclose(wb.spectrum.shuffled, shuffled_spectrum(weight_of(wb, wb.layer), 0), rtol=1e-9)
    wb.next_layer()
    assert wb.wait_shuffled()
    np.testing.assert_allclose(wb.spectrum.shuffled, shuffled_spectrum(weight_of(wb, wb.layer), 0), rtol=1e-9)
    wb.shuffled = False
    assert wb.spectrum.shuffled is None and not wb.wait_shuffled()


@pytest.fixture
def counted(monkeypatch):
    calls, original = [], layer_module.layer_spectra

    def count(network, layers, **settings):
        calls.append(layers[0])
        time.sleep(0.05)
        return original(network, layers, **settings)

    monkeypatch.setattr(layer_module, "layer_spectra", count)
    return calls


def test_it_is_computed_once_for_all_sessions(wb, counted):
    wb.shuffled = True
    other = mp.Workbench("fashion-mlp", samples=50, shuffled=True)
    try:
        assert wb.wait_shuffled() and other.wait_shuffled() and counted == [wb.layer]
        assert other.spectrum.shuffled is wb.spectrum.shuffled
    finally:
        other.close()


def test_what_takes_long_runs_in_the_background_and_never_lands_on_another_layer(wb, counted, monkeypatch):
    monkeypatch.setattr(layer_module, "QUICK", 0)
    gate, original = threading.Event(), layer_module.layer_spectra
    monkeypatch.setattr(layer_module, "layer_spectra", lambda *a, **k: gate.wait(30) and original(*a, **k))
    wb.shuffled = True
    assert wb.spectrum.shuffled is None
    gate.set()
    wb.next_layer()  # while the first is computed
    assert wb.wait_shuffled(30)
    assert wb.spectrum.layer == wb.layer == wb.layers[1]
    np.testing.assert_allclose(wb.spectrum.shuffled, shuffled_spectrum(weight_of(wb, wb.layer), 0), rtol=1e-9)
    assert threading.current_thread() is threading.main_thread()


def test_walking_while_nulls_are_computed_ends_with_the_right_one(wb, monkeypatch):
    monkeypatch.setattr(layer_module, "QUICK", 0)
    wb.shuffled = True
    threads = [threading.Thread(target=lambda: [wb.next_layer() for _ in range(20)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wb.wait_shuffled(30)
    assert wb.spectrum.layer == wb.layer
    np.testing.assert_allclose(wb.spectrum.shuffled, shuffled_spectrum(weight_of(wb, wb.layer), 0), rtol=1e-9)


def test_a_null_that_fails_is_a_sentence_and_the_switch_goes_back(wb, monkeypatch):
    def fail(*_, **__):
        raise SpectrumError("no room for it")

    monkeypatch.setattr(layer_module, "QUICK", 0)
    monkeypatch.setattr(layer_module, "layer_spectra", fail)
    wb.shuffled = True
    assert not wb.wait_shuffled(30)
    assert wb.shuffled is False and wb.error == "no room for it"


def test_a_comparison_is_current_while_plan_and_split_are_those_it_was_made_with(wb):
    assert wb.comparison_is_current
    wb.prune().wait(120)
    assert wb.comparison_is_current and wb.pruned_at == (wb.plan, "test")
    for name, value in (("beta", 0.5), ("sparsity", 0.4), ("signal", "alpha"), ("split", "calibration")):
        before = getattr(wb, name)
        wb.change(**{name: value})
        assert not wb.comparison_is_current, name
        wb.change(**{name: before})
        assert wb.comparison_is_current
    wb.sparsity = 0.5 + 1e-12  # the noise of a slider is no other plan
    assert wb.comparison_is_current


def test_a_locked_layer_limits_what_the_curve_waits_for(wb):
    wb.change(sparsity=0.2, locked=["features.fc1.weight"])
    wb.start_preview()
    assert wb.wait_preview(60)
    measured, reachable = wb.curve.progress
    assert measured == reachable < 21 and wb.curve.limit == pytest.approx(1 - 401_408 / 663_552, abs=1e-3)


# ---- the law -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(600, 300), (300, 600), (400, 400)])
def test_spikes_appear_at_the_transition_where_theory_puts_them(shape):
    for strength, seen in ((0.5, 0), (2.0, 4), (3.0, 4)):
        counts = [draw_law(LawPlan(*shape, sigma=1.7, spikes=4, strength=strength, seed=s)).seen for s in range(5)]
        assert np.median(counts) == seen, (shape, strength, counts)
    done = draw_law(LawPlan(*shape, sigma=1.7, spikes=4, strength=3.0))
    top = np.sqrt(shape[0] * done.view.eigenvalues[-4:])
    assert np.mean(top) == pytest.approx(done.expected, rel=0.03)
    assert done.fitted_sigma == pytest.approx(1.7, rel=0.02)
    assert math.isnan(expected_spike(LawPlan(*shape, strength=0.9)))


def test_at_the_transition_the_expected_spike_is_the_edge():
    plan = LawPlan(900, 300, sigma=2.0, spikes=1, strength=1.0 + 1e-9)
    assert expected_spike(plan) == pytest.approx(draw_law(plan).view.sigma_plus, rel=1e-6)


def test_the_same_seed_draws_the_same_matrix_and_another_another():
    one, same, other = (draw_law(LawPlan(80, 40, seed=s)).view.eigenvalues for s in (3, 3, 4))
    assert (one == same).all() and not np.allclose(one, other)


def test_words_and_figure_say_what_is_seen_against_what_was_planted():
    done = draw_law(LawPlan(400, 200, spikes=3, strength=2.5))
    words = law_words(done)
    assert "3 spikes planted at 2.50 × the BBP threshold" in words and ": 3 seen" in words
    figure = law_figure(done)
    low, high = figure["layout"]["xaxis"]["range"]
    assert low < done.expected < high and any("expected" in note["text"] for note in figure["layout"]["annotations"])
    assert "none seen" in law_words(draw_law(LawPlan(400, 200, spikes=3, strength=0.4)))
    assert "Pure noise" in law_words(draw_law(LawPlan(400, 200, spikes=0)))


@pytest.mark.parametrize("plan", [{"rows": 1}, {"cols": 10**6}, {"sigma": 0.0}, {"rows": 20, "spikes": 20}])
def test_a_plan_that_cannot_be_drawn_is_a_sentence(plan):
    with pytest.raises(SpectrumError):
        LawPlan(**plan)
