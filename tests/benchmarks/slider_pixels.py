"""From a key on the sparsity slider to the painted figures, in Chromium: dashboard and JupyterLab, one user.

    python tests/benchmarks/slider_pixels.py [--model fashion-vit] [--steps 60] [--faces dashboard lab]

writes data/benchmarks/slider-pixels.json. A step counts from the key until the frame that shows both the budgets of all
layers and the coverage curve is over. The whole curve is measured before: the slider is timed, not the preview beside
it. The floor of a face is what its page needs to draw these two figures again, without a server.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, ElementHandle, Page, sync_playwright
from record import write

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.browser.lab import Notebook, lab_server, write_notebook  # noqa: E402
from tests.ui.served import any_port  # noqa: E402

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
COVERAGE, BUDGETS = 2, 3  # the figures of a notebook's view, from the top left
# The frame after the drawing is on the screen once a task gets its turn behind it.
STEPS = """
async ([handle, plots, keys]) => {
  const pause = () => new Promise((done) => setTimeout(done, 400));
  const painted = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  const seen = (plot) => plot.layout.title.text + JSON.stringify(plot.layout.shapes);
  const press = async (key) => {
    const old = plots.map(seen);
    const start = performance.now();
    handle.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
    while (plots.some((plot, i) => seen(plot) === old[i])) {
      if (performance.now() - start > 10000) throw Error(`not painted after ${key}`);
      await new Promise((done) => setTimeout(done, 1));
    }
    await painted();
    return performance.now() - start;
  };
  const shelf = Object.keys(globalThis).find((name) => name.startsWith("mpviz-plotly-"));
  const Plotly = globalThis.Plotly ?? (await globalThis[shelf].ready);
  const shown = () => plots.map(({ data, layout }) => structuredClone(JSON.parse(JSON.stringify({ data, layout }))));
  const states = [shown()];
  await press(keys[0]);
  states.push(shown());
  const found = { steps: [], draws: [] };
  for (const [i, key] of keys.slice(1).entries()) {
    await pause();
    found.steps.push(await press(key));
  }
  for (const i of keys.keys()) {
    await pause();
    const start = performance.now();
    const state = structuredClone(states[i % 2]);
    await Promise.all(plots.map((plot, n) => Plotly.react(plot, state[n].data, state[n].layout)));
    await painted();
    found.draws.push(performance.now() - start);
  }
  return found;
}
"""
Times = dict[str, list[float]]


def in_lab(browser: Browser, model: str, keys: list[str]) -> Times:
    """Steps in the view of a workbench in JupyterLab."""
    with tempfile.TemporaryDirectory() as folder, lab_server(Path(folder) / "served", any_port(), ROOT) as server:
        write_notebook(
            server.folder / "bench.ipynb",
            f"import mpviz as mp\nwb = mp.Workbench({model!r})\nwb",
            "wb.wait_preview(300)",
        )
        notebook = Notebook(browser.new_page(viewport={"width": 1280, "height": 1000}), server)
        notebook.open("bench.ipynb")
        notebook.run_all()
        view = notebook.view()
        view.wait_painted()
        notebook.page.locator(".jp-OutputArea-output", has_text="True").wait_for(timeout=300_000)
        plots = [view.plot(number).element_handle() for number in (COVERAGE, BUDGETS)]
        return measure(notebook.page, view.slider("sparsity, %").element_handle(), plots, keys)


def in_dashboard(browser: Browser, model: str, keys: list[str]) -> Times:
    """Steps on the dashboard's page."""
    port = any_port()
    command = [sys.executable, "-m", "mpviz.ui.dashboard", "--model", model, "--port", str(port)]
    server = subprocess.Popen(command, cwd=ROOT)
    try:
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        open_page(page, f"http://localhost:{port}")
        page.wait_for_timeout(30_000)  # the curve is measured in less
        plots = [page.locator(f"{cell} .js-plotly-plot:visible").element_handle() for cell in (".coverage", ".budgets")]
        handle = page.locator(".removed .noUi-handle").element_handle()
        return measure(page, handle, plots, keys)
    finally:
        server.terminate()
        server.wait()


def open_page(page: Page, address: str, seconds: float = 60) -> None:
    """Open the dashboard as soon as it answers, and wait until it is ready."""
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


def measure(page: Page, handle: ElementHandle | None, plots: list[ElementHandle | None], keys: list[str]) -> Times:
    """Milliseconds of each step and of each drawing alone."""
    times: Times = page.evaluate(STEPS, [handle, plots, keys])
    return times


def summary(times: list[float]) -> dict[str, float]:
    """Median and 95th percentile."""
    p95 = statistics.quantiles(times, n=20)[-1]
    return {"median": round(statistics.median(times)), "p95": round(p95), "steps": len(times)}


FACES: dict[str, Callable[[Browser, str, list[str]], Times]] = {"dashboard": in_dashboard, "lab": in_lab}


def main() -> None:
    """Measure the faces that are asked for; the file is written where both are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fashion-vit")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--faces", nargs="+", choices=list(FACES), default=list(FACES))
    given = parser.parse_args()
    keys = [("ArrowRight", "ArrowLeft")[i // 10 % 2] for i in range(given.steps + 1)]
    rows: dict[str, Any] = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        version = browser.version
        for face in given.faces:
            times = FACES[face](browser, given.model, keys)
            rows[face] = {"key_to_pixels_ms": summary(times["steps"]), "drawing_alone_ms": summary(times["draws"])}
            print(face, rows[face], flush=True)
        browser.close()
    if set(rows) == set(FACES):
        command = f"python tests/benchmarks/slider_pixels.py --model {given.model} --steps {given.steps}"
        write("slider-pixels", command, {"model": given.model, "chromium": version, "rows": rows})


if __name__ == "__main__":
    main()
