"""Callbacks: figures of each epoch, metrics.csv, and the stop at a loss that is not finite."""

from __future__ import annotations

import csv
import io
import math
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from nvsubq.training.durable import write_whole

COLUMNS = (
    "epoch",
    "step",
    "train/loss",
    "val/loss",
    "val/accuracy",
    "val/dice",
    "val/rmse",
    "val/mse",
    "lr",
    "epoch_s",
    "cells_per_s",
)
"""Columns of metrics.csv, of those that a run logs; any other metric follows them."""


class EpochFigures(Callback):
    """Logs `lr`, `epoch_s` (seconds of training) and `cells_per_s` (input cells, of all processes)."""

    def __init__(self) -> None:
        self._started = 0.0
        self._seconds = 0.0
        self._cells = 0

    def state_dict(self) -> dict[str, Any]:
        """Seconds and cells of the epoch so far."""
        return {"seconds": self._seconds, "cells": self._cells}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on with an epoch that had begun."""
        self._seconds, self._cells = state_dict["seconds"], state_dict["cells"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock of an epoch that had begun: it has no start of its own."""
        self._started = time.perf_counter() - self._seconds

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock."""
        self._seconds, self._cells, self._started = 0.0, 0, time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts cells: items times spatial size, channels not counted."""
        images = batch[0]
        self._cells += images.shape[0] * math.prod(images.shape[2:])
        self._seconds = time.perf_counter() - self._started

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Logs the three."""
        rate = self._cells * trainer.world_size / max(self._seconds, 1e-9)
        figures = {
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "epoch_s": self._seconds,
            "cells_per_s": rate,
        }
        for name, value in figures.items():
            pl_module.log(name, value, batch_size=1, sync_dist=True)


class FiniteLoss(Callback):
    """Ends the training with an error when the mean loss of an epoch is not finite."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Looks once an epoch: looking at each step would make a GPU wait."""
        loss = trainer.callback_metrics.get("train/loss")
        if loss is not None and not math.isfinite(float(loss)):
            raise FloatingPointError(
                f"`train/loss` is {float(loss)} after epoch {trainer.current_epoch + 1}: training diverged. "
                "Lower `task.lr`, raise `task.warmup`, or set `trainer.gradient_clip_val`."
            )


class MetricsFile(Callback):
    """Writes metrics.csv: one row for each epoch, the file whole after each.

    Args:
        path: the file.
        earlier: metrics.csv of the run that is resumed, for a checkpoint without its rows.
    """

    def __init__(self, path: Path, earlier: Path | None = None) -> None:
        self.path, self.earlier = path, earlier
        self.rows: list[dict[str, str]] = []

    def state_dict(self) -> dict[str, Any]:
        """The rows so far: a checkpoint and its rows are written in one step."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over the rows of the run that is resumed."""
        self.rows = [dict(row) for row in state_dict["rows"]]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keeps the rows before the first new epoch."""
        if not self.rows and self.earlier is not None and self.earlier.is_file():
            with self.earlier.open(newline="") as file:
                self.rows = list(csv.DictReader(file))
        self.rows = [row for row in self.rows if int(row["epoch"]) < trainer.current_epoch]

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Adds the row of the epoch."""
        row = {"epoch": str(trainer.current_epoch), "step": str(trainer.global_step)}
        row |= {name: repr(float(value)) for name, value in trainer.callback_metrics.items()}
        self.rows.append(row)
        if trainer.is_global_zero:
            self._write()

    def _write(self) -> None:
        names = {name for row in self.rows for name in row}
        columns = [name for name in COLUMNS if name in names] + sorted(names - set(COLUMNS))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_whole(self.path, text.getvalue().encode())
