"""`mpviz bench`: what 2:4 gives a network on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mpviz.terminal import ProgressLine, bench_lines


def add_bench(commands: Any) -> None:
    """Add the command and its arguments."""
    parser = commands.add_parser("bench", help="time a network dense and 2:4, with honest baselines side by side")
    add = parser.add_argument
    add("model", metavar="MODEL", help="bundled or timm name, or a checkpoint that mpviz wrote")
    add("--batches", nargs="+", type=int, metavar="N", help="images a call; default 1 8, on a GPU 64 128 256")
    add("--endpoints", nargs="+", metavar="NAME", help="default: all that suit the machine")
    add("--tome", nargs="+", type=int, default=[0], metavar="R", help="pairs merged a block; several compare")
    add("--device", metavar="NAME", help="default cuda where there is one")
    add("--image", type=int, metavar="SIDE", help="side of the images; default the model's own")
    add("--rounds", type=int, default=20, help="default 20; arms take turns in each")
    add("--out", type=Path, metavar="DIR", help="keep each cell there, with all raw timings; go on there")
    add("--strict", action="store_true", help="refuse weights that are not 2:4 already")
    add("--random", action="store_true", help="random weights instead of trained ones")
    parser.set_defaults(command=bench)


def bench(arguments: argparse.Namespace) -> None:
    """Time a network and print what was found."""
    from mpviz.benchmark.running import bench as timed
    from mpviz.nets.store import load
    from mpviz.nets.zoo import load_model

    permutations = None
    if Path(arguments.model).is_file():
        checkpoint = load(arguments.model)
        model, permutations, name = checkpoint.model, checkpoint.permutations, Path(arguments.model).stem
    else:
        model, name = load_model(arguments.model, pretrained=not arguments.random), arguments.model
    line = ProgressLine()
    try:
        report = timed(
            model, "2:4", arguments.batches, arguments.endpoints, tome=arguments.tome, input_size=arguments.image,
            device=arguments.device, permutations=permutations, prune=not arguments.strict, rounds=arguments.rounds,
            out=arguments.out, name=name, progress=line.show,
        )  # fmt: skip
    finally:
        line.clear()
    print(bench_lines(report))
    if arguments.out is not None:
        print(f"\n{arguments.out}")
