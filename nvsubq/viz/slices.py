"""Slices of a segmented volume: image, label and prediction side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from nvsubq.viz.style import BACKGROUND, INK, QUIET, bare, in_style, new_figure, region_colours

GAP = 6
BETWEEN = 30
TITLE = 26


@dataclass(frozen=True)
class Plane:
    """One view of a volume `[X, Y, Z]` whose axes point right, anterior and superior.

    `axis` is cut, `across` runs to the right of the picture and `up` to its top.
    """

    name: str
    axis: int
    across: int
    up: int


# Coronal and axial share x, coronal and sagittal share z.
PLANES = (Plane("coronal", 1, 0, 2), Plane("sagittal", 0, 1, 2), Plane("axial", 2, 0, 1))
ENDS = (("L", "R"), ("P", "A"), ("I", "S"))


def best_cut(label: np.ndarray, scored: Sequence[int]) -> tuple[int, ...]:
    """For each axis the slice that shows most of the scored classes; the middle one where there are none.

    Classes count alike, however large they are: between the halves of a brain lies no white matter.

    Example:
        >>> label = np.zeros((4, 5, 6), dtype=int)
        >>> label[1, 2, 3] = 2
        >>> best_cut(label, [2])
        (1, 2, 3)
    """
    place = []
    for axis, size in enumerate(label.shape):
        others = tuple(a for a in range(label.ndim) if a != axis)
        shown = np.zeros(size)
        for number in scored:
            counts = (label == number).sum(others)
            shown += counts / max(counts.max(), 1)
        # Of slices that show nearly as much the one nearest the middle is taken: the best may be an edge.
        good = np.flatnonzero(shown >= 0.85 * shown.max())
        place.append(int(good[np.abs(good - size // 2).argmin()]))
    return tuple(place)


def _filled(found: np.ndarray, margin: int = 3) -> tuple[slice, ...]:
    """The box around all cells that are set, with a margin; everything where none is."""
    box = []
    for axis, size in enumerate(found.shape):
        there = np.flatnonzero(found.any(tuple(a for a in range(found.ndim) if a != axis)))
        low, high = (there[0], there[-1] + 1) if len(there) else (0, size)
        box.append(slice(max(0, low - margin), min(size, high + margin)))
    return tuple(box)


@in_style
def slices(
    image: np.ndarray,
    label: np.ndarray,
    prediction: np.ndarray,
    class_names: Sequence[str],
    *,
    scored: Sequence[int] | None = None,
    voxel_size: Sequence[float] = (1.0, 1.0, 1.0),
    width: float = 960,
) -> Figure:
    """Image, label and prediction; of a volume the coronal, sagittal and axial slice of each.

    What lies around the box of all cells that label or prediction puts in a class other than 0 is left out,
    unless class 0 is scored.

    Args:
        image: `[*spatial]`, 1-D, 2-D (rows, columns) or 3-D (axes pointing right, anterior, superior).
        label, prediction: class numbers of the same shape.
        class_names: one for each class.
        scored: classes that are scored; None takes all but class 0.
        voxel_size: of a volume, along each axis.
        width: in CSS pixels; the height follows.

    Raises:
        ValueError: shapes differ, or the rank cannot be drawn.

    Example:
        >>> volume = np.zeros((9, 4, 8))
        >>> figure = slices(volume, volume.astype(int), volume.astype(int), ["out", "in"])
        >>> len(figure.axes)
        9
    """
    image, label, prediction = np.asarray(image, np.float32), np.asarray(label), np.asarray(prediction)
    if not image.shape == label.shape == prediction.shape or not 1 <= image.ndim <= 3:
        raise ValueError(
            f"`image`, `label` and `prediction` (shapes {image.shape}, {label.shape}, {prediction.shape}) "
            "must have one shape, 1-D to 3-D."
        )
    counted = list(range(1, len(class_names))) if scored is None else list(scored)
    colours = ListedColormap(region_colours(len(class_names), scored))
    cut = best_cut(label, counted)
    low, high = np.percentile(image, (0.5, 99.5))
    panels = (
        ("image", image, {"cmap": "gray", "vmin": low, "vmax": max(high, low + 1e-6)}),
        ("label", label, {"cmap": colours, "vmin": -0.5, "vmax": len(class_names) - 0.5}),
        ("prediction", prediction, {"cmap": colours, "vmin": -0.5, "vmax": len(class_names) - 0.5}),
    )
    if image.ndim < 3:
        return _flat(panels, width)
    whole = tuple(slice(0, size) for size in image.shape)
    box = whole if 0 in counted else _filled((label > 0) | (prediction > 0))
    return _volume(panels, cut, box, np.asarray(voxel_size, float), width)


def _volume(
    panels: tuple, cut: tuple[int, ...], box: tuple[slice, ...], voxel_size: np.ndarray, width: float
) -> Figure:
    """Per panel: coronal above axial, sagittal right of coronal, all on one scale."""
    extent = voxel_size * [part.stop - part.start for part in box]
    block = (width - BETWEEN * 2) / 3
    scale = (block - GAP) / (extent[0] + extent[1])
    # A tall, thin volume would fill pages.
    scale = min(scale, 620 / (extent[2] + extent[1]))
    size = extent * scale
    height = TITLE + size[2] + GAP + size[1]
    figure = new_figure(width, height)
    for column, (title, data, look) in enumerate(panels):
        x = column * (block + BETWEEN)
        _heading(figure, x / width, 1 - 2 / height, title)
        places = {
            "coronal": (x, size[1] + GAP, size[0], size[2]),
            "sagittal": (x + size[0] + GAP, size[1] + GAP, size[1], size[2]),
            "axial": (x, 0.0, size[0], size[1]),
        }
        for plane in PLANES:
            x0, y0, w, h = places[plane.name]
            axes = figure.add_axes((x0 / width, y0 / height, w / width, h / height))
            picture = data[tuple(cut[a] if a == plane.axis else box[a] for a in range(3))]
            # The two axes that are left keep their order; `up` is the later one, so rows must be it.
            axes.imshow(picture.T, origin="lower", aspect="auto", interpolation="nearest", **look)
            bare(axes)
            if column == 0:
                _name_ends(axes, plane)
        note = "\n".join(
            (f"{name} {place + 1} of {count}")
            for name, place, count in zip("xyz", cut, data.shape, strict=True)
        )
        if column == 0 and size[1] >= 50:
            figure.text(
                (x + size[0] + GAP + 4) / width,
                (size[1] - 4) / height,
                note,
                fontsize=8,
                color=QUIET,
                va="top",
                linespacing=1.4,
            )
    return figure


def _name_ends(axes: Axes, plane: Plane) -> None:
    look: dict[str, Any] = {
        "transform": axes.transAxes,
        "color": "white",
        "fontsize": 8,
        "bbox": {"boxstyle": "square,pad=0.12", "facecolor": BACKGROUND, "edgecolor": "none", "alpha": 0.65},
    }
    (left, right), (down, up) = ENDS[plane.across], ENDS[plane.up]
    width, height = axes.bbox.width, axes.bbox.height
    inset_x, inset_y = 5 / width, 5 / height
    axes.text(inset_x, 0.5, left, ha="left", va="center", **look)
    axes.text(1 - inset_x, 0.5, right, ha="right", va="center", **look)
    axes.text(0.5, 1 - inset_y, up, ha="center", va="top", **look)
    axes.text(0.5, inset_y, down, ha="center", va="bottom", **look)


def _flat(panels: tuple, width: float) -> Figure:
    """1-D and 2-D: one picture each, side by side; a signal is a band."""
    shape = panels[0][1].shape
    block = (width - BETWEEN * 2) / 3
    tall = min(block * shape[0] / shape[1], 620) if len(shape) == 2 else 60
    wide = min(block, tall * shape[1] / shape[0]) if len(shape) == 2 else block
    height = TITLE + tall
    figure = new_figure(width, height)
    for column, (title, data, look) in enumerate(panels):
        x = column * (block + BETWEEN)
        _heading(figure, x / width, 1 - 2 / height, title)
        axes = figure.add_axes((x / width, 0, wide / width, tall / height))
        axes.imshow(np.atleast_2d(data), aspect="auto", interpolation="nearest", **look)
        bare(axes)
    return figure


def _heading(figure: Figure, x: float, y: float, text: str) -> None:
    figure.text(x, y, text, fontsize=9.5, fontweight="bold", color=INK, va="top")
