"""Pictures of a study: errors over training, errors of all cells, and what each core answered."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from nvsubq import viz
from nvsubq.study.plan import Cell
from nvsubq.study.runs import Run
from nvsubq.training.report_data import Record
from nvsubq.training.scores import score_text
from nvsubq.viz.style import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    QUIET,
    SKY,
    VERMILLION,
    YELLOW,
    in_style,
    log_scale,
    new_figure,
)

COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, SKY, ORANGE, YELLOW, INK)
Done = Sequence[tuple[Run, Record]]


def colours(cores: Sequence[str]) -> dict[str, str]:
    """A colour for each core, the same in every picture of a study.

    Example:
        >>> colours(["mamba", "s5"])
        {'mamba': '#0072b2', 's5': '#d55e00'}
    """
    return {core: COLOURS[number % len(COLOURS)] for number, core in enumerate(cores)}


def over_seeds(done: Done, metric: str) -> tuple[list[float], list[float], list[float], list[float]]:
    """Steps, and mean, least and most of a metric there, over the runs of a cell."""
    found: dict[float, list[float]] = {}
    for _, record in done:
        for step, value in zip(record.column("step"), record.column(metric), strict=True):
            if step is not None and value is not None:
                found.setdefault(step, []).append(value)
    steps = sorted(step for step, values in found.items() if len(values) == len(done))
    columns = [found[step] for step in steps]
    return steps, [statistics.fmean(c) for c in columns], [min(c) for c in columns], [max(c) for c in columns]


@in_style
def curves(
    cells: Mapping[str, Done], baseline: float | None, paint: Mapping[str, str], *, title: str
) -> Figure:
    """Validation error over steps: a line for each core (mean over seeds), a band from its best to its worst.

    Args:
        cells: core -> its runs.
        baseline: error of the per-pixel mean, a dashed line.
        paint: core -> colour.
        title: above the panel.
    """
    width, height = 520, 290
    figure = new_figure(width, height)
    axes = figure.add_axes((62 / width, 42 / height, 1 - 190 / width, 1 - 78 / height))
    axes.set_title(title, pad=12)
    axes.set_xlabel("optimizer steps")
    for core, done in cells.items():
        steps, mean, least, most = over_seeds(done, "val/mse")
        if steps and min(least) > 0:
            axes.plot(steps, mean, color=paint[core], label=core)
            axes.fill_between(steps, least, most, color=paint[core], alpha=0.15, linewidth=0)
    if baseline:
        axes.axhline(baseline, color=QUIET, linestyle=(0, (4, 3)), linewidth=1.2, label="per-pixel mean")
    log_scale(axes)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), handlelength=1.4)
    return figure


def answers(cells: Mapping[str, Done], item: int = 0) -> Figure | None:
    """Input, target and answer of one test item, a column for each core; None where nothing was kept."""
    shown: list[tuple[str, dict[str, np.ndarray]]] = []
    for core, done in cells.items():
        found = [record.predictions for _, record in done if "answers" in record.predictions]
        if found and len(found[0]["answers"]) > item:
            shown.append((core, found[0]))
    if not shown:
        return None
    inputs, targets, said = (
        np.stack([arrays[key][item] for _, arrays in shown]) for key in ("inputs", "targets", "answers")
    )
    errors = [float(((a["answers"][item] - a["targets"][item]) ** 2).mean()) for _, a in shown]
    notes = [f"{core}: {score_text(error)}" for (core, _), error in zip(shown, errors, strict=True)]
    return viz.answer_grid(inputs, targets, said, notes)


def by_group(records: Mapping[Cell, Done]) -> dict[tuple[int, str, int], dict[str, Done]]:
    """The runs of cells by rank, task and patch size, then by core."""
    groups: dict[tuple[int, str, int], dict[str, Done]] = {}
    for cell, done in records.items():
        if done:
            groups.setdefault((cell.spatial_dims, cell.task, cell.patch_size), {})[cell.core] = done
    return groups
