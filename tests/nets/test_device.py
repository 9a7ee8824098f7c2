"""The way of a GPU, batches of one shape, gone on the CPU: the same numbers, rows and errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import mpviz as mp
from mpviz.errors import Cancelled
from mpviz.nets import analysis, cache
from mpviz.nets.cache import Memory
from mpviz.nets.spectra import layer_spectra


@pytest.fixture(autouse=True)
def batches(tmp_path, monkeypatch) -> list[list[tuple[int, ...]]]:
    """Every analysis of this module goes in batches; here their shapes are noted. The cache is the test's own."""
    monkeypatch.setenv("MPVIZ_CACHE", str(tmp_path))
    monkeypatch.setattr(cache, "memory", Memory())
    monkeypatch.setattr(analysis, "_wants_device", lambda plan: True)
    seen: list[list[tuple[int, ...]]] = []
    solve_batch = analysis.solve_batch

    def noting(stacks, precision):
        seen.append([tuple(stack.shape) for stack in stacks])
        return solve_batch(stacks, precision)

    monkeypatch.setattr(analysis, "solve_batch", noting)
    return seen


def side_by_side(monkeypatch, *arguments, **more):
    with monkeypatch.context() as patch:
        patch.setattr(analysis, "_wants_device", lambda plan: False)
        return layer_spectra(*arguments, **more, cache=False)


@pytest.mark.parametrize("precision", ["float64", "fast"])
@pytest.mark.parametrize("queue", [2**31, 300_000])
def test_batches_give_the_numbers_of_side_by_side(precision, queue, batches, monkeypatch):
    monkeypatch.setattr(analysis, "_QUEUE", queue)
    model = mp.load_model("fashion-vit")
    together = layer_spectra(model, precision=precision, shuffled=1)
    apart = side_by_side(monkeypatch, model, precision=precision, shuffled=1)
    assert list(together) == list(apart)
    for name, layer in together.items():
        expected = apart[name]
        fitted = math.isfinite(expected.fit.edges[1]) and precision == "float64"
        allowed = 1e-6 * (expected.fit.edges[1] if fitted else expected.eigenvalues[-1])
        np.testing.assert_allclose(layer.eigenvalues, expected.eigenvalues, atol=allowed, rtol=0)
        np.testing.assert_allclose(layer.shuffled.eigenvalues, expected.shuffled.eigenvalues, atol=allowed, rtol=0)
        assert layer.entries == expected.entries and layer.engine == expected.engine
        if precision == "float64":
            assert layer.fit.n_spikes == expected.fit.n_spikes
    sizes = [len(batch) for batch in batches]
    if queue == 2**31:
        assert sum(sizes) == len(together), "layers of one shape, one batch"
        assert len(sizes) == len({(layer.info.rows, layer.info.cols) for layer in together.values()}) < len(together)
    else:
        assert len(sizes) > 10


def test_a_broken_layer_does_not_take_its_batch_with_it(batches):
    state = {f"layer{i}.weight": torch.randn(40, 30, generator=torch.Generator().manual_seed(i)) for i in range(5)}
    state["layer2.weight"][3, 4] = math.nan
    state["layer3.weight"] = torch.zeros(30, 40, device="meta")
    table = mp.analyze(state)
    assert list(table.index) == list(state)
    assert "layer2.weight: the matrix has 1 NaN" in table.loc["layer2.weight", "verdict"]
    assert "meta device" in table.loc["layer3.weight", "verdict"]
    good = ["layer0.weight", "layer1.weight", "layer4.weight"]
    assert table.loc[good, "sigma_plus"].notna().all() and table["sigma_plus"].isna().sum() == 2
    assert batches[0] == [(1, 40, 30)] * 4


def test_groups_and_what_is_known_already(batches, monkeypatch):
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 64, 3, groups=2), nn.Conv2d(64, 64, 3, groups=64))
    first = mp.analyze(model)
    assert [shape for batch in batches for shape in batch] == [(1, 16, 3), (2, 32, 72)]
    assert mp.analyze(model).equals(first)
    cache.memory.clear()
    told = []
    assert mp.analyze(model, progress=lambda share, name: told.append(share)).equals(first)
    assert len(batches) == 2 and sorted(told) == told and told[-1] == 1.0
    assert layer_spectra(model)["1.weight"].fit.verdict == side_by_side(monkeypatch, model)["1.weight"].fit.verdict
    with pytest.raises(Cancelled):
        mp.analyze(model, cancelled=lambda: True)
