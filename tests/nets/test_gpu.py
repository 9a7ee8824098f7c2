"""The same numbers where there is a CUDA device; skipped elsewhere."""

import time

import numpy as np
import pytest
import torch

import mpviz as mp
from mpviz.nets.spectra import layer_spectra

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def test_spectrum_on_the_device_equals_the_cpu():
    weight = np.random.default_rng(0).normal(size=(300, 200))
    expected = mp.spectrum(weight)
    np.testing.assert_allclose(mp.spectrum(torch.tensor(weight, device="cuda")), expected, atol=1e-9)
    cupy = pytest.importorskip("cupy")
    np.testing.assert_allclose(mp.spectrum(cupy.asarray(weight)), expected, atol=1e-9)


def test_arrays_of_cupy_are_analysed_where_they_are():
    cupy = pytest.importorskip("cupy")
    weight = np.random.default_rng(0).normal(size=(300, 200))
    there = mp.analyze({"a.weight": cupy.asarray(weight)}, cache=False)
    here = mp.analyze({"a.weight": weight}, cache=False)
    np.testing.assert_allclose(there["sigma_plus"], here["sigma_plus"], rtol=1e-9)


@pytest.mark.parametrize("precision", ["float64", "fast"])
@pytest.mark.parametrize("place", ["moved", "resident"])
def test_analyze_on_the_device_equals_the_cpu(precision, place):
    model = mp.load_model("fashion-resnet")
    here = layer_spectra(model, cache=False)
    if place == "moved":
        there = layer_spectra(model, device="cuda", precision=precision, cache=False)
        assert next(model.parameters()).device.type == "cpu"
    else:
        there = layer_spectra(mp.load_model("fashion-resnet").cuda(), precision=precision, cache=False)
    for name, layer in there.items():
        fitted = np.isfinite(here[name].fit.edges[1]) and precision == "float64"
        allowed = 1e-6 * (here[name].fit.edges[1] if fitted else here[name].eigenvalues[-1])
        np.testing.assert_allclose(layer.eigenvalues, here[name].eigenvalues, atol=allowed, rtol=0)
        if precision == "float64":
            assert layer.fit.n_spikes == here[name].fit.n_spikes


def test_the_key_of_weights_is_the_same_on_the_device(tmp_path, monkeypatch):
    monkeypatch.setenv("MPVIZ_CACHE", str(tmp_path))
    model = mp.load_model("fashion-mlp", pretrained=False)
    mp.analyze(model)
    found = layer_spectra(model, device="cuda")
    assert {layer.why for layer in found.values()} == {"float64; found in memory"}


@pytest.mark.slow
def test_vit_l_in_a_second():
    model = mp.load_model("vit_large_patch16_224", pretrained=False)
    names = [f"blocks.{i}.{part}" for i in (0, 23) for part in ("attn.qkv", "attn.proj", "mlp.fc1")]
    here = layer_spectra(model, names, cache=False)
    model = model.cuda()
    layer_spectra(model, names, cache=False)  # the libraries of the device load
    torch.cuda.synchronize()
    start = time.perf_counter()
    there = layer_spectra(model, cache=False)
    seconds = time.perf_counter() - start
    for name, layer in here.items():
        np.testing.assert_allclose(there[name].eigenvalues, layer.eigenvalues, atol=1e-6 * layer.fit.edges[1], rtol=0)
    print(f"ViT-L/16 on {torch.cuda.get_device_name()}: {seconds:.2f} s")
    assert seconds < 1.0


def test_masks_and_certificates_on_the_device():
    model = mp.load_model("fashion-mlp").cuda()
    masks = mp.magnitude_masks(model, 0.5)
    with mp.apply_masks(mp.load_model("fashion-mlp").cuda(), masks) as pruned:
        cert = mp.certify(model, pruned, mp.load_data("fashion-mnist").test, samples=500)
    assert cert.violations == 0 and 0.5 < cert.coverage <= cert.unchanged
