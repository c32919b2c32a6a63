"""What was measured of one implementation in one case of a table."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from nvsubq.bench.gpu.work import Ceilings, Work
from nvsubq.bench.stats import quartiles


@dataclass
class Row:
    """The measurements of an implementation.

    Args:
        table: key of `cases.TABLES`.
        case: the size, in words.
        name: the implementation.
        version: of its package.
        times: seconds of every run, by what was timed.
        work: the least work of each, where it is known.
        memory: peak bytes of forward and backward beyond what was held before.
        note: what a reader must know of it.
        problem: why there are no times, or not all.
    """

    table: str
    case: str
    name: str
    version: str = ""
    times: dict[str, list[float]] = field(default_factory=dict)
    work: dict[str, Work] = field(default_factory=dict)
    memory: int | None = None
    note: str = ""
    problem: str = ""

    @property
    def label(self) -> str:
        return f"{self.name} {self.version}" if self.version else self.name

    def median(self, what: str) -> float:
        """Seconds, of what has been timed."""
        return quartiles(self.times[what])[1]

    def rates(self, what: str, ceilings: Ceilings) -> dict[str, Any]:
        """Bytes and exponentials per second; the floor in seconds, what makes it, its part of the time."""
        work, seconds = self.work[what], self.median(what)
        floor, bound = work.floor(ceilings)
        return {
            "bytes_per_second": work.bytes / seconds,
            "exps_per_second": work.exps / seconds,
            "floor": floor,
            "bound": bound,
            "reached": floor / seconds,
        }

    def as_json(self, ceilings: Ceilings) -> dict[str, Any]:
        """Its fields without those that say nothing, and the figures made from them."""
        found = {key: value for key, value in asdict(self).items() if value or key == "memory"}
        figures = {}
        for what in self.times:
            figures[what] = {"median": self.median(what)}
            if what in self.work:
                figures[what] |= self.rates(what, ceilings)
        return found | ({"figures": figures} if figures else {})
