"""Times and memory of what runs on a CUDA device."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch

Run = Callable[[], Any]

WARM_UP = 3
LEAST = 3
BATCH = 50
"""Calls that one wall-clock time is the mean of."""


CACHE_AT_LEAST = 2**26
"""Bytes of the buffer that empties the cache, where that is small or unknown."""


class TooSlow(Exception):
    """One run takes longer than the limit."""


class Clock(Protocol):
    """How runs are timed."""

    device: torch.device

    def events(self, run: Run) -> list[float]:
        """Seconds on the device of each of some runs, with nothing in its cache."""

    def wall(self, run: Run) -> list[float]:
        """Seconds between calls that follow each other at once: the host's, where it is the slower one."""

    def memory(self, run: Run) -> int:
        """The peak of memory during a run, beyond what was held before."""

    def captured(self, run: Run) -> Run:
        """The run as a CUDA graph."""

    def rest(self) -> None:
        """Gives memory back."""


class CudaClock:
    """Times by CUDA events on the current stream.

    Args:
        repeats: runs that are timed, fewer of what would fill the limit.
        limit: seconds, of one run and about of all.
    """

    def __init__(self, repeats: int, limit: float) -> None:
        self.repeats, self.limit = repeats, limit
        self.device = torch.device("cuda", torch.cuda.current_device())
        cache = torch.cuda.get_device_properties(self.device).L2_cache_size
        self._flush = torch.empty(max(4 * cache, CACHE_AT_LEAST) // 4, device=self.device).zero_()

    def events(self, run: Run) -> list[float]:
        """Before each a buffer of four times the L2 cache is read, which also lets the host get ahead.

        It is not written: what is written stays in the cache, and the run that is timed would have to put it
        back to memory first.
        """
        repeats = self._warm_up(run)
        pairs = []
        for _ in range(repeats):
            self._flush.sum()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            pairs.append((start, end))
        torch.cuda.synchronize(self.device)
        return [start.elapsed_time(end) / 1000 for start, end in pairs]

    def wall(self, run: Run) -> list[float]:
        repeats, found = self._warm_up(run, BATCH), []
        for _ in range(repeats):
            start = time.perf_counter()
            for _ in range(BATCH):
                run()
            torch.cuda.synchronize(self.device)
            found.append((time.perf_counter() - start) / BATCH)
        return found

    def memory(self, run: Run) -> int:
        run()  # libraries take their workspaces at a first call
        self.rest()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        run()
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device) - before

    def captured(self, run: Run) -> Run:
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                run()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        return graph.replay

    def rest(self) -> None:
        gc.collect()
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()

    def _warm_up(self, run: Run, batch: int = 1) -> int:
        """Runs it a few times; gives how many times, of so many runs, it may be timed."""
        run()
        torch.cuda.synchronize(self.device)
        start = time.perf_counter()
        run()
        torch.cuda.synchronize(self.device)
        seconds = time.perf_counter() - start
        if seconds > self.limit:
            raise TooSlow(f"skipped: one run takes {seconds:.1f} s, over --limit {self.limit:g}")
        for _ in range(WARM_UP if seconds < 0.1 * self.limit else 0):
            run()
        return max(LEAST, min(self.repeats, int(self.limit / seconds / batch)))
