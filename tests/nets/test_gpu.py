"""The same numbers where there is a CUDA device; skipped elsewhere."""

import numpy as np
import pytest
import torch

import mpviz as mp

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def test_spectrum_on_the_device_equals_the_cpu():
    weight = np.random.default_rng(0).normal(size=(300, 200))
    expected = mp.spectrum(weight)
    np.testing.assert_allclose(mp.spectrum(torch.tensor(weight, device="cuda")), expected, atol=1e-9)
    cupy = pytest.importorskip("cupy")
    np.testing.assert_allclose(mp.spectrum(cupy.asarray(weight)), expected, atol=1e-9)


def test_analyze_on_the_device_equals_the_cpu():
    model = mp.load_model("fashion-resnet")
    here, there = mp.analyze(model), mp.analyze(model, device="cuda")
    np.testing.assert_allclose(there["sigma_plus"], here["sigma_plus"], rtol=1e-6)
    assert (there["n_spikes"] == here["n_spikes"]).all()
    assert next(model.parameters()).device.type == "cpu"


def test_masks_and_certificates_on_the_device():
    model = mp.load_model("fashion-mlp").cuda()
    masks = mp.magnitude_masks(model, 0.5)
    with mp.apply_masks(mp.load_model("fashion-mlp").cuda(), masks) as pruned:
        cert = mp.certify(model, pruned, mp.load_data("fashion-mnist").test, samples=500)
    assert cert.violations == 0 and 0.5 < cert.coverage <= cert.unchanged
