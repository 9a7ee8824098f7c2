"""python step_kills.py FOLDER KILLS SEED: kill a pruning in steps and an MP training, finish both, print findings.

Torch is loaded once and each attempt is a fork of this process, so that a kill may fall on any moment of it.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import mpviz as mp
from mpviz.errors import MpvizError
from mpviz.nets.architectures import MLP
from mpviz.train import checkpoints
from mpviz.train.mp_training import MPPlan, mp_train
from mpviz.train.ser import StepPlan, prune_in_steps
from tests.train.recovery_case import digest, digits, recover

EVERY = 2


def network() -> nn.Module:
    torch.manual_seed(0)
    return MLP((64, 40, 32, 24, 10)).eval()


def steps(folder: Path, done: Callable[[], bool] | None = None) -> nn.Module:
    plan = StepPlan("hybrid", targets=(0.2, 0.5, 0.8), selection=1.0)
    options = {"optimizer": "sgd", "learning_rate": 0.05, "batch": 64, "every": EVERY, "cancelled": done}
    return prune_in_steps(network(), digits(), 0.8, plan, out=folder, **options).model


def training(folder: Path, done: Callable[[], bool] | None = None) -> nn.Module:
    plan = MPPlan(epochs=12, every=2, horizon=20, learning_rate=0.1, batch=64)
    return mp_train(network(), digits(), plan, out=folder, every=EVERY, cancelled=done).model


def attempt(work: Callable[..., nn.Module], folder: Path, kill_after: float) -> tuple[bool, int]:
    """One attempt in a process of its own: whether it was killed before it was through, and how many steps it took."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        work(folder, lambda: not os.write(write, b"."))  # asked once a step
        os._exit(0)
    os.close(write)
    time.sleep(kill_after)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    with os.fdopen(read, "rb") as pipe:
        return os.WIFSIGNALED(status), len(pipe.read())


def unreadable(folder: Path) -> list[str]:
    bad = []
    for path in folder.rglob("[!.]*.safetensors"):
        try:
            mp.load(path, network())
        except MpvizError as error:
            bad.append(str(error))
    return bad


def reached(folder: Path) -> int:
    return max((checkpoints.read(path).progress.step for path in folder.glob("step-*.safetensors")), default=0)


def main(folder: Path, kills: int, seed: int) -> None:
    torch.set_num_threads(1)
    moments, bad, found = random.Random(seed), [], {"lost": [0]}
    recover("mlp", epochs=1e-9)  # loads what training needs, once for all attempts
    for name, work in (("steps", steps), ("training", training)):
        place = folder / name
        begin = time.monotonic()
        whole = digest(work(folder / f"{name}-whole"))
        seconds, killed = time.monotonic() - begin, 0
        for _ in range(kills):
            before = reached(place)
            stopped, taken = attempt(work, place, moments.uniform(0.0, 2 * seconds / kills))
            killed += stopped
            bad += unreadable(place)
            if work is training:
                found["lost"].append(before + taken - reached(place))
        found |= {f"same {name}": digest(work(place)) == whole, f"kills of {name}": killed}
    print(json.dumps(found | {"unreadable": bad}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:4]))
