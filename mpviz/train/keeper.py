"""Who keeps the checkpoints of a training: writes them, tells good ones from spoiled ones, and takes up the newest."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mpviz.errors import CheckpointError, TrainingError
from mpviz.train import checkpoints
from mpviz.train.plan import compare


class Keeper:
    """The checkpoints of one run in its folder; without a folder nothing is kept.

    identity: all that decides the run's outcome, as JSON data. what: its kind, in words. writes: False for all
    processes of a run but one. checkpoint: the last good one.
    """

    def __init__(
        self, folder: Path | None, identity: Mapping[str, Any], what: str = "recovery", writes: bool = True
    ) -> None:
        self.folder, self.identity, self.what, self.writes = folder, dict(identity), what, writes
        self.checkpoint: Path | None = None

    def newest(self) -> checkpoints.Saved | None:
        """What the folder holds, for `take_up`. Raises CheckpointError when all of it is damaged."""
        return None if self.folder is None else checkpoints.newest(self.folder)

    def take_up(self, saved: checkpoints.Saved | None, model: nn.Module, memory: torch.optim.Optimizer) -> None:
        """Give network and optimiser what a checkpoint holds. Raises CheckpointError when it is of another run."""
        if self.folder is None:
            return
        if self.writes:
            checkpoints.sweep(self.folder)
        if saved is not None:
            compare(self.identity, saved.progress.identity, self.folder, self.what)
            model.load_state_dict(saved.part("model/"))
            checkpoints.restore_optimizer(memory, model, saved.part("optimizer/"))
            self.checkpoint = saved.path

    def write(
        self,
        model: nn.Module,
        masks: Mapping[str, Tensor],
        memory: torch.optim.Optimizer,
        randomness: Mapping[str, Tensor],
        progress: checkpoints.Progress,
    ) -> None:
        """Write the checkpoint of a step. Raises TrainingError for a network that is not finite: it is not kept."""
        if self.folder is None:
            return
        statistics = [one for one in model.named_buffers() if one[0].endswith(("running_mean", "running_var"))]
        for name, values in (*model.named_parameters(), *statistics):
            if not bool(torch.isfinite(values).all()):
                raise TrainingError(
                    f"{name} is not finite after step {progress.step}; lower the learning rate; {self.kept()}"
                )
        path = checkpoints.path_of(self.folder, progress.step)
        if self.writes:
            tensors = checkpoints.optimizer_tensors(memory, model)
            checkpoints.write(path, model, masks, tensors, randomness, progress)
        self.checkpoint = path

    def spoiled(self, step: int, model: nn.Module, images: Tensor) -> None:
        """The loss after `step` updates is not finite: drop that checkpoint, and those that answer no better.

        An update may leave weights that are finite and answers that are not, and the loss tells only a step later.
        images: the batch at hand; where it is not finite itself, the data are to blame, and all checkpoints stay.
        """
        if self.folder is None or not bool(torch.isfinite(images).all()):
            return
        found = checkpoints.all_of(self.folder)
        good = [path for path in found if path != checkpoints.path_of(self.folder, step)]
        while self.writes and good and not _answers_at(good[-1], model, images):
            good.pop()
        for path in found if self.writes else ():
            if path not in good:
                path.unlink(missing_ok=True)
        self.checkpoint = good[-1] if good else None

    def kept(self) -> str:
        """The end of a sentence about a run that stops."""
        if self.folder is None:
            return "nothing was kept: out=None"
        if self.checkpoint is None:
            return f"no checkpoint in {self.folder} was good"
        return f"the last good checkpoint is {self.checkpoint}"


def check_every(every: Any) -> None:
    """Raises TrainingError for a number of steps between checkpoints that is none."""
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise TrainingError(f"every = {every!r}; give a number of steps between checkpoints, 1 or more")


def open_folder(out: str | Path | None) -> Path | None:
    """The folder of a run, made where it is missing. Raises CheckpointError where it cannot be."""
    if out is None:
        return None
    folder = Path(out).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"cannot make the folder {folder} ({error}); choose another") from error
    return folder


@torch.no_grad()
def answers(network: nn.Module, images: Tensor) -> bool:
    """Whether a network, which is left in eval mode, gives finite logits."""
    return bool(torch.isfinite(network.eval()(images)).all())


def _answers_at(path: Path, model: nn.Module, images: Tensor) -> bool:
    """The same of a checkpoint; a damaged one does not."""
    network = copy.deepcopy(model)
    try:
        network.load_state_dict(checkpoints.read(path).part("model/"))
    except CheckpointError:
        return False
    return answers(network, images)
