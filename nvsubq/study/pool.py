"""Runs side by side, each in a process of its own, until there are no more or the time is over."""

from __future__ import annotations

import math
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import Any

from omegaconf import OmegaConf

from nvsubq.study import worker
from nvsubq.study.runs import FAILED, Folder, Run

LAST_START = 60.0
"""Seconds before the end after which no run is started."""
STOP_BEFORE = 30.0
"""Seconds before the end at which runs are asked to stop; they go on from their last checkpoint."""
PATIENCE = 15.0
"""Seconds that a run has to stop before it is ended."""
THREADS = "OMP_NUM_THREADS"

Next = Callable[[set[str]], "Run | None"]


@dataclass
class Pool:
    """Runs of a study in processes.

    Args:
        folder: of the study.
        jobs: how many at once; with several each has one thread on a CPU.
        ended: told of each run that ended, with "done", "failed" or "stopped".
        deadline: on the clock `time.monotonic`; None: no end.
    """

    folder: Folder
    jobs: int
    ended: Callable[[Run, str], None]
    deadline: float | None = None
    _working: dict[Any, Run] = field(default_factory=dict)

    def work(self, next_run: Next) -> None:
        """Runs whatever `next_run` gives, until it gives nothing and nothing runs, or the time is over.

        Args:
            next_run: told the names of the runs under way; gives the next, or None where there is none yet.
        """
        try:
            while self._left() > STOP_BEFORE:
                while len(self._working) < self.jobs and self._left() > LAST_START:
                    run = next_run({run.name for run in self._working.values()})
                    if run is None:
                        break
                    self._start(run)
                if not self._working:
                    return
                self._wait(self._left() - STOP_BEFORE)
        finally:
            self._stop()

    def _left(self) -> float:
        return math.inf if self.deadline is None else self.deadline - time.monotonic()

    def _start(self, run: Run) -> None:
        config = run.config
        config.paths.runs = str(self.folder.runs)
        if self.jobs > 1:
            config.threads = 1
        path = self.folder.of(run)
        (path / FAILED).unlink(missing_ok=True)
        arguments = (OmegaConf.to_yaml(config), str(path), run.overrides)
        process = _context(run).Process(target=worker.main, args=arguments)
        with _threads_of(self.jobs):
            process.start()
        self._working[process] = run

    def _wait(self, seconds: float) -> None:
        """Until a run ends, or so long."""
        sentinels = [process.sentinel for process in self._working]
        wait(sentinels, None if math.isinf(seconds) else max(seconds, 0.0))
        for process in [p for p in self._working if not p.is_alive()]:
            self._collect(process)

    def _collect(self, process: Any) -> None:
        process.join()
        run, code = self._working.pop(process), process.exitcode
        process.close()
        if self.folder.done(run):
            self.ended(run, "done")
        elif code in (worker.STOPPED, -signal.SIGINT):
            self.ended(run, "stopped")
        else:
            if self.folder.failure(run) is None:
                worker.write_failure(self.folder.of(run), _died(code))
            self.ended(run, "failed")

    def _stop(self) -> None:
        """Asks the runs to stop, and ends those that do not."""
        for process in self._working:
            if process.is_alive():
                os.kill(process.pid, signal.SIGINT)
        end = time.monotonic() + PATIENCE
        while self._working and time.monotonic() < end:
            self._wait(end - time.monotonic())
        for process, run in list(self._working.items()):
            process.kill()
            process.join()
            del self._working[process]
            self.ended(run, "done" if self.folder.done(run) else "stopped")


def _died(code: int | None) -> str:
    if code is not None and code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"its process was ended by {name}{': out of memory?' if code == -signal.SIGKILL else ''}"
    return f"its process ended with code {code}"


def _context(run: Run) -> Any:
    """Forked from a server that has everything imported; a GPU's driver does not survive a fork."""
    forks = "forkserver" in multiprocessing.get_all_start_methods()
    if not forks or run.config.trainer.get("accelerator") != "cpu":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["nvsubq.study.preload"])
    return context


@contextmanager
def _threads_of(jobs: int) -> Iterator[None]:
    """Side by side, OpenMP is told of one thread by the environment, before anything is imported."""
    before = os.environ.get(THREADS)
    if jobs > 1:
        os.environ[THREADS] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(THREADS, None)
        else:
            os.environ[THREADS] = before


def forget(folder: Folder, run: Run) -> None:
    """Removes what a failed run left, so that it begins anew."""
    shutil.rmtree(folder.of(run), ignore_errors=True)
