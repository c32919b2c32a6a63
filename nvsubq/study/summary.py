"""What a study found: a line for each run, a line for each cell, and how far a cell is from the baseline."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import statistics
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from nvsubq.study.engine import Engine
from nvsubq.study.plan import Cell
from nvsubq.study.runs import Folder, Recipe, Run
from nvsubq.training.durable import write_whole
from nvsubq.training.report_data import Record, RunError, read_record

BASELINE = "per-pixel mean"
"""The best answer of a predictor that never looks at the input."""
BASELINES = {"mean_in_its_colour": "mean in its colour", "per_pixel_mean": BASELINE, "constant": "constant"}
"""Columns of cells.csv for the errors of trivial predictors, by their names in the data, if it has them."""
SURE = 2.0
"""Standard errors below the baseline from which on a cell is said to beat it."""


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

    `gain` is the baseline's error less the cell's; `standard_error` that of the gain, over seeds and test
    items; `sigmas` their ratio.
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
    ms_per_step: float | None = None
    memory_bytes: float | None = None
    device_bytes: float | None = None

    @property
    def verdict(self) -> str:
        """beats, equal, worse or nothing, against the per-pixel mean."""
        if self.sigmas is None:
            return ""
        return "beats" if self.sigmas > SURE else "worse" if self.sigmas < -SURE else "equal"


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
    records = {run.name: read_record(folder.of(run)) for run in known if folder.done(run)}
    rows = [_run_row(run, folder, records.get(run.name)) for run in known]
    choices = engine.choices()
    cells, by_cell = [], {}
    for cell, seeds in planned.study.cells().items():
        choice = choices[cell.core]
        runs = [planned.run(cell, s, choice.rate) for s in seeds] if choice.rate is not None else []
        done = [(run, records[run.name]) for run in runs if run.name in records]
        by_cell[cell] = done
        row = _cell_row(planned.recipes[cell], choice.rate, len(seeds), done, folder)
        reasons = [folder.failure(run) for run in runs]
        row.failed = sum(reason is not None for reason in reasons)
        row.reason = next((r for r in reasons if r is not None), choice.reason)
        cells.append(row)
    return Summary(engine, rows, cells, by_cell)


def _run_row(run: Run, folder: Folder, record: Record | None) -> RunRow:
    cell, width = run.cell, run.recipe.width
    row = RunRow(
        cell.core,
        cell.spatial_dims,
        cell.task,
        cell.patch_size,
        run.seed,
        run.rate,
        folder.state(run),
        folder.failure(run) or "",
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
    errors = baseline_errors(recipe, folder)
    squares = [(r.predictions["indices"], r.predictions["squares"]) for _, r in done]
    row.gain, row.standard_error = gain(errors[BASELINE], squares)
    for column, name in BASELINES.items():
        if name in errors:
            setattr(row, column, float(errors[name][squares[0][0]].mean()))
    row.sigmas = row.gain / row.standard_error if row.standard_error > 0 else None
    return row


def _mean(values: list[Any]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def gain(baseline: np.ndarray, runs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
    """How much smaller the error is than the baseline's on the same test items, and its standard error.

    Squares of two errors are added: that over seeds (none for a single run) and that over test items.

    Args:
        baseline: squared error of each test item.
        runs: for each seed, numbers of test items and their squared errors.

    Example:
        >>> items = np.arange(2)
        >>> runs = [(items, np.array([0.0, 0.0])), (items, np.array([0.2, 0.2]))]
        >>> [round(value, 3) for value in gain(np.array([1.0, 1.0]), runs)]
        [0.9, 0.1]
    """
    better = np.stack([baseline[indices] - squares for indices, squares in runs])
    items = better.mean(0)
    variance = float(items.var(ddof=1)) / len(items) if len(items) > 1 else 0.0
    if len(better) > 1:
        variance += float(better.mean(1).var(ddof=1)) / len(better)
    return float(better.mean()), math.sqrt(variance)


def baseline_errors(recipe: Recipe, folder: Folder) -> dict[str, np.ndarray]:
    """Squared errors of the trivial predictors on each test item; kept in the folder `baselines`."""
    from nvsubq.training.build import build_datamodule

    config: Any = OmegaConf.to_container(recipe.config, resolve=True)
    asked = json.dumps(config["data"], sort_keys=True)
    file = folder.path / "baselines" / f"{hashlib.sha256(asked.encode()).hexdigest()[:10]}.npz"
    if file.is_file():
        try:
            with np.load(file, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        except (OSError, ValueError, EOFError) as error:
            raise RunError(f"{file} is broken: {error}. Delete it.") from error
    datamodule = build_datamodule(recipe.config)
    datamodule.setup()
    errors: dict[str, np.ndarray] = datamodule.baseline_errors()
    memory = io.BytesIO()
    np.savez_compressed(memory, **errors)  # type: ignore[arg-type]
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, memory.getbuffer())
    return errors


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
