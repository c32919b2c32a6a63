"""A table as a picture: the cases side by side, a mark for each implementation, a dash for the floor."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nvsubq.bench.gpu.cases import TABLES
from nvsubq.bench.gpu.results import Row
from nvsubq.bench.gpu.work import Ceilings
from nvsubq.bench.panels import add_legend, draw_times, new_panels
from nvsubq.viz.style import BLUE, GREEN, INK, ORANGE, PURPLE, QUIET, SKY, VERMILLION, YELLOW, in_style

COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, YELLOW, QUIET)
MARKERS = "osD^vPX*"
SPREAD = 0.5
"""Part of a case's place over which its marks lie."""
ROOMY = 4
"""Cases whose sizes have room below them."""


@in_style
def of_rows(
    name: str, rows: Sequence[Row], ceilings: Ceilings, *, width: float = 900, height: float = 420
) -> Figure:
    """A panel for each thing timed, with a logarithmic axis of time.

    Args:
        name: key of `cases.TABLES`.
        rows: of this table; those without times are left out.
        ceilings: of the device, which make the floors.
        width, height: in CSS pixels.

    Raises:
        ValueError: nothing was timed.
    """
    title, timed = TABLES[name]
    shown = [row for row in rows if row.times]
    if not shown:
        raise ValueError(f"`rows` of table {name!r} have no times.")
    cases = list(dict.fromkeys(row.case for row in shown))
    names = list(dict.fromkeys(row.name for row in shown))
    floors = {
        (r.case, w): r.work[w].floor(ceilings)[0] for r in reversed(shown) for w in timed if w in r.work
    }
    times = [seconds for row in shown for own in row.times.values() for seconds in own]
    figure, panels = new_panels(title, timed, [*times, *floors.values()], width=width, height=height)
    for axes, what in zip(panels, timed, strict=True):
        for place, implementation in enumerate(names):
            own = [r for r in shown if r.name == implementation and what in r.times]
            shift = SPREAD * (place / max(1, len(names) - 1) - 0.5)
            if own:
                places = [cases.index(row.case) + shift for row in own]
                style = {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)]}
                draw_times(axes, places, [row.times[what] for row in own], own[0].label, ls="none", **style)
        _floors(axes, [(cases.index(case), floor) for (case, w), floor in floors.items() if w == what])
        axes.set_xlim(-0.5, len(cases) - 0.5)
        axes.set_xticks(range(len(cases)), [label_of(case, short=len(cases) > ROOMY) for case in cases])
        axes.grid(False, axis="x")
    add_legend(figure, panels)
    return figure


def _floors(axes: Axes, found: Sequence[tuple[int, float]]) -> None:
    if found:
        places, seconds = zip(*found, strict=True)
        ends = [place - 0.4 for place in places], [place + 0.4 for place in places]
        axes.hlines(seconds, *ends, colors=INK, linestyles="dotted", linewidth=1.2, label="floor")


def label_of(case: str, *, short: bool = False) -> str:
    """A case over two lines, with its sizes unless it must be short.

    Example:
        >>> label_of("a (64, 196, 768)"), label_of("[8, 64, 64, 768]")
        ('a\\n(64, 196, 768)', '[8, 64, 64,\\n768]')
        >>> label_of("a (64, 196, 768) fp32", short=True)
        'a\\nfp32'
    """
    head, bracket, rest = case.partition(" (")
    if not bracket:
        return ",\n".join(part.strip() for part in case.rsplit(",", 1))
    return "\n".join([head, rest.partition(")")[2].strip() if short else f"({rest}"]).strip()
