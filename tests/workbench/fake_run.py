"""Stands in for `mpviz run` where only the queue is tested: the name of the data set says what happens to it.

python fake_run.py RUN_FOLDER. It counts in out/steps.txt, from where an earlier start of it stopped.
"""

from __future__ import annotations

import signal
import sys
import time
import tomllib
import traceback
from pathlib import Path
from typing import Any

from mpviz.run_status import StatusFile

STEPS = 20


def main(folder: Path) -> int:
    name = tomllib.loads((folder / "recipe.toml").read_text())["data"]["name"]
    asked: list[int] = []
    deaf: Any = lambda number, _: None if name == "deaf" else asked.append(number)  # noqa: E731
    signal.signal(signal.SIGTERM, deaf)
    status = StatusFile(folder / "status.json")
    with (folder.parent / "order.txt").open("a") as file:
        file.write(f"{folder.name}\n")
    print(f"runs {name}", flush=True)
    steps = folder / "out" / "steps.txt"
    steps.parent.mkdir(exist_ok=True)
    step = int(steps.read_text()) if steps.exists() else 0
    last = STEPS if name == "quick" else 10**6
    if name == "once" and step:  # slow until it is stopped, then soon done
        last = step + 5
    try:
        if name == "fails":
            raise ValueError("no such <luck>; try again")
        while step < last:
            step += 1
            steps.write_text(str(step))
            status.tell(min(step / last, 1.0), f"step {step}")
            if asked:
                status.end("cancelled", f"cancelled after step {step}")
                return 130
            time.sleep(0.01)
    except ValueError as error:
        status.end("failed", "failed at 0 %", error=str(error), traceback=traceback.format_exc())
        return 2
    status.end("done", "done")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
