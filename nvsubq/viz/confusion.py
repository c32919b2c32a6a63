"""Confusion matrices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from nvsubq.viz.style import BLUE, INK, VERMILLION, bare, in_style, new_figure, shorten

COUNTED = 20
"""Up to so many classes each cell shows its count."""


def confusion_counts(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts `[classes, classes]` (true, predicted).

    Example:
        >>> confusion_counts(np.array([0, 1, 1]), np.array([0, 0, 1]), 2).tolist()
        [[1, 0], [1, 1]]
    """
    flat = np.asarray(labels, dtype=np.int64) * num_classes + np.asarray(predicted, dtype=np.int64)
    return np.bincount(flat.ravel(), minlength=num_classes**2).reshape(num_classes, num_classes)


@in_style
def confusion(counts: np.ndarray, class_names: Sequence[str], *, width: float = 560) -> Figure:
    """A confusion matrix: right answers in blue by their share of the true class, wrong ones in red.

    Right and wrong have scales of their own, so that few errors are seen beside many right answers.

    Args:
        counts: `[classes, classes]` (true, predicted).
        class_names: one for each class.
        width: in CSS pixels; the height follows.

    Raises:
        ValueError: `counts` is not square, or has not one row for each name.

    Example:
        >>> figure = confusion(np.array([[9, 1], [0, 10]]), ["cat", "dog"])
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['9', '1', '10']
    """
    counts = np.asarray(counts)
    size = len(class_names)
    if counts.shape != (size, size):
        raise ValueError(f"`counts` (shape {counts.shape}) must be [{size}, {size}] for {size} classes.")
    names = [shorten(str(name), 16) for name in class_names]
    longest = max(map(len, names))
    turned = longest * 7 > (width - 110) / size
    left, bottom = 44 + 6.3 * longest, 46 + (6.3 * longest if turned else 12)
    side = width - left - 12
    height = side + bottom + 12
    figure = new_figure(width, height)
    axes = figure.add_axes((left / width, bottom / height, side / width, side / height))
    axes.imshow(_colours(counts), interpolation="nearest")
    bare(axes)
    step = max(1, round(size / 40))
    ticks = range(0, size, step)
    axes.set_xticks(ticks, [names[i] for i in ticks], rotation=90 if turned else 0)
    axes.set_yticks(ticks, [names[i] for i in ticks])
    axes.tick_params(length=0, labelcolor=INK, labelsize=9 if size <= COUNTED else 7.5)
    axes.set_xticks(np.arange(size + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(size + 1) - 0.5, minor=True)
    axes.grid(True, which="minor", color="white", linewidth=2 if size <= COUNTED else 0.5)
    axes.tick_params(which="minor", length=0)
    axes.set_xlabel("predicted", labelpad=8)
    axes.set_ylabel("true", labelpad=8)
    if size <= COUNTED:
        _numbers(axes, counts, side / size)
    return figure


def _colours(counts: np.ndarray) -> np.ndarray:
    """RGBA `[classes, classes, 4]`."""
    pale = "#f4f6f8"
    right = LinearSegmentedColormap.from_list("right", [pale, "#b9d9ec", BLUE])
    wrong = LinearSegmentedColormap.from_list("wrong", [pale, "#f6cfae", VERMILLION])
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    diagonal = np.eye(len(counts), dtype=bool)
    worst = max(share[~diagonal].max(initial=0.0), 0.05)
    return np.where(diagonal[..., None], right(share), wrong(share / worst))


def _numbers(axes, counts: np.ndarray, cell: float) -> None:
    longest = len(f"{counts.max():d}")
    size = float(np.clip(cell / (0.95 * max(longest, 2)), 6, 11))
    rgba = _colours(counts)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            # Luma decides whether black or white can be read on the cell.
            dark = rgba[row, column, :3] @ (0.3, 0.59, 0.11) < 0.55
            colour = "white" if dark else INK
            axes.text(column, row, f"{count:d}", ha="center", va="center", fontsize=size, color=colour)
