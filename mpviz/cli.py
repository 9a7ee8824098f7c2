"""The command line. Each command imports what it needs when it is called."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpviz import __version__
from mpviz.cli_bench import add_bench
from mpviz.cli_run import add_run, add_settings, add_theme
from mpviz.cli_serve import add_dashboard
from mpviz.cli_sweep import add_sweep
from mpviz.errors import Cancelled, CheckpointError, MpvizError
from mpviz.terminal import ProgressLine, change_lines, layer_lines

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
        return INTERRUPTED if isinstance(error, Cancelled) else WRONG
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
    before = (_add_analyze, _add_compare, add_run, _add_recipe, _add_recipes)
    for add in (*before, add_sweep, add_bench, add_dashboard, _add_report):
        add(commands)
    return parser


def _add_analyze(commands: Any) -> None:
    parser = commands.add_parser("analyze", help="fit the Marchenko–Pastur law to every layer and print the table")
    parser.add_argument("model", metavar="MODEL", help="bundled or timm name, or the path of any safetensors file")
    parser.add_argument("--weights", metavar="FILE", help="a safetensors file to load into the architecture")
    parser.add_argument("--layers", nargs="+", metavar="NAME", help="these layers only")
    parser.add_argument("--method", default="bema", help="of the bulk fit: bema, bema-once, median, trace or ks")
    parser.add_argument(
        "--split", nargs="+", default=(), metavar="KIND", help="qkv, groups: parts in rows of their own"
    )
    parser.add_argument("--shuffled", type=int, metavar="SEED", help="judge each fit beside the same entries shuffled")
    parser.add_argument("--fast", action="store_true", help="float32 where that is enough")
    _add_table_files(parser)
    parser.add_argument("--random", action="store_true", help="random weights instead of trained ones")
    parser.set_defaults(command=analyze)


def analyze(arguments: argparse.Namespace) -> None:
    """Print the table of `mp.analyze`."""
    from mpviz.nets.spectra import analyze as table_of

    if Path(arguments.model).is_file() and arguments.weights is None and not arguments.random:
        model: Any = arguments.model  # only the tensors that are looked at are read
    else:
        from mpviz.nets.zoo import load_model

        model = load_model(arguments.model, pretrained=not arguments.random, weights=arguments.weights)
    line = ProgressLine()
    table = table_of(
        model,
        arguments.layers,
        method=arguments.method,
        split=arguments.split,
        precision="fast" if arguments.fast else "float64",
        shuffled=arguments.shuffled,
        progress=line.show,
    )
    line.clear()
    print(layer_lines(table))
    _write_table(table, arguments)


def _add_table_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write all columns in full precision")
    parser.add_argument("--parquet", type=Path, metavar="FILE", help="the same as a Parquet file")


def _write_table(table: pd.DataFrame, arguments: argparse.Namespace) -> None:
    from mpviz.files import write_with
    from mpviz.ui.export import table_csv, table_parquet

    for path, data_of in ((arguments.csv, table_csv), (arguments.parquet, table_parquet)):
        if path is None:
            continue
        try:
            write_with(path, partial(_put, data_of(table)))
        except OSError as error:
            raise CheckpointError(f"cannot write {path}: {error}; nothing was changed") from error


def _put(data: bytes, path: Path) -> None:
    path.write_bytes(data)


def _add_compare(commands: Any) -> None:
    parser = commands.add_parser("compare", help="two versions of one network side by side: what moved, layer by layer")
    for name in ("base", "other"):
        parser.add_argument(name, metavar=name.upper(), help="bundled or timm name, or the path of a safetensors file")
    parser.add_argument("--layers", nargs="+", metavar="NAME", help="these layers only")
    parser.add_argument("-k", type=int, help="leading directions that are compared; the spikes of the base otherwise")
    _add_table_files(parser)
    parser.set_defaults(command=compare)


def compare(arguments: argparse.Namespace) -> None:
    """Print the table of `mp.compare`."""
    from mpviz.nets.compare import compare as table_of
    from mpviz.nets.zoo import load_model

    base, other = (name if Path(name).is_file() else load_model(name) for name in (arguments.base, arguments.other))
    line = ProgressLine()
    table = table_of(base, other, layers=arguments.layers, k=arguments.k, progress=line.show)
    line.clear()
    print(change_lines(table))
    for name, why in table.attrs["skipped"].items():
        print(f"left out: {name} ({why})")
    _write_table(table, arguments)


def _add_recipe(commands: Any) -> None:
    parser = commands.add_parser("recipe", help="print a recipe to start from")
    add_settings(parser)
    parser.set_defaults(command=recipe)


def recipe(arguments: argparse.Namespace) -> None:
    """Print the default recipe."""
    from mpviz.recipe import Recipe, with_settings

    print(with_settings(Recipe(), arguments.settings).to_toml(), end="")


def _add_recipes(commands: Any) -> None:
    parser = commands.add_parser("recipes", help="the rows of the paper's structured tables, each as a recipe")
    parser.add_argument("row", nargs="?", type=int, metavar="ROW", help="print the recipe of this row")
    parser.add_argument("--data", metavar="DIR", help="the ImageNet folder, or a timm data set, that the recipes name")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write all of them, or ROW, there as row-NN.toml")
    parser.set_defaults(command=recipes)


def recipes(arguments: argparse.Namespace) -> None:
    """List the rows, print one as a recipe, or write all."""
    from mpviz.paper import IMAGENET, paper_recipe, paper_rows
    from mpviz.terminal import paper_lines

    data = arguments.data or IMAGENET
    if arguments.row is not None and arguments.out is None:
        print(paper_recipe(arguments.row, data).to_toml(), end="")
        return
    if arguments.out is None:
        print(paper_lines(paper_rows()))
        return
    rows = [one.row for one in paper_rows()] if arguments.row is None else [arguments.row]
    for row in rows:
        _write(arguments.out / f"row-{row:02d}.toml", paper_recipe(row, data).to_toml())


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all, and say where it is."""
    from mpviz.files import write_text

    try:
        write_text(path, text)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error}; nothing was changed") from error
    print(path)


def _add_report(commands: Any) -> None:
    parser = commands.add_parser("report", help="write the report of a finished run again, or print it to PDF or PNG")
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="a folder that `mpviz run` wrote, or an HTML report"
    )
    out = "a file ending in .html, .pdf or .png; default report.html in that folder"
    parser.add_argument("--out", type=Path, metavar="FILE", help=out)
    add_theme(parser)
    parser.set_defaults(command=report)


def report(arguments: argparse.Namespace) -> None:
    """Write the report of a run that was made earlier, or of a grid as far as it has come."""
    from mpviz.ui.printing import FORMS, print_page

    source, out = arguments.folder, arguments.out or arguments.folder / "report.html"
    if out.suffix.lower() in FORMS:
        print(print_page(_report_html(source, arguments.theme, as_it_lies=True), out))
    else:
        _write(out, _report_html(source, arguments.theme, as_it_lies=False))


def _report_html(source: Path, theme: str, as_it_lies: bool) -> str:
    """The report of a run's folder, made anew; as_it_lies: or, where that cannot be, the page that is there."""
    from mpviz.grid_results import read_grid
    from mpviz.recipe import read_recipe
    from mpviz.run_results import read_run
    from mpviz.ui.grid_page import grid_html
    from mpviz.ui.report import report_html

    kind = "page" if source.is_file() else read_recipe(source / "recipe.toml").kind
    if kind == "grid":
        return grid_html(read_grid(source), theme)
    if kind == "plan":
        return report_html(read_run(source), theme=theme)
    page = source if kind == "page" else source / "report.html"
    if not as_it_lies:
        raise CheckpointError(
            f"{source} holds a report that was written with its run: open {page}, or print it with --out report.pdf"
        )
    return _read_page(page)


def _read_page(path: Path) -> str:
    try:
        html = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"cannot read the report {path}: {error}") from error
    if '<meta name="generator" content="mpviz">' not in html[:2000]:
        raise CheckpointError(f"{path} is no report of mpviz; name a folder that `mpviz run` wrote, or its report.html")
    return html


if __name__ == "__main__":
    sys.exit(main())
