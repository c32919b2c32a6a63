"""What a study found: a line for each run, a line for each cell, and how far a cell is from trivial ones."""

from __future__ import annotations

import csv
import io
import statistics
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from nvsubq.study.engine import Engine
from nvsubq.study.plan import Cell
from nvsubq.study.runs import Folder, Recipe, Run
from nvsubq.study.trivial import BASELINE, BASELINES, baseline_errors, beside, verdict
from nvsubq.training.durable import write_whole
from nvsubq.training.report_data import Record, RunError, read_record


@dataclass
class RunRow:
    """A run as a line of runs.csv; times and bytes are None where it is not done."""

    core: str
    spatial_dims: int
    task: str
    patch_size: int
    seed: int
    rate: float
    state: str
    reason: str
    width: int
    parameters: int
    steps: int | None = None
    test_mse: float | None = None
    val_mse: float | None = None
    ms_per_step: float | None = None
    cells_per_s: float | None = None
    train_s: float | None = None
    memory_bytes: int | None = None
    device_bytes: int | None = None
    folder: str = ""


@dataclass
class CellRow:
    """A cell as a line of cells.csv: means over its seeds, `_sd` their sample standard deviation.

    `gain` is the per-pixel mean's error less the cell's; `standard_error` that of the gain, over seeds and
    test items; `sigmas` their ratio. `trivial` is the trivial predictor with the smallest error, which a cell
    has to beat, `trivial_gain` and so on are the same of it.
    """

    spatial_dims: int
    task: str
    patch_size: int
    core: str
    width: int
    parameters: int
    deviation: float
    rate: float | None
    runs: int
    planned: int
    failed: int
    reason: str
    mse: float | None = None
    mse_sd: float | None = None
    constant: float | None = None
    per_pixel_mean: float | None = None
    mean_in_its_colour: float | None = None
    gain: float | None = None
    standard_error: float | None = None
    sigmas: float | None = None
    trivial: str = ""
    trivial_gain: float | None = None
    trivial_standard_error: float | None = None
    trivial_sigmas: float | None = None
    ms_per_step: float | None = None
    memory_bytes: float | None = None
    device_bytes: float | None = None

    @property
    def verdict(self) -> str:
        """beats, equal, worse, one seed or nothing, against the best trivial predictor."""
        return verdict(self.trivial_sigmas, self.runs)


@dataclass
class Summary:
    """Everything that the tables and the page show."""

    engine: Engine
    runs: list[RunRow]
    cells: list[CellRow]
    records: dict[Cell, list[tuple[Run, Record]]]


def summarise(engine: Engine) -> Summary:
    """Reads the folder of a study."""
    folder, planned = engine.folder, engine.planned
    known = list(engine.known())
    records, broken = _records(known, folder)
    rows = [_run_row(run, folder, records.get(run.name), broken.get(run.name)) for run in known]
    choices = engine.choices()
    cells, by_cell = [], {}
    for cell, seeds in planned.study.cells().items():
        choice = choices[cell.core]
        runs = [planned.run(cell, s, choice.rate) for s in seeds] if choice.rate is not None else []
        done = [(run, records[run.name]) for run in runs if run.name in records]
        by_cell[cell] = done
        row = _cell_row(planned.recipes[cell], choice.rate, len(seeds), done, folder)
        reasons = [broken.get(run.name) or folder.failure(run) for run in runs]
        row.failed = sum(reason is not None for reason in reasons)
        row.reason = next((r for r in reasons if r is not None), choice.reason)
        cells.append(row)
    return Summary(engine, rows, cells, by_cell)


def _records(known: list[Run], folder: Folder) -> tuple[dict[str, Record], dict[str, str]]:
    """By name: what the runs that are done hold, and what is wrong with those that cannot be read."""
    records, broken = {}, {}
    for run in known:
        if not folder.done(run):
            continue
        try:
            records[run.name] = read_record(folder.of(run))
        except RunError as error:
            broken[run.name] = f"{error} Delete the run's folder to run it again."
    return records, broken


def _run_row(run: Run, folder: Folder, record: Record | None, broken: str | None) -> RunRow:
    cell, width = run.cell, run.recipe.width
    row = RunRow(
        cell.core,
        cell.spatial_dims,
        cell.task,
        cell.patch_size,
        run.seed,
        run.rate,
        "failed" if broken else folder.state(run),
        broken or folder.failure(run) or "",
        width.width,
        width.parameters,
    )
    if record is not None:
        figures = record.figures
        metrics = figures["metrics"]
        row.steps, row.train_s = figures["steps"], figures["train_s"]
        row.test_mse, row.val_mse = metrics.get("test/mse"), metrics.get("val/mse")
        row.ms_per_step, row.cells_per_s = step_ms(record), _median(record.column("cells_per_s"))
        row.memory_bytes, row.device_bytes = figures["peak_memory_bytes"], figures["peak_device_bytes"]
        row.folder = str(Path("runs") / run.name)
    return row


def step_ms(record: Record) -> float | None:
    """Milliseconds of a training step, validation apart: the median of the epochs."""
    times, before = [], 0.0
    for seconds, step in zip(record.column("epoch_s"), record.column("step"), strict=True):
        if seconds is not None and step is not None and step > before:
            times.append(1e3 * seconds / (step - before))
            before = step
    return _median(times)


def _median(values: list[Any]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _cell_row(
    recipe: Recipe, rate: float | None, planned: int, done: list[tuple[Run, Record]], folder: Folder
) -> CellRow:
    cell, width = recipe.cell, recipe.width
    row = CellRow(
        cell.spatial_dims,
        cell.task,
        cell.patch_size,
        cell.core,
        width.width,
        width.parameters,
        width.deviation,
        rate,
        len(done),
        planned,
        0,
        "",
    )
    if not done:
        return row
    scores = [record.figures["metrics"].get("test/mse") for _, record in done]
    if any(score is None for score in scores):
        return row
    row.mse = statistics.fmean(scores)
    row.mse_sd = statistics.stdev(scores) if len(scores) > 1 else None
    row.ms_per_step = _mean([step_ms(record) for _, record in done])
    row.memory_bytes = _mean([record.figures["peak_memory_bytes"] for _, record in done])
    row.device_bytes = _mean([record.figures["peak_device_bytes"] for _, record in done])
    squares = [(r.predictions["indices"], r.predictions["squares"]) for _, r in done]
    by_name = beside(baseline_errors(recipe, folder), squares)
    for column, name in BASELINES.items():
        if name in by_name:
            setattr(row, column, by_name[name].error)
    mean, best = by_name[BASELINE], next(iter(by_name.values()))
    row.gain, row.standard_error, row.sigmas = mean.gain, mean.standard_error, mean.sigmas
    row.trivial, row.trivial_gain = best.name, best.gain
    row.trivial_standard_error, row.trivial_sigmas = best.standard_error, best.sigmas
    return row


def _mean(values: list[Any]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def write_csv(summary: Summary, folder: Folder) -> list[Path]:
    """Writes runs.csv and cells.csv."""
    written = []
    for name, kind, rows in (("runs.csv", RunRow, summary.runs), ("cells.csv", CellRow, summary.cells)):
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, [field.name for field in fields(kind)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)  # type: ignore[call-overload]
        write_whole(folder.path / name, text.getvalue().encode())
        written.append(folder.path / name)
    return written
