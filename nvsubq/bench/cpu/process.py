"""A worker process as the parent sees it: questions, answers, and its end when it takes too long."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from nvsubq.bench.cpu.cases import Size

START_LIMIT = 300.0
"""Seconds for imports and the first small call."""


class WorkerError(Exception):
    """It failed, died or took too long; the message says which."""


class Worker:
    """A process of `nvsubq.bench.cpu.worker`, started at once and asked later.

    Args:
        core, size, name: what it shall run.
        threads: of torch.
        outputs: file for its first outputs.
    """

    def __init__(self, core: str, size: Size, name: str, threads: int, outputs: Path) -> None:
        asked = {
            "core": core,
            "size": size,
            "implementation": name,
            "threads": threads,
            "outputs": str(outputs),
        }
        # What `auto` picks is measured, whatever the user forces elsewhere.
        environment = {key: value for key, value in os.environ.items() if key != "NVSUBQ_BACKEND"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "nvsubq.bench.cpu.worker", json.dumps(asked)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.outputs = outputs
        self._answers: queue.Queue[str | None] = queue.Queue()
        self._said: list[str] = []
        reads = (self._read_answers, self._read_errors)
        self._readers = [threading.Thread(target=read, daemon=True) for read in reads]
        for reader in self._readers:
            reader.start()

    def _read_answers(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self._answers.put(line)
        self._answers.put(None)

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                self._said = [*self._said[-20:], line.rstrip()]

    def ready(self) -> None:
        """Waits until its block is built.

        Raises:
            WorkerError: it cannot be built.
        """
        self._wait(START_LIMIT, f"it was not ready after {START_LIMIT:.0f} s")

    def ask(self, what: str, limit: float) -> dict[str, Any]:
        """Has it do something.

        Args:
            what: `first`, `forward`, `both` or `products`.
            limit: seconds, after which it is ended.

        Raises:
            WorkerError: it failed, died or took too long.
        """
        assert self.process.stdin is not None
        with suppress(OSError):  # it is dead: waiting for its answer says how
            self.process.stdin.write(what + "\n")
            self.process.stdin.flush()
        return self._wait(
            limit, f"skipped: one {what.replace('first', 'forward+backward')} takes over {limit:g} s"
        )

    def _wait(self, limit: float, too_long: str) -> dict[str, Any]:
        try:
            line = self._answers.get(timeout=limit)
        except queue.Empty:
            self.close()
            raise WorkerError(too_long) from None
        if line is None:
            raise WorkerError(self._end())
        answer = json.loads(line)
        if "problem" in answer:
            raise WorkerError(answer["problem"])
        return answer

    def _end(self) -> str:
        code = self.process.wait()
        if code == -9:
            return "it was ended by signal 9: out of memory?"
        last = next((line for line in reversed(self._said) if line), "")
        return f"it ended with {'signal ' + str(-code) if code < 0 else 'code ' + str(code)}: {last}".rstrip(
            ": "
        )

    def close(self) -> None:
        """Ends it."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        with suppress(OSError):  # what was left to be written has no reader any more
            self.process.stdin.close()
        for reader in self._readers:
            reader.join()
