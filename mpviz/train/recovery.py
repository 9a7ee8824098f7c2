"""The loop of recovery training: one optimiser step after another, in one process or many, stoppable at any moment."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from mpviz.errors import Cancelled, CheckpointError, DataError, TrainingError
from mpviz.nets.data import Split
from mpviz.train import checkpoints
from mpviz.train.augment import Mixing
from mpviz.train.batchnorm import shared_statistics
from mpviz.train.feed import Feed, Part
from mpviz.train.frozen import FrozenMasks
from mpviz.train.keeper import Keeper, answers
from mpviz.train.metrics import Metrics
from mpviz.train.objectives import recovery_loss
from mpviz.train.optimizers import build_optimizer, cosine_factor
from mpviz.train.plan import RecoveryPlan
from mpviz.train.processes import placed, seed_everything

_QUIET = 0.1  # seconds between two reports of progress


@dataclass(frozen=True)
class Setting:
    """What a training works on. student: a copy of its own, masks applied. classes: outputs of both networks."""

    student: nn.Module
    teacher: nn.Module | None
    masks: Mapping[str, Tensor]
    data: Split
    classes: int
    plan: RecoveryPlan
    identity: dict[str, Any]
    folder: Path | None
    every: int
    workers: int
    progress: Callable[[float, str], None] | None = None
    cancelled: Callable[[], bool] | None = None
    after_epoch: Callable[[dict[str, Any]], None] | None = None
    check: Callable[[nn.Module], None] | None = None


class Training:
    """One recovery on an open accelerator; `run` carries it to its end from wherever the folder stands."""

    def __init__(self, setting: Setting, accelerator: Any, stack: contextlib.ExitStack) -> None:
        self.s, self.accelerator, self.plan = setting, accelerator, setting.plan
        self.device, self.world, self.rank = accelerator.device, accelerator.num_processes, accelerator.process_index
        self.model = setting.student.to(self.device)
        # only here is it known which device this process has: each has its own where several train
        self.teacher = None if setting.teacher is None else placed(setting.teacher, self.device)
        self.frozen = FrozenMasks(self.model, setting.masks)
        self.feed = Feed(setting.data, self.plan, self.model, setting.classes, setting.workers, self.rank, self.world)
        self.per_epoch = self.feed.order.steps
        self.steps = max(1, round(self.per_epoch * self.plan.epochs))
        self.passes = math.ceil(self.steps / self.per_epoch)  # over the data, the last one maybe in part
        self.memory = build_optimizer(
            self.model, self.plan.optimizer, self.plan.rate, self.plan.decay, self.plan.momentum
        )
        prepared = accelerator.prepare_optimizer(self.memory, device_placement=False)
        # accelerate's wrapper is there to scale float16 losses; without that it only costs time in each step
        self.optimizer = prepared if getattr(accelerator, "scaler", None) is not None else self.memory
        self.shared = stack.enter_context(shared_statistics(self.model)) if self.world > 1 else None
        self.network = accelerator.prepare_model(self.model)
        self.mixing = None
        if self.plan.mixup or self.plan.cutmix:
            self.mixing = Mixing(self.plan.mixup, self.plan.cutmix, setting.classes, self.plan.seed)
        self.step, self.seconds, self._said = 0, 0.0, 0.0
        self.epochs: list[dict[str, Any]] = []
        self.partial = {"loss": 0.0, "hits": 0.0, "seen": 0.0}
        self.told: list[Tensor] = []  # the teacher's logits for the parts of this step
        self.keeper = Keeper(setting.folder, setting.identity, writes=accelerator.is_main_process)
        self.metrics = Metrics(None)

    # ---- the way through the steps

    def run(self) -> None:
        """Train to the end. Raises TrainingError, DataError, CheckpointError or Cancelled as `distill` says."""
        try:
            self.begin()
            started, before = time.monotonic(), self.seconds
            for epoch in range(self.step // self.per_epoch, self.passes):
                self.network.train()
                for parts, size in itertools.islice(self._batches(epoch), self.steps - self.step):
                    stop = self.take_step(epoch, parts, size)
                    self.seconds = before + time.monotonic() - started
                    ended = self.step % self.per_epoch == 0 or self.step == self.steps
                    if ended:
                        self._end_epoch(epoch, parts[0].images)
                    if ended or stop or self.step % self.s.every == 0:
                        self.save()
                    if stop:
                        raise Cancelled(f"the recovery was cancelled after step {self.step}; {self.keeper.kept()}")
                    self._report(epoch, ended)
        finally:
            self.metrics.close()

    def begin(self) -> None:
        """Take up what the folder holds, or write its first checkpoint."""
        saved = self._resume()
        self.metrics = Metrics(self.s.folder, self.step, write=self.accelerator.is_main_process)
        if saved is None:
            seed_everything(self.plan.seed, self.rank)
            self.save()
        else:
            self._restore_randomness(saved)

    def _batches(self, epoch: int) -> Iterator[tuple[list[Part], int]]:
        try:
            yield from self.feed.batches(epoch, self.step % self.per_epoch)
        except DataError as error:
            raise DataError(
                f"{error}; stopped at step {self.step + 1} of {self.steps}; {self.keeper.kept()}"
            ) from error

    def take_step(self, epoch: int, parts: list[Part], size: int) -> bool:
        """One optimiser step on the parts that this process holds of a batch of `size`; True when asked to stop.

        Raises TrainingError for a loss that is not finite, before it reaches the weights.
        """
        rate = self.plan.rate * cosine_factor(self.step, self.steps, self.plan.warmup)
        for group in self.memory.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        asked = self.s.cancelled is not None and self.s.cancelled()
        self.told.clear()
        sums = torch.tensor([0.0, 0.0, float(asked)], dtype=torch.float64, device=self.device)
        for number, part in enumerate(parts, start=1):
            together = number == len(parts) or self.world == 1
            with contextlib.nullcontext() if together else self.accelerator.no_sync(self.network):
                loss, hits = self._pass(part)
                # processes average their gradients: times their number, over the images of all of them
                self.accelerator.backward(loss * (self.world / size))
            sums[0] += loss.detach()
            sums[1] += hits
        if self.world > 1:
            sums = self.accelerator.reduce(sums, reduction="sum")
        loss_sum, hit_sum, stop = sums.tolist()
        if not math.isfinite(loss_sum):
            self._stop_at(loss_sum / size, epoch, parts)
        self._update()
        self.step += 1
        self.metrics.add(
            step=self.step, epoch=epoch + 1, learning_rate=rate, loss=loss_sum / size, accuracy=hit_sum / size
        )
        for key, value in (("loss", loss_sum), ("hits", hit_sum), ("seen", size)):
            self.partial[key] += value
        return stop > 0

    def _stop_at(self, loss: float, epoch: int, parts: list[Part]) -> NoReturn:
        """Raise TrainingError for a loss that is not finite; checkpoints go only where the student is to blame."""
        images = torch.cat([part.images for part in parts])
        spoiled = [not all(bool(torch.isfinite(one).all()) for one in group) for group in ([images], self.told)]
        found = torch.tensor(spoiled, dtype=torch.float32, device=self.device)
        if self.world > 1:  # the part at fault may be another process's
            found = self.accelerator.reduce(found, reduction="sum")
        of_images, of_teacher = (bool(one) for one in found)
        if of_images:
            remedy = "some of its images are not finite: look at the data and their transform"
        elif of_teacher:
            remedy = "the teacher's logits are not finite: give another teacher, or weight=0"
        else:
            remedy = f"lower the learning rate of {self.plan.rate:g} or look at the data"
            self.keeper.spoiled(self.step, self.model, images.to(self.device))
        raise TrainingError(
            f"the loss is {loss} at step {self.step + 1} of {self.steps} (epoch {epoch + 1}); {remedy}; "
            f"{self.keeper.kept()}"
        )

    def _pass(self, part: Part) -> tuple[Tensor, Tensor]:
        """Summed loss and hits of one part; both zero for a part that only keeps step with the other processes."""
        images, labels = part.images.to(self.device), part.labels.to(self.device)
        target = labels
        if self.mixing is not None:
            images, target = self.mixing(images, labels, self.step)
        if self.shared is not None:
            self.shared.silent = part.silent
        with self.accelerator.autocast():
            theirs = None
            if self.teacher is not None:
                with torch.no_grad():  # first, while the student's activations do not yet fill the memory
                    theirs = self.teacher(images)
                self.told.append(theirs)
            ours = self.network(images)
        plan = self.plan
        loss = recovery_loss(ours, target, theirs, plan.weight, plan.temperature, plan.smoothing).sum()
        hits = (ours.detach().argmax(-1) == labels).sum()
        return (loss * 0.0, hits * 0) if part.silent else (loss, hits)

    def _update(self) -> None:
        """The optimiser's step, then the masks: momentum, decay and rounding may have moved what was removed."""
        if self.plan.clip:
            self.frozen.silence()
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.plan.clip)
        self.optimizer.step()
        self.frozen.apply()

    # ---- epochs, files

    def _end_epoch(self, epoch: int, images: Tensor) -> None:
        if self.step == self.steps and not self._answers(images):
            raise TrainingError(
                f"the logits are not finite after the last step, {self.step}; lower the learning rate of "
                f"{self.plan.rate:g}; {self.keeper.kept()}"
            )
        regrown = self.frozen.regrown()
        if regrown is not None:
            raise TrainingError(
                f"removed entries of {regrown} are not zero after epoch {epoch + 1}; {self.keeper.kept()}"
            )
        if self.s.check is not None:
            self.s.check(self.model)
        seen = self.partial["seen"]
        row = {
            "epoch": epoch + 1,
            "steps": self.step,
            "loss": self.partial["loss"] / seen,
            "accuracy": self.partial["hits"] / seen,
            "learning_rate": self.memory.param_groups[0]["lr"],
            "seconds": self.seconds,
        }
        self.epochs.append(row)
        self.partial = dict.fromkeys(self.partial, 0.0)
        if self.s.after_epoch is not None and self.accelerator.is_main_process:
            self.s.after_epoch(dict(row))

    def _answers(self, images: Tensor) -> bool:
        """Whether all processes get finite logits: no loss follows the last update and would tell."""
        return all(self._gather(answers(self.model, images.to(self.device))))

    def _report(self, epoch: int, ended: bool) -> None:
        if self.s.progress is None or not self.accelerator.is_main_process:
            return
        if ended or time.monotonic() - self._said > _QUIET:
            self._said = time.monotonic()
            loss = self.metrics.rows[-1]["loss"]
            self.s.progress(
                self.step / self.steps,
                f"epoch {epoch + 1} of {self.passes}, step {self.step} of {self.steps}, loss {loss:.4f}",
            )

    def save(self) -> None:
        """Write the checkpoint of this step; all processes come here, one writes."""
        if self.s.folder is None:
            return
        scaler = getattr(self.accelerator, "scaler", None)
        randomness: dict[str, Tensor] = {}
        for rank, state in enumerate(self._gather(checkpoints.random_state(self.device))):
            randomness |= {f"{rank}/{key}": value for key, value in state.items()}
        progress = checkpoints.Progress(
            step=self.step,
            identity=self.s.identity,
            epochs=self.epochs,
            partial=self.partial,
            seconds=self.seconds,
            scaler=None if scaler is None else scaler.state_dict(),
        )
        self.keeper.write(self.model, self.s.masks, self.memory, randomness, progress)

    def _gather(self, value: Any) -> list[Any]:
        """One value from each process, in their order."""
        if self.world == 1:
            return [value]
        from accelerate.utils import gather_object

        return gather_object([value])

    def _resume(self) -> checkpoints.Saved | None:
        """Take up what the folder holds. Raises CheckpointError when it is another run, or not the same everywhere."""
        saved = self.keeper.newest()
        found = self._gather(None if saved is None else saved.progress.step)
        if len(set(found)) > 1:
            raise CheckpointError(
                f"the processes see different files in {self.s.folder}; it must be one folder for all nodes"
            )
        self.keeper.take_up(saved, self.model, self.memory)
        if saved is None:
            return None
        progress = saved.progress
        if progress.scaler is not None and getattr(self.accelerator, "scaler", None) is not None:
            self.accelerator.scaler.load_state_dict(progress.scaler)
        self.step, self.seconds = progress.step, progress.seconds
        self.epochs, self.partial = list(progress.epochs), dict(progress.partial)
        return saved

    def _restore_randomness(self, saved: checkpoints.Saved) -> None:
        state = saved.part(f"random/{self.rank}/")
        if state:
            checkpoints.restore_random(state, self.device)
        else:  # more processes than before: the new ones start generators of their own
            seed_everything(self.plan.seed + self.step, self.rank)
