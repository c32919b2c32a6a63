"""Grids of classified examples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nvsubq.viz.style import BLUE, QUIET, VERMILLION, bare, in_style, new_figure, shorten


def to_unit(images: np.ndarray) -> np.ndarray:
    """Normalised images `[M, C, *spatial]` with intensities in [0, 1], by one scale for all of them.

    Example:
        >>> to_unit(np.array([[[-1.0, 3.0]], [[1.0, 1.0]]])).ravel().tolist()
        [0.0, 1.0, 0.5, 0.5]
    """
    images = np.asarray(images, dtype=np.float32)
    low, high = (float(images.min()), float(images.max())) if images.size else (0.0, 1.0)
    return (images - low) / ((high - low) or 1.0)


@in_style
def example_grid(
    images: np.ndarray,
    true: Sequence[str],
    predicted: Sequence[str],
    confidence: Sequence[float],
    *,
    columns: int = 8,
    width: float = 960,
) -> Figure:
    """Images with their true class, the predicted class and its probability; wrong ones in red.

    Args:
        images: `[M, C, *spatial]` with values in [0, 1]: 2-D images (1 or 3 channels), 1-D signals (a line
            for each channel) or volumes (their middle slice).
        true, predicted: class names, `M` each.
        confidence: probability of the predicted class, `M`.
        columns: images in a row.
        width: in CSS pixels; the height follows.

    Raises:
        ValueError: not one name and confidence for each image, or images of no rank that can be drawn.

    Example:
        >>> figure = example_grid(np.zeros((3, 1, 8, 8)), ["1", "2", "3"], ["7", "2", "3"], [0.9, 0.5, 1.0])
        >>> len(figure.axes)
        3
    """
    count = len(images)
    if not len(true) == len(predicted) == len(confidence) == count:
        raise ValueError(
            f"`true`, `predicted` and `confidence` (lengths {len(true)}, {len(predicted)}, "
            f"{len(confidence)}) must have one entry for each of {count} images."
        )
    if np.ndim(images) not in (3, 4, 5):
        raise ValueError(f"`images` (shape {np.shape(images)}) must be [M, C, *spatial], 1-D to 3-D.")
    rows = max(1, -(-count // columns))
    gap = 14
    cell = (width - gap * (columns - 1)) / columns
    characters = int(cell / 7.9)
    two_lines = any(len(f"{t} as {p}") > characters for t, p in zip(true, predicted, strict=True) if t != p)
    caption = 62 if two_lines else 48
    tall = cell * _aspect(images)
    height = rows * (tall + caption)
    figure = new_figure(width, height)
    for i in range(count):
        row, column = divmod(i, columns)
        x, top = column * (cell + gap), row * (tall + caption)
        axes = figure.add_axes((x / width, 1 - (top + tall) / height, cell / width, tall / height))
        bare(axes)
        _draw(axes, images[i])
        wrong = true[i] != predicted[i]
        colour = VERMILLION if wrong else BLUE
        if two_lines:
            lines = [shorten(true[i], characters), shorten(f"as {predicted[i]}", characters) if wrong else ""]
        else:
            lines = [f"{true[i]} as {predicted[i]}" if wrong else shorten(true[i], characters)]
        marked = [(line, colour, "bold") for line in lines if line]
        for number, look in enumerate([*marked, (f"{confidence[i]:.1%}", QUIET, "normal")]):
            _under(figure, x / width, 1 - (top + tall + 6 + 14 * number) / height, *look)
    return figure


def _under(figure: Figure, x: float, y: float, text: str, colour: str, weight: str) -> None:
    figure.text(x, y, text, color=colour, fontsize=8.5, fontweight=weight, va="top", ha="left")


def _aspect(images: np.ndarray) -> float:
    """Height over width of a cell, kept within what a page can show."""
    shape = np.shape(images)[2:]
    if len(shape) == 1:
        return 0.6
    return float(np.clip(shape[-2] / shape[-1], 0.5, 2.0)) if len(shape) == 2 else _slice_aspect(shape)


def _slice_aspect(shape: Sequence[int]) -> float:
    return float(np.clip(shape[1] / shape[0], 0.5, 2.0))


def _draw(axes: Axes, image: np.ndarray) -> None:
    if image.ndim == 2:
        for channel in image:
            axes.plot(channel, linewidth=0.9)
        axes.set_ylim(-0.05, 1.05)
        return
    if image.ndim == 4:  # [C, X, Y, Z]: the middle axial slice, anterior up
        image = image[..., image.shape[3] // 2].transpose(0, 2, 1)[:, ::-1]
    picture = image.transpose(1, 2, 0) if len(image) == 3 else image[0]
    axes.imshow(np.clip(picture, 0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
