"""One look for all pictures: fonts, colours, sizes. Figures are 100 CSS pixels to the inch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, ParamSpec

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

PIXELS_PER_INCH = 100
INK, QUIET, RULE = "#1f2933", "#66717d", "#d5dbe1"
BLUE, VERMILLION, GREEN, PURPLE, SKY, ORANGE, YELLOW = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#e69f00",
    "#f0e442",
)
LINES = (BLUE, VERMILLION, GREEN, PURPLE)
# Bright on dark, and in different steps of lightness.
REGIONS = (SKY, ORANGE, GREEN, PURPLE, YELLOW, BLUE, VERMILLION)
BACKGROUND, UNSCORED = "#14181d", "#59626c"

_RC: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "text.color": INK,
    "text.parse_math": False,  # a class may be called "$5"
    "axes.edgecolor": RULE,
    "axes.labelcolor": QUIET,
    "axes.titlecolor": INK,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#edf0f3",
    "grid.linewidth": 1.0,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": QUIET,
    "ytick.labelcolor": QUIET,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.0,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.fonttype": "path",  # the file looks the same where the font is missing
    "svg.hashsalt": "nvsubq",  # ids, and so the bytes, are the same each time
    "figure.facecolor": "white",
}

P = ParamSpec("P")


def styled() -> AbstractContextManager[None]:
    """The settings above, inside a ``with`` block; a user's own come back after it."""
    return matplotlib.rc_context(_RC)


def in_style(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Lets a function draw under `styled`."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with styled():
            return draw(*args, **kwargs)

    return drawn


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many CSS pixels, with its own canvas: pyplot knows nothing of it."""
    figure = Figure(figsize=(width / PIXELS_PER_INCH, height / PIXELS_PER_INCH), dpi=PIXELS_PER_INCH)
    FigureCanvasAgg(figure)
    return figure


def bare(axes: Axes) -> None:
    """Takes ticks, grid and frame away, for pictures."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def log_scale(axes: Axes) -> None:
    """A logarithmic y axis with plain numbers, to be called when all is drawn: ticks depend on the range.

    Example:
        >>> axes = new_figure(300, 200).add_subplot()
        >>> _ = axes.plot([0.03, 0.0004])
        >>> log_scale(axes)
        >>> [text.get_text() for text in axes.get_yticklabels() if 3e-4 < text.get_position()[1] < 4e-2]
        ['0.0005', '0.001', '0.002', '0.005', '0.01', '0.02']
    """
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    steps = range(1, 10) if high < 4 * low else (1, 2, 5) if high < 1000 * low else (1,)
    axes.yaxis.set_major_locator(LogLocator(subs=steps))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")  # the scale's own writes TeX
    axes.yaxis.set_minor_locator(NullLocator())


def region_colours(num_classes: int, scored: Sequence[int] | None = None) -> list[str]:
    """One colour for each class of a segmentation: class 0 dark, classes that are not scored grey.

    Example:
        >>> region_colours(4, scored=[2, 3])
        ['#14181d', '#59626c', '#56b4e9', '#e69f00']
    """
    counted = range(1, num_classes) if scored is None else scored
    place = {label: i for i, label in enumerate(counted)}
    colours = []
    for label in range(num_classes):
        if label in place:
            colours.append(REGIONS[place[label] % len(REGIONS)])
        else:
            colours.append(BACKGROUND if label == 0 else UNSCORED)
    return colours


def shorten(text: str, length: int) -> str:
    """`text`, its middle left out where it is longer than `length`.

    Example:
        >>> shorten("chrysanthemum", 9)
        'chry…emum'
    """
    if len(text) <= length:
        return text
    head = length // 2
    return f"{text[:head]}…{text[len(text) - (length - 1 - head) :]}"
