"""Time against length, a line for each implementation."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from nvsubq.bench.cpu.cases import CORES, PEERS
from nvsubq.bench.cpu.results import Cell
from nvsubq.bench.names import OURS, PORTABLE
from nvsubq.bench.panels import add_legend, draw_times, new_panels
from nvsubq.viz.style import BLUE, GREEN, ORANGE, PURPLE, QUIET, VERMILLION, in_style

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
    title = f"{CORES[core][0]}, C = {shown}, fp32"
    times = [seconds for cell in timed for seconds in (*cell.forward, *cell.both)]
    headings = [heading for _, heading in PANELS]
    figure, panels = new_panels(title, headings, times, width=width, height=height)
    names = [name for name in COLOURS if any(cell.name == name for cell in timed)]
    lengths = [cell.size.length for cell in timed]
    for axes, (what, _) in zip(panels, PANELS, strict=True):
        axes.set_xscale("log")
        axes.set_xlim(min(lengths) / 1.3, max(lengths) * 1.3)
        for name in names:
            _line(axes, [cell for cell in timed if cell.name == name], what)
        _lengths(axes, timed)
    add_legend(figure, panels)
    return figure


def _line(axes, cells: Sequence[Cell], what: str) -> None:
    cells = sorted(cells, key=lambda cell: cell.size.length)
    places = [cell.size.length for cell in cells]
    style = {"color": COLOURS[cells[0].name], "marker": MARKERS[cells[0].name]}
    draw_times(axes, places, [getattr(cell, what) for cell in cells], cells[0].label, **style)


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
