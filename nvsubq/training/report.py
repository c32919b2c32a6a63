"""Writes report.html: one file that shows a run, made of what lies in the run folder and nothing else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from nvsubq.training.report_data import Record, read_record
from nvsubq.training.report_facts import cost, data_name, seed, setup
from nvsubq.training.report_pictures import curves, pictures
from nvsubq.training.report_walks import walks
from nvsubq.training.scores import lower_is_better, score_text
from nvsubq.viz import render_page

HEADLINES = {"accuracy": "accuracy", "dice": "mean Dice", "rmse": "RMSE", "mse": "MSE", "loss": "loss"}
"""Metrics of which the first that was measured is the number of the run, and their names on the page."""
TEMPLATE = Path(__file__).with_name("report.html.jinja")
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
    return render_page(TEMPLATE, page(record))


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
        "setup": setup(record),
        "cost": cost(record),
        "curves": curves(record),
        "sections": [*pictures(record), *walks(record)],
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
        data_name(record),
        f"seed {seed(record)}" if seed(record) is not None else None,
    ]
    return " · ".join(part for part in parts if part)


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
    scored, there = len(record.predictions.get("indices", ())), _test_size(record)
    if record.finished and there and 0 < scored < there:
        notes.append(f"Only {scored:,} of {there:,} test items were scored.")
    if record.figures.get("interrupted"):
        notes.append("This run did not finish; its checkpoint was scored afterwards.")
    if record.figures.get("stopped_early"):
        notes.append("Training stopped early: the watched metric no longer improved.")
    return notes


def _test_size(record: Record) -> int:
    return (record.figures.get("data", {}).get("sizes") or {}).get("test", 0)


def _headline(record: Record) -> dict[str, str] | None:
    """The one number of the run, and how it stands to the best baseline."""
    metrics, split = _final(record)
    name = next((n for n in HEADLINES if metrics.get(n) is not None), None)
    if name is None:
        return None
    label = HEADLINES[name]
    others = {k: v[name] for k, v in record.figures.get("baselines", {}).items() if v.get(name) is not None}
    beside = ""
    if others and name != "loss":
        best = (min if lower_is_better(name) else max)(others, key=lambda k: others[k])
        # Of the numbers as they are shown, so that they add up on paper.
        gap = float(score_text(metrics[name])) - float(score_text(others[best]))
        if gap:
            side = "above" if gap > 0 else "below"
            beside = f"{score_text(abs(gap))} {side} the best baseline, {best}"
        else:
            beside = f"equal to the best baseline, {best}"
    if name == "mse":
        beside = f"lower is better; {beside}" if beside else "lower is better"
    return {"value": score_text(metrics[name]), "label": f"{split} {label}", "beside": beside}


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
        "loss": None
        if "loss" not in metrics or "loss" in names or metrics["loss"] == metrics.get("mse")
        else score_text(metrics["loss"]),
        "split": split,
        "rows": [
            {"name": name, "own": own, "cells": [score_text(values.get(column), NONE) for column in names]}
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
    if name == "mse":
        return "MSE"
    return f"Dice, {name[5:].replace('_', ' ')}" if name.startswith("dice_") else name
