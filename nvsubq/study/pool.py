"""Runs side by side, each in a process of its own, until there are no more or the time is over."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import time
from collections import Counter
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
DEATHS = 2
"""Times that a run may be interrupted from outside in one command; it is left then, for the next command."""
AGAIN = " (again: left for the next command)"
THREADS = "OMP_NUM_THREADS"

Next = Callable[[set[str]], "Run | None"]


@dataclass
class Pool:
    """Runs of a study in processes.

    Args:
        folder: of the study.
        jobs: how many at once; with several each that begins has one thread on a CPU.
        ended: told of each run that ended, how ("done", "failed", "died" or "stopped"), and why. A run that
            died or was stopped goes on from its last checkpoint.
        deadline: on the clock `time.monotonic`; None: no end.
    """

    folder: Folder
    jobs: int
    ended: Callable[[Run, str, str], None]
    deadline: float | None = None
    _working: dict[Any, Run] = field(default_factory=dict)
    _deaths: Counter[str] = field(default_factory=Counter)
    _stopping: bool = False

    @property
    def left(self) -> list[str]:
        """Names of the runs that were interrupted too often to be tried again."""
        return [name for name, times in self._deaths.items() if times >= DEATHS]

    def work(self, next_run: Next) -> None:
        """Runs whatever `next_run` gives, until it gives nothing and nothing runs, or the time is over.

        Args:
            next_run: told the names of the runs that are under way or left; gives the next, or None where
                there is none yet.
        """
        try:
            while self._left() > STOP_BEFORE:
                while len(self._working) < self.jobs and self._left() > LAST_START:
                    run = next_run({*self.left, *(run.name for run in self._working.values())})
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
        elif config.threads is None:
            config.threads = threads_alone()
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
        how, why = self._how(run, code)
        if how == "died":
            self._deaths[run.name] += 1
            why += AGAIN if run.name in self.left else ""
        self.ended(run, how, why)

    def _how(self, run: Run, code: int | None) -> tuple[str, str]:
        """How a run ended, and why."""
        if self.folder.done(run):
            return "done", ""
        if (reason := self.folder.failure(run)) is not None:
            return "failed", reason
        if self._stopping:
            return "stopped", ""
        if (reason := interruption(code)) is not None:
            return "died", reason
        reason = f"its process ended with code {code}"
        worker.write_failure(self.folder.of(run), reason)
        return "failed", reason

    def _stop(self) -> None:
        """Asks the runs to stop, and ends those that do not."""
        self._stopping = True
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
            self.ended(run, *self._how(run, process.exitcode))


def threads_alone() -> int | None:
    """The threads that a run has alone where its config names none: written down, so that it keeps them.

    None where the environment says something that only OpenMP understands.
    """
    from nvsubq.training.system import usable_cores

    said = os.environ.get(THREADS)
    if not said:
        return usable_cores()
    return int(said) if said.isdigit() and int(said) > 0 else None


def interruption(code: int | None) -> str | None:
    """What ended a run from outside, by the exit code of its process; None where it failed by itself.

    Example:
        >>> interruption(-9), interruption(28), interruption(1)
        ('its process was ended by SIGKILL: out of memory?', 'No space left on device', None)
    """
    if code == worker.STOPPED:
        return "its process was asked to stop"
    if code is None:
        return None
    if code in worker.TROUBLE:
        return os.strerror(code)
    if code >= 0:
        return None
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"its process was ended by {name}{': out of memory?' if name == 'SIGKILL' else ''}"


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
    """Lets a failed run go on from its last checkpoint, if it has one that fits, or begin anew."""
    (folder.of(run) / FAILED).unlink(missing_ok=True)
