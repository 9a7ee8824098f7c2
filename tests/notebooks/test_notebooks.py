"""Each notebook runs from top to bottom in a fresh kernel, says what it promises, and is stored without outputs."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

# What the outputs of a notebook must contain, by the number of the code cell (from 1), as regular expressions.
SAYS = {
    "00-quickstart": {
        1: r"10000 test images of 10 kinds",
        2: r"sigma_plus[\s\S]*blocks\.0\.attn\.qkv\.weight",
        3: r"widget-view",
        4: r"as trained: [1-9]\d* spikes · shuffled: [01],",
        5: r"of 1,179,648 weights go",
        6: r"accuracy \d\d\.\d% before, \d\d\.\d% with half",
        7: r"certified \d+\.\d% ≤ unchanged \d+\.\d% of 300 images \(measured\)",
        8: r" 0% removed  █{30} 100\.0% certified",
        9: r"half\.safetensors: \d\.\d MB",
        10: r"widget-view",
    },
    "01-the-marchenko-pastur-law": {
        1: r"edges 3\.43e-05 … 0\.00117",
        2: r"widget-view",
        3: r"λ₊[\s\S]*5\.828",
        4: r"p·KS of independent points",
        5: r"coin flips[\s\S]*MP-like",
        6: r"seen below",
        7: r"overlap predicted",
        8: r"scales differ +p·KS +\d+\.\d",
    },
    "02-spectra-of-trained-networks": {
        1: r"random weights",
        2: r"column scales differ",
        3: r"widget-view",
        4: r"stable_rank",
        5: r"overlap, input side",
        6: r"edge_ratio",
        7: r"efficientnet-lite0",
        8: r"widget-view",
        9: r"planted_overlap",
    },
    "03-budgets-and-masks": {
        1: r"features\.fc1\.weight",
        2: r"entries decided otherwise",
        3: r"test split only measures[\s\S]*SparseGPT",
        4: r"sub-edge[\s\S]*sparsegpt",
        5: r"SEB, four regimes",
        6: r"sparsegpt\.safetensors: the same logits, bit by bit, and 331,7\d\d zeros",
    },
    "04-prune-and-restore": {
        1: r"distilling on[\s\S]*learning_rate",
        2: r"dense 90\.59%, 95% removed \d\d\.\d\d%, trained again 8\d\.\d\d%",
        3: r"selection_epochs[\s\S]*0\.95",
        4: r"widget-view",
        5: r"largest[\s\S]*dense[\s\S]*hybrid",
        6: r"hybrid, 95% removed: \d\d\.\d\d% on 10000 test images",
        7: r"SparseGPT",
        8: r"hybrid, mended[\s\S]*widget-view",
        9: r"theirs[\s\S]*71\.64",
    },
    "05-structured-patterns": {
        1: r"share[\s\S]*blocks\.0\.attn\.qkv\.weight[\s\S]*True",
        2: r"plotly",
        3: r"interleave +0\.\d+[\s\S]*hungarian +0\.\d+",
        4: r"[1-9]\d* permutations folded:\n",
        5: r"dense 9\d\.\d% of 400 test images[\s\S]*CAST, reordered, repaired",
        6: r"6\.833 G executed: 61\.10% less\n7\.0594 G by the paper's convention: 59\.807%[\s\S]*plotly",
        7: r"dense \d\d\.\d%, 2:4 \d\d\.\d%, trained \d\d\.\d%",
        8: r"plotly",
        9: r"theirs, top-1[\s\S]*ViT-B/16",
    },
    "06-certificates": {
        1: r"certified \d+\.\d% ≤ unchanged \d+\.\d% \(measured\)",
        2: r"unchanged[\s\S]*slider[\s\S]*sub-masks",
        3: r"certified \d+\.\d%, flipped by a mask that was found [1-9]\d*\.\d%",
        4: r"grey levels",
        5: r"critical λ₂",
        6: r"fails in \d+\.\d% of 400 draws",
        7: r"no proved bound: blocks\.0\.mlp\.fc1\.weight changed",
        8: r"each of the 119 masks[\s\S]*fashion-resnet",
        9: r"points gained at sparsity",
        10: r"widget-view",
    },
    "07-two-four-benchmark": {
        1: r"27 of 29 layers pack\n[\s\S]*head\.weight",
        2: r"layers come back with the same bits[\s\S]*refused: \d+ of \d+ groups of four keep more than two",
        3: r"timed on [\s\S]*autocast bfloat16",
        4: r"^\d+\.\d\d × \(\d+\.\d\d–\d+\.\d\d\): bf16 against fp32 at batch 32; bfloat16 against float32, not",
        5: r"by multiply–adds 2:4 makes it 1\.\d\d times as fast \(estimate\)[\s\S]*of_limit",
        6: r"plotly",
        7: r"plotly[\s\S]*plotly",
        8: r"\d+ committed cells",
        9: r"dense im2col[\s\S]*2\.705",
        10: r"widget-view",
    },
    "08-your-own-model": {
        1: r"340 images, the first is photos/train/bag/",
        2: r"train 216, calibration 24, test 100\nimages \(3, 28, 28\); \d\d\.\d%",
        3: r"stem[\s\S]*head\.weight",
        4: r"the plan: \d0% of the prunable weights go",
        5: r"no proved bound: [\s\S]*unchanged of all data, at least \(population\)",
        6: r"the same logits\nwithout the architecture: .*pass it: mp\.load\(path, model=…\)",
        7: r"tailor\.html: \d\.\d MB in one file",
        8: r"\[model\][\s\S]*yours\.safetensors[\s\S]*\[budget\]\nsparsity = 0\.4",
        9: r"\$ mpviz run [\s\S]*known as[\s\S]*population[\s\S]*report\.html",
        10: r"did you mean 'test_resnet'\?[\s\S]*did you mean 'sparsity'\?",
    },
    "09-reproduce-the-paper": {
        1: r"vit_base|ViT-B/16[\s\S]*DeiT-T",
        2: r"pattern = \"2:4\"",
        3: r"matched +12\nnominal +7\nneither +3",
        4: r"8 layers at 2:4, pairs merged \(8, 8\); the same bits come back",
        5: r"measured on one core: \d+ s to \d+ min a row",
        6: r"theirs, points[\s\S]*fashion-resnet",
        7: r"2:4 was timed in \d+ of \d+ committed cells",
        8: r"plotly",
        9: r"71\.64[\s\S]*90\.53",
        10: r"accuracies on ImageNet +0 +21 +not run",
    },
    "exercises": dict.fromkeys(range(1, 11), r"^(?:open\n)+"),
    "solutions": dict.fromkeys(range(1, 10), r"^(?:answered\n)+") | {10: r"^answered\n[\s\S]*population"},
}


def named(path: Path) -> str:
    return path.stem


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(cell: Any) -> str:
    """All that a cell put out, as text: streams, values, and the kinds of what else is displayed."""
    parts = []
    for output in cell.outputs:
        parts.append(output.get("text", ""))
        parts += [f"{kind} {value if isinstance(value, str) else ''}" for kind, value in output.get("data", {}).items()]
    return "\n".join(parts)


def test_every_notebook_is_known_here() -> None:
    assert {path.stem for path in NOTEBOOKS} == set(SAYS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=named)
def test_a_notebook_is_stored_clean(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert "widgets" not in notebook.metadata
    for cell in code_cells(notebook):
        assert cell.outputs == [] and cell.execution_count is None
        assert "assert " in cell.source, "every code cell holds its claim"
    assert len(code_cells(notebook)) <= 10


def _tasks(name: str) -> tuple[list[str], list[str]]:
    """The texts of the ten tasks, and what checks the answers."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown" and cell.source.startswith("## ")]
    return texts, [cell.source.partition("# check\n")[2] for cell in code_cells(notebook)]


def test_exercises_and_solutions_ask_and_check_the_same() -> None:
    assert _tasks("exercises") == _tasks("solutions")
    texts, checks = _tasks("exercises")
    assert len(texts) == len(checks) == 10 and all("still_open(" in check for check in checks)
    solved = (ROOT / "notebooks" / "solutions.ipynb").read_text(encoding="utf-8")
    assert "= None" not in solved and solved.count("**Why.**") == 10


@pytest.mark.parametrize("number, line", [(1, "low = 0.1"), (2, "zeros = 0.5"), (7, "at_70 = (1.2, 0.8)")])
def test_a_wrong_answer_fails_with_a_hint(number: int, line: str) -> None:
    cells = code_cells(nbformat.read(ROOT / "notebooks" / "exercises.ipynb", as_version=4))
    name, scope = line.split(" =")[0], {}
    sources = [cells[0].source] + ([cells[number - 1].source] if number > 1 else [])
    wrong = re.sub(rf"^{name} = None.*$", line, sources[-1], flags=re.MULTILINE)
    if number == 1:
        wrong = wrong.replace("high = None", "high = 0.2")
    with pytest.raises(AssertionError, match=r"\w"):
        for source in [*sources[:-1], wrong]:
            exec(compile(source, "exercise", "exec"), scope)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=named)
def test_a_notebook_runs_in_a_fresh_kernel(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(path, as_version=4)
    start = time.monotonic()
    # without the state of the widgets: the page's script of the figures alone is 5 MB
    client = NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        store_widget_state=False,
        resources={"metadata": {"path": tmp_path}},
    )
    client.execute()
    print(f"{path.name} ran in {time.monotonic() - start:.1f} s")
    said = {number: shown(cell) for number, cell in enumerate(code_cells(notebook), start=1)}
    for number, pattern in SAYS[path.stem].items():
        assert re.search(pattern, said[number]), f"cell {number} of {path.name} says: {said[number][:2000]}"
    errors = [output for cell in code_cells(notebook) for output in cell.outputs if output.output_type == "error"]
    complaints = [o.text for c in code_cells(notebook) for o in c.outputs if o.get("name") == "stderr"]
    assert errors == [] and complaints == []
