"""The command line: analyze, run, recipe, dashboard, report. Each imports what it needs when it is called."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpviz import __version__
from mpviz.errors import MpvizError

if TYPE_CHECKING:
    import pandas as pd

WRONG, INTERRUPTED = 2, 130  # exit codes: of argparse for bad input, of shells for Ctrl-C


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 0, 2 for what mpviz refuses, with a sentence on stderr, or 130 for Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # a stream that is not a text file
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    arguments = _parser().parse_args(argv)
    try:
        arguments.command(arguments)
        sys.stdout.flush()
    except MpvizError as error:
        print("mpviz:", " ".join(str(error).splitlines()), file=sys.stderr)
        return WRONG
    except KeyboardInterrupt:
        print("mpviz: stopped; nothing is half-written", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of the table has seen enough, as `head` has
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - closed with the process
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mpviz", description="See what is random in a trained network, and prune it with certificates."
    )
    parser.add_argument("--version", action="version", version=f"mpviz {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for add in (_add_analyze, _add_run, _add_recipe, _add_dashboard, _add_report):
        add(commands)
    return parser


def _add_analyze(commands: Any) -> None:
    parser = commands.add_parser("analyze", help="fit the Marchenko–Pastur law to every layer and print the table")
    parser.add_argument("model", metavar="MODEL", help="bundled or timm name, or the path of a checkpoint")
    parser.add_argument("--weights", metavar="FILE", help="a safetensors file to load into the architecture")
    parser.add_argument("--layers", nargs="+", metavar="NAME", help="these layers only")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write all columns in full precision")
    parser.add_argument("--random", action="store_true", help="random weights instead of trained ones")
    parser.set_defaults(command=analyze)


def analyze(arguments: argparse.Namespace) -> None:
    """Print the table of `mp.analyze`."""
    from mpviz.errors import CheckpointError
    from mpviz.files import write_with
    from mpviz.nets.spectra import analyze as table_of
    from mpviz.nets.zoo import load_model

    model = load_model(arguments.model, pretrained=not arguments.random, weights=arguments.weights)
    line = ProgressLine()
    table = table_of(model, arguments.layers, progress=line.show)
    line.clear()
    print(layer_lines(table))
    if arguments.csv is not None:
        try:
            write_with(arguments.csv, table.to_csv)
        except OSError as error:
            raise CheckpointError(f"cannot write {arguments.csv}: {error}; nothing was changed") from error


def layer_lines(table: pd.DataFrame) -> str:
    """The table of `mp.analyze` for a terminal: numbers right-aligned with three digits, verdicts last."""
    from mpviz.ui import text

    headers = ("layer", "role", "rows", "cols", "σ", "σ₊", "bulk", "spikes", "α", "stable rank", "verdict")
    rows = []
    for name, row in table.iterrows():
        fitted = row["variance"] == row["variance"]  # NaN where nothing could be fitted
        rows.append(
            (
                str(name).removesuffix(".weight"),
                row["role"],
                text.count(row["rows"]),
                text.count(row["cols"]),
                text.significant(row["variance"] ** 0.5),
                text.significant(row["sigma_plus"]),
                text.percent(row["bulk_fraction"]),
                text.count(row["n_spikes"]) if fitted else text.NONE,
                text.significant(row["alpha"]),
                text.significant(row["stable_rank"]),
                row["verdict"] if row["prunable"] else f"{row['verdict']} (not pruned: {row['role']})",
            )
        )
    return columns(headers, rows, left=(0, 1, len(headers) - 1))


def columns(headers: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Rows of words as a table for a terminal; all columns but those in `left` end at their right edge."""
    widths = [max(len(row[i]) for row in (headers, *rows)) for i in range(len(headers))]
    lines = []
    for row in (headers, tuple("─" * width for width in widths), *rows):
        cells = (
            cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


class ProgressLine:
    """One line on stderr that overwrites itself on a terminal; elsewhere a line for each tenth of the work."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._tenth = -1

    def show(self, fraction: float, message: str) -> None:
        """Say how far the work is, 0 … 1, and what it does."""
        percent = f"{100 * fraction:3.0f} %"
        if self._live:
            filled = round(20 * fraction)
            line = f"{'█' * filled}{'░' * (20 - filled)} {percent}  {message}"
            width = shutil.get_terminal_size().columns - 1
            sys.stderr.write(f"\r\x1b[K{line[:width]}")
            sys.stderr.flush()
        elif int(10 * fraction) > self._tenth:
            self._tenth = int(10 * fraction)
            print(f"{percent}  {message}", file=sys.stderr)

    def clear(self) -> None:
        """Take the line away, before something else is printed."""
        if self._live:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _add_run(commands: Any) -> None:
    parser = commands.add_parser("run", help="analyse, prune, certify and save by a recipe, with an HTML report")
    parser.add_argument("recipe", nargs="?", type=Path, metavar="RECIPE", help="a TOML file; `mpviz recipe` prints one")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the files go; else RECIPE-run beside the recipe")
    _add_settings(parser)
    parser.add_argument(
        "--curve",
        type=_count,
        default=1000,
        metavar="N",
        help="images for the coverage curve (default 1000; 0 leaves the curve out)",
    )
    _add_theme(parser)
    parser.set_defaults(command=run)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        dest="settings",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="replace values of the recipe, such as budget.sparsity=0.6",
    )


def _add_theme(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--theme", choices=("light", "dark"), default="light", help="colours of the report")


def _count(words: str) -> int:
    number = int(words)
    if number < 0:
        raise argparse.ArgumentTypeError("a count of images, 0 or more")
    return number


def run(arguments: argparse.Namespace) -> None:
    """Run a recipe, write its folder and print before and after."""
    from mpviz.pipeline import check_folder, write_run
    from mpviz.pipeline import run as run_recipe
    from mpviz.recipe import Recipe, read_recipe, with_settings
    from mpviz.ui.report import comparison_rows, report_html

    given = arguments.recipe
    recipe = with_settings(Recipe() if given is None else read_recipe(given), arguments.settings)
    folder = arguments.out or (Path("mpviz-run") if given is None else given.with_name(f"{given.stem}-run"))
    check_folder(folder)
    line = ProgressLine()
    try:
        result = run_recipe(recipe, progress=line.show, curve_samples=arguments.curve)
        # with the others in one step: either the whole folder is there, or none of it
        write_run(result, folder, {"report.html": report_html(result, theme=arguments.theme)})
    finally:
        line.clear()
    print(columns(("", "dense", "pruned", "change", "known as"), comparison_rows(result.comparison), left=(0, 4)))
    print(f"\n{folder / 'report.html'}\n{folder / 'pruned.safetensors'}")


def _add_recipe(commands: Any) -> None:
    parser = commands.add_parser("recipe", help="print a recipe to start from")
    _add_settings(parser)
    parser.set_defaults(command=recipe)


def recipe(arguments: argparse.Namespace) -> None:
    """Print the default recipe."""
    from mpviz.recipe import Recipe, with_settings

    print(with_settings(Recipe(), arguments.settings).to_toml(), end="")


def _add_dashboard(commands: Any) -> None:
    parser = commands.add_parser("dashboard", help="serve the interactive page on this machine")
    parser.add_argument("model", nargs="?", default="fashion-vit", metavar="MODEL", help="default fashion-vit")
    parser.add_argument("--data", default="fashion-mnist", metavar="NAME", help="default fashion-mnist")
    parser.add_argument("--folder", metavar="DIR", help="folder of the data, where they need one")
    parser.add_argument("--port", type=int, default=5006, help="default 5006; 0 takes any free one")
    parser.add_argument("--show", action="store_true", help="open a browser")
    parser.set_defaults(command=dashboard)


def dashboard(arguments: argparse.Namespace) -> None:
    """Serve the dashboard until Ctrl-C."""
    from mpviz.ui.dashboard import serve
    from mpviz.ui.report import workbench_html

    serve(
        model=arguments.model,
        data=arguments.data,
        folder=arguments.folder,
        port=arguments.port,
        show=arguments.show,
        report=workbench_html,
    )


def _add_report(commands: Any) -> None:
    parser = commands.add_parser("report", help="write the HTML report of a finished run again")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a folder that `mpviz run` wrote")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default report.html in that folder")
    _add_theme(parser)
    parser.set_defaults(command=report)


def report(arguments: argparse.Namespace) -> None:
    """Write the report of a run that was made earlier."""
    from mpviz.pipeline import read_run
    from mpviz.ui.report import write_report

    out = arguments.out or arguments.folder / "report.html"
    print(write_report(out, read_run(arguments.folder), theme=arguments.theme))


if __name__ == "__main__":
    sys.exit(main())
