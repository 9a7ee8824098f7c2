"""The cells that come with mpviz: whole, right before they were timed, and the source of every ratio that is quoted."""

import json
import re
import statistics
from pathlib import Path

import pytest

import mpviz as mp
from mpviz.benchmark.endpoints import ENDPOINTS, TOLERANCE
from mpviz.benchmark.limits import amdahl
from mpviz.benchmark.packing import packable
from mpviz.nets.layers import list_layers

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "data" / "benchmarks" / "two-four").glob("*.json"))


def test_there_are_cells():
    assert len(FILES) >= 10


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_cell_says_all_that_a_reader_asks(path):
    cell = json.loads(path.read_text())
    assert cell["command"] and {"date", "hardware", "versions", "load"} <= set(cell["machine"])
    timed = [arm for arm in cell["arms"] if arm["seconds"]]
    assert len(timed) >= 3 and all(len(arm["seconds"]) == len(timed[0]["seconds"]) >= 9 for arm in timed)
    for arm in timed:
        assert arm["arithmetic"] == ENDPOINTS[arm["endpoint"]].arithmetic
        assert arm["error"] <= TOLERANCE[arm["arithmetic"]]
    assert all(arm["seconds"] or arm["why"] for arm in cell["arms"])


def test_every_ratio_of_the_readme_comes_from_raw_timings():
    text = (ROOT / "README.md").read_text()
    table = re.search(r"<!-- table:endpoints -->\n(.*?)<!-- /table", text, re.DOTALL)[1].splitlines()
    head = [cell.strip() for cell in table[0].strip("| ").split("|")]
    seen = 0
    for line in table[2:]:
        row = dict(zip(head, [cell.strip() for cell in line.strip().strip("|").split("|")], strict=True))
        path = next(one for one in FILES if one.stem == f"{row['one CPU thread']}-cpu-b{row['batch']}")
        arms = {arm["endpoint"]: arm["seconds"] for arm in json.loads(path.read_text())["arms"]}
        for name, quoted in row.items():
            if name.endswith(" ×") and not name.startswith("2:4") and quoted:
                rounds = zip(arms["fp32"], arms[name.removesuffix(" ×")], strict=True)
                assert float(quoted) == pytest.approx(statistics.median(a / b for a, b in rounds), abs=0.006)
                seen += 1
    assert seen >= 20


@pytest.mark.parametrize("name", ["fashion-mlp", "fashion-vit", "fashion-resnet"])
def test_the_limit_is_that_of_count_macs(name):
    cell = json.loads((ROOT / "data" / "benchmarks" / "two-four" / f"{name}-cpu-b1.json").read_text())
    model = mp.load_model(name)
    table = packable(model)
    layers = [info.name for info in list_layers(model) if info.prunable and table.loc[info.name, "packs"]]
    assert cell["limit"] == pytest.approx(amdahl(mp.count_macs(model), layers))


def test_all_layers_of_the_papers_networks_pack_exactly():
    rows = json.loads((ROOT / "data" / "benchmarks" / "two-four-packing.json").read_text())["rows"]
    assert len(rows) == 10
    for row in rows:
        assert row["exact"] == row["packs"] and row["packs"] + len(row["dense"]) == row["layers"], row["model"]
        assert row["bytes_packed"] / row["bytes_dense"] == pytest.approx(9 / 16, rel=1e-3)  # whole tiles
