"""A benchmark from a network to its report: 2:4 weights, packing, arms in turns, limits."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from mpviz.benchmark.endpoints import ENDPOINTS, TOLERANCE, Endpoint, build, chosen, missing
from mpviz.benchmark.ledger import Arm, BenchReport, Cell, cell_path, read_cell, write_cell
from mpviz.benchmark.limits import amdahl, products, roofline, winners
from mpviz.benchmark.machine import describe, rates
from mpviz.benchmark.packing import best_two, broken_groups, pack, packable
from mpviz.benchmark.timing import Call, time_arms
from mpviz.errors import ModelError, PatternError, nearest
from mpviz.nets.forward import pruned_copy
from mpviz.nets.kn_pattern import KN
from mpviz.nets.layers import as_matrix, list_layers, weight_of
from mpviz.nets.macs import Macs, count_macs
from mpviz.nets.tome import merging, schedule_of
from mpviz.nets.zoo import source_of

FIRST = ENDPOINTS["fp32"]  # whose logits all others must give
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
    table = _packing(model, orders, prune)
    names = list(table.index[table["packs"]])
    # a copy, also where nothing is pruned: tokens merge in it
    network = pruned_copy(model, _two_of_four(model, names, orders) if prune else {})
    plan = _Plan(
        name or _name(model), place, chosen(endpoints, place, _has_convs(model)), names, orders, rounds, warmup,
        _weights(table), input_size, cancelled,
    )  # fmt: skip
    about: dict[str, Any] = {"model": plan.title, "device": str(place), "weights": plan.weights}
    shapes, cells = pd.DataFrame(), []
    todo = [(merges, batch) for merges in schedules for batch in sizes]
    for i, (merges, batch) in enumerate(todo):

        def tell(share: float, what: str, i: int = i, batch: int = batch) -> None:
            if progress is not None:
                progress((i + share) / len(todo), f"batch {batch}, {what}")

        path = None if out is None else cell_path(Path(out), plan.title, batch, merges, place.type)
        with merged(network, merges) as running:
            macs = count_macs(running, input_size)
            if layers and not len(shapes):
                tell(0.0, "layers")
                reached = rates(place, torch.bfloat16 if place.type == "cuda" else torch.float32)
                shapes = roofline(products(macs, table, batch), reached, place)
                about["rates"] = asdict(reached)
            if path is not None and path.exists():
                cells.append(read_cell(path))
                continue
            cells.append(plan.cell(running, macs, batch, merges, winners(shapes) if len(shapes) else [], tell))
        if path is not None:
            write_cell(path, cells[-1])
    return BenchReport(tuple(cells), table, shapes, about)


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

    @torch.inference_mode()
    def cell(self, network: nn.Module, macs: Macs, batch: int, merges: int, won: list[str], tell: Tell) -> Cell:
        """All arms of one batch, compared and then timed."""
        images = torch.randn(batch, *macs.input_size, generator=torch.Generator().manual_seed(0)).to(self.place)
        calls: dict[str, Call] = {}
        arms: dict[str, Arm] = {}
        reference = build(FIRST, network, images)().float()
        for i, one in enumerate(self.endpoints):
            tell(0.4 * i / len(self.endpoints), one.name)
            layers = [name for name in self.layers if one.sparse != "selective" or name in won]
            arm = Arm(one.name, one.arithmetic, why=missing(one, self.place))
            if not arm.why:
                arm, call = self._prepared(one, arm, network, images, layers, reference)
                calls |= {} if call is None else {one.name: call}
            arms[one.name] = arm
        found = time_arms(
            calls, self.rounds, self.warmup, self.place, lambda s, w: tell(0.4 + 0.6 * s, w), self.cancelled
        )
        for name, arm in arms.items():
            arms[name] = replace(arm, timing=found.arms.get(name), why=arm.why or found.failed.get(name, ""))
        return Cell(self.title, batch, merges, macs.input_size, tuple(arms.values()), amdahl(macs, self.layers),
                    describe(self.place), " ".join(sys.argv), self.weights)  # fmt: skip

    def _prepared(
        self, one: Endpoint, arm: Arm, network: nn.Module, images: Tensor, layers: list[str], reference: Tensor
    ) -> tuple[Arm, Call | None]:
        """The call of an endpoint whose logits are right; without one, the reason."""
        try:
            call = build(one, network, images, layers, self.orders)
            error = float((call().float() - reference).norm() / reference.norm())
        except torch.OutOfMemoryError as failed:
            return replace(arm, why=f"out of memory: {str(failed).splitlines()[0]}"), None
        if not error <= TOLERANCE[one.arithmetic]:  # also where it is no number
            why = f"its logits are {error:.2g} of their size away from float32's, so it was not timed"
            return replace(arm, error=error, why=why), None
        return replace(arm, error=error, converted=len(layers) if one.sparse else 0), call


@contextlib.contextmanager
def merged(network: nn.Module, merges: int) -> Iterator[nn.Module]:
    """The network with so many pairs of tokens merged a block; with none, as it is."""
    if not merges:
        yield network
        return
    with merging(network, merges) as running:
        yield running


def _packing(model: nn.Module, orders: Mapping[str, Tensor], prune: bool) -> pd.DataFrame:
    """The table of `packable` of prunable layers, in their orders, with each layer packed and unpacked.

    Raises PatternError where nothing packs, and for weights that are not 2:4 and may not be pruned.
    """
    table, infos = packable(model), {info.name: info for info in list_layers(model)}
    for name, order in orders.items():
        if name not in table.index:
            raise PatternError(f"the order of '{name}' belongs to no layer; {nearest(name, table.index)}")
        table.loc[name, "broken"] = broken_groups(as_matrix(weight_of(model, name))[:, order.cpu()])
        if infos[name].kind != "Linear":
            table.loc[name, ["packs", "why"]] = False, "only Linear layers gather inputs in another order"
    for name, info in infos.items():
        if table.loc[name, "packs"] and not info.prunable:
            table.loc[name, ["packs", "why"]] = False, f"{info.why}; stays dense"
    packs = table[table["packs"]]
    if not len(packs):
        why = "; ".join(f"{name}: {one}" for name, one in table["why"].head(3).items())
        raise PatternError(f"no layer of {type(model).__name__} packs as 2:4 ({why})")
    if not prune and packs["broken"].any():
        broken = packs[packs["broken"] > 0]
        first = ", ".join(f"{name} has {count}" for name, count in broken["broken"].head(3).items())
        raise PatternError(
            f"{len(broken)} of {len(packs)} layers are not 2:4: {first} groups of four that keep more than two; "
            "project the model, or leave prune on for timings alone"
        )
    kept = _two_of_four(model, list(packs.index), orders)
    for name in packs.index:
        matrix = as_matrix(torch.where(kept[name], weight_of(model, name), 0)).to(torch.bfloat16)
        matrix = matrix if name not in orders else matrix[:, orders[name].to(matrix.device)]
        packed = pack(matrix)
        table.loc[name, "exact"] = torch.equal(packed.dense(), matrix)
        table.loc[name, "bytes_dense"], table.loc[name, "bytes_packed"] = matrix.nbytes, packed.bytes
    return table


def _two_of_four(model: nn.Module, names: Sequence[str], orders: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Masks of the two largest of every four inputs, in the orders that are given."""
    masks = {}
    for name in names:
        weight = weight_of(model, name)
        matrix, order = as_matrix(weight), orders.get(name)
        if order is None:
            masks[name] = best_two(matrix).reshape(weight.shape)
        else:
            order = order.to(matrix.device).long()
            masks[name] = best_two(matrix[:, order])[:, order.argsort()].reshape(weight.shape)
    return masks


def _weights(table: pd.DataFrame) -> str:
    """Where the 2:4 weights come from, in a sentence."""
    packs = table[table["packs"]]
    broken = int((packs["broken"] > 0).sum())
    if not broken:
        return f"all {len(packs)} layers that pack were 2:4"
    return f"{broken} of {len(packs)} layers that pack were pruned to 2:4 for the timing; their answers mean nothing"


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
