"""Time against length, a line for each implementation."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from nvsubq.bench.cases import CORES, OURS, PEERS, PORTABLE
from nvsubq.bench.results import Cell, quartiles
from nvsubq.viz.style import BLUE, GREEN, INK, ORANGE, PURPLE, QUIET, VERMILLION, in_style, new_figure

COLOURS = dict(zip((OURS, PORTABLE, *PEERS), (BLUE, VERMILLION, GREEN, PURPLE, ORANGE), strict=True))
MARKERS = dict(zip((OURS, PORTABLE, *PEERS), "osD^v", strict=True))
ROOM = 0.11
"""Part of the axis that a label needs."""
PANELS = (("forward", "forward"), ("both", "forward and backward"))


@in_style
def time_by_length(core: str, cells: Sequence[Cell], *, width: float = 900, height: float = 420) -> Figure:
    """Two log-log panels: forward, and forward and backward.

    Shown is the width `C` that has the most sizes. A point is the median,
    a bar the quartiles.

    Args:
        core: key of `cases.CORES`.
        cells: measurements, of this core and others.
        width, height: in CSS pixels.

    Raises:
        ValueError: nothing of this core was measured.
    """
    timed = [cell for cell in cells if cell.core == core and cell.both]
    if not timed:
        raise ValueError(f"`core` (={core!r}) has no times.")
    by_width = Counter(size.d_model for size in {cell.size for cell in timed})
    shown = max(by_width, key=lambda c: (by_width[c], -c))
    timed = [cell for cell in timed if cell.size.d_model == shown]
    figure = new_figure(width, height)
    panels = figure.subplots(1, 2, sharey=True)
    figure.subplots_adjust(
        left=62 / width, right=1 - 14 / width, bottom=96 / height, top=1 - 62 / height, wspace=0.06
    )
    title = f"{CORES[core][0]}, C = {shown}, fp32"
    figure.text(14 / width, 1 - 12 / height, title, va="top", color=INK, fontsize=12, fontweight="bold")
    names = [name for name in COLOURS if any(cell.name == name for cell in timed)]
    times = [seconds for cell in timed for seconds in (*cell.forward, *cell.both)]
    lengths = [cell.size.length for cell in timed]
    for axes, (what, heading) in zip(panels, PANELS, strict=True):
        axes.set_title(heading, pad=8)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(min(lengths) / 1.3, max(lengths) * 1.3)
        axes.set_ylim(min(times) / 1.6, max(times) * 1.6)  # by hand: a single time has no range
        for name in names:
            _line(axes, [cell for cell in timed if cell.name == name], what)
        _lengths(axes, timed)
    panels[0].set_ylabel("time")
    panels[0].yaxis.set_major_formatter(FuncFormatter(lambda seconds, _: time_label(seconds)))
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), bbox_to_anchor=(0.5, 4 / height))
    return figure


def _line(axes, cells: Sequence[Cell], what: str) -> None:
    cells = sorted(cells, key=lambda cell: cell.size.length)
    found = [quartiles(getattr(cell, what)) for cell in cells]
    middle = [m for _, m, _ in found]
    bars = [[m - low for low, m, _ in found], [high - m for _, m, high in found]]
    name = cells[0].name
    axes.errorbar(
        [cell.size.length for cell in cells], middle, bars, label=cells[0].label,
        color=COLOURS[name], marker=MARKERS[name], elinewidth=1.0, capsize=2.0,
    )  # fmt: skip


def _lengths(axes, cells: Sequence[Cell]) -> None:
    """A tick for each length, with its batch where there is one, unless it would touch the one before."""
    sizes = {cell.size.length: cell.size for cell in cells}
    lengths = sorted(sizes)
    room = ROOM * math.log(lengths[-1] / lengths[0])
    labels, last = [], -math.inf
    for length in lengths:
        clear = math.log(length) - last >= room
        batch = sizes[length].batch
        labels.append("" if not clear else f"{length}" if batch == 1 else f"{batch} x {length}")
        last = math.log(length) if clear else last
    axes.set_xticks(lengths, labels)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("length, or batch x length", color=QUIET)


def time_label(seconds: float) -> str:
    """A tick of the time axis.

    Example:
        >>> [time_label(t) for t in (1e-5, 0.001, 0.1, 10)]
        ['10 µs', '1 ms', '100 ms', '10 s']
    """
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale * 0.999:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"
