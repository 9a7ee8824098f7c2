"""One run of a sweep as a job of submitit: `mpviz run` in a process of its own, stopped with its last step kept."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mpviz.errors import Cancelled, TrainingError
from mpviz.run_status import read_status
from mpviz.sweep_folder import JOBS, progress_path, recipe_path, status_path, stop_path
from mpviz.sweep_life import LifeFile

PATIENCE = 60.0  # seconds for a run to write its checkpoint once it is asked to stop


class SweptRun:
    """A job that runs one recipe of a sweep; called again it goes on where the run stands.

    processes: above 1 they are launched together by accelerate, each with a GPU, or on the CPU where there is none.
    gpus: value of CUDA_VISIBLE_DEVICES; None leaves it to the engine. threads: of each process on the CPU, where the
    environment does not say; None takes all.
    """

    def __init__(
        self, folder: Path, name: str, processes: int = 1, gpus: str | None = None, threads: int | None = None
    ) -> None:
        self.folder, self.name, self.processes = folder.absolute(), name, processes
        self.gpus, self.threads = gpus, threads
        self._child: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        """What is executed."""
        run = ["mpviz", "run", str(recipe_path(self.folder, self.name)), "--out", str(self.folder / self.name),
               "--status", str(progress_path(self.folder, self.name))]  # fmt: skip
        return [*launcher(self.processes), *run]

    def __call__(self, look: Callable[[], object] | None = None) -> str:
        """Run, and give the folder. look: called every second meanwhile.

        Raises TrainingError with the run's own sentence when it fails, Cancelled when it was stopped.
        """
        with LifeFile(status_path(self.folder, self.name)) as life:
            return self._watched(life, look)

    def _watched(self, life: LifeFile, look: Callable[[], object] | None) -> str:
        environment, told = dict(os.environ), progress_path(self.folder, self.name)
        if self.gpus is not None:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus
        if self.threads is not None:  # runs side by side that each take every core slow each other down tenfold
            environment.setdefault("OMP_NUM_THREADS", str(self.threads))
        told.unlink(missing_ok=True)
        with _deaf_children():
            self._child = subprocess.Popen(self.command(), env=environment)
        try:
            while (code := _wait(self._child)) is None:
                if (status := read_status(told)) is not None:
                    life.show(status.progress, status.message)
                if look is not None:
                    look()
                if stop_path(self.folder).exists():
                    self._stop()
        finally:
            self._stop()
        return self._ended(code)

    def checkpoint(self, *arguments: Any) -> Any:
        """What submitit asks for before a job is taken away: the same again, once the run has kept its last step."""
        from submitit.helpers import DelayedSubmission

        self._stop()
        return DelayedSubmission(self, *arguments)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_child": None}

    def _stop(self) -> None:
        child = self._child
        if child is None or child.poll() is not None:
            return
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()

    def _ended(self, code: int) -> str:
        status = read_status(progress_path(self.folder, self.name))
        if code == 0 and status is not None and status.state == "done":
            return str(self.folder / self.name)
        if status is not None and status.state == "cancelled":
            raise Cancelled(status.message)
        if status is not None and status.state == "failed":
            raise TrainingError(status.error)
        if stop_path(self.folder).exists():  # it had no time to say so
            raise Cancelled("the run was cancelled before it had begun")
        why = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        raise TrainingError(f"the run ended without a word ({why}); its log is in {self.folder / JOBS}")


@contextlib.contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes begun inside ignore SIGUSR2, with which SLURM asks every process of a job to stop in time.

    It would kill a run before that has kept anything; this process hears it, and asks the run with SIGTERM.
    """
    if threading.current_thread() is not threading.main_thread():  # no job of an engine, and nobody sends signals
        yield
        return
    before = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR2, before)


def _wait(child: subprocess.Popen[bytes]) -> int | None:
    try:
        return child.wait(1.0)
    except subprocess.TimeoutExpired:
        return None


def launcher(processes: int) -> list[str]:
    """How Python is started: by itself, or as many at once; what follows is a module's name and its arguments."""
    if processes == 1:
        return [sys.executable, "-m"]
    import torch  # only here: whether this very machine has GPUs

    if torch.cuda.is_available() and torch.cuda.device_count() < processes:
        raise TrainingError(
            f"{processes} processes need as many GPUs, and torch sees {torch.cuda.device_count()} here; ask for more "
            "GPUs, or for fewer processes"
        )
    # port 0 takes a free one: two runs of a machine must not meet. Without GPUs the same launch takes the CPU.
    options = ["--multi_gpu", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    return [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(processes), *options,
            "--main_process_port", "0", "--module"]  # fmt: skip


def run_here(job: SweptRun, look: Callable[[], object] | None = None) -> None:
    """The job in a process that this one waits for; how it ended stands in its status."""
    with contextlib.suppress(TrainingError, Cancelled):
        job(look)
