"""How the model of a run walks its field, and what it came to see: a section of the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from lightning import Trainer
from torch import nn

from nvsubq import viz
from nvsubq.models import NDBackbone, NDUNet
from nvsubq.training.report_data import Record
from nvsubq.training.report_pictures import Picture, Section

REACH = "receptive_field"
"""Its name in predictions.npz."""
MOST_CELLS = {2: 14, 3: 5}
"""Cells along an axis of a walk that can still be read."""


def reach(model: nn.Module, datamodule: Any, trainer: Trainer) -> dict[str, np.ndarray]:
    """The effective receptive field of the trained model's middle; empty where it cannot be asked."""
    size = datamodule.spatial_size
    if size is None or len(size) > 3 or trainer.world_size > 1 or not isinstance(model, (NDBackbone, NDUNet)):
        return {}
    field = viz.receptive_field(model, (datamodule.in_channels, *size), samples=2)
    return {REACH: field.astype(np.float32)}


def walks(record: Record) -> list[Section]:
    """The orders of the mixer on the model's grid, and the receptive field; empty where neither is known."""
    pictures = []
    size = record.figures.get("data", {}).get("spatial_size")
    orders = _orders(record.setting("model.mixer.scan"))
    if size and orders and len(size) in MOST_CELLS:
        patch = record.setting("model.patch_size") or 1
        patches = [patch] * len(size) if isinstance(patch, int) else list(patch)
        most = MOST_CELLS[len(size)]
        grid = [min(-(-n // p), most) for n, p in zip(size, patches, strict=True)]
        figure = viz.scan_paths(orders, grid)
        shown = " x ".join(map(str, grid))
        caption = f"The walk{'s' if len(orders) > 1 else ''}, here on {shown} cells, from dark to light"
        width = 220 * min(len(orders), 4)
        alt = f"scan orders: {', '.join(orders)}"
        pictures.append(Picture(viz.svg_uri(figure), alt, width, caption))
    if REACH in record.predictions:
        field = record.predictions[REACH]
        figure = viz.receptive_map(field)
        width = round(figure.get_figwidth() * viz.style.PIXELS_PER_INCH)
        caption = "How much each cell of the input moves the middle of the output (gradients on noise)"
        pictures.append(Picture(viz.png_uri(figure), "effective receptive field", width, caption))
    return [Section("Walk and reach", pictures=pictures)] if pictures else []


def _orders(scan: Any) -> list[str]:
    if isinstance(scan, Mapping):
        scan = next(iter(scan.values()), None)
    orders = [scan] if isinstance(scan, str) else list(scan or [])
    return [str(order) for order in orders]
