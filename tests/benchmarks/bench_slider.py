"""From a key press on the sparsity slider to the painted figures, in a real browser.

    python tests/benchmarks/bench_slider.py [network] [steps]

Prints the median and the 95th percentile of two runs: while the curve is being measured in the background, and after.
"""

from __future__ import annotations

import shutil
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
# Resolves with the milliseconds between the next key press and the frame in which both figures show the new budget.
MEASURE = """
() => {
  const plot = (cell) => document.querySelector(cell).querySelector("[data-root-id], div")
    .querySelector(".bk-panel-models-plotly-PlotlyPlot").shadowRoot.querySelector(".js-plotly-plot");
  const figures = [plot(".budgets"), plot(".coverage")];
  const seen = (figure) => figure.layout.title.text + JSON.stringify(figure.layout.shapes);
  window.painted = new Promise((resolve) => {
    let start = 0;
    document.addEventListener("keydown", () => { start = performance.now(); }, { once: true, capture: true });
    const old = figures.map(seen);
    const look = () => {
      if (start && figures.every((figure, i) => seen(figure) !== old[i]))
        requestAnimationFrame(() => setTimeout(() => resolve(performance.now() - start)));
      else setTimeout(look, 1);
    };
    look();
  });
}
"""


def measure(page: Page, steps: int) -> list[float]:
    """Milliseconds of each of `steps` key presses, the next one only after the figures of the last are painted."""
    page.locator(".removed .noUi-handle").focus()
    times = []
    for step in range(steps):
        page.evaluate(MEASURE)
        page.keyboard.press("ArrowRight" if step % 40 < 20 else "ArrowLeft")
        times.append(page.evaluate("window.painted"))
    return times


def report(name: str, times: list[float]) -> None:
    """One line a run."""
    p95 = statistics.quantiles(times, n=20)[-1]
    print(f"{name}: median {statistics.median(times):.0f} ms, 95th percentile {p95:.0f} ms, of {len(times)} steps")


def main(network: str = "fashion-mlp", steps: str = "20") -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mpviz.ui.dashboard", "--model", network, "--port", str(port)]
    server = subprocess.Popen(command, cwd=Path(__file__).resolve().parents[2])
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            _open(page, f"http://localhost:{port}")
            report(f"{network}, curve being measured", measure(page, int(steps)))
            time.sleep(20)
            report(f"{network}, curve complete", measure(page, int(steps)))
            browser.close()
    finally:
        server.terminate()
        server.wait()


def _open(page: Page, address: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            page.goto(address)
            break
        except Exception:
            if time.monotonic() > end:
                raise
            time.sleep(0.3)
    page.locator(".budgets .bars").first.wait_for(timeout=1000 * seconds)
    page.wait_for_function("() => !document.querySelector('.removed [disabled]')")


if __name__ == "__main__":
    main(*sys.argv[1:])
