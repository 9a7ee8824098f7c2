"""The arithmetic behind a spectrum: float64 and float32, single and batched, and what it refuses."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

import mpviz as mp
from mpviz.errors import SpectrumError
from mpviz.nets import engine
from mpviz.nets.engine import shuffle_entries, single_threaded_blas, solve, solve_batch
from mpviz.nets.spectra import layer_spectra, shuffled_spectrum

SHAPES = [(64, 48), (48, 64), (96, 24), (40, 40), (1, 9), (30, 1)]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def exact(matrix: torch.Tensor) -> np.ndarray:
    return np.linalg.svd(matrix.double().numpy(), compute_uv=False)[::-1] ** 2 / len(matrix)


def edge(rows: int, cols: int, variance: float = 1.0) -> float:
    return variance * (1 + math.sqrt(cols / rows)) ** 2


# --- batches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("precision", ["float64", "fast"])
@pytest.mark.parametrize("room", [2**29, 200_000])
def test_a_batch_gives_the_numbers_of_one_by_one(shape, precision, room, monkeypatch):
    """The batched path is that of a GPU; here it runs on CPU tensors, in one batch and in several small ones."""
    monkeypatch.setattr(engine, "_BATCH", room)
    steps = []
    some = engine._solve_some
    monkeypatch.setattr(
        engine, "_solve_some", lambda stack, precision: steps.append(len(stack)) or some(stack, precision)
    )
    stacks = [noise(n, *shape, seed=n).float() for n in (1, 3, 2)]
    together = solve_batch(stacks, precision)
    assert sum(steps) == 6
    if room < 2**29 and min(shape) > 20:
        assert len(steps) > 1, "bounded memory means several batches"
    allowed = 1e-6 if precision == "float64" else 1e-5
    for stack, solved in zip(stacks, together, strict=True):
        assert solved.eigenvalues.shape == (len(stack), min(shape))
        for matrix, values in zip(stack, solved.eigenvalues, strict=True):
            alone = solve(matrix[None], precision)
            np.testing.assert_allclose(values, alone.eigenvalues[0], atol=allowed * edge(*shape), rtol=0)
            np.testing.assert_allclose(values, exact(matrix), atol=allowed * edge(*shape), rtol=0)
            assert solved.engine == alone.engine


def test_a_batch_falls_back_for_the_matrices_that_need_it():
    stack = noise(4, 60, 30).float()
    stack[1] *= 1e25
    stack[2, :, 0] += 3e4
    solved = solve_batch([stack], "fast")[0]
    assert solved.engine.split("; ") == [
        "float32",
        "float64: entries beyond the range of float32",
        next(words for words in solved.engine.split("; ") if "λ₊" in words),
    ]
    for matrix, values in zip(stack, solved.eigenvalues, strict=True):
        np.testing.assert_allclose(values, exact(matrix), rtol=1e-4)


# --- precision ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(300, 100), (100, 300)])
def test_fast_is_float32_where_that_is_enough(shape):
    matrix = noise(*shape).float()
    fast, full = solve(matrix[None], "fast"), solve(matrix[None])
    assert (fast.engine, full.engine) == ("float32", "float64")
    difference = np.abs(fast.eigenvalues - full.eigenvalues).max()
    assert 0 < difference < 1e-5 * edge(*shape), "it must be float32 indeed, and good enough"
    assert solve(matrix.double()[None], "fast").engine == "float32, rounded from float64"


@pytest.mark.parametrize(
    ("matrix", "why"),
    [
        (noise(600, 600), "close to square"),
        (noise(300, 100) + 3e2 * noise(300, 1, seed=1) @ noise(1, 100, seed=2), "the largest eigenvalue is .* λ₊"),
        (noise(300, 100) * 1e25, "beyond the range"),
        (noise(300, 100) * 1e-25, "beyond the range"),
        (noise(300, 4) @ noise(4, 100), "the largest eigenvalue is .* λ₊"),
    ],
    ids=["square", "spike", "huge", "tiny", "low rank"],
)
def test_fast_falls_back_and_says_why(matrix, why):
    solved = solve(matrix[None], "fast")
    assert solved.engine.startswith("float64: ")
    assert np.all(solved.eigenvalues == solve(matrix[None]).eigenvalues)
    with pytest.raises(AssertionError):
        # float32 would not have done: that is why there is a fallback
        with np.errstate(all="ignore"):
            half = matrix.float().numpy()
            gram = half.T @ half if half.shape[0] >= half.shape[1] else half @ half.T
            values = np.linalg.eigvalsh(np.nan_to_num(gram)) / len(half)
        np.testing.assert_allclose(values, solved.eigenvalues[0], rtol=1e-3)
    assert re.search(why, solved.engine)


def test_dead_columns_stay_dead_in_float32():
    matrix = noise(300, 100).float()
    matrix[:, :7] = 0
    assert (solve(matrix[None], "fast").eigenvalues[0] == 0).sum() == 7
    spectra = layer_spectra({"a.weight": matrix}, precision="fast")["a.weight"]
    assert spectra.engine == "float32" and spectra.fit.rank == 93


def test_the_layer_says_which_arithmetic_it_had():
    state = {"wide.weight": noise(300, 100).float(), "square.weight": noise(64, 64).float()}
    table = mp.analyze(state, precision="fast")
    assert table["engine"].to_list() == [
        "float32", "float64: float32 would lose the lower edge of a matrix so close to square"
    ]  # fmt: skip
    full = mp.analyze(state)
    np.testing.assert_allclose(table["sigma_plus"], full["sigma_plus"], rtol=1e-5)
    assert set(full["engine"]) == {"float64"}
    with pytest.raises(SpectrumError, match="unknown precision 'fats'; did you mean 'fast'"):
        mp.analyze(state, precision="fats")


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("precision", ["float64", "fast"])
def test_small_numbers_are_raised_and_it_is_said(name, precision):
    weight = noise(200, 80).to(getattr(torch, name))
    layer = layer_spectra({"a.weight": weight}, precision=precision)["a.weight"]
    assert layer.engine == f"{'float32' if precision == 'fast' else 'float64'}, cast from {name}"
    assert layer.why.startswith(layer.engine)
    np.testing.assert_allclose(layer.eigenvalues, exact(weight.float()), rtol=1e-4 if precision == "fast" else 1e-9)
    assert layer.entries is not None and abs(layer.entries.kurtosis) < 0.3
    grouped = solve(torch.stack([weight, weight]), precision)
    np.testing.assert_allclose(grouped.eigenvalues, [layer.eigenvalues] * 2, atol=1e-5 * edge(200, 80))


def test_long_layers_are_raised_block_by_block(monkeypatch):
    matrices = [noise(500, 20), noise(20, 500)]
    whole = [mp.spectrum(matrix) for matrix in matrices]
    monkeypatch.setattr(engine, "_BLOCK", 8 * 20 * 64)
    seen = []
    convert = engine.as_numpy
    monkeypatch.setattr(
        engine, "as_numpy", lambda block, dtype: seen.append(tuple(block.shape)) or convert(block, dtype)
    )
    for matrix, expected in zip(matrices, whole, strict=True):
        np.testing.assert_allclose(mp.spectrum(matrix), expected, rtol=1e-12)
    assert len(seen) == 16 and max(max(shape) for shape in seen) == 64


# --- kinds of tensors -----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_other_storage_is_understood_or_refused_with_a_remedy():
    dense = noise(20, 10).float()
    expected = mp.spectrum(dense)
    np.testing.assert_allclose(mp.spectrum(dense.to_sparse()), expected)
    np.testing.assert_allclose(mp.spectrum(dense.T.contiguous().T), expected)
    np.testing.assert_allclose(mp.spectrum(dense.numpy()[::-1]), expected, rtol=1e-6)
    quantised = torch.quantize_per_tensor(dense, 0.01, 0, torch.qint32)
    np.testing.assert_allclose(mp.spectrum(quantised), expected, rtol=0.05, atol=1e-3)
    with pytest.raises(SpectrumError, match="meta device and have no values; load them"):
        mp.spectrum(dense.to("meta"))
    with pytest.raises(SpectrumError, match="give their real and imaginary parts"):
        mp.spectrum(dense.to(torch.complex64))


@pytest.mark.parametrize("count", [1, 3])
def test_what_is_not_finite_is_counted(count):
    stack = noise(count, 20, 10)
    stack[-1, 3, 4], stack[-1, 5, 6] = math.nan, math.inf
    with pytest.raises(SpectrumError, match="2 NaN or infinite entries"):
        solve(stack)
    for size in (1e-130, 1e130):
        np.testing.assert_allclose(
            solve(noise(count, 20, 10) * size).eigenvalues, solve(noise(count, 20, 10)).eigenvalues * size * size
        )
    assert (solve(torch.zeros(count, 20, 10)).eigenvalues == 0).all()


# --- the null -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bfloat16, torch.float8_e5m2])
def test_shuffling_keeps_the_entries_and_follows_its_seed(kind):
    stack = noise(2, 15, 8).to(kind)
    once, again, other = (shuffle_entries(stack, seed) for seed in (1, 1, 2))
    raw = [one.view(torch.uint8) for one in (once, again, other, stack)]
    assert torch.equal(raw[0], raw[1]) and not torch.equal(raw[0], raw[2]) and not torch.equal(raw[0], raw[3])
    for matrix, before in zip(once.float(), stack.float(), strict=True):
        assert torch.equal(matrix.reshape(-1).sort().values, before.reshape(-1).sort().values)


def test_the_shuffled_null_tells_structure_from_odd_entries():
    rng = np.random.default_rng(0)
    scaled = rng.normal(size=(400, 300)) * np.linspace(0.2, 1.8, 300)
    state = {"noise.weight": rng.normal(size=(400, 300)), "scaled.weight": scaled}
    spectra = layer_spectra(state, shuffled=5)
    for name, layer in spectra.items():
        assert layer.shuffled is not None and layer.shuffled.seed == 5
        assert layer.shuffled.fit.mp_like, "shuffled entries are noise"
        np.testing.assert_allclose(layer.shuffled.eigenvalues, shuffled_spectrum(state[name], seed=5), rtol=1e-9)
        assert not np.allclose(layer.shuffled.eigenvalues, shuffled_spectrum(state[name], seed=6), rtol=1e-3)
    assert not spectra["scaled.weight"].fit.mp_like
    assert layer_spectra(state)["noise.weight"].shuffled is None
    for seed in (-1, 0.5, "seven"):
        with pytest.raises(SpectrumError, match="a whole number of at least 0"):
            layer_spectra(state, shuffled=seed)


# --- threads --------------------------------------------------------------------------------------------------------


def blas_threads() -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def test_layers_take_one_blas_thread_each_and_give_the_others_back():
    before, inside = blas_threads(), set()
    layer_spectra({"a.weight": noise(20, 10)}, progress=lambda *_: inside.update(blas_threads()))
    assert inside == {1} and blas_threads() == before


def test_fast_trusts_no_bulk_that_a_spike_drowns():
    """In these trained layers the median promises a higher bulk than the fit then finds."""
    model = mp.load_model("fashion-vit")
    fast, full = mp.analyze(model, precision="fast"), mp.analyze(model)
    ratio = fast["spectral"] ** 2 / fast["rows"] / fast["lambda_plus"]
    in_float32 = fast["engine"] == "float32"
    assert in_float32.sum() > 10 and 1e3 < ratio[in_float32].max() <= 1e4
    drowned = fast["engine"].str.contains("λ₊, float32 would lose the bulk")
    assert drowned.any() and (ratio[drowned] > 1e4).any()
    assert fast[drowned].drop(columns="engine").equals(full[drowned].drop(columns="engine"))
    np.testing.assert_allclose(fast["sigma_plus"], full["sigma_plus"], rtol=2e-3)
    assert mp.analyze(model, precision="fast").equals(fast)


def test_overlapping_analyses_give_the_blas_threads_back():
    def threads():
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    with threadpool_limits(limits=2, user_api="blas"):
        wide = threads()
        first, second = single_threaded_blas(), single_threaded_blas()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert threads() == {1}, "the second still computes with one thread a layer"
        second.__exit__(None, None, None)
        assert threads() == wide
