"""In how many cells (layer × sparsity) is a fall of the objective proved, and by which bound of the cross-entropy?

``python tests/benchmarks/objective_cells.py`` writes data/benchmarks/objective-cells.json. Each layer alone loses its
share of a global magnitude mask. B is the path budget, the softmax-weighted bound of an interval Jacobian, or, for
comparison and measured rather than proved, the change itself. λ₁, λ₂ are those the network was trained with; the
cross-entropy is that of unchanged training images, so J is the training objective without its augmentation.
"""

from __future__ import annotations

from typing import Any

from record import write

import mpviz as mp
from mpviz.certificates.budgets import data_path_budget, segment_change
from mpviz.certificates.cross_entropy import exact_change, softmax_bound
from mpviz.certificates.layer_input import removed_part
from mpviz.certificates.objective import Penalty, mask_certificate, stationarity
from mpviz.nets.forward import logits
from mpviz.nets.zoo import model_card

NETWORKS = ("fashion-mlp", "fashion-mlp-l1")
SPARSITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
SAMPLES, PIECES = 2000, 8


def cells(name: str) -> list[dict[str, Any]]:
    """One row a layer and sparsity."""
    model, (images, labels) = mp.load_model(name), mp.load_data(folder="bundled").train.sample(SAMPLES)
    recipe, dense, rows = model_card(name)["recipe"], logits(model, images), []
    penalty = Penalty(recipe["lambda2"], recipe["lambda1"])
    for sparsity in SPARSITIES:
        for layer, mask in mp.magnitude_masks(model, sparsity).items():
            removed = removed_part(model, layer, mask)
            kept = model.get_parameter(layer).detach().double() - removed
            fall, rise = segment_change(model, layer, removed, images, labels, batch=50, pieces=PIECES)
            budget = data_path_budget(model, layer, removed, images, batch=50, pieces=PIECES)
            exact = exact_change(dense, logits(model, images, {layer: mask}), labels)
            soft = softmax_bound(dense, labels, rise, fall)
            found = {
                "path": mask_certificate(kept, removed, budget.budget, penalty),
                "softmax": mask_certificate(kept, removed, soft.mean_upper, penalty),
                "measured": mask_certificate(kept, removed, exact.mean, penalty, tier="measured"),
            }
            row = {"model": name, "layer": layer, "sparsity": sparsity, "gain": found["path"].gain}
            row |= {f"bound_{kind}": cert.bound for kind, cert in found.items()}
            row |= {f"holds_{kind}": cert.holds for kind, cert in found.items()}
            row |= {f"critical_lambda2_{kind}": cert.critical_lambda2 for kind, cert in found.items()}
            row["broken"] = int(((exact.change > soft.upper + 1e-5) | (exact.change < soft.lower - 1e-5)).sum())
            row["epsilon_needed"] = stationarity(kept, removed, budget.budget, penalty).epsilon_needed
            rows.append(row)
            print(row, flush=True)
    return rows


def main() -> None:
    """Measure both networks and write the file."""
    rows = [row for name in NETWORKS for row in cells(name)]
    held = {
        name: {kind: sum(row[f"holds_{kind}"] for row in rows if row["model"] == name) for kind in
               ("path", "softmax", "measured")} | {"cells": sum(row["model"] == name for row in rows)}
        for name in NETWORKS
    }  # fmt: skip
    print(held)
    arguments = {"samples": SAMPLES, "pieces": PIECES}
    write("objective-cells", "python tests/benchmarks/objective_cells.py", arguments | {"held": held, "rows": rows})


if __name__ == "__main__":
    main()
