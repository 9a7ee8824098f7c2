"""A page of ours as a file that needs no browser to be read: PDF for paper, PNG for a slide.

A browser does it, as a person would who prints the page: Chromium, Chrome or Edge, run without a window.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from mpviz.errors import CheckpointError
from mpviz.files import write_with

BROWSER = "MPVIZ_CHROMIUM"  # environment variable: the program that prints
NAMES = (
    "chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge", "msedge",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)  # fmt: skip
FORMS = (".pdf", ".png")
WIDTH = 1160  # of a picture, in CSS pixels: as wide as the page grows
_LONGEST = 120  # seconds that a browser may take
_PAINTED = 20_000  # milliseconds of the page's own clock, which jumps over waiting
# what answers the mouse means nothing in a picture; then the page says how tall it is without it
_STILL = (
    "<style>.tools, nav, .print, .modebar-container, .screen { display: none; }</style>"
    "<script>document.documentElement.dataset.height = document.documentElement.scrollHeight;</script>"
)


def print_page(html: str, out: str | Path) -> Path:
    """Write a page of mpviz, as HTML text, as a PDF or, all of it in one picture at twice the pixels, as a PNG.

    out: a path that ends in .pdf or .png, written atomically. Raises CheckpointError for another ending, where no
    browser is found, where it fails, and where the file cannot be written; an older file is then as it was.
    """
    out = Path(out)
    form = out.suffix.lower()
    if form not in FORMS:
        raise CheckpointError(f"{out}: a page is printed to a file that ends in .pdf or .png")
    browser = find_browser()
    with tempfile.TemporaryDirectory(prefix="mpviz-print-") as folder:
        page, made = Path(folder) / "page.html", Path(folder) / f"page{form}"
        page.write_text(html + (_STILL if form == ".png" else ""), encoding="utf-8")
        if form == ".pdf":
            _run(browser, folder, ["--no-pdf-header-footer", f"--print-to-pdf={made}"], page, out)
        else:
            seen = _run(browser, folder, ["--dump-dom", f"--window-size={WIDTH},900"], page, out)
            height = re.search(r'data-height="(\d+)"', seen)
            size = f"--window-size={WIDTH},{height[1] if height else 4000}"
            _run(browser, folder, [size, "--force-device-scale-factor=2", f"--screenshot={made}"], page, out)
        try:
            write_with(out, partial(shutil.copyfile, made))
        except OSError as error:
            raise CheckpointError(f"cannot write {out}: {error}; nothing was changed") from error
    return out


def find_browser() -> str:
    """The program that prints. Raises CheckpointError, with the remedy, where there is none."""
    named = os.environ.get(BROWSER)
    found = next((path for name in ((named,) if named else NAMES) if (path := shutil.which(name))), None)
    if found is None:
        missing = f"{BROWSER} names {named}, which is no program" if named else "there is no Chromium, Chrome or Edge"
        raise CheckpointError(
            f"cannot print to a file: {missing}; open the HTML report in any browser and use its button "
            f"“Print or save as PDF”, or let {BROWSER} name the program"
        )
    return found


def _run(browser: str, folder: str, wanted: Sequence[str], page: Path, out: Path) -> str:
    """Run the browser on a page with a profile of its own, and give what it prints."""
    always = ["--headless=new", "--disable-gpu", "--hide-scrollbars", "--no-first-run", f"--user-data-dir={folder}/me"]
    if getattr(os, "geteuid", lambda: 1)() == 0:
        always.append("--no-sandbox")  # Chromium refuses to start for root with it; the page is ours, and asks nobody
    command = [browser, *always, f"--virtual-time-budget={_PAINTED}", *wanted, page.as_uri()]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_LONGEST, check=True, encoding="utf-8")
    except subprocess.TimeoutExpired:
        raise CheckpointError(f"cannot print {out}: {browser} did not end within {_LONGEST} s") from None
    except (OSError, subprocess.CalledProcessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        raise CheckpointError(f"cannot print {out}: {browser} said: {said[-1] if said else 'nothing'}") from error
    return done.stdout
