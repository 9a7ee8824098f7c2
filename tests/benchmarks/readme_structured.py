"""The README's tables of k:n patterns, made from committed files."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from mpviz.ui.pattern_figures import arm_name

BENCHMARKS = Path(__file__).resolve().parents[2] / "data" / "benchmarks"
ARMS = (
    "magnitude", "magnitude, reordered", "Wanda", "Wanda, reordered", "CAST", "CAST, interleaved", "CAST, reordered",
    "CAST, reordered, damped", "CAST, reordered, repaired", "CAST, reordered, damped, repaired",
    "magnitude, norms renewed", "magnitude, reordered, norms renewed", "Wanda, norms renewed",
    "Wanda, reordered, norms renewed", "CAST, norms renewed", "CAST, reordered, norms renewed",
    "CAST, reordered, repaired, norms renewed", "CAST, reordered, damped, repaired, norms renewed",
)  # fmt: skip


def arm_of(cell: dict[str, Any]) -> str:
    """The arm of a cell, merged tokens aside."""
    return arm_name(cell | {"tome": 0})


def record(name: str) -> dict[str, Any]:
    return json.loads((BENCHMARKS / f"{name}.json").read_text(encoding="utf-8"))


def shown(values: list[float], digits: int = 2) -> str:
    """Mean ± sample standard deviation of shares, in per cent."""
    if not values:
        return "–"
    spread = f" ± {100 * statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.{digits}f}{spread}"


def patterns_table() -> str:
    """Accuracy by pattern and arm, without training and after three epochs."""
    cells = [cell for cell in record("structured-grid")["cells"] if cell["tome"] == 0]
    columns = [("2:4", 0), ("4:8", 0), ("8:16", 0), ("12:16", 0), ("2:4", 3), ("8:16", 3)]
    heads = [pattern if not epochs else f"{pattern}, {epochs} epochs" for pattern, epochs in columns]
    lines = [f"| accuracy % | {' | '.join(heads)} |", "| --- " * (len(columns) + 1) + "|"]
    for network in dict.fromkeys(cell["network"] for cell in cells):
        for arm in ARMS:
            same = [cell for cell in cells if cell["network"] == network and arm_of(cell) == arm]
            if not same:
                continue
            found = [[cell["accuracy"] for cell in same if (cell["pattern"], cell["epochs"]) == column]
                     for column in columns]  # fmt: skip
            lines.append(f"| {network}, {arm} | {' | '.join(shown(values) for values in found)} |")
    return "\n".join(lines)


def merged_table() -> str:
    """The ViT with tokens merged: accuracy and multiply–adds."""
    cells = [cell for cell in record("structured-grid")["cells"] if cell["network"] == "fashion-vit"]
    merges = sorted({cell["tome"] for cell in cells})
    columns = [("2:4", 0), ("8:16", 0), ("2:4", 3), ("8:16", 3)]
    heads = [pattern if not epochs else f"{pattern}, {epochs} epochs" for pattern, epochs in columns]
    lines = [f"| fashion-vit, accuracy % | merged a block | MACs saved % | {' | '.join(heads)} |", "| --- " * 7 + "|"]
    for arm in ("magnitude", "CAST", "CAST, reordered"):
        for tome in merges:
            same = [cell for cell in cells if arm_of(cell) == arm and cell["tome"] == tome]
            saved = {round(100 * cell["mac_reduction"], 1) for cell in same if cell["pattern"] == "2:4"}
            found = [[cell["accuracy"] for cell in same if (cell["pattern"], cell["epochs"]) == column]
                     for column in columns]  # fmt: skip
            values = " | ".join(shown(one) for one in found)
            lines.append(f"| {arm} | {tome or 'none'} | {max(saved):.1f} | {values} |")
    return "\n".join(lines)


def search_table() -> str:
    """The exact search of one layer against a plain enumeration, and whole networks."""
    parts = record("kn-speed")["parts"]
    found = {(row["pattern"], row["how"]): row for row in parts["layer"]}
    lines = ["| 768 × 3072 | exact, CPU s | preview, CPU s (cost above the optimum) | plain enumeration, CPU s | times "
             "faster | memory, MiB: exact / plain |", "| --- " * 6 + "|"]  # fmt: skip
    for pattern in dict.fromkeys(row["pattern"] for row in parts["layer"]):
        exact, local, plain = (found[pattern, how] for how in ("exact", "local", "plain"))
        above = 100 * (local["cost"] / exact["cost"] - 1)
        lines.append(
            f"| {pattern} | {exact['cpu_s']:.2f} | {local['cpu_s']:.2f} ({above:.4f} %) | {plain['cpu_s']:.2f} | "
            f"{plain['cpu_s'] / exact['cpu_s']:.1f} | {exact['memory_mib']:.0f} / {plain['memory_mib']:.0f} |"
        )
    head = ("whole network, exact", "pattern", "weights", "search, CPU s", "peak of the process, MiB")
    lines += ["", f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for row in (*parts["vit"], *parts["resnet"]):
        cells = (row["network"], row["pattern"], f"{row['weights'] / 1e6:.1f} M", f"{row['search_cpu_s']:.1f}",
                 f"{row['peak_of_process_mib']:.0f}")  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def real_table() -> str:
    """Real weights on real photographs."""
    rows = record("real-weights")["rows"]
    head = ("no training", "EfficientNet-Lite0: top-1 of 20 at 2:4 / 4:8 / 8:16", "correlation of logits",
            "ViT-S/14: cosine of features at 2:4 / 4:8 / 8:16")  # fmt: skip
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for arm in ARMS:
        some = [row for row in rows if row["pattern"] != "dense" and arm_of(row) == arm]
        if not some:
            continue
        net = [row for row in some if row["network"] == "efficientnet-lite0"]
        vit = [row for row in some if row["network"] == "dinov2-vit-s14"]
        cells = [[str(row["top1"]) for row in net], [f"{row['correlation']:.2f}" for row in net],
                 [f"{row['cosine']:.3f}" for row in vit]]  # fmt: skip
        lines.append(f"| {arm} | {' | '.join(' / '.join(values) for values in cells)} |")
    return "\n".join(lines)
