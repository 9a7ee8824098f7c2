"""The training limit: with weight decay the random part of a layer shrinks away and its learned spikes settle.

Two equal networks are trained from the same start W = S + R, on the same batches, one with an L₂ penalty and one
without. Beside both stands what decay alone does to the initial noise, e^{−ηλt}: as long as the bulk follows that line,
its collapse is no discovery of the training but arithmetic of the penalty, and the run without a penalty keeps its
bulk. A finite network illustrates the limit theorem of Berlyand, Bourdais, Owhadi & Shmalo (2026); it proves nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpviz.errors import Cancelled, TrainingError
from mpviz.nets.architectures import MLP
from mpviz.nets.compare import leading_vectors, overlap
from mpviz.nets.data import Splits, load_data
from mpviz.nets.evolution import Evolution, evolution
from mpviz.nets.spectra import spectrum
from mpviz.train.loop import penalised

Progress = Callable[[float, str], None]

LAYER = "features.fc2.weight"
_TEST_IMAGES = 2000
_MEASURED = ("steps", "plain_decay", "noise_left", "loss", "accuracy", "planted_overlap", "final_overlap")


@dataclass(frozen=True)
class LimitPlan:
    """What the experiment depends on, beside the data.

    width: both sides of the layer that is followed. planted: singular values of S in units of σ√width, where the
    Baik–Ben Arous–Péché transition of a square layer is at 1. decay: λ of the penalty (λ/2)‖W‖_F², added to the
    gradient as λW. rate: η, constant, plain SGD without momentum, so that decay alone multiplies W by (1 − ηλ) a step.
    snapshots: checkpoints, the start and the end included. images: how many training images are used.
    """

    width: int = 512
    planted: tuple[float, ...] = (3.0, 2.5, 2.0, 1.5)
    decay: float = 5e-3
    rate: float = 0.1
    epochs: int = 100
    batch: int = 100
    snapshots: int = 21
    images: int = 10_000
    seed: int = 0


@dataclass(frozen=True)
class LimitRun:
    """One of the two trainings. decay: its λ. evolution: the layer's spectra.

    table, indexed by epoch: the columns of `Evolution.table` and steps; plain_decay = (1 − ηλ)^steps ≈ e^{−ηλt},
    computed, not measured; noise_left = ⟨W, R₀⟩ / ‖R₀‖², the share of the initial noise still in W; loss
    (cross-entropy of the epoch) and accuracy on test images, both measured; planted_overlap and final_overlap: mean
    squared cosine between the leading k left and right singular vectors of W and those of the planted S, or those of W
    at the last epoch (k = number of planted spikes; chance level k / width).
    """

    decay: float
    evolution: Evolution
    table: pd.DataFrame


@dataclass(frozen=True)
class TrainingLimit:
    """Both trainings from one start: `penalised` with the decay of the plan, `free` without."""

    plan: LimitPlan
    data: str
    test_images: int
    penalised: LimitRun
    free: LimitRun


def training_limit(
    splits: Splits | None = None,
    plan: LimitPlan | None = None,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> TrainingLimit:
    """Train W = S + R with and without L₂ and follow bulk, spikes and subspaces.

    splits: what `load_data` gives; the bundled Fashion-MNIST when None. Training sees `splits.train` only; accuracy is
    measured on up to 2 000 test images. Raises TrainingError when the plan cannot be trained or diverges, Cancelled
    when asked to stop.
    """
    plan = plan or LimitPlan()
    _check(plan)
    splits = splits or load_data("fashion-mnist", folder="bundled")
    images = splits.train.sample(min(plan.images, len(splits.train)), plan.seed)
    if len(images[1]) < plan.batch:
        raise TrainingError(f"{len(images[1])} training images are fewer than one batch of {plan.batch}; lower batch")
    test = splits.test.sample(min(_TEST_IMAGES, len(splits.test)), plan.seed)
    runs = []
    for part, decay in enumerate((plan.decay, 0.0)):
        if progress is not None:
            progress(part / 2, f"training with λ = {decay:g}")
        step = _reporter(progress, part, plan.epochs, decay)
        runs.append(_train(plan, decay, images, test, len(splits.train.classes), step, cancelled))
    return TrainingLimit(plan, splits.source, len(test[1]), *runs)


def to_record(result: TrainingLimit) -> dict[str, Any]:
    """The experiment as JSON data: plan, measured columns, and eigenvalues with six digits."""
    return {
        "plan": dataclasses.asdict(result.plan),
        "data": result.data,
        "test_images": result.test_images,
        "runs": [
            {
                "decay": run.decay,
                "epochs": run.table.index.tolist(),
                "columns": {name: run.table[name].tolist() for name in _MEASURED},
                "eigenvalues": [[float(f"{x:.6g}") for x in values] for values in run.evolution.eigenvalues],
            }
            for run in (result.penalised, result.free)
        ],
    }


def from_record(record: Mapping[str, Any]) -> TrainingLimit:
    """The experiment from what `to_record` gave; the spectra are fitted again.

    Raises TrainingError when it is not such a record.
    """
    try:
        plan = LimitPlan(**{**record["plan"], "planted": tuple(record["plan"]["planted"])})
        runs = []
        for run in record["runs"]:
            rows = pd.DataFrame({"epoch": run["epochs"], **run["columns"]}).to_dict("records")
            runs.append(_joined(run["decay"], plan.width, rows, [np.asarray(v) for v in run["eigenvalues"]]))
        return TrainingLimit(plan, record["data"], record["test_images"], *runs)
    except (KeyError, TypeError, ValueError) as error:
        raise TrainingError(f"this is no record of a training limit ({error!r}); write one with to_record") from error


def _check(plan: LimitPlan) -> None:
    if plan.epochs < 1 or plan.snapshots < 2:
        raise TrainingError(
            f"{plan.epochs} epochs with {plan.snapshots} snapshots show nothing; ask for 1 and 2 or more"
        )
    if not 0 <= plan.rate * plan.decay < 1:
        raise TrainingError(f"rate × decay = {plan.rate * plan.decay:g} is no shrinking factor; keep it in [0, 1)")
    if plan.batch < 1 or plan.seed < 0:
        raise TrainingError(f"batch {plan.batch} and seed {plan.seed} cannot be used; give at least 1 and 0")
    if not 0 < len(plan.planted) < plan.width:
        raise TrainingError(f"{len(plan.planted)} planted spikes do not fit a width of {plan.width}; plant 1 or more")


def _reporter(progress: Progress | None, part: int, epochs: int, decay: float) -> Callable[[int], None]:
    def report(epoch: int) -> None:
        if progress is not None:
            progress((part + epoch / epochs) / 2, f"λ = {decay:g}: epoch {epoch} of {epochs}")

    return report


@dataclass(frozen=True)
class _Start:
    """The planted start of the followed layer: W = S + R. left, right: singular vectors of S, Float["width k"]."""

    noise: Tensor
    signal: Tensor
    left: np.ndarray
    right: np.ndarray


def _seeds(plan: LimitPlan) -> list[int]:
    """Of the planted layer, the other weights and the order of the images: R must be independent of both."""
    return [int(seed) for seed in np.random.SeedSequence(plan.seed).generate_state(3)]


def _start(plan: LimitPlan) -> _Start:
    rng = torch.Generator().manual_seed(_seeds(plan)[0])
    width, k = plan.width, len(plan.planted)
    sigma = 1.0 / math.sqrt(width)
    noise = sigma * torch.randn(width, width, generator=rng)
    left, _ = torch.linalg.qr(torch.randn(width, k, generator=rng))
    right, _ = torch.linalg.qr(torch.randn(width, k, generator=rng))
    strengths = torch.tensor(plan.planted) * sigma * math.sqrt(width)
    return _Start(noise, left @ torch.diag(strengths) @ right.T, left.double().numpy(), right.double().numpy())


def _train(
    plan: LimitPlan,
    decay: float,
    images: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    classes: int,
    report: Callable[[int], None],
    cancelled: Callable[[], bool] | None,
) -> LimitRun:
    start = _start(plan)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_seeds(plan)[1])
        model = MLP((images[0][0].numel(), plan.width, plan.width, classes))
    layer = dict(model.named_parameters())[LAYER]
    with torch.no_grad():
        layer.copy_(start.noise + start.signal)
    wanted = {round(i * plan.epochs / (plan.snapshots - 1)) for i in range(plan.snapshots)}
    weights, rows = [], []
    for epoch, steps, loss in _epochs(model, plan, decay, images, cancelled):
        report(epoch)
        if epoch not in wanted:
            continue
        matrix = layer.detach().double()
        noise = start.noise.double()
        weights.append(matrix.numpy().copy())
        rows.append(
            {
                "epoch": epoch,
                "steps": steps,
                "plain_decay": (1.0 - plan.rate * decay) ** steps,
                "noise_left": float((matrix * noise).sum() / noise.square().sum()),
                "loss": loss,
                "accuracy": _accuracy(model, *test),
            }
        )
    return _follow(decay, start, weights, rows)


def _epochs(
    model: nn.Module,
    plan: LimitPlan,
    decay: float,
    images: tuple[Tensor, Tensor],
    cancelled: Callable[[], bool] | None,
) -> Iterator[tuple[int, int, float]]:
    """(epoch, steps so far, mean loss of the epoch), first at epoch 0, before any step."""
    x, y = images
    matrices = penalised(model)
    ids = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in ids]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=plan.rate)
    order_rng = torch.Generator().manual_seed(_seeds(plan)[2])
    steps = 0
    with torch.no_grad():
        yield 0, 0, float(F.cross_entropy(model(x), y))
    for epoch in range(1, plan.epochs + 1):
        total, batches = 0.0, torch.randperm(len(x), generator=order_rng).split(plan.batch)
        for chosen in batches:
            if cancelled is not None and cancelled():
                raise Cancelled("the training was cancelled; nothing was written")
            loss = F.cross_entropy(model(x[chosen]), y[chosen])
            if not torch.isfinite(loss):
                raise TrainingError(f"the loss is {loss.item()} in epoch {epoch}; lower the rate of {plan.rate:g}")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            steps += 1
            total += loss.item() * len(chosen)
        yield epoch, steps, total / len(x)


def _accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((model(x).argmax(1) == y).double().mean())


def _follow(decay: float, start: _Start, weights: list[np.ndarray], rows: list[dict]) -> LimitRun:
    """Spectra and subspace angles of the collected weights."""
    k = start.left.shape[1]
    pairs = [leading_vectors(matrix, k) for matrix in weights]
    for row, pair in zip(rows, pairs, strict=True):
        row["planted_overlap"] = _both_sides(pair, (start.left, start.right))
        row["final_overlap"] = _both_sides(pair, pairs[-1])
    return _joined(decay, len(weights[0]), rows, [spectrum(matrix) for matrix in weights])


def _joined(decay: float, width: int, rows: list[dict], eigenvalues: list[np.ndarray]) -> LimitRun:
    labels = [f"epoch {row['epoch']}" for row in rows]
    followed = evolution(LAYER, (width, width), labels, eigenvalues)
    table = pd.concat([pd.DataFrame(rows), followed.table.reset_index(drop=True)], axis=1).set_index("epoch")
    return LimitRun(decay, followed, table)


def _both_sides(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> float:
    return float(np.mean([overlap(a, b) for a, b in zip(one, other, strict=True)]))
