"""Pruning in steps with recovery between them: gradual magnitude and SEB, prune–restore (SER), the hybrid of both."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from mpviz.errors import CheckpointError, TrainingError, nearest
from mpviz.files import write_text
from mpviz.nets.data import Split
from mpviz.nets.forward import logits, pruned_copy
from mpviz.nets.spectra import analyze
from mpviz.nets.store import load, save
from mpviz.prune.allocate import allocate
from mpviz.prune.magnitude import regime
from mpviz.prune.masks import Ranking
from mpviz.prune.restore import BELOW, STEP, Stage, over_prune, restore, stages
from mpviz.train.distill import distill
from mpviz.train.select import movement_of

SCHEDULES = ("magnitude", "seb", "ser", "hybrid", "drop-threshold")
Tell = Callable[[float, str], None]


@dataclass(frozen=True)
class StepPlan:
    """How the sparsity grows, and what each step restores.

    schedule: "magnitude" and "seb" prune gradually without restoring; "ser" over-prunes by SEB weights and restores;
    "hybrid" is magnitude up to `until`, then SER; "drop-threshold" is magnitude until the accuracy on the check
    split is `drop` below the dense one after recovery, then SER. step: between targets; targets: the sparsities to
    stop at, instead of steps. ratio: what an SER step removes over what it keeps removed. factor, candidates: of
    `restore`. restored: a restored entry begins at the value it "moved" to or that it had "before". by: what brings
    an entry back, its "movement" or its "agreement": the product of movement and old value, where that is positive.
    renew: batch norms of the over-pruned network are measured again before the selection (`movement_of`).
    selection: epochs of the selection phase; recovery: epochs after each step; last: more of those after the last
    one; equal: a step without a selection phase trains as many epochs longer, so that all schedules see the same
    number of images. The numbers are those of arXiv:2606.02608 where it names them.
    """

    schedule: str = "hybrid"
    step: float = STEP
    ratio: float = 1.6
    until: float = BELOW
    drop: float = 0.007
    factor: str = "multiply"
    candidates: str = "step"
    restored: str = "moved"
    by: str = "movement"
    renew: bool = False
    selection: float = 0.2
    selection_rate: float = 1e-3
    recovery: float = 1
    last: int = 0
    targets: tuple[float, ...] = ()
    equal: bool = False

    def checked(self) -> StepPlan:
        """Raises TrainingError for an unknown schedule or numbers that mean nothing."""
        if self.schedule not in SCHEDULES:
            raise TrainingError(f"unknown schedule '{self.schedule}'; {nearest(self.schedule, SCHEDULES)}")
        if self.restored not in ("moved", "before"):
            raise TrainingError(f"restored = '{self.restored}'; give 'moved' or 'before'")
        if self.by not in ("movement", "agreement"):
            raise TrainingError(f"by = '{self.by}'; give 'movement' or 'agreement'")
        if self.selection <= 0 or self.recovery < 0 or self.last < 0:
            raise TrainingError("selection takes epochs above 0, recovery and last from 0 on")
        return self

    def stages(self, sparsity: float) -> list[Stage]:
        """The targets up to a sparsity."""
        ratio = self.ratio if self.schedule in ("ser", "hybrid", "drop-threshold") else 1.0
        return stages(sparsity, ratio, self.until if self.schedule == "hybrid" else 0.0, self.step, self.targets)


@dataclass(frozen=True, eq=False)
class Gradual:
    """What a gradual pruning came to. model: the last one, in eval mode; masks: its own; log: one row a stage."""

    model: nn.Module
    masks: dict[str, Tensor]
    log: pd.DataFrame
    plan: StepPlan


def prune_in_steps(
    model: nn.Module,
    data: Split,
    sparsity: float,
    plan: StepPlan | None = None,
    check: Split | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    progress: Tell | None = None,
    cancelled: Callable[[], bool] | None = None,
    after_stage: Callable[[dict[str, Any], nn.Module, Mapping[str, Tensor]], None] | None = None,
    before_recovery: Callable[[float, nn.Module], None] | None = None,
    **recovery: Any,
) -> Gradual:
    """Prune a copy of the model step by step, training between the steps with the dense model as teacher.

    data: ``splits.train``; masks follow from it and the weights alone. check: a split that is not the test split, for
    the schedule "drop-threshold". out: a folder; each finished stage is kept there as a checkpoint, and a call with
    the same settings goes on behind the last one. after_stage(row of the log, model, masks): after each stage.
    before_recovery(target, model): of a stage that is pruned, and not yet trained again.
    recovery: options of `distill`, such as optimizer, learning_rate, batch, augment.
    Raises TrainingError for an impossible plan, CheckpointError when `out` holds another run, and the errors of
    `distill`; Cancelled after a checkpoint.
    """
    plan = (plan or StepPlan()).checked()
    run = _Run(model, data, plan, check, seed, recovery, cancelled, before_recovery)
    todo = plan.stages(sparsity)
    folder = None if out is None else _folder(Path(out).expanduser(), plan, seed, recovery)
    for number, stage in enumerate(todo):
        tell = _part(progress, number, len(todo), stage)
        path = None if folder is None else folder / f"stage-{stage.target:.4f}.safetensors"
        if path is not None and path.exists():
            run.take_up(path)
        else:
            run.do(
                stage,
                number == len(todo) - 1,
                None if folder is None else folder / f"recovery-{stage.target:.4f}",
                tell,
            )
            if path is not None:
                save(path, run.model, run.masks, results={"log": run.log[-1], "moving": run.moving})
        if after_stage is not None:
            after_stage(run.log[-1], run.model, run.masks)
    return Gradual(run.model, run.masks, pd.DataFrame(run.log), plan)


class _Run:
    """The network as far as it is pruned, and what comes next."""

    def __init__(
        self, model: nn.Module, data: Split, plan: StepPlan, check: Split | None, seed: int,
        recovery: Mapping[str, Any], cancelled: Callable[[], bool] | None,
        before_recovery: Callable[[float, nn.Module], None] | None,
    ) -> None:  # fmt: skip
        self.before_recovery = before_recovery
        self.teacher = copy.deepcopy(model).eval()
        self.model = copy.deepcopy(model).eval()
        self.data, self.plan, self.seed, self.recovery, self.cancelled = data, plan, seed, dict(recovery), cancelled
        self.masks = {name: torch.ones(shape, dtype=torch.bool) for name, shape in Ranking(model).shapes.items()}
        self.log: list[dict[str, Any]] = []
        self.moving = plan.schedule in ("ser", "hybrid")  # whether steps restore by now
        self.check = None
        if plan.schedule == "drop-threshold":
            if check is None or check.name == "test":
                raise TrainingError("the schedule 'drop-threshold' looks at accuracy; give check=splits.calibration")
            self.check = check.sample()
            self.dense = self._accuracy(self.teacher)

    def _accuracy(self, network: nn.Module) -> float:
        assert self.check is not None
        images, labels = self.check
        return float((logits(network, images).argmax(dim=1) == labels).double().mean())

    def take_up(self, path: Path) -> None:
        """Go on from a stage that was finished before."""
        kept = load(path, self.teacher)
        self.model, self.masks = kept.model.eval(), dict(kept.masks)
        results = kept.results or {}
        self.log.append(dict(results["log"]))
        self.moving = bool(results["moving"])

    def do(self, stage: Stage, last: bool, folder: Path | None, tell: Tell) -> None:
        """Prune, restore where the plan says so, recover, and note it."""
        restoring = stage.restores and self.moving
        spectral = self.plan.schedule == "seb" or (self.moving and stage.restores)
        ranking = Ranking(self.model)
        weights = self._weights(stage.target) if spectral else None
        magnitudes = {name: self.model.get_parameter(name).detach().abs().cpu() for name in ranking.names}
        before = self.masks
        over = over_prune(ranking, weights, before, magnitudes, stage.over if restoring else stage.target)
        masks, back = over, {}
        student = pruned_copy(self.model, over)
        if restoring:
            open_ = {
                n: (before[n] if self.plan.candidates == "step" else torch.ones_like(over[n])) & ~over[n] for n in over
            }
            moved = movement_of(
                student, open_, self.data, self.teacher, self.plan.selection, seed=self.seed,
                learning_rate=self.plan.selection_rate, renew=self.plan.renew,
                progress=lambda f: tell(0.3 * f, "selecting"),
                cancelled=self.cancelled,
            )  # fmt: skip
            scores = moved if self.plan.by == "movement" else self._agreement(moved)
            masks = restore(before, over, scores, stage.target, weights, self.plan.factor, self.plan.candidates)
            back = {name: int((masks[name] & ~over[name]).sum()) for name in masks}
            self._put_back(student, over, masks, moved)
        self.masks = masks
        epochs = self.plan.recovery + (self.plan.last if last else 0)
        if self.plan.equal and not restoring:
            epochs += self.plan.selection
        row = {"target": stage.target, "over": stage.over if restoring else stage.target,
               "restored": sum(back.values()), "spectral": spectral,
               "removed": sum(int((~m).sum()) for m in masks.values()),
               "selection_epochs": self.plan.selection if restoring else 0.0, "recovery_epochs": epochs}  # fmt: skip
        row |= {f"restored in {name}": count for name, count in back.items()}
        if epochs:
            if self.before_recovery is not None:
                self.before_recovery(stage.target, student.eval())
            found = distill(
                student, self.teacher, self.data, masks, epochs, seed=self.seed, out=folder,
                progress=lambda f, words: tell(0.3 + 0.7 * f, words), cancelled=self.cancelled, **self.recovery,
            )  # fmt: skip
            self.model = found.model
            row["loss"] = float(found.history["loss"].iloc[-1])
        else:
            self.model = student
        if self.check is not None:
            row["check_accuracy"] = self._accuracy(self.model)
            self.moving = self.moving or row["check_accuracy"] < self.dense - self.plan.drop
        self.log.append(row)

    def _weights(self, sparsity: float) -> dict[str, float]:
        """SEB weights of the network as it is now, by the four regimes."""
        table, seb = analyze(self.model), regime(sparsity)
        found = allocate(table, sparsity, seb.signal, seb.beta, seb.decay_end, seb.beta_by_role)
        return {str(name): float(weight) for name, weight in found.items()}

    def _agreement(self, moved: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Movement times old value where both have one sign, 0 elsewhere."""
        return {n: (m * self.model.get_parameter(n).detach().cpu()).clamp(min=0.0) for n, m in moved.items()}

    def _put_back(
        self, student: nn.Module, over: Mapping[str, Tensor], masks: Mapping[str, Tensor], moved: Mapping[str, Tensor]
    ) -> None:
        with torch.no_grad():
            for name, mask in masks.items():
                weight = student.get_parameter(name)
                source = moved[name] if self.plan.restored == "moved" else self.model.get_parameter(name).detach()
                weight.copy_(torch.where((mask & ~over[name]).to(weight.device), source.to(weight), weight))


def _part(progress: Tell | None, number: int, stages: int, stage: Stage) -> Tell:
    def tell(share: float, words: str) -> None:
        if progress is not None:
            progress((number + share) / stages, f"to {100 * stage.target:.0f} %: {words}")

    return tell


def _folder(folder: Path, plan: StepPlan, seed: int, recovery: Mapping[str, Any]) -> Path:
    """The folder of a run, which holds this run or none. Raises CheckpointError for another."""
    asked = json.loads(json.dumps(asdict(plan) | {"seed": seed, "recovery": {k: repr(v) for k, v in recovery.items()}}))
    note = folder / "steps.json"
    if note.exists():
        there = json.loads(note.read_text(encoding="utf-8"))
        other = sorted(key for key in asked.keys() | there.keys() if asked.get(key) != there.get(key))
        if other:
            raise CheckpointError(f"{folder} holds another run: {', '.join(other)} differ; choose another folder")
    else:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_text(note, json.dumps(asked, indent=1) + "\n")
        except OSError as error:
            raise CheckpointError(f"cannot write to {folder} ({error}); choose another folder") from error
    return folder
