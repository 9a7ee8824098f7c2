"""Pages as PDF and PNG: whole on paper, without what only a mouse can use, and a clear word where nothing can print."""

from __future__ import annotations

import re
import zlib
from pathlib import Path

import pytest

from mpviz.errors import CheckpointError
from mpviz.ui import printing
from mpviz.ui.page import filled_page
from mpviz.ui.printing import find_browser, print_page

FIGURE = {"data": [{"x": [1, 2, 3], "y": [2, 1, 3], "line": {"color": "#ff00ff", "width": 8}}], "layout": {}}


@pytest.fixture(scope="module")
def html() -> str:
    parts = dict.fromkeys(
        ("no_restore", "restore", "title", "measured", "phases", "macs", "layers", "about", "footer"), "words"
    )
    drawn = {"macs": FIGURE, "costs": FIGURE, "config": {}}
    return filled_page("projection.html", parts, drawn, "light").replace("What each layer pays", "x" * 30)


@pytest.fixture
def printer(chromium: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(printing.BROWSER, chromium)


@pytest.mark.browser
def test_a_pdf_has_the_figures_as_lines_not_as_a_picture(html, printer, tmp_path: Path):
    out = print_page(html, tmp_path / "deep" / "page.PDF")
    pdf = out.read_bytes()
    assert pdf.startswith(b"%PDF") and len(pdf) < 8_000_000
    assert re.search(rb"/Type /Page\b", pdf)
    streams = [unpacked(part) for part in re.findall(rb"stream\r?\n(.*?)endstream", pdf, re.DOTALL)]
    # the two lines of width 8 in pure magenta: they were drawn before the page was printed
    assert sum(part.count(b"1 0 1 RG") for part in streams) >= 2
    assert [path.name for path in out.parent.iterdir()] == ["page.PDF"]


@pytest.mark.browser
def test_a_png_holds_all_of_the_page(html, printer, tmp_path: Path):
    short = png_size(print_page(html, tmp_path / "short.png"))
    taller = html.replace("<footer>", '<div style="height: 3000px"></div><footer>')
    tall = png_size(print_page(taller, tmp_path / "tall.png"))
    assert short[0] == tall[0] == 2 * printing.WIDTH
    assert 6000 <= tall[1] - short[1] < 6100  # and the margins of what was put in


def unpacked(stream: bytes) -> bytes:
    try:
        return zlib.decompress(stream)
    except zlib.error:
        return b""


def png_size(path: Path) -> tuple[int, int]:
    head = path.read_bytes()[:24]
    assert head.startswith(b"\x89PNG")
    return int.from_bytes(head[16:20]), int.from_bytes(head[20:24])


def test_without_a_browser_it_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.delenv(printing.BROWSER, raising=False)
    monkeypatch.setattr(printing.shutil, "which", lambda name: None)
    with pytest.raises(CheckpointError, match=r"no Chromium, Chrome or Edge; open the HTML report in any browser"):
        print_page("<p>", tmp_path / "a.pdf")
    monkeypatch.setenv(printing.BROWSER, "nowhere")
    with pytest.raises(CheckpointError, match="MPVIZ_CHROMIUM names nowhere, which is no program"):
        find_browser()
    assert list(tmp_path.iterdir()) == []


def test_other_forms_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"a\.docx: a page is printed to a file that ends in \.pdf or \.png"):
        print_page("<p>", tmp_path / "a.docx")


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo first >&2; echo broken >&2; exit 3", "said: broken"),
        ("exit 3", "said:"),
        ("sleep 5", "did not end within"),
    ],
)
def test_a_browser_that_fails_leaves_the_old_file(script, words, monkeypatch, tmp_path):
    program, old = tmp_path / "browser", tmp_path / "a.pdf"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    old.write_text("old")
    monkeypatch.setenv(printing.BROWSER, str(program))
    monkeypatch.setattr(printing, "_LONGEST", 0.3)
    with pytest.raises(CheckpointError, match=f"cannot print .*a.pdf: .*browser {words}"):
        print_page("<p>", old)
    assert old.read_text() == "old" and len(list(tmp_path.iterdir())) == 2


def test_a_browser_that_writes_nothing_is_an_error(monkeypatch, tmp_path):
    program = tmp_path / "browser"
    program.write_text("#!/bin/sh\nexit 0\n")
    program.chmod(0o755)
    monkeypatch.setenv(printing.BROWSER, str(program))
    with pytest.raises(CheckpointError, match="nothing was changed"):
        print_page("<p>", tmp_path / "a.pdf")
