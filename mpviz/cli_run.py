"""`mpviz run`: a recipe from end to end, stoppable at any step, and watched by who asks for a status file."""

from __future__ import annotations

import argparse
import contextlib
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpviz.errors import Cancelled, MpvizError
from mpviz.terminal import ProgressLine, TimedLines, columns, stoppable

if TYPE_CHECKING:
    from mpviz.recipe import Recipe
    from mpviz.run_status import StatusFile

Asked = Callable[[], bool]
Tell = Callable[[float, str], None]


def add_run(commands: Any) -> None:
    """The command and its options."""
    parser = commands.add_parser(
        "run",
        help="run a recipe, a plan or a grid of methods, with an HTML report",
        description="Run a recipe. Ctrl-C or SIGTERM keeps a checkpoint and stops; the same command goes on.",
    )
    parser.add_argument("recipe", nargs="?", type=Path, metavar="RECIPE", help="a TOML file; `mpviz recipe` prints one")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the files go; else RECIPE-run beside the recipe")
    add_settings(parser)
    parser.add_argument(
        "--curve",
        type=_count,
        default=1000,
        metavar="N",
        help="images for the coverage curve (default 1000; 0 leaves the curve out)",
    )
    parser.add_argument(
        "--status", type=Path, metavar="FILE", help="tell progress and outcome in this JSON file, for others to watch"
    )
    add_theme(parser)
    parser.set_defaults(command=run)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """The option that replaces single values of a recipe."""
    parser.add_argument(
        "--set",
        dest="settings",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="replace values of the recipe, such as budget.sparsity=0.6",
    )


def add_theme(parser: argparse.ArgumentParser) -> None:
    """The option for the colours of a report."""
    parser.add_argument("--theme", choices=("light", "dark"), default="light", help="colours of the report")


def _count(words: str) -> int:
    number = int(words)
    if number < 0:
        raise argparse.ArgumentTypeError("a count of images, 0 or more")
    return number


def run(arguments: argparse.Namespace) -> None:
    """Run a recipe, write its folder and print before and after."""
    from mpviz.train.processes import launched

    with stoppable() as asked:
        if launched()[0] > 0:  # of processes launched together the first one speaks
            _run(arguments, lambda *_: None, lambda: None, asked, speak=False)
            return
        if arguments.status is None:
            line = ProgressLine()
            _run(arguments, line.show, line.clear, asked)
            return
        from mpviz.run_status import StatusFile

        status, lines = StatusFile(arguments.status), TimedLines()

        def tell(progress: float, message: str) -> None:
            status.tell(progress, message)
            lines.show(progress, message)

        with _told(status):
            _run(arguments, tell, lines.clear, asked)
            status.end("done", "done")


def _run(
    arguments: argparse.Namespace, tell: Tell, clear: Callable[[], None], asked: Asked, speak: bool = True
) -> None:
    from mpviz.recipe import Recipe, read_recipe, with_settings

    given = arguments.recipe
    recipe = with_settings(Recipe() if given is None else read_recipe(given), arguments.settings)
    folder = arguments.out or (Path("mpviz-run") if given is None else given.with_name(f"{given.stem}-run"))
    run_kind = {"grid": _run_grid, "projection": _run_projection, "plan": _run_plan}[recipe.kind]
    try:
        say = run_kind(recipe, folder, arguments, tell, asked)
    except Cancelled as error:  # by the part that was at work, which does not know what is kept
        kept = f"a run goes on from what is in {folder}" if folder.exists() else "nothing was written"
        raise Cancelled(str(error) if ";" in str(error) else f"{error}; {kept}") from error
    finally:
        clear()
    if speak:
        say()


def _run_plan(
    recipe: Recipe, folder: Path, arguments: argparse.Namespace, tell: Tell, asked: Asked
) -> Callable[[], None]:
    """Run one plan; gives what prints before and after."""
    from mpviz.pipeline import run as run_recipe
    from mpviz.ui.report import comparison_head, comparison_rows, report_html

    result = run_recipe(
        recipe, folder, progress=tell, cancelled=asked, curve_samples=arguments.curve,
        report=partial(report_html, theme=arguments.theme),
    )  # fmt: skip

    def say() -> None:
        head = comparison_head(result.comparison)
        print(columns(head, comparison_rows(result.comparison), left=(0, len(head) - 1)))
        print(f"\n{folder / 'report.html'}\n{folder / 'pruned.safetensors'}")

    return say


def _run_grid(
    recipe: Recipe, folder: Path, arguments: argparse.Namespace, tell: Tell, asked: Asked
) -> Callable[[], None]:
    """Run or continue a grid; gives what prints the means over its seeds."""
    from mpviz.grid import run_grid
    from mpviz.ui.comparison import comparison_table
    from mpviz.ui.grid_page import grid_html

    result = run_grid(
        recipe, folder, progress=tell, cancelled=asked, report=partial(grid_html, theme=arguments.theme)
    )  # fmt: skip

    def say() -> None:
        print(comparison_table(result.metrics).dropna(axis="columns", how="all").to_string(index=False))
        print(f"\n{folder / 'report.html'}\n{folder / 'metrics.csv'}")

    return say


def _run_projection(
    recipe: Recipe, folder: Path, arguments: argparse.Namespace, tell: Tell, asked: Asked
) -> Callable[[], None]:
    """Run a projection; gives what prints what it measured and counted."""
    from mpviz.projecting import run_projection
    from mpviz.terminal import projection_lines
    from mpviz.ui.projection_report import projection_html

    result = run_projection(
        recipe, folder, progress=tell, cancelled=asked, report=partial(projection_html, theme=arguments.theme)
    )  # fmt: skip

    def say() -> None:
        print(projection_lines(result.metrics, result.macs))
        print(f"\n{folder / 'report.html'}\n{folder / 'projected.safetensors'}")

    return say


@contextlib.contextmanager
def _told(status: StatusFile) -> Iterator[None]:
    """Write down how the run ends, whatever ends it."""
    try:
        yield
    except Cancelled as error:
        status.end("cancelled", _line(error))
        raise
    except KeyboardInterrupt:
        status.end("cancelled", "stopped at once; the last checkpoint is kept")
        raise
    except MpvizError as error:
        _failed(status, _line(error))
        raise
    except Exception as error:  # noqa: BLE001 - told as it is, where the run is watched; exit code 1 as without
        words = f"{_line(error)}; {_remedy(error)}"
        _failed(status, words)
        print("mpviz:", words, file=sys.stderr)
        sys.exit(1)


def _failed(status: StatusFile, words: str) -> None:
    at = f"failed at {100 * status.status.progress:.0f} %"
    status.end("failed", at, error=words, traceback=traceback.format_exc())


def _line(error: BaseException) -> str:
    words = " ".join(str(error).split()) or "without a word"
    return words if isinstance(error, MpvizError) else f"{type(error).__name__}: {words}"


def _remedy(error: Exception) -> str:
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return "the memory was full: make recover.batch smaller, then resume"
    if isinstance(error, OSError):
        return "look at the disk and its rights, then resume: what was kept is unharmed"
    return "this is no error that mpviz knows, its traceback says where it came from; what was kept is unharmed"
