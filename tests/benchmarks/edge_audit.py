"""Does the spectral edge predict what pruning a layer does? σ₊ against the measured budget of each layer.

``python tests/benchmarks/edge_audit.py`` writes data/benchmarks/edge-audit.json. Each layer alone loses the same
share of its smallest entries. Its budget is 2 · mean ‖change of the logits‖∞, which no Lipschitz constant can beat;
beside it stands B_T with an interval Jacobian where one is proved. Correlations overall and by role.

A wide bulk means large weights, and a share of large weights is a large R: so the plain size of what was removed,
‖R‖_F, is a signal too, and `partial` tells what of the edge's rank correlation is left when that size is known.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import torch
from record import write
from scipy import stats
from torch import Tensor

import mpviz as mp
from mpviz.certificates.budgets import data_path_budget
from mpviz.certificates.layer_input import record_input, removed_part
from mpviz.errors import ModelError
from mpviz.nets.forward import logits

NETWORKS = ("fashion-mlp", "fashion-resnet", "fashion-vit")
SPARSITIES = (0.3, 0.5, 0.7)
SAMPLES, PROVED = 256, 8  # images for what is measured, and for the interval Jacobians
SIGNALS = ("sigma_plus", "sigma_plus_of_entry", "removed_norm", "alpha", "params")
TARGETS = ("least_budget", "moved", "budget")


def smallest_removed(weight: Tensor, sparsity: float) -> Tensor:
    """Mask of one layer without its smallest entries, True = kept."""
    order = weight.abs().flatten().argsort(stable=True)
    mask = torch.ones(weight.numel(), dtype=torch.bool)
    mask[order[: round(sparsity * weight.numel())]] = False
    return mask.reshape(weight.shape)


def audit(name: str, samples: int = SAMPLES, proved: int = PROVED) -> list[dict[str, Any]]:
    """One row a prunable layer and sparsity."""
    model, (images, _) = mp.load_model(name), mp.load_data("fashion-mnist").test.sample(samples)
    table, dense = mp.analyze(model), logits(model, images).double()
    rows = []
    for layer, known in table[table["prunable"].astype(bool)].iterrows():
        weight = model.get_parameter(str(layer)).detach()
        for sparsity in SPARSITIES:
            mask = smallest_removed(weight, sparsity)
            removed = removed_part(model, str(layer), mask)
            eta = (logits(model, images, {str(layer): mask}).double() - dense).abs().amax(1)
            row = {"model": name, "layer": str(layer), "role": known["role"], "sparsity": sparsity}
            row |= {"sigma_plus": float(known["sigma_plus"]), "alpha": float(known["alpha"]), "params": weight.numel()}
            # the edge without the size of the layer: the standard deviation of a bulk entry
            row["sigma_plus_of_entry"] = row["sigma_plus"] / (math.sqrt(known["rows"]) + math.sqrt(known["cols"]))
            row["removed_norm"] = float(removed.norm())
            row["moved"] = float(record_input(model, str(layer), removed, images[:proved]).moved.mean())
            row |= {"eta_measured": float(eta.mean()), "least_budget": 2 * float(eta.mean())}
            row["budget"] = None
            if sparsity == SPARSITIES[0]:
                try:
                    found = data_path_budget(model, str(layer), removed, images[:proved], batch=4)
                    row |= {"budget": found.budget, "proxy": found.proxy, "perfect": found.perfect}
                    row["violations"] = int((found.slack < -1e-9).sum())
                    row["budget_over_least"] = found.budget / max(found.least_budget, 1e-300)
                except ModelError as error:
                    row["no_bound"] = str(error)[:80]
            rows.append(row)
        print(rows[-1], flush=True)
    return rows


def correlations(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Pearson (of logarithms) and Spearman of each signal with each target, overall and by role."""
    table, found = pd.DataFrame(rows), []
    for (model, sparsity), group in table.groupby(["model", "sparsity"]):
        for role in ("all", *sorted(set(group["role"]))):
            part = group if role == "all" else group[group["role"] == role]
            for signal in SIGNALS:
                for target in TARGETS:
                    pair = part[[*dict.fromkeys((signal, target, "removed_norm"))]].astype(float).dropna()
                    pair = pair[(pair > 0).all(axis=1)]
                    if len(pair) < 4 or pair[signal].nunique() < 2:
                        continue
                    numbers = _pair(*(pair[one].to_numpy() for one in (signal, target, "removed_norm")))
                    row = {"model": model, "sparsity": sparsity, "role": role, "signal": signal, "target": target}
                    found.append(row | {"layers": len(pair)} | numbers)
    return found


def _pair(x: np.ndarray, y: np.ndarray, size: np.ndarray) -> dict[str, float | None]:
    pearson, spearman = stats.pearsonr(np.log(x), np.log(y)), stats.spearmanr(x, y)
    with_size, target_with_size = stats.spearmanr(x, size).statistic, stats.spearmanr(y, size).statistic
    left = (1 - with_size**2) * (1 - target_with_size**2)
    partial = (spearman.statistic - with_size * target_with_size) / math.sqrt(left) if left > 1e-9 else None
    return {
        "pearson_of_logs": round(float(pearson.statistic), 3),
        "pearson": round(float(stats.pearsonr(x, y).statistic), 3),
        "spearman": round(float(spearman.statistic), 3),
        "spearman_p": round(float(spearman.pvalue), 4),
        "partial": None if partial is None else round(float(partial), 3),
    }


def main() -> None:
    """Audit the bundled networks and write the file."""
    rows = [row for name in NETWORKS for row in audit(name)]
    found = correlations(rows)
    for one in found:
        if one["signal"] in ("sigma_plus", "removed_norm") and one["target"] == "least_budget":
            print(one)
    arguments = {"samples": SAMPLES, "samples_with_jacobians": PROVED}
    write("edge-audit", "python tests/benchmarks/edge_audit.py", arguments | {"correlations": found, "rows": rows})


if __name__ == "__main__":
    main()
