"""How the model of a run walks its field, and what it came to see: a section of the report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

from nvsubq import viz
from nvsubq.models import NDBackbone, NDUNet
from nvsubq.training.report_data import Record
from nvsubq.training.report_section import Picture, Section

REACH = "receptive_field"
"""Its name in predictions.npz."""
MOST_CELLS = {2: 14, 3: 5}
"""Cells along an axis of a walk that can still be read."""
MOST_NEIGHBOURS = 1 << 20
"""Cells of a grid whose neighbours are counted within a moment."""
MOST_LINES = 8
"""Orders that `neighbour_distances` takes."""


def reach(model: nn.Module, datamodule: Any, processes: int = 1) -> dict[str, np.ndarray]:
    """The effective receptive field of the trained model's middle; empty where it cannot be asked."""
    size = datamodule.spatial_size
    if size is None or len(size) > 3 or processes > 1 or not isinstance(model, (NDBackbone, NDUNet)):
        return {}
    field = viz.receptive_field(model, (datamodule.in_channels, *size), samples=2)
    return {REACH: field.astype(np.float32)}


def walks(record: Record) -> list[Section]:
    """The orders of the mixer on the model's grid, and the receptive field; empty where neither is known."""
    pictures = _of_orders(record)
    if REACH in record.predictions:
        field = record.predictions[REACH]
        figure = viz.receptive_map(field)
        caption = "How much each cell of the input moves the middle of the output (gradients on noise)"
        pictures.append(Picture(viz.png_uri(figure), "effective receptive field", _width(figure), caption))
    return [Section("Walk and reach", pictures=pictures, flowing=True)] if pictures else []


def _of_orders(record: Record) -> list[Picture]:
    """Each order as a path, where it can be drawn, and how far along it neighbours lie."""
    size = record.figures.get("data", {}).get("spatial_size")
    orders = _orders(record.setting("model.mixer.scan"))
    if not size or not orders:
        return []
    patch = record.setting("model.patch_size") or 1
    patches = [patch] * len(size) if isinstance(patch, int) else list(patch)
    grid = [-(-n // p) for n, p in zip(size, patches, strict=True)]
    found = []
    if len(size) in MOST_CELLS:
        small = [min(n, MOST_CELLS[len(size)]) for n in grid]
        figure = viz.scan_paths(orders, small)
        plural = "s" if len(orders) > 1 else ""
        caption = f"The walk{plural}, dark to light, on {_box(small)} cells"
        found.append(
            Picture(viz.svg_uri(figure), f"scan orders: {', '.join(orders)}", _width(figure), caption)
        )
    if len(grid) > 1 and math.prod(grid) <= MOST_NEIGHBOURS:
        compared = list(dict.fromkeys(["row_major", *orders]))[:MOST_LINES]
        figure = viz.neighbour_distances(compared, grid, width=560)
        caption = "How far apart cells that touch lie along the walk"
        alt = f"steps between neighbours: {', '.join(compared)}"
        found.append(Picture(viz.svg_uri(figure), alt, _width(figure), caption))
    return found


def _width(figure: Any) -> int:
    return round(figure.get_figwidth() * viz.style.PIXELS_PER_INCH)


def _box(sizes: list[int]) -> str:
    return " x ".join(map(str, sizes))


def _orders(scan: Any) -> list[str]:
    if isinstance(scan, Mapping):
        scan = next(iter(scan.values()), None)
    orders = [scan] if isinstance(scan, str) else list(scan or [])
    return [str(order) for order in orders]
