"""How many predictions each tier certifies, by network and sparsity, beside what is measured and what attacks leave.

    python tests/benchmarks/certificate_coverage.py [--samples 500] [--resnet 64]

writes data/benchmarks/certificate-coverage.json. "measured" is the share of samples whose prediction is the same at the
end of the set; "attack" is the share that no member found by signed gradients changed, an upper limit for any bound of
that set. Shares are of the samples of the case.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import attacks
import record
import torch
from certificate_cases import WIDTH, Case, cases, samples

from mpviz.certificates import families
from mpviz.certificates.bounds import margin_bound
from mpviz.certificates.walk import centre_logits
from mpviz.nets.forward import masked_parameters

SPARSITIES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
ATTACKED = 100


def attacked(case: Case, which: str, sparsity: float) -> float:
    """Share of the first samples whose prediction no tried member changed: one mask for each sample."""
    family = case.family(which, sparsity)
    kept, n = 0, min(ATTACKED, len(case.images))
    for i in range(n):
        x, target = case.images[i : i + 1], case.target[i : i + 1]
        z = centre_logits(case.network, x, family.centre)
        rival = z.scatter(1, target[:, None], -torch.inf).argmax(dim=1)
        members = attacks.worst_members(
            lambda weights, at: centre_logits(case.network, at, dict(weights)), family, x, target, rival, 4
        )
        kept += all(int(centre_logits(case.network, x, m).argmax()) == int(target) for m in members)
    return kept / n


def by_sparsity(case: Case, sparsity: float) -> dict[str, Any]:
    """All tiers at one sparsity, with their cost in CPU milliseconds a sample."""
    row: dict[str, Any] = {"sparsity": sparsity}
    for which in ("slider", "path", "bracket", "sub-masks"):
        start = time.process_time()
        bound = case.bound(which, sparsity)
        row[which] = bound.coverage
        row[f"{which} ms"] = 1e3 * (time.process_time() - start) / len(case.images)
        row[f"{which} rounding"] = float(bound.rounding.max())
    z = centre_logits(case.network, case.images, case.pruned(sparsity + WIDTH))
    row["measured"] = float((z.argmax(dim=1) == case.target).double().mean())
    if sparsity in (0.1, 0.3, 0.5, 0.7) and case.name != "fashion-resnet":
        row["bracket attack"] = attacked(case, "bracket", sparsity)
        row["sub-masks attack"] = attacked(case, "sub-masks", sparsity)
    return row


def one_layer(case: Case, sparsity: float) -> dict[str, float]:
    """The path tier with one layer cut by itself at the sparsity, and every sub-mask of that cut."""
    found = {}
    for name in case.network.weights:
        if name not in case.ranking.names:
            continue
        weight = case.network.model.get_parameter(name).detach().abs()
        masks = {name: weight >= weight.double().flatten().kthvalue(round(sparsity * weight.numel())).values}
        pruned = masked_parameters(case.network.model, masks)
        family = families.path(case.network.model, pruned)
        found[name] = margin_bound(case.network, family, case.images, case.target).coverage
    return found


def balls(case: Case, grey_level: float) -> list[dict[str, float]]:
    """Dense and pruned agree on every input within so many grey levels."""
    rows = []
    for sparsity in (0.3, 0.5):
        for levels in (0.5, 1.0, 2.0):
            radius = levels * grey_level
            both = [
                margin_bound(case.network, families.ball(radius, weights), case.images, case.target)
                for weights in ({}, case.pruned(sparsity))
            ]
            rows.append(
                {
                    "sparsity": sparsity,
                    "grey levels": levels,
                    "coverage": float((both[0].certified & both[1].certified).mean()),
                    "dense alone": both[0].coverage,
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--resnet", type=int, default=64)
    options = parser.parse_args()
    results: dict[str, Any] = {"width": WIDTH, "networks": []}
    for case in cases(options.samples, options.resnet):
        entry: dict[str, Any] = {"network": case.name, "scope": case.scope, "samples": len(case.images)}
        whole = case.name == "fashion-resnet" and case.scope == "all layers"
        entry["tiers"] = [by_sparsity(case, s) for s in ((0.3,) if whole else SPARSITIES)]
        if case.name.startswith("fashion-mlp"):
            entry["one layer, path, 0.3"] = one_layer(case, 0.3)
            entry["balls"] = balls(case, samples(1)[2])
        results["networks"].append(entry)
        print(case.name, case.scope, "done", flush=True)
    command = f"python tests/benchmarks/certificate_coverage.py --samples {options.samples} --resnet {options.resnet}"
    record.write("certificate-coverage", command, results)


if __name__ == "__main__":
    main()
