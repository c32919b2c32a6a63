"""Callbacks that only look: throughput, time per phase, peak memory, gradient norm. `configs/callbacks`."""

from __future__ import annotations

import math
import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from nvsubq.training import system
from nvsubq.training.nan_watch import gradient_norm


class Throughput(Callback):
    """Logs `throughput/cells_per_s` and `throughput/items_per_s` of the last steps, waits for data included.

    (`cells_per_s` of a whole epoch is always there.)

    Args:
        every_n_steps: batches that one figure is of.

    Raises:
        ValueError: `every_n_steps` is not positive.
    """

    def __init__(self, *, every_n_steps: int = 50) -> None:
        self.every_n_steps = _positive("every_n_steps", every_n_steps)
        self._items = self._cells = self._batches = 0
        self._started = 0.0

    def _restart(self) -> None:
        self._items = self._cells = self._batches = 0
        self._started = time.perf_counter()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock."""
        self._restart()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leaves validation out."""
        self._restart()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts, and logs when the batches are full or the epoch is over."""
        images = batch[0]
        self._batches += 1
        self._items += len(images)
        self._cells += len(images) * math.prod(images.shape[2:])
        if self._batches < self.every_n_steps and batch_idx + 1 < trainer.num_training_batches:
            return
        _wait()
        rate = trainer.world_size / max(time.perf_counter() - self._started, 1e-9)
        pl_module.log("throughput/cells_per_s", self._cells * rate, on_step=True, batch_size=1)
        pl_module.log("throughput/items_per_s", self._items * rate, on_step=True, batch_size=1)
        self._restart()


class PhaseTimes(Callback):
    """Logs the seconds of an epoch that each phase takes.

    `time/data_s` waiting for batches, `time/forward_s`, `time/backward_s`, `time/step_s` (clipping and
    optimizer), `time/validation_s`, `time/checkpoint_s` (of the checkpoints before the end of the epoch).

    Args:
        synchronize: wait for a GPU at the end of each phase. Without it a phase ends when its work is queued.
    """

    PHASES = ("data", "forward", "backward", "step", "validation")

    def __init__(self, *, synchronize: bool = True) -> None:
        self.synchronize = synchronize
        self._seconds = dict.fromkeys(self.PHASES, 0.0)
        self._since = 0.0
        self._written = self._checkpoints = 0.0

    def _close(self, trainer: L.Trainer, phase: str | None) -> None:
        """Ends a phase and begins the next."""
        if self.synchronize:
            _wait()
        now, written = time.perf_counter(), _written(trainer)
        if phase == "data":  # a checkpoint was written at the end of the batch before
            self._since += written - self._written
        self._written = written
        if phase is not None:
            self._seconds[phase] += now - self._since
        self._since = now

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock."""
        self._close(trainer, None)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock."""
        self._close(trainer, None)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The batch is there."""
        self._close(trainer, "data")

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """The loss is there."""
        self._close(trainer, "forward")

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The gradients are there."""
        self._close(trainer, "backward")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The weights are there."""
        self._close(trainer, "step")

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock."""
        self._close(trainer, None)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The scores are there."""
        self._close(trainer, "validation")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Logs them, and begins anew."""
        written = _written(trainer)
        figures = {f"time/{phase}_s": seconds for phase, seconds in self._seconds.items()}
        figures["time/checkpoint_s"] = written - self._checkpoints
        for name, seconds in figures.items():
            pl_module.log(name, seconds, batch_size=1, sync_dist=True)
        self._seconds, self._checkpoints = dict.fromkeys(self.PHASES, 0.0), written


class PeakMemory(Callback):
    """Logs `memory/peak_bytes`, of the process so far, and `memory/device_peak_bytes`, of the epoch."""

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begins the device's anew."""
        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Logs those that the system tells."""
        figures = {"memory/peak_bytes": system.peak_memory()}
        figures["memory/device_peak_bytes"] = system.peak_device_memory()
        for name, value in figures.items():
            if value is not None:
                pl_module.log(name, float(value), batch_size=1, sync_dist=True, reduce_fx="max")


class GradientNorm(Callback):
    """Logs `gradient/norm` and `gradient/norm_max` over an epoch: of all gradients, before they are clipped.

    Args:
        every_n_steps: look at each `every_n_steps`th step.

    Raises:
        ValueError: `every_n_steps` is not positive.
    """

    def __init__(self, *, every_n_steps: int = 1) -> None:
        self.every_n_steps = _positive("every_n_steps", every_n_steps)

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Logs the norm of this step."""
        if trainer.global_step % self.every_n_steps:
            return
        norm = gradient_norm(pl_module)
        where: Any = {"on_step": False, "on_epoch": True, "batch_size": 1}
        pl_module.log("gradient/norm", norm, **where)
        pl_module.log("gradient/norm_max", norm, reduce_fx="max", **where)


def _written(trainer: L.Trainer) -> float:
    """Seconds that checkpoints have cost so far."""
    return sum(getattr(callback, "seconds", 0.0) for callback in trainer.checkpoint_callbacks)


def _positive(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"`{name}` (={value!r}) must be an integer of at least 1.")
    return value


def _wait() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
