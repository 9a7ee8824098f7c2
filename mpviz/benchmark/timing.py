"""Timing that can be compared: arms take turns in one run, and each says all that was measured of it."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from mpviz.errors import Cancelled, ModelError

LEAST = 0.01  # seconds of one sample; quicker calls are repeated within it
COUNTED = 0.5  # seconds over which energy is counted: drivers tell it some tens of times a second
Call = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """One arm of a run. samples: seconds a call, one of each round, in the order they were taken.

    wall: the same by the clock of the host, which on a GPU includes launching and waiting. calls: in a sample.
    peak_bytes: what a call takes on a GPU at most beside what lay there before it, so without weights; None on a CPU.
    joules: of a call, where the driver tells.
    """

    samples: tuple[float, ...]
    wall: tuple[float, ...]
    calls: int
    peak_bytes: int | None = None
    joules: float | None = None

    @property
    def median(self) -> float:
        """Median seconds a call."""
        return statistics.median(self.samples)

    @property
    def quartiles(self) -> tuple[float, float]:
        """A quarter of the samples took less than the first, a quarter more than the second."""
        low, _, high = statistics.quantiles(self.samples, n=4, method="inclusive")
        return low, high


@dataclass(frozen=True)
class Timings:
    """arms: by name, in the order that was asked for; failed: why an arm has no timing."""

    arms: dict[str, Timing]
    failed: dict[str, str] = field(default_factory=dict)


@torch.inference_mode()
def time_arms(
    arms: Mapping[str, Call],
    rounds: int = 20,
    warmup: int = 3,
    device: str | torch.device = "cpu",
    progress: Callable[[float, str], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Timings:
    """Time calls side by side: every round each arm runs once, and the first of a round changes.

    An arm that runs out of memory is left out with the reason, and the others go on. Raises ModelError for fewer than
    three rounds or no warm-up, Cancelled.
    """
    if rounds < 3 or warmup < 1:
        raise ModelError(f"{rounds} rounds after {warmup} warm-up calls say nothing; take 3 rounds and 1 call at least")
    place, failed = torch.device(device), {}
    counts: dict[str, int] = {}
    for name, call in arms.items():
        stop_if(cancelled)
        try:
            for _ in range(warmup):
                call()
            counts[name] = max(1, round(LEAST / max(_once(call, 1, place)[1], 1e-9)))
        except torch.OutOfMemoryError as error:
            failed[name] = no_memory(error)
            _free(place)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in counts}
    order = list(counts)
    for turn in range(rounds):
        for i in range(len(order)):
            stop_if(cancelled)
            name = order[(turn + i) % len(order)]
            taken[name].append(_once(arms[name], counts[name], place))
        if progress is not None:
            progress((turn + 1) / rounds, "timing")
    found = {}
    for name in counts:
        seconds, wall = zip(*taken[name], strict=True)
        found[name] = Timing(seconds, wall, counts[name], *_resources(arms[name], statistics.median(seconds), place))
    return Timings(found, failed)


def no_memory(error: torch.OutOfMemoryError) -> str:
    """The reason that a report gives."""
    return f"out of memory: {str(error).splitlines()[0]}"


def stop_if(cancelled: Callable[[], bool] | None) -> None:
    """Raise Cancelled where somebody asked for that."""
    if cancelled is not None and cancelled():
        raise Cancelled("the benchmark was cancelled")


def _once(call: Call, calls: int, place: torch.device) -> tuple[float, float]:
    """Seconds a call: by the device, and by the host's clock."""
    if place.type != "cuda":
        start = time.perf_counter()
        for _ in range(calls):
            call()
        took = (time.perf_counter() - start) / calls
        return took, took
    before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(place)
    start = time.perf_counter()
    before.record()
    for _ in range(calls):
        call()
    after.record()
    torch.cuda.synchronize(place)
    return before.elapsed_time(after) / 1000 / calls, (time.perf_counter() - start) / calls


def _resources(call: Call, seconds: float, place: torch.device) -> tuple[int | None, float | None]:
    """Working memory of a call that takes so long, and its energy over at least half a second, on a GPU."""
    if place.type != "cuda":
        return None, None
    before, calls = torch.cuda.memory_allocated(place), max(1, round(COUNTED / seconds))
    torch.cuda.reset_peak_memory_stats(place)
    spent, joules = _energy(place), None
    for _ in range(calls):
        call()
    torch.cuda.synchronize(place)
    if spent is not None and (now := _energy(place)) is not None and now > spent:
        joules = (now - spent) / calls
    return torch.cuda.max_memory_allocated(place) - before, joules


def _energy(place: torch.device) -> float | None:
    """Joules that the GPU has used since its driver was loaded; None where nothing tells."""
    try:
        import pynvml
    except ImportError:
        return None
    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        # the driver counts all GPUs, CUDA those that it may see; the identifier is the same for both
        name = f"GPU-{torch.cuda.get_device_properties(place).uuid}"
        return pynvml.nvmlDeviceGetTotalEnergyConsumption(pynvml.nvmlDeviceGetHandleByUUID(name)) / 1000
    return None


def _free(place: torch.device) -> None:
    if place.type == "cuda":
        torch.cuda.empty_cache()
