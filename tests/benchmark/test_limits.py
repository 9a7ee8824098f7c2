"""Limits are those of the multiply–adds, and layers are judged by what the machine reaches."""

import pandas as pd
import pytest
import torch
from torch import nn

import mpviz as mp
from mpviz.benchmark.limits import amdahl, products, roofline, winners
from mpviz.benchmark.machine import Rates, describe, rates
from mpviz.benchmark.packing import packable


def test_the_limit_is_that_of_the_multiply_adds():
    model = mp.load_model("fashion-mlp")
    first, second, head = 784 * 512, 512 * 512, 512 * 10
    macs = mp.count_macs(model)
    both = ["features.fc1.weight", "features.fc2.weight"]
    whole = first + second + head
    assert amdahl(macs, both) == pytest.approx(whole / ((first + second) / 2 + head))
    assert amdahl(macs, both[:1]) == pytest.approx(whole / (first / 2 + second + head))
    assert amdahl(macs, []) == 1
    assert amdahl(mp.count_macs(model, pattern="2:4", layers="fitting"), both) == pytest.approx(amdahl(macs, both))


def test_merged_tokens_leave_less_to_gain():
    model = mp.load_model("fashion-vit")
    names = [name for name in packable(model).index if name.startswith("blocks.")]
    limits = [amdahl(mp.count_macs(model, tome=tome), names) for tome in (0, 4)]
    assert 1 < limits[1] < limits[0] < 2


@pytest.mark.parametrize("name", ["fashion-mlp", "fashion-vit", "fashion-resnet"])
def test_products_hold_all_multiply_adds_of_the_layers(name):
    model = mp.load_model(name)
    macs, table = mp.count_macs(model), packable(model)
    shapes = products(macs, table, batch=3)
    counted = macs.table.loc[[one for one in macs.table.index if one in table.index], "dense"].sum()
    assert (shapes["operations"] * shapes["layers"]).sum() == 2 * 3 * counted
    names = [one for line in shapes["names"] for one in line.split(", ")]
    assert sorted(names) == sorted(table.index)
    assert shapes["operations"].is_monotonic_decreasing


def test_a_layer_is_named_after_what_bounds_it():
    shapes = pd.DataFrame(
        {"out": [64, 64], "in": [64, 64], "rows": [256, 256], "operations": [2 * 64 * 64 * 256] * 2,
         "numbers": [64 * 64 + 256 * 128] * 2, "packs": [True, False], "layers": [1, 1], "names": ["a", "b"]}
    )  # fmt: skip
    slow_sums = roofline(shapes, Rates(bytes=1e15, operations=1e6, dtype="float32"), rounds=3)
    assert slow_sums["bound"].tolist() == ["compute"] * 2
    assert slow_sums["compute_s"].tolist() == pytest.approx([2 * 64 * 64 * 256 / 1e6] * 2)
    slow_bytes = roofline(shapes, Rates(bytes=1e6, operations=1e15, dtype="float32"), rounds=3)
    assert slow_bytes["bound"].tolist() == ["memory"] * 2
    assert slow_bytes["memory_s"].iloc[0] == pytest.approx(4 * (64 * 64 + 256 * 128) / 1e6)
    neither = roofline(shapes, Rates(bytes=1e15, operations=1e18, dtype="float32"), rounds=3)
    assert neither["bound"].tolist() == ["overhead"] * 2 and (neither["of_limit"] < 0.5).all()
    assert neither["sparse_s"].isna().all() and winners(neither) == []


def test_layers_that_won_are_named():
    table = pd.DataFrame({"speedup": [1.2, 0.9, float("nan")], "names": ["a, b", "c", "d"]})
    assert winners(table) == ["a", "b"]


def test_the_machine_is_described_and_measured():
    about = describe()
    assert {"date", "hardware", "versions", "load"} <= set(about) and about["versions"]["torch"] == torch.__version__
    found = rates("cpu")
    assert found.dtype == "float32" and found.bytes > 1e8 and found.operations > 1e8


def test_a_network_without_a_weight_that_packs_has_no_gain():
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 7)).eval()
    assert amdahl(mp.count_macs(model, (1, 3, 3)), []) == 1
