"""Progress of a training: a bar in a terminal, and one line for each epoch everywhere."""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from nvsubq.training.scores import score_text

SHOWN = ("train/", "val/")
"""What the line of an epoch tells; metrics.csv has the rest."""


class EpochProgress(ProgressBar):
    """A bar over the batches at hand, in a terminal, and a line for each epoch that stays.

    Where the output is no terminal (a log file, a CI job) there are the lines alone.

    Args:
        console: where to write; standard output without it.
    """

    def __init__(self, console: Console | None = None) -> None:
        super().__init__()
        self.console = console or Console(file=sys.stdout)
        self._bar: Progress | None = None
        self._task: Any = None
        self._enabled = True
        self._drawn = 0.0
        self._epoch_started = 0.0

    def disable(self) -> None:
        """Called on every process but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Called on the first process."""
        self._enabled = True

    def _open(self, what: str, total: int | float) -> None:
        if not self._enabled or not self.console.is_terminal:
            return
        if self._bar is None:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=self.console, transient=True, refresh_per_second=5)
            self._bar.start()
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(what, total=total)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._task = None

    def _advance(self, done: int) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=done)

    def _of(self, trainer: L.Trainer) -> str:
        last = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs > 0 else "?"
        return f"epoch {trainer.current_epoch + 1:>{len(str(last))}}/{last}"

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begins the bar of an epoch that had begun before a restart."""
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begins the bar of the epoch."""
        self._epoch_started = time.perf_counter()
        self._open(f"{self._of(trainer)} train", trainer.num_training_batches)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Moves the bar."""
        self._advance(batch_idx + 1)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begins the bar of the validation."""
        if not trainer.sanity_checking:
            self._open(f"{self._of(trainer)} val  ", sum(trainer.num_val_batches))

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        *rest: int,
    ) -> None:
        """Moves the bar."""
        self._advance(batch_idx + 1)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes the line of the epoch."""
        if not self._enabled:
            return
        metrics = trainer.callback_metrics
        names = sorted(
            (n for n in metrics if n.startswith(SHOWN)), key=lambda n: (not n.startswith("train"), n)
        )
        parts = [self._of(trainer), *(f"{name} {score_text(float(metrics[name]))}" for name in names)]
        seconds = time.perf_counter() - self._epoch_started
        console = self._bar.console if self._bar is not None else self.console
        console.print("   ".join([*parts, f"{seconds:.1f} s"]), highlight=False, soft_wrap=True)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Removes the bar."""
        self._close()

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begins the bar of the test."""
        self._open("test", sum(trainer.num_test_batches))

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        *rest: int,
    ) -> None:
        """Moves the bar."""
        self._advance(batch_idx + 1)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Removes the bar."""
        self._close()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Gives the terminal back."""
        self._close()
