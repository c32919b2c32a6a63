"""Pictures of scan orders: the walk as a coloured path, and how far along it spatial neighbours lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from nvsubq.nd import scan_order
from nvsubq.viz.style import INK, LINES, QUIET, RULE, bare, in_style, new_figure, shorten

MAP = "viridis"
HEAD = 26


@in_style
def scan_paths(orders: Sequence[Any], shape: Sequence[int], *, size: float = 220, columns: int = 4) -> Figure:
    """Each order as a path through the middles of the cells, dark at its start and light at its end.

    In 2-D rows run downwards, as in an image; in 3-D the last axis runs to the right, the first upwards.

    Args:
        orders: as `scan_order` takes them.
        shape: of the field, of rank 2 or 3; 8 to 16 cells an axis can be read.
        size: of a panel, in CSS pixels.
        columns: panels in a row, at most.

    Raises:
        ValueError: another rank, no order, or an order that is not for this shape.

    Example:
        >>> figure = scan_paths(["snake", "hilbert"], (8, 8))
        >>> [axes.get_title(loc="left") for axes in figure.axes]
        ['snake', 'hilbert']
    """
    shape = tuple(shape)
    if len(shape) not in (2, 3) or not orders:
        raise ValueError(f"`shape` (={shape}) must have rank 2 or 3, and `orders` at least one order.")
    columns = min(columns, len(orders))
    rows = -(-len(orders) // columns)
    width, height = columns * size, rows * (size + HEAD)
    figure = new_figure(width, height)
    for i, order in enumerate(orders):
        row, column = divmod(i, columns)
        low = 1 - (row + 1) * (size + HEAD) / height
        place = ((column + 0.03) / columns, low + 0.03 / rows, 0.94 / columns, (size / height) * 0.94)
        points = np.stack(np.unravel_index(scan_order(order, shape).numpy(), shape), 1).astype(float)
        draw = _flat if len(shape) == 2 else _solid
        axes = draw(figure, place, points, shape)
        axes.set_title(shorten(_name(order), int(size / 8)), loc="left")
    return figure


@in_style
def neighbour_distances(orders: Sequence[Any], shape: Sequence[int], *, width: float = 640) -> Figure:
    """For each order the share of neighbouring cells that lie at most so many steps apart along the walk.

    Neighbours touch along an axis. A line that is high on the left belongs to an order that keeps most
    neighbours together; where it reaches 1 shows the worst pair. Of lines that coincide each is seen.

    Args:
        orders: as `scan_order` takes them, up to eight.
        shape: of the field, any rank.
        width: in CSS pixels.

    Example:
        >>> figure = neighbour_distances(["row_major", "hilbert"], (16, 16))
        >>> [line.get_label() for line in figure.axes[0].lines]
        ['row_major', 'hilbert']
    """
    if not 1 <= len(orders) <= 2 * len(LINES):
        raise ValueError(f"`orders` ({len(orders)} of them) must be 1 to {2 * len(LINES)}.")
    figure = new_figure(width, 300)
    axes = figure.add_axes((56 / width, 46 / 300, 1 - (56 + 150) / width, 1 - 76 / 300))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda steps, _: f"{steps:,.0f}")  # the scale's own writes TeX
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("steps along the walk")
    axes.set_title(f"Neighbours at most so many steps apart, {' x '.join(map(str, shape))} cells", x=-0.09)
    farthest = 1
    drawn: list[np.ndarray] = []
    for i, order in enumerate(orders):
        steps = np.sort(distances(order, shape))
        farthest = max(farthest, int(steps.max(initial=1)))
        # The share up to each distance that occurs, as a staircase from 1 on.
        found, counts = np.unique(steps, return_counts=True)
        share = np.cumsum(counts) / max(len(steps), 1)
        style: Any = "-" if i < len(LINES) else "--"
        if any(np.array_equal(steps, others) for others in drawn):
            style = (0, (3, 3))  # the line below is seen through it
        drawn.append(steps)
        axes.step(
            [1, *found, found[-1]] if len(found) else [1],
            [0, *share, 1] if len(found) else [0],
            linestyle=style,
            where="post",
            color=LINES[i % len(LINES)],
            label=_name(order),
        )
    powers = range(farthest.bit_length() + 1)
    axes.set_xticks([2**k for k in powers[:: 1 + len(powers) // 12]])
    axes.minorticks_off()
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
    return figure


def distances(order: Any, shape: Sequence[int]) -> np.ndarray:
    """Steps along the walk between each two cells that touch along an axis, one number for each pair.

    Example:
        >>> sorted(set(distances("row_major", (3, 5)).tolist()))
        [1, 5]
    """
    walk = scan_order(order, shape).numpy()
    step = np.empty(len(walk), dtype=np.int64)
    step[walk] = np.arange(len(walk))
    step = step.reshape(tuple(shape))
    apart = [np.abs(np.diff(step, axis=axis)).ravel() for axis in range(step.ndim)]
    return np.concatenate(apart)


def _name(order: Any) -> str:
    return order if isinstance(order, str) else getattr(order, "__name__", type(order).__name__)


def _flat(figure: Figure, place: tuple, points: np.ndarray, shape: tuple[int, ...]) -> Axes:
    axes = figure.add_axes(place)
    bare(axes)
    axes.set_aspect("equal")
    axes.set_xlim(-0.7, shape[1] - 0.3)
    axes.set_ylim(shape[0] - 0.3, -0.7)
    for k in range(shape[1] + 1):
        axes.plot([k - 0.5] * 2, [-0.5, shape[0] - 0.5], color=RULE, linewidth=0.5, zorder=0)
    for k in range(shape[0] + 1):
        axes.plot([-0.5, shape[1] - 0.5], [k - 0.5] * 2, color=RULE, linewidth=0.5, zorder=0)
    xy = points[:, ::-1]
    lines = LineCollection(list(np.stack([xy[:-1], xy[1:]], 1)), cmap=MAP, linewidths=2.2, capstyle="round")
    lines.set_array(np.arange(max(len(xy) - 1, 1)))
    axes.add_collection(lines)
    axes.plot(*xy[0], "o", color=INK, markersize=5, zorder=3)
    axes.plot(*xy[-1], "o", markerfacecolor="white", markeredgecolor=QUIET, markersize=5, zorder=3)
    return axes


def _solid(figure: Figure, place: tuple, points: np.ndarray, shape: tuple[int, ...]) -> Axes:
    from mpl_toolkits.mplot3d.art3d import Line3DCollection

    axes: Any = figure.add_axes(place, projection="3d")
    axes.set_axis_off()
    axes.view_init(elev=22, azim=-62)
    xyz = points[:, ::-1]
    lines = Line3DCollection(list(np.stack([xyz[:-1], xyz[1:]], 1)), cmap=MAP, linewidths=1.6)
    lines.set_array(np.arange(max(len(xyz) - 1, 1)))
    axes.add_collection3d(lines)
    for axis, count in zip("xyz", shape[::-1], strict=True):
        getattr(axes, f"set_{axis}lim")(-0.5, count - 0.5)
    axes.set_box_aspect([max(count, 1) for count in shape[::-1]], zoom=1.25)
    axes.plot(*xyz[0], "o", color=INK, markersize=5)
    axes.plot(*xyz[-1], "o", markerfacecolor="white", markeredgecolor=QUIET, markersize=5)
    return axes
