"""Writes study.html: one file that shows a study, made of what lies in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nvsubq import viz
from nvsubq.study import pictures
from nvsubq.study.runs import Folder
from nvsubq.study.summary import Summary
from nvsubq.study.tables import EXPLAINED, rate_table, tables, verdicts
from nvsubq.training.durable import write_whole

TEMPLATE = Path(__file__).with_name("study.html.jinja")


def write_page(summary: Summary, folder: Folder) -> Path:
    """Writes study.html, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    file = folder.path / "study.html"
    write_whole(file, render(summary).encode())
    return file


def render(summary: Summary) -> str:
    """The page as HTML."""
    return viz.render_page(TEMPLATE, page(summary))


def page(summary: Summary) -> dict[str, Any]:
    """What the template shows."""
    study = summary.engine.planned.study
    done = [row for row in summary.runs if row.state == "done"]
    machine = _machine(summary)
    return {
        "title": study.name.replace("_", " "),
        "subtitle": f"{len(done)} of {len(done) + summary.engine.left() + _failed(summary)} runs done · "
        f"{study.parameters:,} parameters and {study.steps:,} steps each",
        "verdicts": verdicts(summary),
        "explained": EXPLAINED,
        "sections": _sections(summary),
        "rates": rate_table(summary),
        "failed": [row for row in summary.runs if row.state == "failed"],
        "left_out": [(cell.label, reason) for cell, reason in study.left_out()],
        "machine": machine,
    }


def _failed(summary: Summary) -> int:
    return sum(row.state == "failed" for row in summary.runs)


def _machine(summary: Summary) -> str:
    """Where the runs were made, from the first that is done."""
    for runs in summary.records.values():
        for _, record in runs:
            figures = record.figures
            versions = ", ".join(f"{name} {number}" for name, number in figures["versions"].items())
            threads = figures["threads"]
            return (
                f"device {figures['device']}, precision {figures['precision']}, "
                f"{threads} thread{'' if threads == 1 else 's'} each; {versions}"
            )
    return ""


def _sections(summary: Summary) -> list[dict[str, Any]]:
    """For each rank, task and patch size its table, curves and answers."""
    paint = pictures.colours(summary.engine.planned.cores)
    groups = pictures.by_group(summary.records)
    keys = list(dict.fromkeys((r.spatial_dims, r.task, r.patch_size) for r in summary.cells))
    sections = []
    for key, table in zip(keys, tables(summary), strict=True):
        cells = groups.get(key, {})
        section: dict[str, Any] = {"table": table, "curve": None, "answers": None}
        if cells:
            rows = [r for r in summary.cells if (r.spatial_dims, r.task, r.patch_size) == key]
            base = next((r.per_pixel_mean for r in rows if r.per_pixel_mean is not None), None)
            figure = pictures.curves(cells, base, paint, title="validation MSE")
            section["curve"] = viz.svg_uri(figure)
            answered = pictures.answers(cells)
            section["answers"] = None if answered is None else viz.png_uri(answered)
        sections.append(section)
    return sections
