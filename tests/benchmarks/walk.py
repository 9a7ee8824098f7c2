"""The way of somebody new: from the first look at the dashboard to a pruned, proved and reported network.

    python tests/benchmarks/walk.py [--model fashion-vit]

starts `mpviz dashboard` with nothing set, presses what the page offers in Chromium, and writes
data/benchmarks/walk.json: each click with the seconds until the page showed that it had taken it, and until what was
asked for was there. Pictures of the stations go to data/pictures. A person reads as well; that is not timed here.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Page, sync_playwright
from record import FOLDER, write
from slider_pixels import FLAGS, open_page

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.ui.served import any_port  # noqa: E402

PICTURES = FOLDER.parent / "pictures"
LONGEST = 600_000  # milliseconds


class Walk:
    """A page, and what was done on it so far."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.steps: list[dict[str, Any]] = []

    def press(self, name: str, answer: str, done: str = "") -> None:
        """Press a button; wait for the element that says that it works, and for words that say that all is there."""
        start = time.perf_counter()
        self.page.get_by_role("button", name=name, exact=True).click()
        self.page.locator(answer).first.wait_for(timeout=LONGEST)
        answered = time.perf_counter() - start
        if done:
            self.page.get_by_text(done).first.wait_for(timeout=LONGEST)
        self._keep(name, answered, time.perf_counter() - start)

    def download(self, name: str, folder: Path) -> Path:
        """Press a button that gives a file."""
        start = time.perf_counter()
        with self.page.expect_download(timeout=LONGEST) as started:
            self.page.get_by_role("button", name=name, exact=True).click()
        path = folder / started.value.suggested_filename
        started.value.save_as(path)
        seconds = time.perf_counter() - start
        self._keep(name, seconds, seconds)
        return path

    def _keep(self, what: str, answered: float, done: float) -> None:
        self.steps.append({"click": what, "answered_s": round(answered, 2), "done_s": round(done, 1)})
        print(self.steps[-1], flush=True)

    def picture(self, name: str) -> None:
        """The page as it stands."""
        self.page.mouse.move(1279, 799)
        self.page.wait_for_timeout(700)
        PICTURES.mkdir(parents=True, exist_ok=True)
        shot = Image.open(io.BytesIO(self.page.screenshot()))
        shot.convert("RGB").quantize(256).save(PICTURES / f"{name}.png", optimize=True)  # a third of the bytes


def walk(page: Page, address: str, folder: Path) -> dict[str, Any]:
    """The whole way. folder: for what is taken away."""
    start = time.perf_counter()
    open_page(page, address, 120)
    way = Walk(page)
    way._keep("(open the page)", time.perf_counter() - start, time.perf_counter() - start)
    way.picture("walk-1-open")
    way.press("Prune", "button:has-text('Cancel'):not([disabled])", "pruned at")
    way.picture("walk-2-pruned")
    way.press("Prove", "text=Proving …", "prove finished")
    way.press("enlarge predictions", ".card.large")
    way.picture("walk-3-proved")
    page.keyboard.press("Escape")
    way.picture("dashboard")
    checkpoint, report = way.download("Checkpoint", folder), way.download("Report", folder)
    seconds = round(time.perf_counter() - start)
    page.goto(report.as_uri())
    page.locator("#proofs .main-svg").first.wait_for()
    page.evaluate("scrollTo(0, document.querySelector('#proofs').getBoundingClientRect().top - 90)")
    way.picture("walk-4-report")
    files = {path.name: path.stat().st_size for path in (checkpoint, report)}
    return {"clicks": len(way.steps) - 1, "seconds": seconds, "steps": way.steps, "bytes": files}


def main() -> None:
    """Serve, walk, and write what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fashion-vit")
    given, port = parser.parse_args(), any_port()
    with tempfile.TemporaryDirectory() as kept:
        folder = Path(kept)
        command = [sys.executable, "-m", "mpviz", "dashboard", given.model, "--port", str(port), "--runs", kept]
        server = subprocess.Popen(command, cwd=ROOT)
        try:
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
                page = browser.new_page(viewport={"width": 1280, "height": 800})
                found = walk(page, f"http://localhost:{port}", folder)
                version = browser.version
                browser.close()
        finally:
            server.terminate()
            server.wait()
    write("walk", f"python tests/benchmarks/walk.py --model {given.model}", {
        "model": given.model, "chromium": version, **found,
    })  # fmt: skip


if __name__ == "__main__":
    main()
