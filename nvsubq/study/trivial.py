"""Trivial predictors of a study's data: their errors, and what can be said of a cell beside them."""

from __future__ import annotations

import hashlib
import io
import json
import math
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from nvsubq.study.runs import Folder, Recipe
from nvsubq.training.durable import write_whole
from nvsubq.training.report_data import RunError, read_arrays

BASELINE = "per-pixel mean"
"""The best answer of a predictor that never looks at the input."""
BASELINES = {"mean_in_its_colour": "mean in its colour", "per_pixel_mean": BASELINE, "constant": "constant"}
"""Columns of cells.csv for the errors of trivial predictors, by their names in the data, if it has them."""
SURE = 2.0
"""Standard errors below from which on a gain is believed where their size is known, as with many seeds."""

Runs = list[tuple[np.ndarray, np.ndarray]]
"""For each seed, numbers of test items and their squared errors."""


@dataclass(frozen=True)
class Beside:
    """A cell beside a trivial predictor.

    `error` is the predictor's, `gain` that less the cell's; `standard_error` that of the gain, over seeds and
    test items; `sigmas` their ratio, None where there is no error.
    """

    name: str
    error: float
    gain: float
    standard_error: float

    @property
    def sigmas(self) -> float | None:
        """The gain in standard errors."""
        return self.gain / self.standard_error if self.standard_error > 0 else None


def beside(errors: dict[str, np.ndarray], runs: Runs) -> dict[str, Beside]:
    """A cell beside every trivial predictor, by its name; the one with the smallest error is the first.

    Args:
        errors: name -> squared error of each test item.
        runs: of the cell.
    """
    shown = runs[0][0]
    found = [Beside(name, float(one[shown].mean()), *gain(one, runs)) for name, one in errors.items()]
    return {one.name: one for one in sorted(found, key=lambda one: one.error)}


def gain(baseline: np.ndarray, runs: Runs) -> tuple[float, float]:
    """How much smaller the error is than the baseline's on the same test items, and its standard error.

    Squares of two errors are added: that over seeds (none for a single run) and that over test items.

    Args:
        baseline: squared error of each test item.
        runs: of the cell.

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


def sure_from(seeds: int) -> float | None:
    """Standard errors from which on a gain is believed; None for one seed, which says nothing of others.

    The error over few seeds is itself uncertain: a quantile of Student's t with one degree of freedom less
    than seeds is passed by chance as often as `SURE` is by a normal variable, 2.3 % of the time.

    Example:
        >>> [round(sure_from(seeds), 2) for seeds in (2, 3, 10)], sure_from(1)
        ([13.97, 4.53, 2.32], None)
    """
    from scipy.special import ndtr, stdtrit

    return float(stdtrit(seeds - 1, ndtr(SURE))) if seeds > 1 else None


def verdict(sigmas: float | None, seeds: int) -> str:
    """beats, equal or worse; "one seed" where nothing can be said, nothing where there is no error.

    Example:
        >>> [verdict(4.0, seeds) for seeds in (1, 3, 10)], verdict(-5.0, 3), verdict(None, 3)
        (['one seed', 'equal', 'beats'], 'worse', '')
    """
    if sigmas is None:
        return ""
    sure = sure_from(seeds)
    if sure is None:
        return "one seed"
    return "beats" if sigmas > sure else "worse" if sigmas < -sure else "equal"


def baseline_errors(recipe: Recipe, folder: Folder) -> dict[str, np.ndarray]:
    """Squared errors of the trivial predictors on each test item; kept in the folder `baselines`.

    A file there that is broken is made anew.
    """
    from nvsubq.training.build import build_datamodule

    config: Any = OmegaConf.to_container(recipe.config, resolve=True)
    asked = json.dumps(config["data"], sort_keys=True)
    file = folder.path / "baselines" / f"{hashlib.sha256(asked.encode()).hexdigest()[:10]}.npz"
    if file.is_file():
        with suppress(RunError):
            return read_arrays(file)
    datamodule = build_datamodule(recipe.config)
    datamodule.setup()
    errors: dict[str, np.ndarray] = datamodule.baseline_errors()
    memory = io.BytesIO()
    np.savez_compressed(memory, **errors)  # type: ignore[arg-type]
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, memory.getbuffer())
    return errors
