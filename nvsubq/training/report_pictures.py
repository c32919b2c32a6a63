"""The pictures of a report, with the tables that belong beside them."""

from __future__ import annotations

from typing import Any

import numpy as np

from nvsubq import viz
from nvsubq.training.report_answers import answered
from nvsubq.training.report_data import Record
from nvsubq.training.report_section import Picture, Section

LISTED = 20
"""Classes whose figures are listed; more are left to metrics.json."""


def curves(record: Record) -> list[Picture]:
    """Loss, score and learning rate over epochs; those that were measured."""
    if not record.rows:
        return []
    wanted = [
        # Of a regression the loss is the mean squared error.
        ("MSE" if record.has("val/mse") else "loss", {"train": "train/loss", "validation": "val/loss"}),
        ("accuracy", {"validation": "val/accuracy"}),
        ("mean Dice", {"validation": "val/dice"}),
        ("RMSE", {"validation": "val/rmse"}),
        ("learning rate", {"learning rate": "lr"}),
    ]
    shown = []
    for title, columns in wanted:
        series = {name: record.column(column) for name, column in columns.items() if record.has(column)}
        if series:
            name = title if len(series) > 1 or title == "learning rate" else f"{title}, {next(iter(series))}"
            shown.append((name, series))
    best = record.figures.get("best_epoch")
    pictures = []
    for name, series in shown:
        marked = None if name == "learning rate" else best
        figure = viz.curve(record.epochs, series, title=name, best=marked, log=title == "MSE")
        pictures.append(Picture(viz.svg_uri(figure), f"{name} for each epoch", 310))
    return pictures


def pictures(record: Record) -> list[Section]:
    """What the test predicted; empty where nothing was tested."""
    names = [str(name) for name in record.figures.get("classes", [])]
    found = record.predictions
    if not names or not found:
        return []
    if "answers" in found:
        return answered(record)
    if "probabilities" in found:
        return _classified(record, names)
    return _segmented(record, names) if "confusion" in found else []


def _classified(record: Record, names: list[str]) -> list[Section]:
    labels, probabilities = record.predictions["labels"], record.predictions["probabilities"]
    if not len(labels):
        return []
    predicted = probabilities.argmax(1)
    counts = viz.confusion_counts(labels, predicted, len(names))
    right = int(np.trace(counts))
    few = len(names) <= LISTED
    width = 560 if few else 820
    matrix = viz.confusion(counts, names, width=width)
    total = counts.sum(1)
    order = [int(i) for i in np.argsort(counts.diagonal() / np.maximum(total, 1), kind="stable") if total[i]]
    rows = [
        (names[i], f"{total[i]:,}", f"{counts[i, i] / total[i]:.3f}", 100 * counts[i, i] / total[i])
        for i in ([i for i in range(len(names)) if total[i]] if few else order[:LISTED])
    ]
    text = f"{right:,} of {len(labels):,} test items are right, {len(labels) - right:,} wrong. "
    text += "Rows are true classes; right answers are blue, wrong ones red, each on a scale of its own."
    if not few:
        text += f" Listed are the {LISTED} classes with the lowest accuracy."
    confused = Section(
        "Confusion",
        text,
        [Picture(viz.svg_uri(matrix), "confusion matrix: true classes in rows, predicted in columns", width)],
        ("class", "items", "accuracy"),
        rows,
        beside=few,
    )
    return [confused, *_examples(record, names, predicted)]


def _examples(record: Record, names: list[str], predicted: np.ndarray) -> list[Section]:
    shown, images = record.predictions["shown"], record.predictions["images"]
    if not len(shown):
        return []
    row_of = {int(index): row for row, index in enumerate(record.predictions["indices"])}
    rows = [row_of[int(index)] for index in shown]
    labels, probabilities = record.predictions["labels"], record.predictions["probabilities"]
    wrong = int((predicted[rows] != labels[rows]).sum())
    figure = viz.example_grid(
        viz.to_unit(_unflattened(images, record)),
        [names[labels[r]] for r in rows],
        [names[predicted[r]] for r in rows],
        [float(probabilities[r, predicted[r]]) for r in rows],
    )
    text = (
        f"The {len(shown)} test items whose true class got the lowest probability, worst first. Red: wrong, "
        "as true class and predicted class; blue: right. Below: the probability of the predicted class."
    )
    alt = f"{len(shown)} test items, {wrong} of them wrong, the worst first"
    return [Section("Examples, worst first", text, [Picture(viz.png_uri(figure), alt)])]


def _unflattened(images: np.ndarray, record: Record) -> np.ndarray:
    """Images served as sequences are shown as images, fields of four axes at the middle of the last."""
    if images.ndim == 6:
        return images[..., images.shape[-1] // 2]
    side = round(images.shape[-1] ** 0.5)
    if images.ndim == 3 and record.setting("data.flatten") and side * side == images.shape[-1]:
        return images.reshape(*images.shape[:2], side, side)
    return images


def _segmented(record: Record, names: list[str]) -> list[Section]:
    per_item = record.predictions["confusion"].astype(np.int64)
    if not len(per_item):
        return []
    scored = record.figures.get("scored_classes")
    scored = list(range(1, len(names))) if scored is None else [int(c) for c in scored]
    dice = _dice(per_item.sum(0))
    cells = per_item.sum((0, 2))
    rows = [
        (
            name if i in scored else f"{name} (not scored)",
            f"{cells[i]:,}",
            "–" if np.isnan(dice[i]) else f"{dice[i]:.3f}",
            0.0 if np.isnan(dice[i]) else 100 * dice[i],
        )
        for i, name in enumerate(names)
    ]
    if len(rows) > LISTED:
        order = np.argsort(np.nan_to_num(dice, nan=2.0), kind="stable")[:LISTED]
        rows = [rows[i] for i in order]
    text = f"Over all cells of {len(per_item)} test volume{'' if len(per_item) == 1 else 's'} together."
    table = Section("Dice per class", text, columns=("class", "cells", "Dice"), rows=rows)
    return [table, *_volumes(record, names, scored, per_item)]


def _volumes(record: Record, names: list[str], scored: list[int], per_item: np.ndarray) -> list[Section]:
    arrays = record.predictions
    row_of = {int(index): row for row, index in enumerate(arrays["indices"])}
    shown = []
    for i, index in enumerate(arrays["shown"]):
        image = arrays[f"image_{i}"].astype(np.float32)
        figure = viz.slices(
            image[0],
            arrays[f"label_{i}"],
            arrays[f"prediction_{i}"],
            names,
            scored=scored,
            voxel_size=_voxel_size(record, int(index), image.ndim - 1),
        )
        own = _dice(per_item[row_of[int(index)]])
        parts = [f"{names[c]} {own[c]:.3f}" for c in scored[:6] if not np.isnan(own[c])]
        caption = f"Test volume {int(index) + 1}: Dice {', '.join(parts) or '–'}"
        alt = f"test volume {int(index) + 1}: slices of image, label and prediction"
        shown.append(Picture(viz.png_uri(figure), alt, caption=caption))
    if not shown:
        return []
    text = f"{len(shown)} of {len(per_item)} test volumes, the one with the lowest Dice first."
    if arrays["image_0"].ndim == 4:
        text = text[:-1] + (
            ": coronal (upper left), sagittal (upper right) and axial (below) slices through the scored "
            "classes, superior and anterior up, left on the left."
        )
    colours = viz.region_colours(len(names), scored)
    keys = list(zip(names, colours, strict=True))[:12]
    return [Section("Slices, worst first", text, shown, keys=keys)]


def _dice(counts: np.ndarray) -> np.ndarray:
    """Dice of each class from counts `[classes, classes]`; NaN where a class is in neither."""
    total = (counts.sum(0) + counts.sum(1)).astype(float)
    return np.divide(2.0 * counts.diagonal(), total, out=np.full(len(counts), np.nan), where=total > 0)


def _voxel_size(record: Record, index: int, rank: int) -> list[float]:
    """`voxel_size` of the data's description: three numbers, or three for each test volume; else cubes."""
    told: Any = record.figures.get("data", {}).get("voxel_size")
    if told and isinstance(told[0], (list, tuple)):
        told = told[index] if index < len(told) else None
    return [float(size) for size in told] if told and len(told) == rank else [1.0] * rank
