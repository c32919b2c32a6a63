"""Callbacks: figures of each epoch, metrics.csv, checkpoints, and the stop at a loss that is not finite."""

from __future__ import annotations

import csv
import math
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, Checkpoint

COLUMNS = (
    "epoch",
    "step",
    "train/loss",
    "val/loss",
    "val/accuracy",
    "val/dice",
    "val/rmse",
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
        earlier: metrics.csv of the run that is resumed; its rows before the first new epoch are kept.
    """

    def __init__(self, path: Path, earlier: Path | None = None) -> None:
        self.path, self.earlier = path, earlier
        self.rows: list[dict[str, str]] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Takes over the rows of the run that is resumed."""
        if self.earlier is not None and self.earlier.is_file():
            with self.earlier.open(newline="") as file:
                rows = list(csv.DictReader(file))
            self.rows = [row for row in rows if int(row["epoch"]) < trainer.current_epoch]

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
        part = self.path.with_suffix(".csv.part")
        with part.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
        os.replace(part, self.path)


class Checkpoints(Checkpoint):
    """Keeps last.ckpt, written after every epoch, and best.ckpt, by a monitored metric.

    Files never hold a path, and load with ``weights_only=True``. A resumed run takes over best.ckpt of the
    run that it resumes, so that the best is the best of both.

    Args:
        folder: where they lie.
        monitor: the metric; an epoch without it (no validation) changes best.ckpt only if there is none.
        mode: "max" or "min".
        saved: called after every save, on the first process.
    """

    def __init__(
        self, folder: Path, monitor: str, mode: str, saved: Callable[[], None] = lambda: None
    ) -> None:
        self.folder, self.monitor, self.mode, self.saved = folder, monitor, mode, saved
        self.score: float | None = None
        self.epoch: int | None = None
        self._validated = False

    @property
    def last(self) -> Path:
        """The checkpoint of the last epoch."""
        return self.folder / "last.ckpt"

    @property
    def best(self) -> Path:
        """The checkpoint of the best epoch."""
        return self.folder / "best.ckpt"

    def state_dict(self) -> dict[str, Any]:
        """The best score and its epoch."""
        return {"monitor": self.monitor, "score": self.score, "epoch": self.epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over the best score, where it is of the same metric."""
        if state_dict["monitor"] == self.monitor:
            self.score, self.epoch = state_dict["score"], state_dict["epoch"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """On resume, copies the best checkpoint so far; where it is gone, the best starts anew."""
        if self.epoch is None or trainer.ckpt_path is None:
            return
        earlier = Path(trainer.ckpt_path)
        source = earlier.parent / "best.ckpt" if self.epoch + 1 < trainer.current_epoch else earlier
        if not source.is_file():
            self.score = self.epoch = None
        elif trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, self.best)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Notes that there is a fresh score."""
        self._validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves both."""
        score = self._fresh_score(trainer)
        if score is None:
            better = self.epoch is None
        else:
            better = self.score is None or (score > self.score if self.mode == "max" else score < self.score)
        if better:
            self.score, self.epoch = score, trainer.current_epoch
        trainer.save_checkpoint(self.last)
        if trainer.is_global_zero:
            if better:
                part = self.best.with_suffix(".part")
                shutil.copyfile(self.last, part)
                os.replace(part, self.best)
            self.saved()
        trainer.strategy.barrier()

    def _fresh_score(self, trainer: L.Trainer) -> float | None:
        """The score of this epoch's validation; None without validation, or where it is not a number."""
        if not self._validated:
            return None
        self._validated = False
        score = float(trainer.callback_metrics[self.monitor])
        return score if math.isfinite(score) else None
