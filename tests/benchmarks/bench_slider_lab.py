"""How long a slider step takes in JupyterLab, from the key to the painted figures.

    python tests/benchmarks/bench_slider_lab.py [model] [steps]

Prints median and 95th percentile in milliseconds: the budgets of all layers and the coverage curve, both in one page.
"""

from __future__ import annotations

import shutil
import socket
import statistics
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.browser.lab import Notebook, lab_server, write_notebook  # noqa: E402

COVERAGE, BUDGETS = 2, 3


def measure(model: str, steps: int) -> list[float]:
    """Milliseconds of each step."""
    from playwright.sync_api import sync_playwright

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder, lab_server(Path(folder) / "served", port, ROOT) as server:
        write_notebook(
            server.folder / "bench.ipynb",
            f"import mpviz as mp\nwb = mp.Workbench({model!r})\nwb",
            "wb.wait_preview(300)",
        )
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
            )
            notebook = Notebook(browser.new_page(viewport={"width": 1280, "height": 1000}), server)
            notebook.open("bench.ipynb")
            notebook.run_all()
            view = notebook.view()
            view.wait_painted()
            # the whole curve is measured: what is timed is the slider, not the preview beside it
            notebook.page.locator(".jp-OutputArea-output", has_text="True").wait_for(timeout=300_000)
            times = view.press_timed("sparsity, %", ["ArrowRight", "ArrowLeft"] * (steps // 2), [COVERAGE, BUDGETS])
            browser.close()
    return times


if __name__ == "__main__":
    model = sys.argv[1] if len(sys.argv) > 1 else "fashion-vit"
    times = sorted(measure(model, int(sys.argv[2]) if len(sys.argv) > 2 else 60))
    print(f"{model}: median {statistics.median(times):.0f} ms, 95th percentile {times[int(0.95 * len(times))]:.0f} ms")
