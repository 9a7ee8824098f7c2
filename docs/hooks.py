"""What the site is made of beside its own pages: notebooks, docstrings, the commands of the parser, pictures.

MkDocs calls the functions whose names begin with `on_`; Griffe, which reads the docstrings, uses `Doctests`. Modules
are read and not imported, but for the parser of the command line, which loads nothing heavy.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "mpviz"
COMMANDS = "<!-- commands -->"
NAMES = "<!-- names -->"
PICTURES = ("dashboard.png", "compare.png")


# --- pages that are made ----------------------------------------------------------------------------------------------


def on_config(config: Any) -> Any:
    """Put the made pages into the navigation."""
    for item in config.nav:
        if "Course" in item:
            item["Course"] += [{title(path): f"course/{path.stem}.md"} for path in notebooks()]
        if "API" in item:
            item["API"] += [{name: f"api/{name}.md"} for name in rooms()]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add a page and a download for each notebook, a page for each package, and the pictures of the README."""
    for path in notebooks():
        files.append(File.generated(config, f"course/{path.stem}.md", content=notebook_page(path)))
        files.append(File.generated(config, f"course/{path.name}", abs_src_path=str(path)))
    for name, modules in rooms().items():
        files.append(File.generated(config, f"api/{name}.md", content=room_page(name, modules)))
    for name in PICTURES:
        files.append(File.generated(config, f"pictures/{name}", abs_src_path=str(ROOT / "data" / "pictures" / name)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Fill the marks: the commands in cli.md, the public names in api/index.md."""
    if COMMANDS in markdown:
        markdown = markdown.replace(COMMANDS, "\n".join(command_sections()))
    if NAMES in markdown:
        markdown = markdown.replace(NAMES, "\n".join(name_sections()))
    return markdown


# --- the course -------------------------------------------------------------------------------------------------------


def notebooks() -> list[Path]:
    """All notebooks: the numbered ones first, then exercises and solutions."""
    return sorted((ROOT / "notebooks").glob("*.ipynb"))


def cells(path: Path) -> list[dict[str, Any]]:
    """The cells of a notebook."""
    return list(json.loads(path.read_text(encoding="utf-8"))["cells"])


def title(path: Path) -> str:
    """The heading of a notebook, with its number where it has one."""
    heading = "".join(cells(path)[0]["source"]).splitlines()[0].lstrip("# ")
    number = path.stem.partition("-")[0]
    return f"{number} · {heading}" if number.isdigit() else heading


def notebook_page(path: Path) -> str:
    """A notebook to read: its text, its code and where to get it."""
    parts = []
    for cell in cells(path):
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    where = (
        f"[Download this notebook]({path.name}), or open `notebooks/{path.name}` with `make lab`; "
        "it is stored without outputs."
    )
    return "\n\n".join([parts[0], where, *parts[1:]]) + "\n"


# --- the API ----------------------------------------------------------------------------------------------------------


def rooms() -> dict[str, dict[str, list[str]]]:
    """Packages, their modules that have something public, and its names; "plans" are the modules beside packages."""
    found = {"plans": [path for path in PACKAGE.glob("*.py") if not path.stem.startswith("_")]}
    for package in sorted(path.parent for path in PACKAGE.glob("*/__init__.py")):
        found[package.name] = [path for path in package.rglob("*.py") if not _hidden(path.relative_to(package))]
    made = {name: {_dotted(p): names for p in sorted(paths) if (names := _public(p))} for name, paths in found.items()}
    return {name: modules for name, modules in made.items() if modules}


def _hidden(path: Path) -> bool:
    return any(part.startswith("_") for part in path.parts) and path.name != "__init__.py"


def _dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _public(path: Path) -> list[str]:
    """Functions and classes that a module defines, documents and does not hide."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    made = (node for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef)))
    return [node.name for node in made if not node.name.startswith("_") and ast.get_docstring(node)]


def room_page(name: str, modules: dict[str, list[str]]) -> str:
    """All modules of a package with their public functions and classes."""
    heading = "Plans, results and commands" if name == "plans" else f"mpviz.{name}"
    about = "" if name == "plans" else ast.get_docstring(ast.parse((PACKAGE / name / "__init__.py").read_text("utf-8")))
    intro = (about or "").split("\n\n")[0]
    shown = (f"::: {module}\n    options: {{members: [{', '.join(names)}]}}" for module, names in modules.items())
    return "\n\n".join([f"# {heading}", intro, *shown]) + "\n"


def public_names() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """The groups of `mpviz.__all__`, each with its names and the modules where they live."""
    source = (PACKAGE / "__init__.py").read_text(encoding="utf-8")
    homes = next(
        ast.literal_eval(node.value)
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_HOMES"
    )
    listed = source.partition("__all__ = [")[2].partition("\n]")[0]
    for group in re.split(r"^ *# ", listed, flags=re.MULTILINE)[1:]:
        heading, _, rest = group.partition("\n")
        yield heading, [(name, homes[name]) for name in re.findall(r'"(\w+)"', rest)]


def name_sections() -> Iterator[str]:
    """Markdown of the public names, group by group."""
    for heading, names in public_names():
        yield f"\n## {heading[0].upper()}{heading[1:]}\n"
        for name, home in names:
            yield f"::: {home}.{name}\n    options: {{heading: mp.{name}, toc_label: {name}, heading_level: 3}}\n"


class Doctests(griffe.Extension):
    """Docstrings as Markdown: examples become code blocks, which >>> would otherwise make quotations."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of everything that is read."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    """A docstring with its examples fenced: each begins with >>> and ends at an empty line, or with the text."""
    lines: list[str] = []
    inside = False
    for line in text.split("\n"):
        if not inside and line.lstrip().startswith(">>>"):
            lines += ["", "```pycon"]
            inside = True
        elif inside and not line.strip():
            lines += ["```"]
            inside = False
        lines.append(line.strip() if inside and line.lstrip().startswith((">>>", "...")) else line)
    return "\n".join([*lines, "```"] if inside else lines)


# --- the command line -------------------------------------------------------------------------------------------------


def parsers() -> dict[str, tuple[str, argparse.ArgumentParser]]:
    """The commands: what each is for, and its parser."""
    sys.path.insert(0, str(ROOT))
    try:
        from mpviz.cli import _parser
    finally:
        sys.path.remove(str(ROOT))
    os.environ["COLUMNS"] = "100"  # of the usage lines, wherever they are made
    (action,) = (one for one in _parser()._actions if isinstance(one, argparse._SubParsersAction))
    helps = {one.dest: one.help or "" for one in action._choices_actions}
    return {name: (helps.get(name, ""), parser) for name, parser in action.choices.items()}


def command_sections() -> Iterator[str]:
    """Markdown of all commands: what for, usage, arguments."""
    for name, (about, parser) in parsers().items():
        yield f"## mpviz {name}\n\n{about[:1].upper()}{about[1:]}.\n\n```text\n{parser.format_usage().strip()}\n```\n"
        yield "| argument | meaning |\n| --- | --- |"
        formatter = parser._get_formatter()
        for action in parser._actions:
            words = (formatter._expand_help(action) if action.help else "").replace("|", "\\|")
            yield f"| `{_written(action)}` | {words} |"
        yield ""


def _written(action: argparse.Action) -> str:
    value = action.metavar or (f"{{{','.join(map(str, action.choices))}}}" if action.choices else action.dest.upper())
    if action.nargs == 0:
        value = ""
    return " ".join(filter(None, (", ".join(action.option_strings), str(value))))
