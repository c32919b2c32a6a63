"""What a regression was shown, what it should have said, and what it said."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from nvsubq.viz.style import INK, QUIET, bare, in_style, new_figure

ROWS = ("input", "target", "answer")
GAP, LABEL, NOTE = 14, 58, 22
SLICES = 8
"""Slices of a volume that are laid beside each other, in rows of up to four."""


def folded(field: np.ndarray) -> np.ndarray:
    """A field `[C, *spatial]` as one picture `[C, rows, columns]`.

    A signal is folded into rows, a square where its length is one, and filled up with NaN; the slices of a
    volume stand beside each other, at most `SLICES` of them, the first and the last among these.

    Example:
        >>> folded(np.arange(9.0)[None]).shape, folded(np.zeros((1, 2, 5, 6))).shape
        ((1, 3, 3), (1, 5, 13))
    """
    field = np.asarray(field, dtype=np.float32)
    if field.ndim == 3:
        return field
    if field.ndim == 2:
        columns = int(np.ceil(np.sqrt(field.shape[1])))
        rows = -(-field.shape[1] // columns)
        full = np.full((len(field), rows * columns), np.nan, dtype=np.float32)
        full[:, : field.shape[1]] = field
        return full.reshape(len(field), rows, columns)
    if field.ndim != 4:
        raise ValueError(f"`field` (shape {field.shape}) must be [C, *spatial], 1-D to 3-D.")
    channels, depth, height, width = field.shape
    places = np.unique(np.linspace(0, depth - 1, min(depth, SLICES)).round().astype(int))
    columns = len(places) if len(places) <= 3 else -(-len(places) // 2)
    rows = -(-len(places) // columns)
    shape = (channels, rows * (height + 1) - 1, columns * (width + 1) - 1)
    sheet = np.full(shape, np.nan, dtype=np.float32)
    for number, place in enumerate(places):
        row, column = divmod(number, columns)
        y, x = row * (height + 1), column * (width + 1)
        sheet[:, y : y + height, x : x + width] = field[:, place]
    return sheet


@in_style
def answer_grid(
    inputs: np.ndarray,
    targets: np.ndarray,
    answers: np.ndarray,
    notes: Sequence[str],
    *,
    width: float = 960,
) -> Figure:
    """A column for each item: input, target and answer below each other, and a note.

    Args:
        inputs: `[M, C, *canvas]`, values in [0, 1]; of two channels the second is drawn over the first in
            colour (it marks cells), of three they are red, green and blue.
        targets, answers: `[M, K, *readout]`.
        notes: a line below each item.
        width: in CSS pixels; the height follows.

    Raises:
        ValueError: not one of each for every item, or a rank that cannot be drawn.

    Example:
        >>> one = np.zeros((2, 1, 4, 4))
        >>> len(answer_grid(one, one, one, ["a", "b"]).axes)
        6
    """
    count = len(inputs)
    if not len(targets) == len(answers) == len(notes) == count or np.shape(targets) != np.shape(answers):
        raise ValueError(
            f"`inputs`, `targets`, `answers` (shapes {np.shape(inputs)}, {np.shape(targets)}, "
            f"{np.shape(answers)}) and `notes` (length {len(notes)}) must belong to the same items."
        )
    columns = [[folded(part[i]) for part in (inputs, targets, answers)] for i in range(count)]
    cell = (width - LABEL - GAP * (count - 1)) / max(count, 1)
    cell = min(cell, 240.0)  # of few items none is larger than this
    sizes = [_size(picture, cell) for picture in columns[0]] if columns else []
    height = sum(tall + GAP for _, tall in sizes) + NOTE
    figure = new_figure(width, max(height, 1))
    top = 0.0
    for row, (wide, tall) in enumerate(sizes):
        y = 1 - (top + tall) / height
        middle = 1 - (top + tall / 2) / height
        figure.text(0, middle, ROWS[row], fontsize=9, fontweight="bold", color=INK, va="center")
        for column, pictures in enumerate(columns):
            x = LABEL + column * (cell + GAP)
            axes = figure.add_axes((x / width, y, wide / width, tall / height))
            bare(axes)
            axes.imshow(_painted(pictures[row]), aspect="auto", interpolation="nearest")
        top += tall + GAP
    for column, note in enumerate(notes):
        x = LABEL + column * (cell + GAP)
        figure.text(x / width, 1 - (top - 6) / height, note, fontsize=8.5, color=QUIET, va="top")
    return figure


def _size(picture: np.ndarray, cell: float) -> tuple[float, float]:
    """Width and height in pixels: as wide as the column, unless that would be taller than wide."""
    _, rows, columns = picture.shape
    scale = min(cell / columns, cell / rows)
    return columns * scale, rows * scale


def _painted(picture: np.ndarray) -> np.ndarray:
    """`[C, rows, columns]` as RGB; cells that are not there are white."""
    gone = np.isnan(picture).all(0)
    picture = np.clip(np.nan_to_num(picture), 0, 1)
    if len(picture) == 3:
        colours = picture.transpose(1, 2, 0)
    else:
        colours = np.repeat(picture[0][..., None], 3, axis=2)
    if len(picture) == 2:
        colours = np.where(picture[1][..., None] > 0, 0.65 * colours + [0.0, 0.16, 0.25], colours)
    return np.where(gone[..., None], 1.0, colours)
