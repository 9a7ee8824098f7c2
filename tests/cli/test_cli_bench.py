"""`mpviz bench`: a table, ratios that name their number types, and cells that are kept."""

import re

import pytest

import mpviz as mp
from mpviz import cli
from mpviz.benchmark.ledger import read_cells

QUICK = ("--batches", "1", "--rounds", "3", "--device", "cpu")


def run(capsys, *arguments):
    assert cli.main(["bench", *map(str, arguments), *QUICK]) == 0
    return capsys.readouterr().out


def test_it_prints_what_it_measured_and_keeps_the_cells(capsys, tmp_path):
    out = run(capsys, "fashion-mlp", "--out", tmp_path / "cells")
    rows = [line for line in out.splitlines() if re.match(r" +1  ", line)]
    assert [re.split(r"\s{2,}", line.strip())[2] for line in rows] == ["fp32", "autocast", "bf16"]
    ratio = next(line for line in out.splitlines() if ": bf16 against fp32" in line)
    assert ratio.startswith("measured: ") and ratio.endswith("bfloat16 against float32, not the same number type")
    (cell,) = read_cells(tmp_path / "cells")
    assert f"{cell.ratio('bf16', 'fp32').value:.2f} ×" in ratio
    assert f"estimate: by multiply–adds alone 2:4 makes batch 1 {cell.limit:.2f} × faster" in out
    assert "2 of 2 layers that pack were pruned to 2:4" in out and "2 of 2 layers come back with the same bits" in out
    assert run(capsys, "fashion-mlp", "--out", tmp_path / "cells") == out  # read, not run again


def test_a_checkpoint_is_timed_as_it_is(capsys, tmp_path):
    model, data = mp.load_model("fashion-mlp"), mp.load_data("fashion-mnist", folder="bundled")
    made = mp.project(model, "2:4", data.calibration, permute="greedy", images=16)
    path = tmp_path / "mine.safetensors"
    mp.save(path, made.model, **made.saved_as)
    assert "all 2 layers that pack were 2:4" in run(capsys, path, "--strict")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("fashion-mpl",), "fashion-mlp"),
        (("fashion-mlp", "--strict"), "2 of 2 layers are not 2:4"),
        (("fashion-mlp", "--endpoints", "bf61"), "did you mean 'bf16'"),
        (("fashion-mlp", "--tome", "2"), "no VisionTransformer"),
        (("fashion-mlp", "--image", "7"), "cannot take an image"),
    ],
)
def test_it_refuses_in_one_sentence(capsys, arguments, words):
    assert cli.main(["bench", *arguments, *QUICK]) == 2
    out, err = capsys.readouterr()
    sentences = [line for line in err.splitlines() if not re.match(r" *\d+ %", line)]
    assert out == "" and len(sentences) == 1 and words in sentences[0], err
