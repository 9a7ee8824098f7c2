"""What recovery costs beyond its passes: python tests/benchmarks/recovery_overhead.py [--rounds 40].

A step of recovery has to run the student forward and backward and the teacher forward. All else is overhead: reading
the batch, the loss with its divergence, the optimiser, the masks, the metrics. The bare passes run on a copy of the
same pruned student. Arms are interleaved, in another order every other round; ratios are taken within a round, and
medians over rounds. `over_passes` is the whole step against the bare passes; `over_passes_and_update` against the
passes and the bare optimiser's update, which any training needs; `masks` is the re-application alone. Checkpoints are
left out, as their number is the user's choice; `checkpoint_seconds` is the time of one.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from record import write
from torch import nn
from torch.nn import functional as F

import mpviz as mp
from mpviz.nets.forward import pruned_copy
from mpviz.train.optimizers import build_optimizer
from mpviz.train.plan import make_plan
from mpviz.train.processes import choose_device, open_accelerator
from mpviz.train.recovery import Setting, Training

NETWORKS = {"fashion-vit": ("adamw", 32), "fashion-resnet": ("sgd", 256), "fashion-mlp": ("adamw", 32)}
SPARSITY = 0.7
# an update follows the passes that fill its gradients
ORDERS = (
    ("student", "update", "teacher", "masks", "recovery"),
    ("recovery", "masks", "teacher", "student", "update"),
)


def seconds(device: torch.device, work: Callable[[], object]) -> float:
    """On one CPU thread its own seconds, which other programs on the machine do not lengthen; on a GPU wall seconds."""
    if device.type == "cpu":
        started = time.process_time()
        work()
        return time.process_time() - started
    torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - started


class Bare:
    """The passes and the update that no recovery can do without, on their own copy of the student."""

    def __init__(self, student: nn.Module, teacher: nn.Module, optimizer: str, device: torch.device) -> None:
        self.student, self.teacher = copy.deepcopy(student).to(device).train(), teacher
        self.optimizer = build_optimizer(self.student, optimizer, 1e-5, 0.01, 0.9)

    def forward_backward(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        F.cross_entropy(self.student(images), labels).backward()

    @torch.no_grad()
    def teach(self, images: torch.Tensor) -> None:
        self.teacher(images)

    def update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def measure(name: str, rounds: int, device: torch.device) -> dict[str, float | int | str]:
    optimizer, batch = NETWORKS[name]
    dense, data = mp.load_model(name), mp.load_data("fashion-mnist", folder="bundled").train
    masks = mp.magnitude_masks(dense, sparsity=SPARSITY)
    teacher = copy.deepcopy(dense).to(device)
    plan = make_plan(optimizer=optimizer, batch=batch, epochs=1000)
    rows: dict[str, list[float]] = {arm: [] for arm in ORDERS[0]}
    with contextlib.ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        accelerator = stack.enter_context(open_accelerator(device, "no", None))
        student = pruned_copy(dense, masks)
        setting = Setting(student, teacher, masks, data, 10, plan, {}, Path(folder), 10**9, 0)
        training = Training(setting, accelerator, stack)
        bare = Bare(student, teacher, optimizer, device)
        training.begin()
        training.network.train()
        steps = itertools.chain.from_iterable(training.feed.batches(epoch) for epoch in itertools.count())
        for number in range(rounds + 5):
            parts, _ = held = next(steps)
            images, labels = parts[0].images.to(device), parts[0].labels.to(device)
            arms: dict[str, Callable[[], object]] = {
                "student": lambda x=images, y=labels: bare.forward_backward(x, y),
                "update": bare.update,
                "teacher": lambda x=images: bare.teach(x),
                "masks": training.frozen.apply,
                # reading a batch belongs to the step: the next one is read, this one trained on
                "recovery": lambda batch=held: (next(steps), training.take_step(0, *batch)),
            }
            for arm in ORDERS[number % 2]:
                spent = seconds(device, arms[arm])
                if number >= 5:
                    rows[arm].append(spent)
        checkpoint = statistics.median(seconds(device, training.save) for _ in range(5))
        training.metrics.close()
    middle = {arm: statistics.median(values) for arm, values in rows.items()}
    return {
        "optimizer": optimizer,
        "batch": batch,
        "rounds": rounds,
        **{f"{arm}_ms": round(1e3 * value, 3) for arm, value in middle.items()},
        "over_passes": round(over(rows, "recovery", "student", "teacher") - 1, 4),
        "over_passes_and_update": round(over(rows, "recovery", "student", "teacher", "update") - 1, 4),
        "masks": over(rows, "masks", "student", "teacher"),
        "checkpoint_seconds": round(checkpoint, 4),
    }


def over(rows: dict[str, list[float]], arm: str, *bare: str) -> float:
    """Median over rounds of one arm against the sum of others in the same round."""
    sums = [sum(values) for values in zip(*(rows[name] for name in bare), strict=True)]
    return round(statistics.median(a / b for a, b in zip(rows[arm], sums, strict=True)), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--device", default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device, why = choose_device(arguments.device)
    results = {}
    for name in NETWORKS:
        results[name] = measure(name, arguments.rounds, device)
        print(name, results[name], flush=True)
    command = f"python tests/benchmarks/recovery_overhead.py --rounds {arguments.rounds}"
    write("recovery-overhead", command, {"device": why, "sparsity": SPARSITY, "goal": 0.05, "networks": results})


if __name__ == "__main__":
    main()
