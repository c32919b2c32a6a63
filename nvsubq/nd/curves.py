"""Scan orders as tables: each function maps a box to its cells, row-major indices, in the order of the walk.

All are built by whole-array operations, in time linear in the number of cells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np

Shape = tuple[int, ...]


def axes(shape: Shape, permutation: Sequence[int]) -> np.ndarray:
    """Row-major over permuted axes: the last one named is the fastest.

    Example:
        >>> axes((2, 3), (1, 0)).tolist()
        [0, 3, 1, 4, 2, 5]
    """
    return _cells(shape).transpose(tuple(permutation)).ravel()


def snake(shape: Shape) -> np.ndarray:
    """Boustrophedon: each line is walked against the one before, so consecutive cells always touch.

    Example:
        >>> snake((2, 3)).tolist()
        [0, 1, 2, 5, 4, 3]
    """
    order = np.zeros(1, dtype=np.int64)
    for size in reversed(shape):
        layers = np.tile(order, (size, 1))
        layers[1::2] = layers[1::2, ::-1]
        order = (layers + np.arange(size)[:, None] * len(order)).ravel()
    return order


def window(shape: Shape, size: Sequence[int]) -> np.ndarray:
    """Windows in row-major order, and in each its cells in row-major order; at the edges they are smaller.

    Example:
        >>> window((2, 5), (2, 2)).tolist()
        [0, 1, 5, 6, 2, 3, 7, 8, 4, 9]
    """
    counts = [-(-n // w) for n, w in zip(shape, size, strict=True)]
    padded = np.full([c * w for c, w in zip(counts, size, strict=True)], -1, dtype=np.int64)
    padded[tuple(slice(n) for n in shape)] = _cells(shape)
    parted = padded.reshape([k for pair in zip(counts, size, strict=True) for k in pair])
    rank = len(shape)
    order = parted.transpose([*range(0, 2 * rank, 2), *range(1, 2 * rank, 2)]).ravel()
    return order[order >= 0]


def morton(shape: Shape) -> np.ndarray:
    """Z-order: by the interleaved bits of the coordinates; an axis that has no bits left takes no part.

    Example:
        >>> morton((2, 4)).tolist()
        [0, 1, 4, 5, 2, 3, 6, 7]
    """
    bits = [(n - 1).bit_length() for n in shape]
    keys = [np.zeros(n, dtype=np.int64) for n in shape]
    position = 0
    for level in range(max(bits, default=0)):
        for axis in reversed(range(len(shape))):
            if level < bits[axis]:
                keys[axis] |= (np.arange(shape[axis]) >> level & 1) << position
                position += 1
    key = np.zeros(shape, dtype=np.int64)
    for axis, part in enumerate(keys):
        key += part.reshape([-1 if a == axis else 1 for a in range(len(shape))])
    order = np.full(1 << position, -1, dtype=np.int64)
    order[key.ravel()] = np.arange(math.prod(shape))
    return order[order >= 0]


def hilbert(shape: Shape) -> np.ndarray:
    """The Hilbert curve of a box of rank 2 or 3.

    The box is tiled by cubes whose side is the power of two that covers its shortest axis (axes of size 1 do
    not count). The cubes are walked as a snake along the longest axis, each along the curve, which leaves it
    where the next one begins; cells outside the box are skipped. So in a cube with a power of two for its
    side, and in a row of such cubes, consecutive cells always touch, elsewhere few do not.

    Example:
        >>> hilbert((2, 4)).tolist()
        [0, 4, 5, 1, 2, 6, 7, 3]
    """
    wide = sorted((axis for axis, n in enumerate(shape) if n > 1), key=lambda axis: -shape[axis])
    if len(wide) < 2:
        return np.arange(math.prod(shape))
    sizes = np.array([shape[axis] for axis in wide])
    side = 1 << int(sizes.min() - 1).bit_length()
    counts = -(-sizes // side)
    strides = np.array([math.prod(shape[axis + 1 :]) for axis in wide])
    forth = back = _curve(len(wide), side)
    if counts.prod() > counts[0]:  # there is more than one line of cubes
        back = forth.copy()
        back[:, 0] = side - 1 - back[:, 0]
    slow_first = tuple(int(n) for n in reversed(counts))
    parts = []
    for i, tile in enumerate(snake(slow_first)):
        corner = np.array(np.unravel_index(tile, slow_first))[::-1] * side
        curve = back if i // int(counts[0]) % 2 else forth
        left = sizes - corner
        inside = curve if (left >= side).all() else curve[(curve < left).all(1)]
        parts.append(sum((inside[:, k] + corner[k]) * strides[k] for k in range(len(wide))))
    return np.concatenate(parts)


def _cells(shape: Shape) -> np.ndarray:
    return np.arange(math.prod(shape), dtype=np.int64).reshape(shape)


def _curve(rank: int, side: int) -> np.ndarray:
    """Coordinates `[side^rank, rank]` along the curve, from corner 0 to the far end of the first axis."""
    points = np.zeros((1, rank), dtype=np.int32)
    size = 1
    while size < side:
        doubled = np.empty((len(points) << rank, rank), dtype=points.dtype)
        for i, (corner, source, flips) in enumerate(_turns(rank)):
            part = doubled[i * len(points) : (i + 1) * len(points)]
            for axis in range(rank):
                column = points[:, source[axis]]
                part[:, axis] = (size - 1 - column if flips[axis] else column) + corner[axis] * size
        points, size = doubled, size * 2
    return points


@cache
def _turns(rank: int) -> tuple[tuple[Shape, Shape, Shape], ...]:
    """How a curve is made of 2^rank smaller ones: the corner of each, which axes it takes, which it flips.

    A curve begins at corner 0 and ends at the far end of the first axis. The smaller ones follow a Gray code,
    whose corners touch; each begins where the last one ends, one cell on, which a search finds.
    """
    corners = [tuple((i ^ i >> 1) >> (rank - 1 - axis) & 1 for axis in range(rank)) for i in range(1 << rank)]
    ends = _ends(corners, (0,) * rank, 0)
    assert ends is not None
    turns = []
    start: Shape = (0,) * rank
    for i, end in enumerate(ends):
        along = next(axis for axis in range(rank) if start[axis] != end[axis])
        others = iter(range(1, rank))
        source = tuple(0 if axis == along else next(others) for axis in range(rank))
        turns.append((corners[i], source, start))
        if i + 1 < len(corners):
            start = _crossed(end, corners[i], corners[i + 1])
    return tuple(turns)


def _ends(corners: Sequence[Shape], start: Shape, i: int) -> list[Shape] | None:
    """Where the curves i, i + 1, ... end within their cubes, if curve i begins at `start`."""
    rank, last = len(start), i + 1 == len(corners)
    for along in reversed(range(rank)):
        end = tuple(1 - s if axis == along else s for axis, s in enumerate(start))
        if last:
            if end == (1,) + (0,) * (rank - 1):
                return [end]
            continue
        crossing = next(a for a in range(rank) if corners[i][a] != corners[i + 1][a])
        if end[crossing] != corners[i + 1][crossing]:
            continue
        rest = _ends(corners, _crossed(end, corners[i], corners[i + 1]), i + 1)
        if rest is not None:
            return [end, *rest]
    return None


def _crossed(end: Shape, corner: Shape, following: Shape) -> Shape:
    """Where the next curve begins: the cell beyond the face."""
    return tuple(1 - e if c != f else e for e, c, f in zip(end, corner, following, strict=True))
