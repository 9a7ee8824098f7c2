"""The site builds without a warning, names everything that is public, and every link of its pages leads somewhere."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import mpviz
from mpviz.cli import _parser

pytestmark = pytest.mark.slow
LOADS = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "embed": "src",
}
FETCHED = {"stylesheet", "icon", "preload", "preconnect", "dns-prefetch", "modulepreload", "manifest"}


@dataclass
class Built(HTMLParser):
    """What the link check needs of a page."""

    links: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)
    headings: list[str] = field(default_factory=list)
    _heading: list[str] | None = None

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in LOADS and LOADS[tag] in given:
            self.loads.append(given[LOADS[tag]])
        if tag == "link" and FETCHED & set(given.get("rel", "").split()):
            self.loads.append(given["href"])
        if re.fullmatch("h[1-6]", tag):
            self._heading = []

    def handle_endtag(self, tag: str) -> None:
        if re.fullmatch("h[1-6]", tag) and self._heading is not None:
            self.headings.append("".join(self._heading).strip().removesuffix("¶").strip())
            self._heading = None

    def handle_data(self, data: str) -> None:
        if self._heading is not None:
            self._heading.append(data)


@pytest.fixture(scope="module")
def site(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if os.environ.get("CI") != "true":  # there a missing package is a failure
        for package in ("mkdocs", "material", "mkdocstrings_handlers.python"):
            pytest.importorskip(package, reason="the extra `docs` builds the site")
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    paths = {"PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))}
    done = subprocess.run(command, cwd=root, env={**os.environ, **paths}, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Built]:
    found = {}
    for path in sorted(site.rglob("*.html")):
        found[path] = Built()
        found[path].feed(path.read_text(encoding="utf-8"))
    return found


def test_every_public_name_has_its_heading(site: Path, pages: dict[Path, Built]) -> None:
    headings = pages[site / "api" / "index.html"].headings
    first = [heading.split()[0] for heading in headings if heading]  # a class has labels behind its name
    assert {f"mp.{name}" for name in mpviz.__all__} <= set(first)


def test_every_package_has_a_page_with_its_modules(root: Path, site: Path, pages: dict[Path, Built]) -> None:
    for package in sorted(path.parent.name for path in (root / "mpviz").glob("*/__init__.py")):
        modules = {
            heading for heading in pages[site / "api" / f"{package}.html"].headings if heading.startswith("mpviz.")
        }
        assert f"mpviz.{package}" in modules and len(modules) > 2, package
    shown = pages[site / "api" / "rmt.html"].headings
    assert shown.count("upper_edge") == 1, "where it is defined, not where it is imported"
    assert not [heading for heading in shown if heading.startswith("_")]


def test_the_commands_are_those_of_the_parser(site: Path, pages: dict[Path, Built]) -> None:
    (commands,) = (one for one in _parser()._actions if isinstance(one, argparse._SubParsersAction))
    headings = pages[site / "cli.html"].headings
    assert [heading for heading in headings if heading.startswith("mpviz ")] == [
        f"mpviz {name}" for name in commands.choices
    ]
    text = (site / "cli.html").read_text(encoding="utf-8")
    options = {
        option for parser in commands.choices.values() for one in parser._actions for option in one.option_strings
    }
    assert not [option for option in options if f"{option}" not in text]


def test_the_course_shows_every_notebook_and_lets_it_be_taken_away(
    root: Path, site: Path, pages: dict[Path, Built]
) -> None:
    overview = pages[site / "course" / "index.html"].links
    for path in (root / "notebooks").glob("*.ipynb"):
        assert f"{path.stem}.html" in overview, path.name
        assert path.name in pages[site / "course" / f"{path.stem}.html"].links
        assert (site / "course" / path.name).read_bytes() == path.read_bytes()


def _targets(path: Path, links: list[str]) -> Iterator[tuple[str, Path, str]]:
    """Links within the site: as written, the file, the anchor."""
    for link in links:
        parts = urlsplit(link)
        if not parts.scheme and not parts.netloc and link:
            yield link, (path.parent / unquote(parts.path)).resolve() if parts.path else path, unquote(parts.fragment)


def test_every_link_and_anchor_leads_somewhere(site: Path, pages: dict[Path, Built]) -> None:
    lost = []
    for path, page in pages.items():
        if path.name == "404.html":  # made to be served from any place, so its links begin at the root
            continue
        for link, file, anchor in _targets(path, page.links):
            file = file / "index.html" if file.is_dir() else file
            if not file.is_file() or (anchor and file in pages and anchor not in pages[file].anchors):
                lost.append(f"{path.relative_to(site)}: {link}")
    assert not lost


def test_no_page_loads_anything_from_elsewhere(site: Path, pages: dict[Path, Built]) -> None:
    far = {
        f"{path.relative_to(site)}: {one}" for path, page in pages.items() for one in page.loads if urlsplit(one).netloc
    }
    assert not far
    for path in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", path.read_text(encoding="utf-8")), path.name
    assert not any("mermaid" in path.read_text(encoding="utf-8") for path in pages)  # its script would come from a CDN
    assert len(pages) > 25
