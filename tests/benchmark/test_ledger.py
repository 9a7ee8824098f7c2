"""Cells keep every raw timing; ratios come from them and say what they compare."""

import json
import statistics

import pytest

from mpviz.benchmark.ledger import Arm, Cell, cell_path, cells_table, read_cell, read_cells, write_cell
from mpviz.benchmark.timing import Timing
from mpviz.errors import CheckpointError, ModelError


def timing(*samples: float) -> Timing:
    return Timing(samples, samples, 2)


def a_cell(batch: int = 8, tome: int = 0) -> Cell:
    arms = (
        Arm("fp32", "float32", timing(0.4, 0.42, 0.6), 0.0),
        Arm("autocast", "autocast bfloat16", timing(0.2, 0.2, 0.2), 0.003),
        Arm("bf16", "bfloat16", timing(0.1, 0.2, 0.1), 0.004),
        Arm("bf16 compiled", "bfloat16", timing(0.05, 0.1, 0.1), 0.004),
        Arm("2:4", "bfloat16", why="2:4 needs a CUDA GPU"),
    )
    return Cell("vit", batch, tome, (3, 224, 224), arms, 1.9, {"hardware": "a machine"}, "mpviz bench vit", "random")


def test_a_ratio_is_that_of_the_rounds():
    found = a_cell().ratio("bf16", "fp32")
    rounds = [0.4 / 0.1, 0.42 / 0.2, 0.6 / 0.1]
    assert found.value == pytest.approx(statistics.median(rounds))
    assert found.low <= found.value <= found.high
    assert (found.low, found.high) == pytest.approx(
        tuple(statistics.quantiles(rounds, n=4, method="inclusive")[i] for i in (0, 2))
    )


def test_a_ratio_of_different_number_types_says_so_in_its_line():
    line = str(a_cell(tome=8).ratio("bf16", "autocast"))
    assert "\n" not in line and "bfloat16 against autocast bfloat16, not the same number type" in line
    assert "bf16 against autocast at batch 8, 8 pairs merged a block" in line
    assert "number type" not in str(a_cell().ratio("bf16 compiled", "bf16"))


def test_what_was_not_timed_has_no_ratio():
    with pytest.raises(ModelError, match=r"2:4 was not timed at batch 8: 2:4 needs a CUDA GPU"):
        a_cell().ratio("2:4", "bf16")
    with pytest.raises(ModelError, match="did you mean 'bf16'"):
        a_cell().ratio("bf16", "bf61")


def test_a_cell_comes_back_whole(tmp_path):
    path = cell_path(tmp_path, "vit/16 x", 8, 4, "cpu")
    assert path.name == "vit-16-x-cpu-b8-t4.json"
    write_cell(path, a_cell(tome=4))
    assert read_cell(path) == a_cell(tome=4)
    write_cell(cell_path(tmp_path, "vit", 2, 0, "cpu"), a_cell(2))
    assert [(one.batch, one.tome) for one in read_cells(tmp_path)] == [(2, 0), (8, 4)]
    assert read_cells(tmp_path / "nothing") == []


def test_files_that_are_no_cells_are_named(tmp_path):
    path = tmp_path / "a.json"
    for words, why in (("{", "a.json"), ("{}", "no cell of a benchmark"), ("[]", "no cell"),
                       (json.dumps(a_cell().to_json() | {"format": 9}), "format 9")):  # fmt: skip
        path.write_text(words)
        with pytest.raises(CheckpointError, match=why):
            read_cell(path)
    with pytest.raises(CheckpointError, match="cannot write"):
        write_cell(path / "under a file", a_cell())


def test_the_table_has_a_row_for_each_endpoint():
    table = cells_table([a_cell(), a_cell(16)])
    assert len(table) == 10
    first = table.iloc[0]
    assert (first["median_ms"], first["images_per_s"]) == pytest.approx((420, 8 / 0.42))
    assert first["peak_mib"] != first["peak_mib"]
    last = table.iloc[4]
    assert last["why"] == "2:4 needs a CUDA GPU" and last["median_ms"] != last["median_ms"]
