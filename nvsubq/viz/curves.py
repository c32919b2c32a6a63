"""Metrics over epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nvsubq.viz.style import LINES, QUIET, in_style, log_scale, new_figure

Series = Mapping[str, Sequence[float | None]]
FEW = 12
"""Up to so many epochs each has a marker."""


@in_style
def curve(
    epochs: Sequence[int],
    series: Series,
    *,
    title: str,
    best: int | None = None,
    width: float = 310,
    height: float = 235,
    log: bool = False,
) -> Figure:
    """One panel of lines over epochs.

    Args:
        epochs: numbers of the epochs, from 0; shown from 1.
        series: name -> one value for each epoch; None where it was not measured.
        title: above the panel.
        best: the epoch of the best checkpoint, marked by a thin line.
        width, height: in CSS pixels.
        log: a logarithmic scale, where every value is above 0.

    Raises:
        ValueError: a series has another length than `epochs`.

    Example:
        >>> figure = curve([0, 1], {"train": [2.3, 1.1], "validation": [None, 1.2]}, title="loss")
        >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        ['train', 'validation']
    """
    figure = new_figure(width, height)
    axes = figure.add_axes((64 / width, 40 / height, 1 - 76 / width, 1 - 84 / height))
    axes.set_title(title, pad=18, x=-52 / (width - 76))
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
    log = log and all(value is None or value > 0 for values in series.values() for value in values)
    if not log:
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.yaxis.set_major_formatter(lambda value, _: _short(value))
    numbers = np.asarray(epochs, dtype=float) + 1
    drawn = False
    for (name, values), colour in zip(series.items(), _repeat(LINES), strict=False):
        if len(values) != len(numbers):
            raise ValueError(
                f"`series[{name!r}]` (length {len(values)}) must have one value for each of "
                f"{len(numbers)} epochs."
            )
        heights = np.array([np.nan if value is None else value for value in values], dtype=float)
        there = np.isfinite(heights)
        if there.any():
            marker = "o" if there.sum() <= FEW else None
            axes.plot(numbers[there], heights[there], color=colour, label=name, marker=marker)
            drawn = True
    if log:
        log_scale(axes)
    _limits(axes, numbers)
    if not drawn:
        axes.text(0.5, 0.5, "nothing measured", transform=axes.transAxes, ha="center", color=QUIET)
    elif len(series) > 1:
        axes.legend(loc="best", handlelength=1.2)
    if best is not None and len(numbers) > 1:
        axes.axvline(best + 1, color=QUIET, linewidth=0.9, linestyle=(0, (3, 3)), zorder=1)
        axes.annotate(
            "best",
            (best + 1, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 2),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=8,
            color=QUIET,
        )
    return figure


def _short(value: float) -> str:
    """A number that the margin has room for."""
    text = f"{value:.6g}"
    if len(text) <= 7:
        return text
    digits, exponent = f"{value:.3e}".split("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"


def _limits(axes: Axes, numbers: np.ndarray) -> None:
    """Room on both sides; with one epoch, an axis that shows it in the middle."""
    if len(numbers) == 0:
        axes.set_xlim(0.5, 1.5)
        return
    low, high = numbers.min(), numbers.max()
    room = max((high - low) * 0.03, 0.25)
    axes.set_xlim(low - room, high + room)


def _repeat(colours: Sequence[str]) -> list[str]:
    return list(colours) * 8
