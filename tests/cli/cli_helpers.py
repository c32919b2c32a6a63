"""What the tests of the command line share."""

from __future__ import annotations

import csv
import json
from pathlib import Path

SMALL = (
    "data=digits",
    "model.dims=[8]",
    "model.depths=[1]",
    "model.patch_size=4",
    "epochs=2",
    "trainer.limit_train_batches=3",
    "trainer.limit_val_batches=1",
    "trainer.limit_test_batches=1",
    "threads=1",
    "baselines=false",
    "report=false",
)


def metrics_of(run: Path) -> dict:
    """Final metrics of a run, without those that measure time."""
    metrics = json.loads((run / "metrics.json").read_text())["metrics"]
    return {name: value for name, value in metrics.items() if name not in ("epoch_s", "cells_per_s")}


def rows_of(run: Path) -> list[dict[str, str]]:
    """The rows of a run's metrics.csv."""
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))
