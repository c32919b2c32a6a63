"""What was measured of one implementation, core and size, and the figures made from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from nvsubq.bench.cpu.cases import Size
from nvsubq.bench.names import OURS


@dataclass
class Cell:
    """The measurements of one implementation of a core at a size.

    Args:
        core: key of `cases.CORES`.
        size: of the input.
        name: the implementation.
        version: of its package.
        forward: seconds of each forward pass without gradients.
        both: seconds of each forward and backward pass; entry r of both lists belongs to round r.
        products: seconds of the forward's matrix products alone, of ours only.
        memory: peak bytes of forward and backward beyond block and input.
        error: largest difference of output and of the input's gradient from the reference's, relative to the
            largest value there.
        is_reference: whether the others are compared with this one: the portable path where it ran.
        problem: why there are no times.
    """

    core: str
    size: Size
    name: str
    version: str = ""
    forward: list[float] = field(default_factory=list)
    both: list[float] = field(default_factory=list)
    products: list[float] = field(default_factory=list)
    memory: int | None = None
    error: tuple[float, float] | None = None
    is_reference: bool = False
    problem: str = ""

    @property
    def label(self) -> str:
        return f"{self.name} {self.version}" if self.version and self.name != "nvsubq torch" else self.name

    def as_json(self) -> dict[str, Any]:
        """Its fields, without those that say nothing."""
        found = asdict(self)
        return {key: value for key, value in found.items() if value or key in ("memory", "error")}


def beside(cells: Sequence[Cell], cell: Cell, name: str = OURS) -> Cell | None:
    """The cell of another implementation at the same core and size."""
    return next((c for c in cells if (c.core, c.size, c.name) == (cell.core, cell.size, name)), None)
