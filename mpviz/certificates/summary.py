"""A certificate beside the budgets that it was made with, as a table and as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from mpviz.certificates.margins import Certificate, TierResult


def nonzero_parameters(model: nn.Module) -> int:
    """Parameters that are not zero."""
    return sum(int(p.count_nonzero()) for p in model.parameters())


def compare_models(dense: nn.Module, pruned: nn.Module, budgets: pd.DataFrame, cert: Certificate) -> pd.DataFrame:
    """Before and after, one row a quantity, each with the tier of its numbers."""
    total = int(budgets["params"].sum())
    kept = total - int(budgets["removed"].sum())
    n = len(cert)
    rows: list[tuple[str, Any, Any, str]] = [
        (f"{cert.split} accuracy, {n} images", cert.dense_accuracy, cert.accuracy, cert.tier),
        ("predictions certified unchanged", 1.0, cert.coverage, cert.tier),
        ("predictions unchanged", 1.0, cert.unchanged, cert.tier),
        ("prunable weights", total, kept, "measured"),
        ("nonzero parameters", nonzero_parameters(dense), nonzero_parameters(pruned), "measured"),
    ]
    for tier in cert.tiers.values():
        if tier.why:
            rows.append((tier.why, None, None, tier.tier))
        elif tier.certified is None:
            rows.append((f"{tier.about}: at least", None, tier.low, tier.tier))
        else:
            rows.append((f"predictions certified for {tier.about}", 1.0, tier.coverage, tier.tier))
    # as objects: counts stay whole numbers beside the shares
    return pd.DataFrame(rows, columns=["quantity", "dense", "pruned", "tier"], dtype=object)


def with_recovered(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """Two tables of `compare_models` as one: dense, pruned, recovered. after: of the network that was trained.

    None where a tier speaks about one of both only.
    """
    later = dict(zip(after["quantity"], after["pruned"], strict=True))
    known = [later.get(quantity) for quantity in before["quantity"]]
    table = before.assign(recovered=pd.Series(known, index=before.index, dtype=object))
    extra = after[~after["quantity"].isin(set(before["quantity"]))]
    rest = extra.assign(quantity="recovered: " + extra["quantity"], recovered=extra["pruned"], pruned=None)
    columns = ["quantity", "dense", "pruned", "recovered", "tier"]
    return pd.concat([table[columns], rest[columns].astype(object)], ignore_index=True)


def results_of(cert: Certificate, budgets: pd.DataFrame) -> dict[str, Any]:
    """The numbers of a run as JSON can hold them, each beside its tier."""
    return {
        "tier": cert.tier,
        "split": cert.split,
        "samples": len(cert),
        "dense_accuracy": cert.dense_accuracy,
        "pruned_accuracy": cert.accuracy,
        "coverage": cert.coverage,
        "unchanged": cert.unchanged,
        "violations": cert.violations,
        "tiers": {name: _tier_numbers(tier) for name, tier in cert.tiers.items()},
        "sparsity": float(budgets["removed"].sum() / budgets["params"].sum()),
        "budgets": {name: float(value) for name, value in budgets["sparsity"].items()},
    }


def recovered_results(cert: Certificate) -> dict[str, Any]:
    """The numbers of the trained network as JSON can hold them, to stand beside those of `results_of`."""
    return {
        "tier": cert.tier,
        "accuracy": cert.accuracy,
        "coverage": cert.coverage,
        "unchanged": cert.unchanged,
        "violations": cert.violations,
        "tiers": {name: _tier_numbers(tier) for name, tier in cert.tiers.items()},
    }


def _tier_numbers(tier: TierResult) -> dict[str, Any]:
    """One tier of a certificate as JSON can hold it."""
    if tier.why:
        return {"tier": tier.tier, "why": tier.why}
    if tier.certified is None:
        return {"tier": tier.tier, "about": tier.about, "low": tier.low, "high": tier.high}
    return {"tier": tier.tier, "about": tier.about, "coverage": tier.coverage}


def read_tiers(numbers: Mapping[str, dict[str, Any]], samples: pd.DataFrame) -> dict[str, TierResult]:
    """The tiers of a certificate from what `results_of` and `Certificate.table` wrote. Raises KeyError, TypeError."""
    tiers = {}
    for name, found in numbers.items():
        lower = samples[name].to_numpy(dtype=np.float64) if "coverage" in found else None
        tiers[name] = TierResult(
            name, found["tier"], found.get("about", ""), None if lower is None else lower > 0, lower,
            low=found.get("low", math.nan), high=found.get("high", math.nan), why=found.get("why", ""),
        )  # fmt: skip
    return tiers
