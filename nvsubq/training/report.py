"""Writes report.html: one file that shows a run, made of what lies in the run folder and nothing else."""

from __future__ import annotations

import os
import shlex
import statistics
from pathlib import Path
from typing import Any

import jinja2

from nvsubq.training.report_data import Record, read_record
from nvsubq.training.report_pictures import curves, pictures
from nvsubq.training.table import duration, size

TEMPLATE = "report.html.jinja"
NONE = "–"


def write_report(run_dir: str | Path) -> Path:
    """Writes ``report.html`` into a run folder, whole or not at all.

    A run that was interrupted, or not tested, gets a report of what is there.

    Args:
        run_dir: the run folder (see `run_folder`).

    Returns:
        The file.

    Raises:
        RunError: it is no run folder, or one of its files is broken.
        OSError: the file cannot be written.
    """
    record = read_record(run_dir)
    file = record.path / "report.html"
    part = file.with_suffix(".part")
    try:
        part.write_text(render(record), encoding="utf-8")
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)
    return file


def render(record: Record) -> str:
    """The report of a run as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE).render(page(record))


def page(record: Record) -> dict[str, Any]:
    """What the template shows."""
    figures = record.figures
    title = figures.get("name") or record.setting("name") or record.path.resolve().name
    return {
        "title": str(title),
        "core": _core(record),
        "subtitle": _subtitle(record),
        "notes": _notes(record),
        "headline": _headline(record),
        "scores": scores(record),
        "setup": _setup(record),
        "cost": _cost(record),
        "curves": curves(record),
        "sections": pictures(record),
        "config": record.config,
        "versions": ", ".join(f"{name} {number}" for name, number in figures.get("versions", {}).items()),
    }


def _core(record: Record) -> str:
    target = record.figures.get("core") or record.setting("core._target_") or ""
    return str(record.figures.get("core_name") or target.rsplit(".", 1)[-1])


def _subtitle(record: Record) -> str:
    date = record.date()
    parts = [
        f"{date.day} {date:%B %Y, %H:%M}" if date else None,
        _data_name(record),
        f"seed {_seed(record)}" if _seed(record) is not None else None,
    ]
    return " · ".join(part for part in parts if part)


def _data_name(record: Record) -> str | None:
    name = record.figures.get("data", {}).get("name")
    if name is None:
        name = str(record.setting("data._target_") or "").rsplit(".", 1)[-1] or None
    return name


def _seed(record: Record) -> Any:
    return record.figures.get("seed", record.setting("seed"))


def _notes(record: Record) -> list[str]:
    """What a reader must know before believing the numbers."""
    notes = []
    if not record.finished:
        done = len(record.rows)
        notes.append(
            f"This run did not finish: it was stopped after {done} epoch{'' if done == 1 else 's'}, "
            "and there are no final metrics."
        )
    elif record.figures.get("tested_with") is None:
        notes.append("This run was not tested; the metrics are those of its last epoch.")
    if record.figures.get("interrupted"):
        notes.append("This run did not finish; its checkpoint was scored afterwards.")
    if record.figures.get("stopped_early"):
        notes.append("Training stopped early: the watched metric no longer improved.")
    return notes


def _headline(record: Record) -> dict[str, str] | None:
    """The one number of the run, and how it stands to the best baseline."""
    metrics, split = _final(record)
    name = next((n for n in ("accuracy", "dice", "loss") if metrics.get(n) is not None), None)
    if name is None:
        return None
    label = {"accuracy": "accuracy", "dice": "mean Dice", "loss": "loss"}[name]
    others = {k: v[name] for k, v in record.figures.get("baselines", {}).items() if v.get(name) is not None}
    beside = ""
    if others and name != "loss":
        best = max(others, key=lambda k: others[k])
        # Of the numbers as they are shown, so that they add up on paper.
        gap = round(metrics[name], 4) - round(others[best], 4)
        if gap:
            beside = f"{abs(gap):.4f} {'above' if gap > 0 else 'below'} the best baseline, {best}"
        else:
            beside = f"equal to the best baseline, {best}"
    return {"value": f"{metrics[name]:.4f}", "label": f"{split} {label}", "beside": beside}


def _final(record: Record) -> tuple[dict[str, float], str]:
    """The test's metrics, or the last validation's, without their prefix; and which."""
    measured = record.figures.get("metrics") or {}
    if not measured and record.rows:
        measured = record.rows[-1]
    for prefix, split in (("test/", "test"), ("val/", "validation"), ("train/", "training")):
        found = {
            name.removeprefix(prefix): value
            for name, value in measured.items()
            if name.startswith(prefix) and value is not None
        }
        if found:
            return found, split
    return {}, "test"


def scores(record: Record) -> dict[str, Any]:
    """The final table: the run first, then the baselines; a column for each metric."""
    metrics, split = _final(record)
    names = [name for name in metrics if name != "loss"] or list(metrics)
    rows = []
    if names:
        rows.append((_core(record) or "this run", True, metrics))
        rows += [(name, False, values) for name, values in record.figures.get("baselines", {}).items()]
    tested = record.figures.get("tested_with")
    where = f"{tested} checkpoint" if tested else "last epoch"
    return {
        "caption": f"{split}, {where}" if names else "",
        "columns": [_metric_label(name) for name in names],
        "loss": None if "loss" not in metrics or "loss" in names else f"{metrics['loss']:.4f}",
        "split": split,
        "rows": [
            {"name": name, "own": own, "cells": [_number(values.get(column)) for column in names]}
            for name, own, values in rows
        ],
    }


def _metric_label(name: str) -> str:
    """
    Example:
        >>> _metric_label("dice_grey"), _metric_label("dice"), _metric_label("accuracy")
        ('Dice, grey', 'mean Dice', 'accuracy')
    """
    if name == "dice":
        return "mean Dice"
    return f"Dice, {name[5:].replace('_', ' ')}" if name.startswith("dice_") else name


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.4f}"


def _setup(record: Record) -> list[tuple[str, str]]:
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
        "data": _data_name(record),
        "source": data.get("provenance"),
        "split": ", ".join(f"{count:,} {split}" for split, count in sizes.items())
        + (f" (split seed {data['split_seed']})" if data.get("split_seed") is not None else ""),
        "input": " × ".join(map(str, shape))
        + f", {data.get('in_channels', '?')} channel{'' if data.get('in_channels') == 1 else 's'}"
        if shape
        else None,
        "epochs": f"{epochs}"
        + (f" ({figures['steps']:,} steps)" if figures.get("steps") else "")
        + (f", best {best + 1}" if best is not None else ""),
        "seed": _seed(record),
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


def _cost(record: Record) -> list[tuple[str, str, str]]:
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
