"""Every row of the paper's structured tables, end to end on a CPU: python tests/benchmarks/paper_rows.py [--rows 1 2].

What is run is each row's own recipe (`mpviz recipes`) with the full-size architecture and random weights, since the
trained ones cannot be had everywhere, on a generated folder in the shape of ImageNet: 84 training and 12 validation
images of 12 classes. Shrunk are only the numbers: 8 calibration images, 2 steps of distillation with 4 images each, SER
in one step with two steps of selection, 8 images to measure. Each row prunes, projects, distils, saves, is loaded in a
fresh process that must give the same bits, and counts its multiply–adds, at the size it ran with and at 224 × 224. With
random weights accuracies mean nothing and are not kept. Each row runs in a process of its own; finished rows stay in
data/benchmarks/paper-rows.json and are not run again.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import record

NAME = "paper-rows"
TRAIN, CLASSES, BATCH, STEPS = 84, 12, 4, 2
KEPT = TRAIN - TRAIN // 10  # what calibration leaves
FRESH = """
import sys, torch, mpviz as mp
from safetensors.torch import load_file, save_file
torch.set_num_threads(1)
with torch.no_grad():
    save_file({"logits": mp.load(sys.argv[1]).model(load_file(sys.argv[2])["images"])}, sys.argv[3])
"""
REFUSED = (("vit_large_patch16_224", "6:12"), ("convnextv2_base", "6:12"), ("resnet50", "6:12"))


def make_folder(root: Path) -> Path:
    """Smooth random photographs, 12 classes, in train/ and val/."""
    import numpy as np
    from PIL import Image

    draws = np.random.default_rng(0)
    for part, count in (("train", TRAIN), ("val", CLASSES)):
        for i in range(count):
            folder = root / part / f"n{i % CLASSES:08d}"
            folder.mkdir(parents=True, exist_ok=True)
            small = draws.integers(0, 256, (9, 12, 3), dtype=np.uint8)
            Image.fromarray(small).resize((320, 280), Image.Resampling.BICUBIC).save(folder / f"{i}.jpg", quality=90)
    return root


def one_row(number: int, folder: str, out: str) -> dict[str, Any]:
    """Run a row and tell what came of it."""
    import torch
    from safetensors.torch import load_file, save_file

    from mpviz.nets.macs import count_macs
    from mpviz.paper import paper_recipe, paper_rows
    from mpviz.projecting import run_projection
    from mpviz.recipe import with_settings
    from mpviz.recipe_parts import dense_model

    torch.set_num_threads(1)
    row = next(one for one in paper_rows() if one.row == number)
    settings = ["model.pretrained=false", "project.images=8", "certify.samples=8", f"recover.batch={BATCH}"]
    if paper_recipe(row).recover.epochs:
        settings.append(f"recover.epochs={STEPS * BATCH / KEPT}")
    if row.source != "dense":
        selection = STEPS * BATCH / KEPT
        settings.append(
            f"project.source_options={{step = {row.source[4:]}, selection = {selection}, "
            f"selection_batch = {BATCH}, recovery = 0}}"
        )
    recipe = with_settings(paper_recipe(row, folder), settings)
    started, cpu = time.monotonic(), time.process_time()
    result = run_projection(recipe, out)
    seconds, cpu = time.monotonic() - started, time.process_time() - cpu
    size = result.macs.input_size
    images = torch.randn(2, *size)
    save_file({"images": images}, f"{out}/images.safetensors")
    with torch.no_grad():
        expected = result.model(images)
    command = [
        sys.executable,
        "-c",
        FRESH,
        str(result.checkpoint),
        f"{out}/images.safetensors",
        f"{out}/logits.safetensors",
    ]
    subprocess.run(command, check=True)
    same = torch.equal(load_file(f"{out}/logits.safetensors")["logits"], expected)
    dense = dense_model(recipe)
    at = {"pattern": row.pattern, "tome": row.tome, "layers": list(result.projected.masks)}
    counted = {name: count_macs(dense, 224, convention=name, **at) for name in ("executed", "paper")}
    cost = result.projected.cost
    return {
        "row": number, "architecture": row.architecture, "checkpoint": row.checkpoint, "pattern": row.pattern,
        "source": row.source, "method": row.method, "tome": row.tome, "permute": row.permute,
        "layers": len(result.projected.masks), "permuted": len(result.projected.permutations),
        "exact": bool(cost["exact"].all()), "cost_share": float(cost["left"].sum() / cost["power"].sum()),
        "steps": 0 if result.curve is None else len(result.curve), "input_size": list(size),
        "reloads_bit_identical": same, "seconds": round(seconds, 1), "cpu_s": round(cpu, 1),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "dense_gmacs": counted["executed"].dense / 1e9, "executed_gmacs": counted["executed"].sparse / 1e9,
        "reduction_pct": 100 * counted["executed"].reduction, "paper_reduction_pct": 100 * counted["paper"].reduction,
        "printed_gmacs": row.dense_gmacs, "printed_reduction_pct": row.mac_reduction,
    }  # fmt: skip


def refusals() -> list[dict[str, str]]:
    """Pairs of model and pattern whose widths do not divide, and the sentence that says so."""
    import torch

    import mpviz as mp
    from mpviz.errors import PatternError
    from mpviz.prune.cast import project

    found = []
    for name, pattern in REFUSED:
        try:
            project(mp.load_model(name, pretrained=False), pattern, torch.zeros(1, 3, 224, 224))
            raise SystemExit(f"{pattern} was not refused for {name}")
        except PatternError as error:
            found.append({"model": name, "pattern": pattern, "why": str(error)})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="+", type=int, default=list(range(1, 23)))
    options = parser.parse_args()
    path = record.FOLDER / f"{NAME}.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    with tempfile.TemporaryDirectory() as place:
        folder = make_folder(Path(place) / "images")
        for number in options.rows:
            if number in {row["row"] for row in rows}:
                continue
            call = f"paper_rows.one_row({number}, {str(folder)!r}, {place + '/out'!r})"
            command = [sys.executable, "-W", "ignore", "-c", f"import json, paper_rows; print(json.dumps({call}))"]
            done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parent)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            rows.sort(key=lambda row: row["row"])
            print(rows[-1] if rows[-1]["row"] == number else number, flush=True)
            record.write(NAME, "python tests/benchmarks/paper_rows.py", {"rows": rows, "refused": refusals()})


if __name__ == "__main__":
    main()
