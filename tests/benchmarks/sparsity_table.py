"""What pruning without fine-tuning costs the bundled networks, on all 10 000 test images.

``python tests/benchmarks/sparsity_table.py`` writes data/benchmarks/sparsity.json, which the README quotes.
"""

from __future__ import annotations

import datetime
import json
import platform
from pathlib import Path

import torch

import mpviz as mp
from mpviz.certificates.margins import compare_logits
from mpviz.nets.forward import logits
from mpviz.nets.zoo import bundled_names
from mpviz.prune.masks import Ranking

OUT = Path(__file__).resolve().parents[2] / "data" / "benchmarks" / "sparsity.json"
SPARSITIES = (0.3, 0.5, 0.6, 0.7, 0.8)


def measure(name: str) -> list[dict]:
    """Rows of one network: magnitude and SEB (β = 1.25, s_d = 0.7, σ₊) at each sparsity."""
    model, (images, labels) = mp.load_model(name), mp.load_data("fashion-mnist").test.sample()
    table, ranking, dense = mp.analyze(model), Ranking(model), logits(model, images)
    rows = []
    for sparsity in SPARSITIES:
        for method, beta in (("magnitude", 0.0), ("SEB", 1.25)):
            masks = ranking.masks(ranking.counts(sparsity, mp.allocate(table, sparsity, beta=beta)))
            cert = compare_logits(dense, logits(model, images, masks), labels)
            row = {"model": name, "method": method, "sparsity": sparsity, "tier": "measured", "samples": len(cert)}
            row |= {"dense_accuracy": cert.dense_accuracy, "accuracy": cert.accuracy}
            row |= {"certified": cert.coverage, "unchanged": cert.unchanged, "violations": cert.violations}
            rows.append(row)
            print(row, flush=True)
    return rows


def main() -> None:
    """Measure all bundled networks and write the file."""
    record = {
        "command": "python tests/benchmarks/sparsity_table.py",
        "date": datetime.date.today().isoformat(),
        "hardware": f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
        "versions": {"torch": torch.__version__, "python": platform.python_version(), "mpviz": mp.__version__},
        "rows": [row for name in bundled_names() for row in measure(name)],
    }
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
