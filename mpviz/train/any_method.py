"""`mp.prune_model`: every unstructured method in one call, those that prune at once and those that train on the way."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from mpviz.certificates.certify import certify as measure
from mpviz.certificates.margins import Certificate
from mpviz.errors import BudgetError, DataError, nearest
from mpviz.nets.calibrate import Moments
from mpviz.nets.data import Split
from mpviz.nets.forward import pruned_copy
from mpviz.nets.layers import list_layers
from mpviz.prune.magnitude import SEB
from mpviz.prune.methods import METHODS, prune_once
from mpviz.prune.pruning import Pruning
from mpviz.train.ser import RECOVERY, Gradual, prune_in_steps
from mpviz.train.step_plan import RESTORING, StepPlan

GRADUAL = {"magnitude": "magnitude", "seb": "seb", "regimes": "seb"}  # schedules of methods that prune at once, too
_PLAN = [field.name for field in fields(StepPlan) if field.name != "schedule"]
_SEB = [field.name for field in fields(SEB)]


def prune_model(
    model: nn.Module,
    method: str = "seb",
    sparsity: float = 0.5,
    *,
    table: pd.DataFrame | None = None,
    calibration: Mapping[str, Moments] | None = None,
    data: Split | None = None,
    check: Split | None = None,
    certify: Split | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    progress: Callable[[float, str], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    **options: Any,
) -> Pruning:
    """What a method removes from a network at a sparsity; `.of(model)` is the pruned copy, `.log` what it decided.

    method: "magnitude" (scope="layer" for layer by layer), "seb", "regimes", "sub-edge", "haar", "support", "wanda" and
    "sparsegpt" prune at once. table: of `mp.analyze`, for those that look at spectra; calibration: of
    `second_moments`, for the last two. options: the fields of the method's class (`mpviz.prune.methods`).

    "ser", "hybrid" and "drop-threshold" prune in steps and train on the way; given data, so do "magnitude", "seb" and
    "regimes". data: ``splits.train``. check: ``splits.calibration``, for "drop-threshold". out: a folder in which a
    call with the same settings goes on where an earlier one stopped. options: the fields of `StepPlan` (recovery=0
    never trains after pruning), those of `SEB` for the spectral steps, and those of `distill` for the recovery.

    certify: samples, e.g. ``splits.test``, on which the pruned network is compared with the dense one, for
    `.certificates`: "pruned" as the last step left it, "recovered" after the training that followed. They only measure.
    Exactly round(s·n) of the n prunable entries are removed. The model is left as it is.
    Raises BudgetError for unknown methods and options, missing input and impossible sparsities, the errors of `distill`
    where it trains, Cancelled.
    """
    if certify is not None and not isinstance(certify, Split):
        raise DataError(f"certify is a {type(certify).__name__}; give a split such as splits.test")
    if method in RESTORING or (method in GRADUAL and data is not None):
        if data is None:
            raise BudgetError(f"the method '{method}' trains on the way; give data=splits.train")
        run = {"check": check, "seed": seed, "out": out, "progress": progress, "cancelled": cancelled}
        return _in_steps(model, method, sparsity, data, certify, run, options)
    if method not in METHODS:
        known = (*METHODS, *RESTORING)
        raise BudgetError(f"unknown method '{method}'; {nearest(str(method), known)}")
    for name, given in (("data", data), ("out", out)):
        if given is not None:
            raise BudgetError(
                f"the method '{method}' prunes at once and takes no {name}; leave it out, and train with mp.distill"
            )
    found = prune_once(
        model, method, sparsity, table=table, calibration=calibration, seed=seed,
        cancelled=cancelled or (lambda: False), **options,
    )  # fmt: skip
    if certify is not None:
        dense = _in_eval_mode(model)
        found = replace(found, certificates={"pruned": measure(dense, found.of(dense), certify)})
    if progress is not None:
        progress(1.0, f"{method} at {100 * sparsity:.0f} %")
    return found


def _in_steps(
    model: nn.Module, method: str, sparsity: float, data: Split, certify: Split | None, run: dict[str, Any],
    options: Mapping[str, Any],
) -> Pruning:  # fmt: skip
    plan, recovery = split_options(method, options)
    dense = _in_eval_mode(model)
    certificates: dict[str, Certificate] = {}
    goal = [stage.target for stage in plan.stages(sparsity)][-1:]

    def before(target: float, network: nn.Module) -> None:
        if certify is not None and [target] == goal:
            certificates["pruned"] = measure(dense, network, certify)

    found = prune_in_steps(model, data, sparsity, plan, before_recovery=before, **run, **recovery)
    if certify is not None:
        trained = bool(goal) and found.log["recovery_epochs"].iloc[-1] > 0
        certificates["recovered" if trained else "pruned"] = measure(dense, found.model, certify)
    return Pruning(
        method, asdict(plan) | recovery, float(sparsity), found.masks, log_by_layer(found, model),
        values=changed_values(model, found.model, found.masks), certificates=certificates,
    )  # fmt: skip


def split_options(method: str, options: Mapping[str, Any]) -> tuple[StepPlan, dict[str, Any]]:
    """The plan of a method that prunes in steps, and the options of its recovery.

    Strengths of SEB given one by one make its `seb`; the method "seb" has its own where none are given, and "regimes"
    none but those of its table. Raises BudgetError for options that a method does not have, TrainingError for values
    that mean nothing.
    """
    known = (*_PLAN, *RECOVERY, *([] if method in ("magnitude", "regimes") else _SEB))
    for name in options:
        if name not in known:
            raise BudgetError(f"the method '{method}', in steps, has no option '{name}'; {nearest(name, known)}")
    planned = {name: value for name, value in options.items() if name in _PLAN}
    strengths = {name: value for name, value in options.items() if name in _SEB}
    if strengths and "seb" in planned:
        raise BudgetError(f"both seb and {next(iter(strengths))} are given; put {next(iter(strengths))} into seb")
    if strengths or (method == "seb" and "seb" not in planned):
        planned["seb"] = SEB(**strengths)
    rest = {name: value for name, value in options.items() if name not in (*_PLAN, *_SEB)}
    return StepPlan(GRADUAL.get(method, method), **planned).checked(), rest


def _in_eval_mode(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).eval() if any(module.training for module in model.modules()) else model


def changed_values(dense: nn.Module, network: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters and buffers of `network` that the masks alone do not give, by name."""
    masked = pruned_copy(dense, masks).state_dict()
    return {
        name: value.detach().clone()
        for name, value in network.state_dict().items()
        if not torch.equal(value, masked[name].to(value.device))
    }


def log_by_layer(found: Gradual, model: nn.Module) -> pd.DataFrame:
    """One row a stage and layer, with the columns that all methods have; a step is named by its sparsity."""
    infos = {info.name: info for info in list_layers(model)}
    rows = []
    for row in found.log.to_dict("records"):
        stage = {str(key): value for key, value in row.items()}
        for name in found.masks:
            gone, size = int(stage[f"removed in {name}"]), infos[name].params
            counts = {what: stage.get(f"{what} in {name}", 0) for what in ("reservoir", "restored")}
            first = {"step": f"{100 * stage['target']:g} %", "layer": name, "role": infos[name].role, "params": size,
                     "removed": gone, "sparsity": gone / size}  # fmt: skip
            more = {what: 0 if pd.isna(count) else int(count) for what, count in counts.items()}
            whole = {key: value for key, value in stage.items() if " in " not in key and " of " not in key}
            rows.append(first | {k: v for k, v in whole.items() if k not in ("removed", *more)} | more
                        | {"weight": stage.get(f"weight of {name}", math.nan)})  # fmt: skip
    return pd.DataFrame(rows)
