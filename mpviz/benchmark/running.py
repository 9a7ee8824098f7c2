"""A benchmark from a network to its report: 2:4 weights, packing, arms in turns, limits."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from mpviz.benchmark.endpoints import ENDPOINTS, FIRST, TOLERANCE, Endpoint, build, chosen, convertible, missing
from mpviz.benchmark.ledger import Arm, BenchReport, Cell, cell_path, read_cell, write_cell
from mpviz.benchmark.limits import amdahl, products, roofline, winners
from mpviz.benchmark.machine import describe, rates
from mpviz.benchmark.timing import Call, no_memory, stop_if, time_arms
from mpviz.benchmark.weights import packed_layers, told
from mpviz.errors import CheckpointError, ModelError, PatternError
from mpviz.nets.forward import pruned_copy
from mpviz.nets.kn_pattern import KN
from mpviz.nets.layers import list_layers
from mpviz.nets.macs import count_macs
from mpviz.nets.tome import merging, schedule_of
from mpviz.nets.zoo import source_of

BATCHES = {"cpu": (1, 8), "cuda": (64, 128, 256)}
Tell = Callable[[float, str], None]


def bench(
    model: nn.Module, pattern: str | KN = "2:4", batches: Sequence[int] | None = None,
    endpoints: Sequence[str] | None = None, *, tome: Sequence[int] | int = 0, input_size: Any = None,
    device: str | torch.device | None = None, permutations: Mapping[str, Tensor] | None = None, prune: bool = True,
    layers: bool = True, rounds: int = 20, warmup: int = 3, out: str | Path | None = None, name: str | None = None,
    progress: Tell | None = None, cancelled: Callable[[], bool] | None = None,
) -> BenchReport:  # fmt: skip
    """Time a network in every way to run it that this machine has, 2:4 among them, all with the same weights.

    Arms take turns within one run, after each has given the logits of the first one (float32, eager) to its own
    precision; one that does not is never timed. On a CPU there are no 2:4 kernels: dense endpoints are timed, and the
    packing of each layer is checked (see `packing`).

    batches: images a call, (1, 8) on a CPU and (64, 128, 256) on a GPU. endpoints: names of
    `mpviz.benchmark.endpoints.ENDPOINTS`; None takes those that suit device and network. tome: pairs of tokens merged a
    block, one number or several to compare; a model that merges already is timed as it is. device: "cuda" where there
    is one. permutations: of a projection, as in `mp.load(path).permutations`; those Linear layers gather their inputs.
    prune: weights that are not 2:4 lose the two smaller of every four, for the timing only; False refuses them. layers:
    time each shape of layer by itself beside its limits, which "2:4 selective compiled" needs. rounds, warmup: of
    `time_arms`. out: a folder that keeps each cell as JSON with all raw timings; those there are not run again. name:
    of the model in the files, its own by default.

    The model is left as it is. Raises PatternError for another pattern than 2:4, for weights that are not 2:4 when
    prune is off, and where no layer packs; ModelError for unknown endpoints, images that do not fit and merges that
    are not possible; CheckpointError for an `out` that cannot be written or read; Cancelled.
    """
    if str(KN.parse(pattern)) != "2:4":
        raise PatternError(f"no hardware multiplies {pattern} faster than dense; give pattern='2:4'")
    place = _place(device)
    sizes, schedules = _positive(batches if batches is not None else BATCHES[place.type]), _schedules(model, tome)
    orders = dict(permutations or {})
    table, masks = packed_layers(model, orders, prune)
    network = pruned_copy(model, masks)  # which changes nothing where all is 2:4; tokens merge in the copy
    plan = _Plan(
        name or _name(model), place, chosen(endpoints, place, _has_convs(model)), list(masks), orders, rounds, warmup,
        told(table), input_size, cancelled,
    )  # fmt: skip
    cells = []
    todo = [(merges, batch) for merges in schedules for batch in sizes]
    for i, (merges, batch) in enumerate(todo):

        def tell(share: float, what: str, i: int = i, batch: int = batch) -> None:
            if progress is not None:
                progress((i + share) / len(todo), f"batch {batch}, {what}")

        path = None if out is None else cell_path(Path(out), plan.title, batch, merges, place.type)
        if path is not None and path.exists():
            cells.append(plan.kept(path))
            continue
        with merging(network, merges or schedule_of(network) or 0) as running:
            cells.append(plan.cell(running, table if layers else None, batch, merges, tell))
        if path is not None:
            write_cell(path, cells[-1])
    return BenchReport(tuple(cells), table, {"model": plan.title, "device": str(place), "weights": plan.weights})


@dataclass(frozen=True, eq=False)
class _Plan:
    """What all cells share."""

    title: str
    place: torch.device
    endpoints: list[Endpoint]
    layers: list[str]
    orders: Mapping[str, Tensor]
    rounds: int
    warmup: int
    weights: str
    input_size: Any
    cancelled: Callable[[], bool] | None

    def kept(self, path: Path) -> Cell:
        """The cell that is there. Raises CheckpointError where it is of other hardware or lacks an endpoint."""
        cell = read_cell(path)
        here, there = describe(self.place), cell.machine
        asked = [one.name for one in self.endpoints]
        lacks = [name for name in asked if name not in {arm.endpoint for arm in cell.arms}]
        same = all(here.get(key) == there.get(key) for key in ("hardware", "gpu"))
        if not same or lacks or cell.weights != self.weights:
            what = f"has no {lacks[0]}" if lacks else "has other weights" if same else f"is of {there.get('hardware')}"
            raise CheckpointError(f"{path} {what}; name another folder, or remove it to measure again")
        return cell

    @torch.inference_mode()
    def cell(self, network: nn.Module, table: pd.DataFrame | None, batch: int, merges: int, tell: Tell) -> Cell:
        """All arms of one batch, compared and then timed. table: of layers that are timed by themselves."""
        macs = count_macs(network, self.input_size)
        arms = {one.name: Arm(one.name, one.arithmetic, why=missing(one, self.place)) for one in self.endpoints}
        shapes, reached = pd.DataFrame(), None
        try:
            if table is not None:
                tell(0.0, "layers")
                reached = rates(self.place, torch.bfloat16 if self.place.type == "cuda" else torch.float32)
                shapes = roofline(products(macs, table, batch), reached, self.place)
            images = torch.randn(batch, *macs.input_size, generator=torch.Generator().manual_seed(0)).to(self.place)
            arms |= self._timed(arms, network, images, winners(shapes) if len(shapes) else [], tell)
        except torch.OutOfMemoryError as failed:  # not even one call of float32, or one layer, fits
            arms = {name: replace(arm, why=arm.why or no_memory(failed)) for name, arm in arms.items()}
        return Cell(
            self.title, batch, merges, macs.input_size, tuple(arms.values()), amdahl(macs, self.layers),
            describe(self.place), _command(), self.weights, tuple(json.loads(shapes.to_json(orient="records"))),
            {} if reached is None else asdict(reached),
        )  # fmt: skip

    def _timed(
        self, arms: Mapping[str, Arm], network: nn.Module, images: Tensor, won: list[str], tell: Tell
    ) -> dict[str, Arm]:
        """The arms, each compared with float32, and those that are right timed in turns."""
        reference = build(ENDPOINTS[FIRST], network, images)().float()
        calls: dict[str, Call] = {}
        done: dict[str, Arm] = {}
        for i, one in enumerate(self.endpoints):
            stop_if(self.cancelled)
            tell(0.2 + 0.3 * i / len(self.endpoints), one.name)
            arm, call = arms[one.name], None
            if not arm.why:
                arm, call = self._prepared(one, arm, network, images, won, reference)
            if call is not None:
                calls[one.name] = call
            done[one.name] = arm

        def timing(share: float, what: str) -> None:
            tell(0.5 + 0.5 * share, what)

        found = time_arms(calls, self.rounds, self.warmup, self.place, timing, self.cancelled)
        return {
            name: replace(arm, timing=found.arms.get(name), why=arm.why or found.failed.get(name, ""))
            for name, arm in done.items()
        }

    def _prepared(
        self, one: Endpoint, arm: Arm, network: nn.Module, images: Tensor, won: list[str], reference: Tensor
    ) -> tuple[Arm, Call | None]:
        """The call of an endpoint whose logits are right; without one, the reason."""
        asked = won if one.sparse == "selective" else self.layers
        layers = convertible(one, network, asked) if one.converts else []
        if one.converts and not layers:
            return replace(arm, why=_no_layer(one)), None
        try:
            call = build(one, network, images, layers, self.orders)
            error = float((call().float() - reference).norm() / reference.norm())
        except torch.OutOfMemoryError as failed:
            return replace(arm, why=no_memory(failed)), None
        if not error <= TOLERANCE[one.arithmetic]:  # also where it is no number
            why = f"its logits are {error:.2g} of their size away from float32's, so it was not timed"
            return replace(arm, error=error, why=why), None
        return replace(arm, error=error, converted=len(layers)), call


def _no_layer(endpoint: Endpoint) -> str:
    """Why an endpoint converts nothing of a network, and then would be another one by a wrong name."""
    if endpoint.eight_bit:
        return (
            f"no Linear layer that packs has sides of multiples of 32, so nothing of it would be {endpoint.arithmetic}"
        )
    what = "no layer was faster as 2:4 by itself" if endpoint.sparse == "selective" else "no Linear layer packs"
    return f"{what}, so nothing of it would be 2:4"


def _command() -> str:
    """What was called, without the folder it lies in."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def _place(device: str | torch.device | None) -> torch.device:
    """The device to time, the GPU where there is one. Raises ModelError for one that is not here."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"no device is called '{device}' here; use 'cuda' or 'cpu'") from error
    return place


def _schedules(model: nn.Module, tome: Sequence[int] | int) -> list[int]:
    schedules = [int(one) for one in ([tome] if isinstance(tome, int) else tome)] or [0]
    already = schedule_of(model)
    if already and any(schedules):
        raise ModelError(f"{type(model).__name__} merges r = {already} already; leave tome at 0 to time that")
    return schedules


def _positive(batches: Sequence[int]) -> list[int]:
    sizes = list(batches)
    if not sizes or min(sizes) < 1:
        raise ModelError(f"batches are {sizes}; give whole numbers of images, such as (64, 128)")
    return sizes


def _has_convs(model: nn.Module) -> bool:
    return any(info.kind == "Conv2d" and info.role != "stem" for info in list_layers(model))


def _name(model: nn.Module) -> str:
    source = source_of(model)
    return type(model).__name__ if source is None else source.name
