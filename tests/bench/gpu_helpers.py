"""What stands for a GPU in the tests: a clock that runs everything once on the CPU, and made-up ceilings."""

from __future__ import annotations

import torch

from nvsubq.bench.gpu.cases import Size
from nvsubq.bench.gpu.work import Ceilings

CEILINGS = Ceilings(bytes=2e12, exps=4e12, how="made up")
SMALL = Size("s", 2, 8, 16)


class FakeClock:
    """Every run takes a millisecond more than the one before; graphs are the runs themselves."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.said: list[str] = []

    def events(self, run):
        return self._timed("events", run)

    def wall(self, run):
        return self._timed("wall", run)

    def memory(self, run):
        run()
        self.said.append("memory")
        return 2**20

    def captured(self, run):
        self.said.append("captured")
        return run

    def rest(self):
        self.said.append("rest")

    def _timed(self, how, run):
        run()
        self.said.append(how)
        seconds = 1e-3 * sum(word in ("events", "wall") for word in self.said)
        return [seconds, 2 * seconds, 3 * seconds]
