"""The README's tables, made from committed files: ``python tests/benchmarks/readme_tables.py`` writes them in."""

from __future__ import annotations

import csv
import json
import re
import statistics
from pathlib import Path

from readme_structured import merged_table, patterns_table, real_table, search_table, shown

from mpviz.benchmark.ledger import read_cells

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("fashion-mlp", "fashion-mlp-l1", "fashion-vit", "fashion-resnet")


def sparsity_table() -> str:
    """Accuracy after pruning, and the certified share, by network and sparsity."""
    rows = json.loads((ROOT / "data/benchmarks/sparsity.json").read_text())["rows"]
    cells = {(row["model"], row["method"], row["sparsity"]): row for row in rows}
    levels = sorted({row["sparsity"] for row in rows})
    head = "| accuracy % (certified %) | dense | " + " | ".join(f"{s:.0%}" for s in levels) + " |"
    lines = [head, "| --- " * (len(levels) + 2) + "|"]
    for name in NAMES:
        for method in ("magnitude", "SEB"):
            found = [cells[name, method, s] for s in levels]
            shown = " | ".join(f"{100 * r['accuracy']:.2f} ({100 * r['certified']:.1f})" for r in found)
            lines.append(f"| {name}, {method} | {100 * found[0]['dense_accuracy']:.2f} | {shown} |")
    return "\n".join(lines)


def models_table() -> str:
    """What each bundled network is and how good it is."""
    lines = ["| network | parameters | test accuracy | λ₁ | λ₂ | optimiser, epochs |", "| --- " * 6 + "|"]
    for name in NAMES:
        card = json.loads((ROOT / f"data/models/{name}.json").read_text())
        recipe = card["recipe"]
        lines.append(
            f"| `{name}` | {card['parameters']:,} | {100 * card['test_accuracy']:.2f} % | {recipe['lambda1']:g} | "
            f"{recipe['lambda2']:g} | {recipe['optimizer']}, {recipe['epochs']} |"
        )
    return "\n".join(lines)


def accuracy_table() -> str:
    """How well the noise and the spikes of known matrices are found, by us and by others."""
    record = json.loads((ROOT / "data/benchmarks/known-truth.json").read_text())
    parts = [(record["main"], "main"), (record["hold_out"], "hold-out")]
    head = " | ".join(f"{name}: σ error %, median / 95th | spikes exact %" for _, name in parts)
    lines = [f"| method | {head} |", "| --- " * (1 + 2 * len(parts)) + "|"]
    for name in record["main"]["methods"]:
        cells = [name]
        for part, _ in parts:
            row = part["methods"][name]
            spread = row["sigma_error_95"]
            cells.append(f"{row['sigma_error_median']:.2f} / " + ("fails" if spread is None else f"{spread:.2f}"))
            cells.append(f"{100 * row['exact_when_detectable']:.1f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def speed_table() -> str:
    """CPU seconds for all matrices of ViT-B/16, beside the floor and WeightWatcher."""
    record = json.loads((ROOT / "data/benchmarks/analyze-speed.json").read_text())
    seconds, floor = record["seconds"], record["seconds"]["floor"]["cpu"]
    names = {
        "floor": "floor: Gram and eigensolve at the measured rate",
        "mpviz_fast": 'mpviz, `precision="fast"`',
        "mpviz": "mpviz",
        "mpviz_cached": "mpviz, second call",
        "weightwatcher_one_thread": "WeightWatcher, one thread",
        "weightwatcher_mp_fit_one_thread": "WeightWatcher `mp_fit=True`, one thread",
    }
    lines = ["| ViT-B/16, 50 matrices | CPU seconds | times the floor |", "| --- | --- | --- |"]
    for key, name in names.items():
        spent = seconds[key]["cpu"]
        lines.append(f"| {name} | {spent:.2f} | {spent / floor:.2f} |")
    return "\n".join(lines)


def certificates_table() -> str:
    """Share of predictions proved to stay, by network, tier and sparsity."""
    record = json.loads((ROOT / "data/benchmarks/certificate-coverage.json").read_text())
    levels = (0.1, 0.3, 0.5, 0.7)
    lines = ["| network, layers that are pruned | tier | " + " | ".join(f"{s:.0%}" for s in levels) + " |"]
    lines.append("| --- " * (len(levels) + 2) + "|")
    for case in record["networks"]:
        cells = {row["sparsity"]: row for row in case["tiers"]}
        if not set(levels) <= set(cells):
            continue
        for tier in ("measured", "slider", "path", "bracket", "bracket attack", "sub-masks"):
            if tier not in cells[levels[0]]:
                continue
            shown = " | ".join(f"{100 * cells[s][tier]:.1f}" for s in levels)
            word = "attack on the bracket" if tier == "bracket attack" else tier
            lines.append(f"| {case['network']}, {case['scope']} | {word} | {shown} |")
    return "\n".join([*lines, *_every_position(levels)])


def _every_position(levels: tuple[float, ...]) -> list[str]:
    """Rows of whole networks of which each mask of the stretch was run."""
    cells = json.loads((ROOT / "data/benchmarks/certificate-exhaustive.json").read_text())["cells"]
    lines = []
    for name in NAMES:
        found = {cell["sparsity"]: cell for cell in cells if cell["network"] == name}
        shown = " | ".join(f"{100 * found[s]['every position']:.1f}" if s in found else "–" for s in levels)
        counts = " / ".join(sorted({str(cell["samples"]) for cell in found.values()}))
        lines.append(f"| {name}, all layers | every position, each mask run, {counts} images | {shown} |")
    return lines


def methods_table() -> str:
    """Accuracy after each unstructured method without recovery, by sparsity, of the networks that are measured."""
    cells = json.loads((ROOT / "data/benchmarks/methods.json").read_text())["cells"]
    levels = (0.2, 0.4, 0.5, 0.6, 0.7)
    lines = ["| accuracy %, no training after | " + " | ".join(f"{s:.0%}" for s in levels) + " |"]
    lines.append("| --- " * (len(levels) + 1) + "|")
    found: dict[tuple[str, str, float], list[float]] = {}
    for cell in cells:
        found.setdefault((cell["network"], cell["method"], cell["sparsity"]), []).append(cell["accuracy"])
    for network, method in dict.fromkeys((cell["network"], cell["method"]) for cell in cells):
        rows = [found.get((network, method, s)) for s in levels]
        if all(rows):
            lines.append(f"| {network}, {method} | {' | '.join(shown(values) for values in rows if values)} |")
    return "\n".join(lines)


def recovery_table() -> str:
    """Test accuracy with recovery by sparsity: mean ± sample standard deviation over the seeds that are measured."""
    means = json.loads((ROOT / "data/benchmarks/recovery-grid.json").read_text())["means"]
    levels = sorted({row["sparsity"] for row in means})
    lines = ["| accuracy %, two epochs at each step | seeds | " + " | ".join(f"{s:.0%}" for s in levels) + " |"]
    lines.append("| --- " * (len(levels) + 2) + "|")
    found = {(row["network"], row["method"], row["sparsity"]): row for row in means}
    for network, method in dict.fromkeys((row["network"], row["method"]) for row in means):
        rows = [found.get((network, method, s)) for s in levels]
        seeds = sorted({row["seeds"] for row in rows if row})
        shown = [_mean(row) if row else "–" for row in rows]
        lines.append(f"| {network}, {method} | {'–'.join(map(str, seeds))} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _mean(row: dict) -> str:
    spread = "" if row["spread"] is None else f" ± {100 * row['spread']:.2f}"
    return f"{100 * row['accuracy']:.2f}{spread}"


def ablation_table() -> str:
    """One step of prune–restore with one thing changed at a time; mean ± spread where there are several seeds."""
    rows = json.loads((ROOT / "data/benchmarks/recovery-ablation.json").read_text())["rows"]
    lines = ["| one step | what is changed | seeds | epochs | accuracy % |", "| --- | --- | --- | --- | --- |"]
    for step in dict.fromkeys((row["network"], row["start"], row["goal"], row["arm"]) for row in rows):
        network, start, goal, arm = step
        same = [row for row in rows if (row["network"], row["start"], row["goal"], row["arm"]) == step]
        found = [row["accuracy"] for row in same]
        spread = statistics.stdev(found) if len(found) > 1 else None
        shown = _mean({"accuracy": statistics.mean(found), "spread": spread})
        lines.append(
            f"| {network}, {start:.0%} to {goal:.0%} | {arm} | {len(found)} | {same[0]['epochs']:g} | {shown} |"
        )
    return "\n".join(lines)


FC_THEIRS = {
    "no pruning, no regularisation": "no pruning no regularisation",
    "MP pruning only": "MP pruning only",
    "L1 + L2 only": "L1+L2 only",
    "MP pruning + L1 + L2": "MP pruning + L1+L2",
    "MP pruning + L2": "MP pruning + L2",
}


def fully_connected_table() -> str:
    """Test (training) accuracy of the fully connected networks at a tuned and at the paper's learning rate; theirs."""
    rows = json.loads((ROOT / "data/benchmarks/fc-table.json").read_text())["rows"]
    with (ROOT / "data/paper/fashion_mnist_fc.csv").open(newline="") as file:
        theirs = {row["method"]: row for row in csv.DictReader(file) if row["epochs"] == "100"}
    found = {(row["row"], row["rate"]): row for row in rows}
    head = ("test (training) accuracy %", "rate tuned", "rate of the paper", "singular values taken out",
            "*theirs, width 3000, 100 epochs*")  # fmt: skip
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for name in dict.fromkeys(row["row"] for row in rows):
        pair = [found[name, kind] for kind in ("tuned", "paper")]
        ours = [f"{100 * row['test_accuracy']:.2f} ({100 * row['train_accuracy']:.2f})" for row in pair]
        other = theirs.get(FC_THEIRS.get(name, ""))
        printed = f"*{other['test_acc']} ({other['train_acc']})*" if other else "–"
        lines.append(f"| {name} | {ours[0]} | {ours[1]} | {pair[0]['removed']} / {pair[1]['removed']} | {printed} |")
    return "\n".join(lines)


def endpoints_table() -> str:
    """How many times faster than float32 the dense endpoints are, and what 2:4 saves, by network and batch."""
    cells = [cell for cell in read_cells(ROOT / "data" / "benchmarks" / "two-four") if not cell.tome]
    names = ("autocast", "bf16", "bf16 channels-last", "fp32 im2col")
    lines = [
        f"| one CPU thread | batch | fp32, images/s | {' × | '.join(names)} × | 2:4 by multiply–adds × |",
        "| --- " * (len(names) + 4) + "|",
    ]
    for cell in cells:
        there = {arm.endpoint for arm in cell.arms if arm.timing is not None}
        ratios = [f"{cell.ratio(name, 'fp32').value:.2f}" if name in there else "" for name in names]
        timing = cell.arm("fp32").timing
        images = f"{float(f'{cell.batch / timing.median:.3g}'):,g}" if timing else "–"
        lines.append(f"| {cell.model} | {cell.batch} | {images} | {' | '.join(ratios)} | {cell.limit:.2f} |")
    return "\n".join(lines)


def walk_table() -> str:
    """What somebody new clicks on the dashboard, and how long the page takes."""
    record = json.loads((ROOT / "data/benchmarks/walk.json").read_text())
    lines = ["| click | the page answers after, s | all is there after, s |", "| --- " * 3 + "|"]
    lines += [f"| {step['click']} | {step['answered_s']:.1f} | {step['done_s']:.1f} |" for step in record["steps"]]
    return "\n".join([*lines, f"| {record['clicks']} clicks | | {record['seconds']} |"])


TABLES = {
    "walk": walk_table,
    "endpoints": endpoints_table,
    "patterns": patterns_table,
    "merged": merged_table,
    "search": search_table,
    "real": real_table,
    "fully-connected": fully_connected_table,
    "recovery": recovery_table,
    "ablation": ablation_table,
    "methods": methods_table,
    "certificates": certificates_table,
    "sparsity": sparsity_table,
    "models": models_table,
    "accuracy": accuracy_table,
    "speed": speed_table,
}


def filled(text: str) -> str:
    """The README's text with every table written anew."""
    for key, make in TABLES.items():
        pattern = rf"(<!-- table:{key} -->\n).*?(<!-- /table:{key} -->)"
        text = re.sub(pattern, lambda m, make=make: f"{m[1]}{make()}\n{m[2]}", text, flags=re.DOTALL)
    return text


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text(encoding="utf-8")), encoding="utf-8")
