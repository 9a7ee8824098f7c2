"""python two_processes.py CASES FOLDER: small recoveries, a pruning in steps and a grid, in all processes launched.

They write what they found into FOLDER: the recoveries' curves and digests the first one, the pruning every one. The
grid is what FOLDER/grid.toml says.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from mpviz import cli
from tests.train.recovery_case import digest, recover
from tests.train.steps_case import prune


def recoveries(cases: list[str], folder: Path) -> dict[str, dict]:
    results = {}
    for name in cases:
        run = recover(name, folder / name)
        results[name] = {
            "processes": run.why["processes"],
            "loss": run.curve["loss"].tolist(),
            "accuracy": run.curve["accuracy"].tolist(),
            "digest": digest(run.model),
        }
    return results


def main(cases: list[str], folder: Path) -> None:
    torch.set_num_threads(1)
    rank, found = os.environ["RANK"], recoveries(cases, folder / "recoveries")
    if rank == "0":
        (folder / "recoveries.json").write_text(json.dumps(found))
    steps = prune(folder / "steps")
    (folder / f"steps.{rank}.json").write_text(
        json.dumps({"loss": steps.log["loss"].tolist(), "removed": steps.log["removed"].tolist(),
                    "masks": {name: mask.flatten().int().tolist() for name, mask in steps.masks.items()}})
    )  # fmt: skip
    assert cli.main(["run", str(folder / "grid.toml"), "--out", str(folder / "grid")]) == 0


if __name__ == "__main__":
    main(sys.argv[1].split(","), Path(sys.argv[2]))
