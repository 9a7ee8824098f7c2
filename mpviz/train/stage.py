"""One stage of pruning in steps: prune, restore where the plan says so, recover; what is done is not done twice."""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mpviz.errors import Cancelled, TrainingError
from mpviz.nets.data import Split
from mpviz.nets.forward import logits, pruned_copy
from mpviz.nets.spectra import analyze
from mpviz.nets.store import load, save
from mpviz.prune.allocate import allocate
from mpviz.prune.masks import Ranking
from mpviz.prune.restore import Stage, over_prune, restore
from mpviz.train.distill import distill
from mpviz.train.processes import launched
from mpviz.train.select import movement_of
from mpviz.train.step_plan import StepPlan

Tell = Callable[[float, str], None]
BeforeRecovery = Callable[[float, nn.Module], None]
_WEIGHT = "weight of "


@dataclass(frozen=True)
class Place:
    """Where the files of a stage lie.

    stage: the finished one. over: as pruned, before anything is restored. selected: as it goes into recovery.
    selecting, recovery: folders of the two trainings.
    """

    target: float
    stage: Path
    over: Path
    selected: Path
    selecting: Path
    recovery: Path


def place_of(folder: Path, target: float) -> Place:
    """The place of the stage that ends at a sparsity."""
    stage, over, selected = (folder / f"{word}-{target:.4f}.safetensors" for word in ("stage", "over", "selected"))
    selecting, recovery = (folder / f"{word}-{target:.4f}" for word in ("selecting", "recovery"))
    return Place(target, stage, over, selected, selecting, recovery)


@dataclass(frozen=True, eq=False)
class Begun:
    """A stage under way: its student, the masks on it, and the row of the log as far as it is known."""

    student: nn.Module
    masks: dict[str, Tensor]
    row: dict[str, Any]

    def keep(self, path: Path) -> None:
        """Write it."""
        save(path, self.student, self.masks, results=self.row)

    @property
    def weights(self) -> dict[str, float] | None:
        """The SEB weights that the stage was pruned by, None where it was not."""
        found = {key.removeprefix(_WEIGHT): value for key, value in self.row.items() if key.startswith(_WEIGHT)}
        return found or None


def begun_at(path: Path, model: nn.Module) -> Begun:
    """What `Begun.keep` wrote. model: its architecture. Raises CheckpointError."""
    kept = load(path, model)
    return Begun(kept.model.eval(), dict(kept.masks), dict(kept.results or {}))


class Stages:
    """The network as far as it is pruned, and what comes next.

    training: options of `distill`; device, every and workers among them go for the selection phase as far as they mean
    anything there.
    """

    def __init__(
        self, model: nn.Module, data: Split, plan: StepPlan, check: Split | None, seed: int,
        training: Mapping[str, Any], cancelled: Callable[[], bool] | None, before_recovery: BeforeRecovery | None,
    ) -> None:  # fmt: skip
        self.teacher = copy.deepcopy(model).eval()
        self.model = copy.deepcopy(model).eval()
        self.data, self.plan, self.seed, self.cancelled = data, plan, seed, cancelled
        self.training, self.before_recovery = dict(training), before_recovery
        self.masks = {name: torch.ones(shape, dtype=torch.bool) for name, shape in Ranking(model).shapes.items()}
        self.log: list[dict[str, Any]] = []
        self.first = launched()[0] == 0
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

    def take_up(self, place: Place, last: bool) -> None:
        """Go on from a stage that was finished before."""
        kept = load(place.stage, self.teacher)
        self.model, self.masks = kept.model.eval(), dict(kept.masks)
        results = kept.results or {}
        self.log.append(dict(results["log"]))
        self.moving = bool(results["moving"])
        if last and self.before_recovery is not None and place.selected.exists():
            self.before_recovery(place.target, begun_at(place.selected, self.teacher).student)
        if self.first:
            _tidy(place, last)

    def do(self, stage: Stage, last: bool, place: Place | None, tell: Tell) -> None:
        """Take a step and note it; with a place, from where an earlier process was stopped in it."""
        epochs = self.plan.recovery + (self.plan.last if last else 0)
        restoring = stage.restores and self.moving
        if self.plan.equal and not restoring:
            epochs += self.plan.selection
        if place is not None and epochs and (place.selected.exists() or not self.first):
            begun = self._taken(place)
        else:
            begun = self._pruned(stage, place)
            if restoring:
                begun = self._restored(stage, begun, place, tell)
            begun.row["recovery_epochs"] = epochs
            if place is not None and epochs and self.first:
                begun.keep(place.selected)
        self.model, self.masks, row = begun.student, begun.masks, dict(begun.row)
        if epochs:
            if self.before_recovery is not None:
                self.before_recovery(stage.target, begun.student)
            found = distill(
                begun.student, self.teacher, self.data, begun.masks, epochs, seed=self.seed,
                out=None if place is None else place.recovery, cancelled=self.cancelled,
                progress=lambda share, words: tell(0.3 + 0.7 * share, words), **self.training,
            )  # fmt: skip
            self.model = found.model
            row["loss"] = float(found.history["loss"].iloc[-1])
        if self.check is not None:
            row["check_accuracy"] = self._accuracy(self.model)
            self.moving = self.moving or row["check_accuracy"] < self.dense - self.plan.drop
        self.log.append(row)
        if place is not None and self.first:
            save(place.stage, self.model, self.masks, results={"log": row, "moving": self.moving})
            _tidy(place, last)

    def _taken(self, place: Place) -> Begun:
        """What goes into recovery, as the first process found it: several might round differently."""
        while not place.selected.exists():
            if self.cancelled is not None and self.cancelled():
                raise Cancelled("pruning in steps was cancelled while the first process selected")
            time.sleep(0.1)
        return begun_at(place.selected, self.teacher)

    def _pruned(self, stage: Stage, place: Place | None) -> Begun:
        """The network with more removed: as much as the step ends with, or more where it restores."""
        restoring = stage.restores and self.moving
        if restoring and place is not None and place.over.exists():
            return begun_at(place.over, self.teacher)
        spectral = self.plan.schedule == "seb" or restoring
        ranking = Ranking(self.model)
        weights = self._weights(stage.target) if spectral else None
        magnitudes = {name: self.model.get_parameter(name).detach().abs().cpu() for name in ranking.names}
        over = stage.over if restoring else stage.target
        masks = over_prune(ranking, weights, self.masks, magnitudes, over)
        row = {"target": stage.target, "over": over, "reservoir": 0, "restored": 0, "spectral": spectral,
               "selection_epochs": 0.0}  # fmt: skip
        row |= _removed(masks) | {f"{_WEIGHT}{name}": weight for name, weight in (weights or {}).items()}
        begun = Begun(pruned_copy(self.model, masks), masks, row)
        if restoring and place is not None and self.first:
            begun.keep(place.over)
        return begun

    def _restored(self, stage: Stage, over: Begun, place: Place | None, tell: Tell) -> Begun:
        """The over-pruned network with its best entries back. The student is changed in place."""
        plan = self.plan
        before = self.masks if plan.candidates == "step" else {n: torch.ones_like(m) for n, m in self.masks.items()}
        open_ = {name: before[name] & ~mask for name, mask in over.masks.items()}
        moved = movement_of(
            over.student, open_, self.data, self.teacher, plan.selection, plan.selection_batch, plan.selection_rate,
            seed=self.seed, renew=plan.renew,
            progress=lambda share: tell(0.3 * share, "selecting"), cancelled=self.cancelled,
            out=place.selecting if place is not None and self.first else None,
            **{key: self.training[key] for key in ("device", "every") if key in self.training},
        )  # fmt: skip
        old = {name: self.model.get_parameter(name).detach().cpu() for name in moved}
        scores = moved
        if plan.by == "agreement":  # movement times old value where both have one sign, 0 elsewhere
            scores = {name: (values * old[name]).clamp(min=0.0) for name, values in moved.items()}
        masks = restore(self.masks, over.masks, scores, stage.target, over.weights, plan.factor, plan.candidates)
        back = {name: mask & ~over.masks[name] for name, mask in masks.items()}
        with torch.no_grad():
            for name, came in back.items():
                weight = over.student.get_parameter(name)
                source = moved[name] if plan.restored == "moved" else old[name]
                weight.copy_(torch.where(came.to(weight.device), source.to(weight), weight))
        counts = {name: int(came.sum()) for name, came in back.items()}
        reservoir = {name: int(may.sum()) for name, may in open_.items()}
        row = over.row | {"selection_epochs": plan.selection} | _removed(masks)
        for word, by_layer in (("reservoir", reservoir), ("restored", counts)):
            row |= {word: sum(by_layer.values())} | {f"{word} in {name}": count for name, count in by_layer.items()}
        return Begun(over.student, masks, row)

    def _weights(self, sparsity: float) -> dict[str, float]:
        """SEB weights of the network as it is now."""
        seb = self.plan.strengths(sparsity)
        found = allocate(
            analyze(self.model), sparsity, seb.signal, seb.beta, seb.decay_end, seb.beta_by_role, seb.locked
        )
        return {str(name): float(weight) for name, weight in found.items()}


def _removed(masks: Mapping[str, Tensor]) -> dict[str, int]:
    counts = {f"removed in {name}": int((~mask).sum()) for name, mask in masks.items()}
    return {"removed": sum(counts.values())} | counts


def _tidy(place: Place, last: bool) -> None:
    """Take away what only an unfinished stage needs; of the last one, the network before its recovery stays."""
    for path in (place.over, *(() if last else (place.selected,))):
        path.unlink(missing_ok=True)
    shutil.rmtree(place.selecting, ignore_errors=True)
