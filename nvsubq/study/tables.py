"""The tables of a study, as they are shown: one for each rank and task, and the choice of learning rates."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from nvsubq.study.runs import Folder
from nvsubq.study.summary import CellRow, Summary
from nvsubq.study.trivial import BASELINES, sure_from
from nvsubq.training.durable import write_whole
from nvsubq.training.scores import score_text, spread_text

NONE = "–"
COLUMNS = (
    "core",
    "width",
    "parameters",
    "rate",
    "runs",
    "test MSE",
    "of the mean's",
    "below the mean by",
    "below the best by",
    "ms a step",
    "memory",
)
EXPLAINED = (
    "Test MSE is the mean and sample standard deviation over seeds. The per-pixel mean never looks at the "
    "input; a model that has learned nothing of the items ends there. “Mean in its colour” is where a model "
    "ends that has learned the colour and nothing of the item. “Of the mean's” is the MSE over that of the "
    "per-pixel mean, “below the mean by” the difference in standard errors (over test items and, of several "
    "seeds, over seeds). “Below the best by” is the same against the trivial predictor with the smallest "
    "error, which is the one to beat: in bold where the cell beats it, by more than a quantile of Student's "
    f"t that chance passes 2.3 % of the time ({sure_from(3):.1f} with three seeds, {sure_from(10):.1f} with "
    "ten). "
    "A single seed has no error over seeds, and so no verdict."
)
MARKED = COLUMNS.index("below the best by")
"""The column that is marked where a cell beats the best trivial predictor."""


@dataclass
class Table:
    """A table: its title, names of columns, rows of text, and for each whether it beats what is trivial."""

    title: str
    columns: tuple[str, ...]
    rows: list[list[str]] = field(default_factory=list)
    beats: list[bool] = field(default_factory=list)


def tables(summary: Summary) -> list[Table]:
    """A table for each rank, task and patch size, in the order of the study."""
    groups: dict[tuple[int, str, int], list[CellRow]] = {}
    for row in summary.cells:
        groups.setdefault((row.spatial_dims, row.task, row.patch_size), []).append(row)
    patches = {row.patch_size for row in summary.cells}
    found: dict[tuple[int, str, int], Table] = {}
    for (dims, task, patch), rows in groups.items():
        more = f", patches of {patch}" if len(patches) > 1 and patch > 1 else ""
        more = ", not patched" if len(patches) > 1 and patch == 1 else more
        table = Table(f"{dims}-D {task}{more}", COLUMNS)
        for row in rows:
            table.rows.append(cell_line(row))
            table.beats.append(row.verdict == "beats")
        for name, label in BASELINES.items():
            value = next((v for row in rows if (v := getattr(row, name)) is not None), None)
            if value is not None:
                best = any(row.trivial == label for row in rows)
                table.rows.append([f"{label}, to beat" if best else label, *[""] * 4, score_text(value)])
                table.rows[-1] += [""] * (len(COLUMNS) - len(table.rows[-1]))
                table.beats.append(False)
        found[dims, task, patch] = table
    for cell, reason in summary.engine.planned.study.left_out():
        if (group := (cell.spatial_dims, cell.task, cell.patch_size)) in found:
            line = [cell.core, *[""] * 4, f"left out: {reason}"]
            found[group].rows.append(line + [""] * (len(COLUMNS) - len(line)))
            found[group].beats.append(False)
    return list(found.values())


def cell_line(row: CellRow) -> list[str]:
    """A cell as a line of a table."""
    runs = str(row.runs) if row.runs == row.planned else f"{row.runs} of {row.planned}"
    width, count = str(row.width), f"{row.parameters:,} ({row.deviation:+.0%})"
    rate = NONE if row.rate is None else f"{row.rate:g}"
    if row.failed:
        runs += f", {row.failed} failed"
    if row.mse is None:
        why = f"failed: {row.reason}" if row.failed else (row.reason or "not run yet")
        return [row.core, width, count, rate, runs, why.splitlines()[0], *[""] * 5]
    mse = score_text(row.mse) if row.mse_sd is None else spread_text(row.mse, row.mse_sd)
    memory = row.device_bytes or row.memory_bytes
    return [
        row.core,
        width,
        count,
        rate,
        runs,
        mse,
        f"{row.mse / row.per_pixel_mean:.3f}" if row.per_pixel_mean else NONE,
        _sigmas(row.sigmas),
        _sigmas(row.trivial_sigmas),
        f"{row.ms_per_step:.1f}" if row.ms_per_step else NONE,
        f"{memory / 2**20:,.0f} MiB" if memory else NONE,
    ]


def _sigmas(value: float | None) -> str:
    return NONE if value is None else f"{value:+.1f} SE"


def rate_table(summary: Summary) -> Table | None:
    """Validation MSE of each core at each rate; None where there was nothing to choose."""
    study = summary.engine.planned.study
    if len(study.rates) == 1:
        return None
    on = study.choose_on
    title = f"learning rates: val/mse on {on['spatial_dims']}-D {on['task']}, seed {on['seed']}"
    table = Table(title, ("core", *(f"{rate:g}" for rate in study.rates), "chosen"))
    for core, choice in summary.engine.choices().items():
        scores = (choice.scores.get(rate) for rate in study.rates)
        shown = [NONE if s is None else "failed" if math.isinf(s) else score_text(s) for s in scores]
        chosen = NONE if choice.rate is None else f"{choice.rate:g}"
        table.rows.append([core, *shown, chosen])
        table.beats.append(False)
    return table


def verdicts(summary: Summary) -> list[str]:
    """A sentence each: how many cells beat the best trivial predictor, equal it, or are worse."""
    lines, of = [], len(summary.cells)
    by_verdict: dict[str, list[CellRow]] = {}
    for row in summary.cells:
        by_verdict.setdefault(row.verdict, []).append(row)
    if beats := by_verdict.get("beats"):
        sigmas = sorted(row.trivial_sigmas or 0.0 for row in beats)
        by = f"{sigmas[0]:.0f} to {sigmas[-1]:.0f}" if len(sigmas) > 1 else f"{sigmas[0]:.0f}"
        best = " or ".join(dict.fromkeys(f"the {row.trivial}" for row in beats))
        lines.append(
            f"{len(beats)} of {of} cells beat the best trivial predictor of their task ({best}), by {by} "
            "standard errors (SE)."
        )
    for verdict, text in {
        "equal": "cannot be told from it",
        "worse": "are worse than it",
        "one seed": "have one seed, so nothing can be said of others",
    }.items():
        if rows := by_verdict.get(verdict):
            lines.append(f"{len(rows)} of {of} cells {text}: {', '.join(map(_far, rows))}.")
    failed = [row for row in summary.runs if row.state == "failed"]
    if failed:
        lines.append(f"{len(failed)} of {len(summary.runs)} runs failed.")
    missing = summary.engine.left()
    if missing:
        lines.append(f"The study is not finished: {missing} runs are left.")
    return lines


def _far(row: CellRow) -> str:
    """How far a cell is from the best trivial predictor."""
    return (
        f"{row.core} {row.spatial_dims}-D {_short(row)} ({row.trivial_sigmas:+.0f} SE of the {row.trivial})"
    )


def _short(row: CellRow) -> str:
    return row.task + (f" in patches of {row.patch_size}" if row.patch_size > 1 else "")


def markdown(summary: Summary) -> str:
    """All tables as Markdown."""
    parts = ["\n".join(f"* {line}" for line in verdicts(summary)), EXPLAINED]
    chosen = rate_table(summary)
    for table in [*tables(summary), *([chosen] if chosen else [])]:
        parts.append(f"### {table.title}\n\n{_markdown_table(table)}")
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown_table(table: Table) -> str:
    def line(cells: tuple[str, ...] | list[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    rule = f"|---|{'--:|' * (len(table.columns) - 1)}"
    rows = [
        [f"**{cell}**" if beats and cell and number == MARKED else cell for number, cell in enumerate(row)]
        for row, beats in zip(table.rows, table.beats, strict=True)
    ]
    return "\n".join([line(table.columns), rule, *map(line, rows)])


def write_markdown(summary: Summary, folder: Folder) -> Path:
    """Writes study.md."""
    file = folder.path / "study.md"
    write_whole(file, markdown(summary).encode())
    return file
