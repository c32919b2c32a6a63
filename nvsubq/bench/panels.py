"""Two panels beside each other with a time axis in common: the form of every plot of `nvsubq bench`."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from nvsubq.bench.stats import quartiles
from nvsubq.viz.style import INK, new_figure

MARGIN = 76
"""Pixels for the labels of the time axis."""


def new_panels(
    title: str, headings: Sequence[str], times: Sequence[float], *, width: float = 900, height: float = 420
) -> tuple[Figure, Sequence[Axes]]:
    """A figure with a panel for each heading, and a logarithmic axis that holds the times.

    Args:
        title: above all.
        headings: of the panels.
        times: all that will be drawn, in seconds.
        width, height: in CSS pixels.
    """
    figure = new_figure(width, height)
    panels = figure.subplots(1, len(headings), sharey=True, squeeze=False)[0]
    figure.subplots_adjust(
        left=MARGIN / width, right=1 - 14 / width, bottom=96 / height, top=1 - 62 / height, wspace=0.06
    )
    figure.text(14 / width, 1 - 12 / height, title, va="top", color=INK, fontsize=12, fontweight="bold")
    for axes, heading in zip(panels, headings, strict=True):
        axes.set_title(heading, pad=8)
        axes.set_yscale("log")
        axes.set_ylim(min(times) / 1.6, max(times) * 1.6)  # by hand: a single time has no range
    panels[0].set_ylabel("time")
    panels[0].yaxis.set_major_formatter(FuncFormatter(lambda seconds, _: time_label(seconds)))
    if max(times) > 10 * min(times):  # else there may be no tick but the small ones
        panels[0].yaxis.set_minor_formatter(NullFormatter())
    else:
        panels[0].yaxis.set_minor_formatter(FuncFormatter(lambda seconds, _: time_label(seconds)))
    return figure, panels


def draw_times(
    axes: Axes, places: Sequence[float], times: Sequence[Sequence[float]], label: str, **style: object
) -> None:
    """Medians, and bars from quartile to quartile, at places of the other axis."""
    found = [quartiles(seconds) for seconds in times]
    middle = [m for _, m, _ in found]
    bars = [[m - low for low, m, _ in found], [high - m for _, m, high in found]]
    axes.errorbar(places, middle, bars, label=label, elinewidth=1.0, capsize=2.0, **style)  # type: ignore[arg-type]


def add_legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """One legend below all panels, each label once."""
    found = {
        label: handle
        for axes in panels
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    columns = min(len(found), 5)
    bottom = 4 / (figure.get_figheight() * figure.dpi)
    figure.legend(
        list(found.values()), list(found), loc="lower center", ncols=columns, bbox_to_anchor=(0.5, bottom)
    )


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
