"""What pruning without fine-tuning costs the bundled networks, on all 10 000 test images.

``python tests/benchmarks/sparsity_table.py`` writes data/benchmarks/sparsity.json, which the README quotes.
"""

from __future__ import annotations

from record import write

import mpviz as mp
from mpviz.certificates.margins import compare_logits
from mpviz.nets.forward import logits
from mpviz.nets.zoo import bundled_names
from mpviz.prune.masks import Ranking

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
    write(
        "sparsity",
        "python tests/benchmarks/sparsity_table.py",
        {"rows": [row for name in bundled_names() for row in measure(name)]},
    )


if __name__ == "__main__":
    main()
