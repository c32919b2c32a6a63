"""What a report says in words and numbers: what was run, and what it cost."""

from __future__ import annotations

import shlex
import statistics
from typing import Any

from nvsubq.training.report_data import Record
from nvsubq.training.table import duration, size


def data_name(record: Record) -> str | None:
    """The data's name."""
    name = record.figures.get("data", {}).get("name")
    if name is None:
        name = str(record.setting("data._target_") or "").rsplit(".", 1)[-1] or None
    return name


def seed(record: Record) -> Any:
    """The seed of the run."""
    return record.figures.get("seed", record.setting("seed"))


def setup(record: Record) -> list[tuple[str, str]]:
    """What was run."""
    figures, data = record.figures, record.figures.get("data", {})
    sizes = data.get("sizes") or {}
    command = figures.get("command")
    epochs = figures.get("epochs", len(record.rows))
    best = figures.get("best_epoch")
    shape = data.get("spatial_size")
    rows = {
        "experiment": figures.get("name") or record.setting("name"),
        "core": figures.get("core") or record.setting("core._target_"),
        "model": _model(record),
        "data": data_name(record),
        "source": data.get("provenance"),
        "split": ", ".join(f"{count:,} {split}" for split, count in (data.get("files") or sizes).items())
        + (f" (split seed {data['split_seed']})" if data.get("split_seed") is not None else ""),
        "input": " × ".join(map(str, shape))
        + f", {data.get('in_channels', '?')} channel{'' if data.get('in_channels') == 1 else 's'}"
        if shape
        else None,
        "epochs": f"{epochs}"
        + (f" ({figures['steps']:,} steps)" if figures.get("steps") else "")
        + (f", best {best + 1}" if best is not None else ""),
        "seed": seed(record),
        "command": shlex.join(["nvsubq", "train", *command]) if command is not None else None,
        "device": _device(figures),
        "folder": record.path.resolve().name,
    }
    return [(name, str(value)) for name, value in rows.items() if value not in (None, "")]


def _model(record: Record) -> str | None:
    name = record.figures.get("model") or str(record.setting("model._target_") or "").rsplit(".", 1)[-1]
    if not name:
        return None
    parts = [name]
    for key, label in (("depths", "depths"), ("dims", "widths"), ("patch_size", "patch")):
        value = record.setting(f"model.{key}")
        if value is not None:
            text = ", ".join(map(str, value)) if not isinstance(value, (int, str)) else str(value)
            parts.append(f"{label} {text}")
    if record.setting("model.mixer.bidirectional"):
        parts.append("bidirectional")
    return ", ".join(parts)


def _device(figures: dict[str, Any]) -> str | None:
    if not figures.get("device"):
        return None
    parts = [figures["device"]]
    if figures.get("threads") and "cuda" not in figures["device"]:
        parts.append(f"{figures['threads']} thread{'' if figures['threads'] == 1 else 's'}")
    if figures.get("precision"):
        parts.append(f"precision {figures['precision']}")
    if figures.get("processes", 1) > 1:
        parts.append(f"{figures['processes']} processes")
    return ", ".join(parts)


def cost(record: Record) -> list[tuple[str, str, str]]:
    """Size, time and memory: label, figure, and what it counts."""
    figures = record.figures
    per_epoch = [value for value in record.column("epoch_s") if value is not None]
    rates = [value for value in record.column("cells_per_s") if value is not None]
    rows = []
    if figures.get("parameters"):
        rows.append(("parameters", f"{figures['parameters']:,}", ""))
    trained = figures.get("train_s") or sum(per_epoch)
    if trained:
        total = figures.get("total_s")
        rows.append(("training", duration(trained), f"{duration(total)} in all" if total else ""))
    if per_epoch:
        rows.append(("an epoch", duration(statistics.median(per_epoch)), "of training, median"))
    if rates:
        rows.append(("throughput", *_rate(record, statistics.median(rates))))
    memory = figures.get("peak_memory_bytes")
    if memory:
        device = figures.get("peak_device_bytes")
        rows.append(
            ("peak memory", size(memory), f"{size(device)} on the device" if device else "of the process")
        )
    return rows


def _rate(record: Record, cells: float) -> tuple[str, str]:
    """Items of known size for a classification, cells (voxels) else."""
    data = record.figures.get("data", {})
    shape = data.get("spatial_size")
    cell = {1: "samples", 2: "pixels", 3: "voxels"}.get(data.get("spatial_dims"), "cells")
    per_cell = f"{_short(cells)} {cell}/s"
    if data.get("task") != "classification" or not shape:
        return per_cell, "training, median"
    items = cells
    for length in shape:
        items /= length
    item = {1: "sequences", 2: "images", 3: "volumes"}.get(len(shape), "items")
    return f"{_short(items)} {item}/s", per_cell


def _short(value: float) -> str:
    """
    Example:
        >>> _short(1234567.0), _short(53210.0), _short(812.0), _short(3.456)
        ('1.23 M', '53.2 k', '812', '3.46')
    """
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= limit:
            return f"{value / (1e3 if letter == 'k' else limit):.3g} {letter}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
