"""python recovery_kills.py FOLDER KILLS SEED EPOCHS: kill a recovery KILLS times, finish it, print findings as JSON.

Torch is loaded once and each attempt is a fork of this process, so that an attempt starts at once and a kill may fall
on any moment of it: on loading the checkpoint, on a step, on a file being written.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from mpviz.train import checkpoints
from mpviz.train.distill import Recovery
from mpviz.train.metrics import Metrics
from tests.train.recovery_case import digest, recover

EVERY = 2  # even, as are all steps of an even number of epochs


def attempt(folder: Path, epochs: int, kill_after: float) -> bool:
    """One attempt in a process of its own; True when it was killed before it was through."""
    child = os.fork()
    if child == 0:
        recover("dropout", folder, every=EVERY, epochs=epochs)
        os._exit(0)
    time.sleep(kill_after)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def timed(epochs: float) -> tuple[float, Recovery]:
    """Seconds of a recovery that nothing stops."""
    begin = time.monotonic()
    run = recover("dropout", epochs=epochs)
    return time.monotonic() - begin, run


def look(folder: Path) -> tuple[int, int]:
    """Last step of the checkpoints and of the metrics; each file must be readable. -1 where there is none yet."""
    steps = [checkpoints.read(path).progress.step for path in folder.glob("step-*.safetensors")]
    rows = Metrics(folder, until=10**9, write=False).rows
    return max(steps, default=-1), max((row["step"] for row in rows), default=-1)


def main(folder: Path, kills: int, seed: int, epochs: int) -> None:
    torch.set_num_threads(1)
    moments, found = random.Random(seed), []
    recover("dropout", epochs=1)  # loads what training needs, once for all attempts
    starting, _ = timed(1e-9)  # one step
    training, whole = timed(epochs)
    longest = starting + 0.8 * training / kills  # all attempts together train for less long than one run
    while len(found) < kills:
        assert attempt(folder, epochs, moments.uniform(0.0, longest)), "it ended too soon to be killed that often"
        found.append(look(folder))
    broken = list(folder.glob(".*.part"))
    run = recover("dropout", folder, every=EVERY, epochs=epochs)
    print(
        json.dumps(
            {
                "found": found,
                "broken": len(broken),
                "left": sorted(path.name for path in folder.iterdir()),
                "same_weights": digest(run.model) == digest(whole.model),
                "same_curve": run.curve.equals(whole.curve),
                "same_history": run.history.drop(columns="seconds").equals(whole.history.drop(columns="seconds")),
                "steps": run.steps,
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:5]))
