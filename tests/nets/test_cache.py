"""Results are found by the content of the weights: reused when it is the same, never when it is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import mpviz as mp
from mpviz.nets import analysis, cache
from mpviz.nets.cache import Measured, Memory, content_key
from mpviz.nets.spectra import layer_spectra


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty cache of this test's own."""
    monkeypatch.setenv("MPVIZ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "memory", Memory())
    return tmp_path / "cache"


@pytest.fixture
def solved(monkeypatch):
    """Shapes of the layers that are really computed."""
    shapes = []
    solve = analysis.solve
    monkeypatch.setattr(analysis, "solve", lambda stack, how: shapes.append(tuple(stack.shape)) or solve(stack, how))
    return shapes


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(60, 80), nn.ReLU(), nn.Linear(80, 50), nn.ReLU(), nn.Linear(50, 10)).eval()


def forget() -> None:
    cache.memory.clear()


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


# --- what is found again --------------------------------------------------------------------------------------------


def test_the_second_analysis_computes_nothing(solved, folder):
    model = network()
    first = mp.analyze(model)
    assert len(solved) == 3 and len(files(folder)) == 3
    assert mp.analyze(model).equals(first) and len(solved) == 3
    forget()  # as in another process
    assert mp.analyze(model).equals(first) and len(solved) == 3
    # equal weights under other names, from another source
    state = {f"other.{name}": tensor.clone() for name, tensor in network().state_dict().items()}
    again = mp.analyze(state)
    assert len(solved) == 3 and list(again.index) == [f"other.{name}" for name in first.index]
    assert again["sigma_plus"].to_list() == first["sigma_plus"].to_list()


def test_a_result_says_where_it_was_found():
    model = network()
    why = [layer_spectra(model)["0.weight"].why for _ in range(2)]
    forget()
    why.append(layer_spectra(model)["0.weight"].why)
    why.append(layer_spectra(model, cache=False)["0.weight"].why)
    assert why == [
        "float64; computed", "float64; found in memory", "float64; found on disk", "float64; computed"
    ]  # fmt: skip


def test_without_a_cache_everything_is_computed_and_nothing_kept(solved, folder):
    model = network()
    first = mp.analyze(model, cache=False)
    assert mp.analyze(model, cache=False).equals(first)
    assert len(solved) == 6 and not folder.exists() and len(cache.memory) == 0


def test_results_in_memory_cannot_be_changed():
    layer = layer_spectra(network())["0.weight"]
    for array in (layer.eigenvalues, layer.spikes.eigenvalue):
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 0
    forget()
    with pytest.raises(ValueError, match="read-only"):
        layer_spectra(network())["0.weight"].eigenvalues[0] = 0


# --- what is not ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model[0].weight.data.mul_(2),
        lambda model: model[0].weight.data[3, 4].add_(1e-6),
        lambda model: setattr(model[0].weight, "data", model[0].weight.data.double()),
        lambda model: model[0].weight.data.copy_(model[0].weight.data.flip(0)),
        lambda model: model[0].weight.detach().numpy().__setitem__((0, 0), 7.0),
    ],
    ids=["scaled", "one entry", "type", "order", "through numpy"],
)
def test_changed_weights_are_seen(change, solved):
    model = network()
    before = layer_spectra(model)
    change(model)
    after = layer_spectra(model)
    assert len(solved) == 4 and solved[-1] == (1, 80, 60)
    assert after["0.weight"].why == "float64; computed" and after["2.weight"].why == "float64; found in memory"
    np.testing.assert_allclose(after["0.weight"].eigenvalues, mp.spectrum(model[0].weight), rtol=1e-12)
    assert after["2.weight"].fit == before["2.weight"].fit


def test_every_argument_counts(solved):
    model = network()
    layer_spectra(model, ["0"])
    for arguments in ({"level": 0.95}, {"trim": 0.2}, {"method": "median"}):
        # the eigenvalues are the same, the fit is not
        assert layer_spectra(model, ["0"], **arguments)["0.weight"].why == "float64; found on disk"
    assert len(solved) == 1
    fits = {layer_spectra(model, ["0"], **more)["0.weight"].fit.threshold for more in ({}, {"level": 0.95})}
    assert len(fits) == 2
    assert "computed" in layer_spectra(model, ["0"], precision="fast")["0.weight"].why
    nulls = [layer_spectra(model, ["0"], shuffled=seed)["0.weight"].shuffled for seed in (0, 1, 0)]
    assert nulls[0] is nulls[2] and nulls[0].eigenvalues[-1] != nulls[1].eigenvalues[-1]
    assert len(solved) == 4
    forget()
    null = layer_spectra(model, ["0"], shuffled=1)["0.weight"].shuffled
    assert len(solved) == 4 and np.array_equal(null.eigenvalues, nulls[1].eigenvalues)


def test_parts_and_wholes_do_not_meet(solved):
    grouped = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 64, 3, groups=2, bias=False))
    flat = grouped[1].weight.detach().reshape(64, 36)
    assert content_key(flat.reshape(2, 32, 36)) != content_key(flat.reshape(1, 64, 36))
    whole, parts = layer_spectra(grouped), layer_spectra(grouped, split="groups")
    dense = layer_spectra({"a.weight": flat})["a.weight"]
    assert len(whole["1.weight"].eigenvalues) == 64 and len(dense.eigenvalues) == 36
    for i, part in enumerate(whole["1.weight"].parts):
        np.testing.assert_allclose(part.eigenvalues, parts[f"1.weight[group {i + 1}]"].eigenvalues, rtol=1e-9)
    forget()
    again = layer_spectra(grouped)["1.weight"]
    assert again.why.endswith("found on disk") and again.parts[1].entries == whole["1.weight"].parts[1].entries
    renamed = layer_spectra(nn.Sequential(nn.Identity(), *grouped))["2.weight"]
    assert "memory" in renamed.why and [part.info.name for part in renamed.parts] == [
        "2.weight[group 1]", "2.weight[group 2]"
    ]  # fmt: skip


def test_the_key_is_of_bytes_type_and_shape():
    weight = torch.arange(24.0).reshape(1, 4, 6)
    assert content_key(weight) == content_key(weight.clone()) == content_key(weight.mT.contiguous().mT)
    others = [weight.double(), weight.reshape(1, 6, 4), weight.reshape(2, 2, 6), weight + 1, weight.view(torch.int32)]
    assert len({content_key(one) for one in [weight, *others]}) == 6


# --- a cache that is broken, full or not there ----------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["empty", "cut", "one bit", "text", "other key", "pickle", "folder"])
def test_a_damaged_entry_is_computed_again(damage, folder, solved):
    model = network()
    first = mp.analyze(model)
    paths = files(folder)
    for path in paths:
        content = bytearray(path.read_bytes())
        content[-5] ^= 4
        broken = {
            "empty": b"",
            "cut": path.read_bytes()[:-9],
            "one bit": bytes(content),
            "text": b"no",
            "pickle": b"\x80\x04.",
        }
        path.unlink()
        if damage == "folder":
            path.mkdir()
        else:
            path.write_bytes(broken.get(damage, b""))
    if damage == "other key":  # a whole entry in the wrong place
        cache.store(paths[0].stem, Measured(np.ones((1, 60)), "float64"))
        os.replace(paths[0], paths[1])
    forget()
    assert mp.analyze(model).equals(first) and len(solved) == 6
    forget()
    if damage != "folder":
        assert mp.analyze(model).equals(first) and len(solved) == 6, "it was mended"


@pytest.mark.parametrize("place", ["a file", "read-only", "none", "no home"])
def test_a_cache_that_cannot_be_written_is_no_error(place, tmp_path, monkeypatch, solved):
    if place == "a file":
        (tmp_path / "cache").write_text("in the way")
    elif place == "read-only":
        monkeypatch.setenv("MPVIZ_CACHE", "/proc/mpviz")
    elif place == "none":
        monkeypatch.setenv("MPVIZ_CACHE", "off")
    else:
        monkeypatch.delenv("MPVIZ_CACHE")
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

        def nowhere() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(Path, "home", nowhere)
        assert cache.folder() is None
    first = mp.analyze(network())
    assert mp.analyze(network()).equals(first) and len(solved) == 3
    forget()
    assert mp.analyze(network()).equals(first) and len(solved) == 6


def test_the_folder_is_that_of_the_platform_unless_told(monkeypatch, tmp_path):
    monkeypatch.delenv("MPVIZ_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.folder() == tmp_path / "xdg" / "mpviz"
    for odd in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", odd)
        assert cache.folder() == tmp_path / ".cache" / "mpviz"


def test_memory_is_bounded_and_keeps_what_was_used_last():
    memory = Memory(limit=5 * cache._SMALL_PARTS)
    for key in range(4):
        memory.put(key, f"result {key}", 0)
    assert memory.get(0) == "result 0"
    memory.put(4, "result 4", cache._SMALL_PARTS)
    assert [memory.get(key) for key in range(5)] == ["result 0", None, "result 2", "result 3", "result 4"]
    memory.put(5, "too large", 10**9)
    assert memory.get(5) is None and len(memory) == 4


def test_the_disk_is_bounded_and_keeps_what_was_used_last(folder, monkeypatch):
    monkeypatch.setattr(cache, "DISK_LIMIT", 10_000)
    usage = cache._Usage()
    monkeypatch.setattr(cache, "_usage", usage)
    keys = [f"{i:032x}" for i in range(40)]
    left_over = folder / "spectra" / "00" / ".old.part"
    left_over.parent.mkdir(parents=True)
    left_over.write_bytes(b"half")
    os.utime(left_over, (1, 1))
    now = time.time()
    for i, key in enumerate(keys):
        cache.store(key, Measured(np.full((1, 100), float(i)), "float64"))
        if cache._path(key).exists():
            os.utime(cache._path(key), (now - 1000 + i, now - 1000 + i))
        assert cache.load(keys[0], (1, 100)) is not None, "it is read all the time"
        assert sum(path.stat().st_size for path in files(folder)) <= 10_000
    assert not left_over.exists()
    there = [key for key in keys if cache.load(key, (1, 100)) is not None]
    assert 4 <= len(there) < 12 and there[-1] == keys[-1] and there[0] == keys[0]
    assert there[1:] == keys[-len(there) + 1 :], "the oldest went first"


def test_no_entry_is_a_pickle(folder):
    mp.analyze(network())
    for path in files(folder):
        assert path.suffix == ".safetensors" and b"pickle" not in path.read_bytes()
        assert path.read_bytes()[8:9] == b"{", "a JSON header"


# --- a killed process -----------------------------------------------------------------------------------------------

PROGRAM = """
    import sys, torch, mpviz as mp
    torch.manual_seed(0)
    state = {f"layer{i}.weight": torch.randn(400, 300) for i in range(40)}
    print("ready", flush=True)
    def told(share, name):
        print(name, flush=True)
    mp.analyze(state, progress=told)
    print("done", flush=True)
"""


def test_a_killed_process_leaves_what_it_had_finished(folder, solved):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPVIZ_CACHE": str(folder)}
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROGRAM)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    told = [process.stdout.readline().strip() for _ in range(5)]
    process.send_signal(signal.SIGKILL)
    told += process.stdout.read().split()
    assert process.wait(30) == -signal.SIGKILL and "done" not in told
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = {f"layer{i}.weight": torch.randn(400, 300) for i in range(40)}
    found = layer_spectra(state)
    reused = {name for name, layer in found.items() if layer.why == "float64; found on disk"}
    assert set(told) <= reused and 5 <= len(reused) < 40
    assert len(solved) == 40 - len(reused)
    for name, layer in found.items():
        expected = mp.spectrum(state[name])
        np.testing.assert_allclose(layer.eigenvalues, expected, rtol=1e-12, atol=1e-12 * expected[-1])


def test_tests_keep_away_from_the_cache_of_who_runs_them(monkeypatch):
    monkeypatch.undo()  # this module's own folder
    place = cache.folder()
    assert place is not None and place.name.startswith("mpviz-tests-")
    assert Path.home() not in place.parents


def test_weights_that_move_while_they_are_analysed_are_not_kept(monkeypatch):
    torch.manual_seed(0)
    layer = nn.Linear(60, 90, bias=False)
    model, first, load = nn.Sequential(layer), layer.weight.detach().clone(), cache.load

    def moved(*arguments):  # an optimiser's step between the hash and the solver
        found = load(*arguments)
        with torch.no_grad():
            layer.weight.mul_(3)
        return found

    monkeypatch.setattr(cache, "load", moved)
    mp.analyze(model)
    monkeypatch.setattr(cache, "load", load)
    with torch.no_grad():
        layer.weight.copy_(first)
    pd.testing.assert_series_equal(mp.analyze(model)["sigma_plus"], mp.analyze(model, cache=False)["sigma_plus"])
