"""How long ViT-B/16's 50 matrices take: `mp.analyze`, its floor, and WeightWatcher on the same layers.

    python tests/benchmarks/analyze_speed.py --peer PYTHON [--rounds 3]

PYTHON is an interpreter that has torch, timm and weightwatcher 0.7.7; without it only mpviz is measured and the file
is left alone. The peer runs twice: as it is installed, and held to one thread, which saves it the CPU time that its
threads spend waiting for each other. All runs are interleaved in rounds: what else the machine does falls on all.
The floor is what cannot be saved: n p² + 4p³/3 operations a matrix, the Gram matrix of the smaller side p and its
eigenvalues, at the rate of a float64 matrix product on one thread, measured in the same round.
Writes data/benchmarks/analyze-speed.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import write
from threadpoolctl import threadpool_limits
from torch import nn

import mpviz as mp
from mpviz.nets.layers import list_layers

MODEL = "vit_base_patch16_224"
PEER_VERSION = "0.7.7"
CACHED_CALLS = 7
TARGETS = {
    "times_fewer_cpu_seconds_than_mp_fit": 15.0,
    "times_fewer_cpu_seconds_than_default": 3.0,
    "times_the_floor": 2.5,
    "cached_ms": 50.0,
}

ONE = "_one_thread"
ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}

# Runs in the peer's interpreter: one line of JSON in, one out. Whatever the peer prints itself goes to stderr.
PEER = f"""
import json, os, sys, time
out, sys.stdout = os.fdopen(os.dup(1), "w"), sys.stderr
os.dup2(2, 1)
import matplotlib
matplotlib.use("Agg")
import torch
for operator in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, operator):
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        globals()[operator] = library
import timm, weightwatcher
torch.manual_seed(0)
model = timm.create_model({MODEL!r}, pretrained=False).eval()
watcher = weightwatcher.WeightWatcher(model=model)
about = {{"version": weightwatcher.__version__, "layers": list(watcher.describe()["longname"])}}
print(json.dumps(about), file=out, flush=True)
for line in sys.stdin:
    start, cpu = time.perf_counter(), time.process_time()
    table = watcher.analyze(plot=False, **json.loads(line))
    took = {{"wall": time.perf_counter() - start, "cpu": time.process_time() - cpu}}
    print(json.dumps(took | {{"rows": len(table)}}), file=out, flush=True)
"""


class Peer:
    """WeightWatcher in a process of its own, which stays up over all rounds."""

    def __init__(self, python: str, environment: dict[str, str]) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen([python, "-c", PEER], text=True, env=os.environ | environment, **pipes)
        about = self._answer()
        self.version, self.layers = about["version"], set(about["layers"])
        if self.version != PEER_VERSION:
            sys.exit(f"{python} has weightwatcher {self.version}; the comparison is with {PEER_VERSION}")

    def analyze(self, **arguments: object) -> dict[str, Any]:
        """Seconds of one analysis of all layers."""
        assert self._process.stdin is not None
        print(json.dumps(arguments), file=self._process.stdin, flush=True)
        answer = self._answer()
        assert answer.pop("rows") == len(self.layers)
        return answer

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(
                "the peer's interpreter gave up; it needs torch, timm and the needs of weightwatcher: "
                f"PYTHON -m pip install torch timm weightwatcher=={PEER_VERSION}"
            )
        return json.loads(line)


def timed(work: Callable[[], object]) -> dict[str, float]:
    """Wall and CPU seconds of this process, all threads."""
    start, cpu = time.perf_counter(), time.process_time()
    work()
    return {"wall": time.perf_counter() - start, "cpu": time.process_time() - cpu}


def gemm_rate() -> float:
    """Operations a second of a float64 matrix product on one thread: the median of nine."""
    side = 1536
    a, b = np.random.default_rng(0).normal(size=(2, side, side))
    with threadpool_limits(1):
        return 2 * side**3 / statistics.median(timed(lambda: a @ b)["cpu"] for _ in range(9))


def floor_operations(model: nn.Module, layers: list[str]) -> float:
    """n p² + 4p³/3 over the layers."""
    shapes = [sorted((info.rows, info.cols)) for info in list_layers(model, layers)]
    return float(sum(n * p**2 + 4 * p**3 / 3 for p, n in shapes))


def one_round(model: nn.Module, layers: list[str], peers: dict[str, Peer]) -> dict[str, dict[str, float]]:
    """Everything once, mpviz between the peer's two ways. peers: {ending of its names: process}."""

    def ours(precision: str) -> dict[str, float]:
        return timed(lambda: mp.analyze(model, layers=layers, precision=precision, cache=False))

    rates, twice = [gemm_rate()], [ours("float64")]
    done = {f"weightwatcher{ending}": peer.analyze() for ending, peer in peers.items()}
    rates.append(gemm_rate())
    done["mpviz_fast"] = ours("fast")
    done |= {f"weightwatcher_mp_fit{ending}": peer.analyze(mp_fit=True) for ending, peer in peers.items()}
    twice.append(ours("float64"))
    rates.append(gemm_rate())
    done["mpviz"] = {key: statistics.mean(one[key] for one in twice) for key in ("wall", "cpu")}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MPVIZ_CACHE"] = folder
        mp.analyze(model, layers=layers)
        calls = [timed(lambda: mp.analyze(model, layers=layers)) for _ in range(CACHED_CALLS)]
    done["mpviz_cached"] = {key: statistics.median(call[key] for call in calls) for key in ("wall", "cpu")}
    rate = statistics.median(rates)
    done["floor"] = {"cpu": floor_operations(model, layers) / rate, "gemm_gflops": rate / 1e9}
    print({name: {key: round(value, 3) for key, value in one.items()} for name, one in done.items()}, flush=True)
    return done


def common_layers(model: nn.Module, peer: Peer | None) -> tuple[list[str], str]:
    """The matrices that all look at, and a sentence about it."""
    ours = [info.name.removesuffix(".weight") for info in list_layers(model)]
    if peer is None:
        return ours, f"{len(ours)} matrices"
    both = [name for name in ours if name in peer.layers]
    if len(both) == len(ours):
        return both, f"both look at all {len(ours)} matrices; weightwatcher takes the patch embedding as 256 of 3 x 768"
    return both, f"weightwatcher skips {sorted(set(ours) - peer.layers)}: compared on the other {len(both)} matrices"


def medians(rounds: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """The median of every number over the rounds."""
    return {
        name: {key: round(statistics.median(one[name][key] for one in rounds), 4) for key in rounds[0][name]}
        for name in rounds[0]
    }


def ratios(rounds: list[dict[str, dict[str, float]]]) -> dict[str, float]:
    """Medians over the rounds of ratios within a round: what else the machine did cancels."""

    def ratio(above: str, below: str) -> float:
        return round(statistics.median(one[above]["cpu"] / one[below]["cpu"] for one in rounds), 2)

    found = {"times_the_floor": ratio("mpviz", "floor"), "fast_times_the_floor": ratio("mpviz_fast", "floor")}
    found["cached_ms"] = round(1e3 * statistics.median(one["mpviz_cached"]["wall"] for one in rounds), 1)
    for ending in ("", ONE) if "weightwatcher" in rounds[0] else ():
        found[f"times_fewer_cpu_seconds_than_mp_fit{ending}"] = ratio(f"weightwatcher_mp_fit{ending}", "mpviz")
        found[f"times_fewer_cpu_seconds_than_default{ending}"] = ratio(f"weightwatcher{ending}", "mpviz")
        found[f"fast_times_fewer_than_mp_fit{ending}"] = ratio(f"weightwatcher_mp_fit{ending}", "mpviz_fast")
        found[f"fast_times_fewer_than_default{ending}"] = ratio(f"weightwatcher{ending}", "mpviz_fast")
    return found


def main() -> None:
    """Measure, print and, with a peer, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", metavar="PYTHON", help="an interpreter that has weightwatcher")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.peer is not None and not Path(arguments.peer).exists():
        sys.exit(
            f"no interpreter {arguments.peer}; make an environment with weightwatcher=={PEER_VERSION} and name its"
        )
    torch.manual_seed(0)
    model = mp.load_model(MODEL, pretrained=False)
    ways: dict[str, dict[str, str]] = {"": {}, ONE: ONE_THREAD} if arguments.peer else {}
    peers = {ending: Peer(arguments.peer, environment) for ending, environment in ways.items()}
    peer = peers.get("")
    layers, words = common_layers(model, peer)
    mp.analyze(model, layers=layers[:2], cache=False)
    rounds = [one_round(model, layers, peers) for _ in range(arguments.rounds)]
    found = ratios(rounds)
    results = {
        "model": MODEL,
        "layers": words,
        "rounds": len(rounds),
        "peer": None if peer is None else f"weightwatcher {peer.version}",
        "threads": f"as installed; {ONE}: the peer with OMP_NUM_THREADS=1",
        "seconds": medians(rounds),
        "ratios": found,
        "targets": TARGETS,
    }
    print(json.dumps(results, indent=1))
    if peer is None:
        print("without --peer PYTHON the file is left as it is")
    else:
        write("analyze-speed", "python tests/benchmarks/analyze_speed.py --peer PYTHON", results)


if __name__ == "__main__":
    main()
