"""`mpviz sweep`: many recipes side by side, on this machine or on SLURM."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mpviz.errors import RecipeError
from mpviz.sweep_folder import ENGINES, SweepState, is_sweep
from mpviz.terminal import ProgressLine, stoppable, sweep_lines

_ABOUT = """
mpviz sweep a.toml b.toml --set budget.sparsity=0.5,0.7 --out FOLDER   run all of them, with each value
mpviz sweep status FOLDER                                              how each run stands
mpviz sweep cancel FOLDER                                              stop; each run keeps its last step
mpviz sweep FOLDER                                                     go on with what is not done
"""


def add_sweep(commands: Any) -> None:
    """Add the command and its arguments."""
    parser = commands.add_parser(
        "sweep", help="run several recipes, or one with several values, side by side or on SLURM", epilog=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("what", nargs="+", metavar="RECIPE|FOLDER|status|cancel", help="recipes to run, or a sweep's folder")
    add(
        "--set", dest="settings", nargs="+", action="extend", default=[], metavar="KEY=VALUE,…",
        help="values of the recipe, such as budget.sparsity=0.5,0.7; all combinations are run",
    )  # fmt: skip
    add("--out", type=Path, metavar="DIR", help="the sweep's folder; else RECIPE-sweep beside the first recipe")
    add("--engine", choices=ENGINES, default="local", help="default local; here: one after another")
    add("--parallel", type=int, metavar="N", help="runs at a time; default 2 locally, all on SLURM")
    add("--processes", type=int, default=1, metavar="N", help="of each run, launched by accelerate, a GPU each")
    add(
        "--slurm", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
        help="options of sbatch, such as partition=gpu time=2:00:00 gpus=1, and setup=COMMAND",
    )  # fmt: skip
    parser.set_defaults(command=sweep)


def sweep(arguments: argparse.Namespace) -> None:
    """Begin, continue, show or cancel a sweep."""
    first, *rest = arguments.what
    if first in ("status", "cancel") and not Path(first).is_file():
        _look(first, [Path(one) for one in rest])
        return

    line = ProgressLine()
    with stoppable() as asked:
        try:
            state = _begun(arguments, line.show, asked)
        finally:
            line.clear()
    _show(state)


def _begun(
    arguments: argparse.Namespace, tell: Callable[[float, str], None], asked: Callable[[], bool]
) -> SweepState:  # fmt: skip
    from mpviz.sweeping import continue_sweep
    from mpviz.sweeping import sweep as begin

    first, *rest = arguments.what
    if is_sweep(Path(first)):
        if rest or arguments.settings or arguments.out:
            raise RecipeError(f"{first} is a sweep already; mpviz sweep {first} alone goes on with it")
        return continue_sweep(first, tell, asked)
    out = arguments.out or Path(first).with_name(f"{Path(first).stem}-sweep")
    return begin(
        arguments.what, out, arguments.settings, arguments.engine, arguments.parallel, arguments.processes,
        _options(arguments.slurm), progress=tell, cancelled=asked,
    )  # fmt: skip


def _options(given: Sequence[str]) -> dict[str, str]:
    return {key: value for key, _, value in (one.partition("=") for one in given)}


def _look(what: str, folders: Sequence[Path]) -> None:
    from mpviz.sweep_watch import cancel_sweep, sweep_status

    if not folders:
        raise RecipeError(f"mpviz sweep {what} needs the folder of a sweep")
    for folder in folders:
        _show((sweep_status if what == "status" else cancel_sweep)(folder))


def _show(state: SweepState) -> None:
    print(sweep_lines(state))
