"""Where things lie in spatial recall, in any number of dimensions: canvas, item, readout, free places."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

SIZES: dict[str, tuple[int, dict[int, tuple[int, ...]]]] = {
    "small": (8, {1: (576,), 2: (24, 24), 3: (2, 16, 16)}),
    "original": (16, {1: (4096,), 2: (64, 64), 3: (8, 64, 64)}),
}
"""name -> side of an item, and the canvas of each rank; "original" is nvSubquadratic's."""

DIRECTIONS = ("vertical", "horizontal")
CANDIDATES = 64
"""Places drawn for the items of one canvas before all of them are drawn anew."""
PROBES = 4_000
"""Rounds of such draws, none of which comes to an end where a canvas is so tight that nobody will wait."""
ROUNDS = 20_000
"""Rounds for one canvas, after which its places are those of a tight one."""


@dataclass(frozen=True)
class Layout:
    """A canvas with its readout region at the far end of a row-major scan.

    An item of side s is s x s cells of a plane or of one slice, or s * s consecutive cells of a signal.

    Args:
        canvas: cells along each axis.
        side: of an item.

    Raises:
        ValueError: an item does not fit.

    Example:
        >>> layout = Layout((4, 24, 24), 8)
        >>> layout.item, layout.readout
        ((1, 8, 8), (slice(3, 4, None), slice(16, 24, None), slice(16, 24, None)))
    """

    canvas: tuple[int, ...]
    side: int

    def __post_init__(self) -> None:
        if any(n < m for n, m in zip(self.canvas, self.item, strict=True)):
            raise ValueError(
                f"`canvas` (={list(self.canvas)}) must hold an item of "
                f"{' x '.join(map(str, self.item))} cells."
            )

    @property
    def item(self) -> tuple[int, ...]:
        """Cells of an item along each axis."""
        side = self.side
        return {1: (side * side,), 2: (side, side), 3: (1, side, side)}[len(self.canvas)]

    @property
    def last(self) -> tuple[int, ...]:
        """The corner of the readout region."""
        return tuple(n - m for n, m in zip(self.canvas, self.item, strict=True))

    @property
    def readout(self) -> tuple[slice, ...]:
        """The cells of the readout region."""
        return self.at(self.last)

    @property
    def mask(self) -> np.ndarray:
        """`[*canvas]` bool, true in the readout region."""
        mask = np.zeros(self.canvas, dtype=bool)
        mask[self.readout] = True
        return mask

    @property
    def room(self) -> int:
        """Items that fit beside the readout wherever they lie on a grid of items."""
        return math.prod(n // m for n, m in zip(self.canvas, self.item, strict=True)) - 1

    def at(self, corner: Sequence[int]) -> tuple[slice, ...]:
        """The cells of an item at `corner`."""
        return tuple(slice(c, c + m) for c, m in zip(corner, self.item, strict=True))

    def before_readout(self, lag: int | None, direction: str) -> tuple[int, ...]:
        """The corner that lies `lag` cells before the readout's, up a column or along a row.

        Without a lag: the first corner of the canvas, as far from the readout as there is.

        Raises:
            ValueError: the item would leave the canvas or touch the readout, or there is no such direction.

        Example:
            >>> Layout((24, 24), 8).before_readout(10, "vertical")
            (6, 16)
        """
        if direction not in DIRECTIONS:
            raise ValueError(f"`direction` (={direction!r}) must be one of {', '.join(DIRECTIONS)}.")
        if lag is None:
            return (0,) * len(self.canvas)
        if len(self.canvas) == 1 and direction == "vertical":
            raise ValueError("`direction` (='vertical') needs at least two dimensions.")
        axis = -2 if direction == "vertical" else -1
        least, most = self.item[axis], self.last[axis]
        if isinstance(lag, bool) or not isinstance(lag, int) or not least <= lag <= most:
            raise ValueError(
                f"`lag` (={lag!r}) must be null or an integer from {least} (the item) to {most} "
                f"(the canvas {list(self.canvas)}), {direction}."
            )
        corner = list(self.last)
        corner[axis] -= lag
        return tuple(corner)

    def places(self, count: int, random: np.random.Generator) -> list[tuple[int, ...]]:
        """Corners of `count` items that overlap neither each other nor the readout.

        Drawn one by one, whatever comes of it; on a canvas that is too tight for that, all at once: the gaps
        between the items of a signal, or which cells of a grid of items are taken.
        """
        if _loose(self, count):
            for _ in range(ROUNDS):
                if (found := self._drawn(count, random)) is not None:
                    return found
        return self._tight(count, random)

    def _drawn(self, count: int, random: np.random.Generator) -> list[tuple[int, ...]] | None:
        high, item = np.array(self.last) + 1, self.item
        taken = [self.last]
        # Plain integers: arrays of two or three numbers cost several times as much to compare.
        for drawn in random.integers(0, high, (CANDIDATES, len(high))).tolist():
            if not any(_overlap(drawn, other, item) for other in taken):
                taken.append(tuple(drawn))
                if len(taken) > count:
                    return taken[1:]
        return None

    def _tight(self, count: int, random: np.random.Generator) -> list[tuple[int, ...]]:
        item = self.item
        if len(item) == 1:
            # `count` of the cells that are left when each item is shrunk to one: every layout alike.
            free = self.last[0] - count * (item[0] - 1)
            shrunk = np.sort(random.choice(free, count, replace=False))
            places = [(corner,) for corner in (shrunk + np.arange(count) * (item[0] - 1)).tolist()]
            return [places[i] for i in random.permutation(count)]
        # The grid begins at the readout, so that this is a cell of it: the first one.
        grid = [range(n, -1, -m) for n, m in zip(self.last, item, strict=True)]
        cells = list(itertools.product(*grid))[1:]
        return [cells[i] for i in random.permutation(len(cells))[:count]]


@lru_cache(maxsize=64)
def _loose(layout: Layout, count: int) -> bool:
    """Whether draws one by one come to an end: a function of its arguments, as the places must be."""
    random = np.random.default_rng(0)
    return any(layout._drawn(count, random) is not None for _ in range(PROBES))


def _overlap(one: Sequence[int], other: Sequence[int], item: Sequence[int]) -> bool:
    """Whether items at two corners share a cell."""
    for axis, size in enumerate(item):  # noqa: SIM110, a generator costs twice as much
        if not -size < one[axis] - other[axis] < size:
            return False
    return True
