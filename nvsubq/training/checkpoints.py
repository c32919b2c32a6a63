"""Checkpoints of a training: when they are written, which are kept, and how they replace each other."""

from __future__ import annotations

import contextlib
import io
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from nvsubq.training.best import find_best
from nvsubq.training.durable import link_or_copy, remove_parts, sync_folder, write_part
from nvsubq.training.load import BEST, LAST, PREVIOUS

CLOCK_EVERY = 10
"""With several processes they agree on the time once in so many batches."""


class DurableFiles(TorchCheckpointIO):
    """Lightning's way to write a checkpoint, and then rename it: the last one stays until the next is whole.

    The last becomes the one before it (``previous.ckpt``).
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes a file, at first under a temporary name."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        memory = io.BytesIO()  # torch's own writer turns a full disk into an error of its own
        torch.save(checkpoint, memory)
        part = write_part(path, memory.getbuffer())
        if path.name == LAST and path.is_file():
            os.replace(path, path.with_name(PREVIOUS))
        os.replace(part, path)
        sync_folder(path.parent)


class Checkpoints(Checkpoint):
    """Keeps last.ckpt, of the last epoch or within it, the one before it, and best.ckpt, by a metric.

    Files never hold a path, and load with ``weights_only=True``. A resumed run takes over best.ckpt of the
    run that it resumes, so that the best is the best of both.

    Args:
        folder: where they lie.
        monitor: the metric; an epoch without it (no validation) changes best.ckpt only if there is none.
        mode: "max" or "min".
        saved: called after every save, on the first process.
        warn: shows a warning.
        every_s: seconds of training after which last.ckpt is written within an epoch; None: at its end alone.
        every_steps: the same in optimizer steps.
    """

    def __init__(
        self,
        folder: Path,
        monitor: str,
        mode: str,
        saved: Callable[[], None] = lambda: None,
        *,
        warn: Callable[[str], None] = lambda text: None,
        every_s: float | None = None,
        every_steps: int | None = None,
    ) -> None:
        self.folder, self.monitor, self.mode, self.saved = folder, monitor, mode, saved
        self.warn, self.every_s, self.every_steps = warn, every_s, every_steps
        self.score: float | None = None
        self.epoch: int | None = None
        self.seconds = 0.0
        """What writing has cost."""
        self._validated = self._looked = False
        self._saved_at, self._saved_step = time.monotonic(), 0

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        return self.folder / LAST

    @property
    def best(self) -> Path:
        """The checkpoint of the best epoch."""
        return self.folder / BEST

    def state_dict(self) -> dict[str, Any]:
        """The best score and its epoch."""
        return {
            "monitor": self.monitor,
            "score": self.score,
            "epoch": self.epoch,
            "validated": self._validated,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over the best score, where it is of the same metric."""
        if state_dict["monitor"] == self.monitor:
            self.score, self.epoch = state_dict["score"], state_dict["epoch"]
            self._validated = state_dict.get("validated", False)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Has the trainer write durable files; a strategy with files of its own (sharded ones) keeps them."""
        with contextlib.suppress(NotImplementedError):
            if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
                trainer.strategy.checkpoint_io = DurableFiles()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """On resume, takes over the best checkpoint so far.

        Raises:
            CheckpointError: it is broken, and no other file holds the best epoch.
        """
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step
        if trainer.is_global_zero and self.folder.is_dir():
            remove_parts(self.folder)
        self._looked = True
        if self.epoch is not None and trainer.ckpt_path is not None:
            self._take_over(trainer, Path(str(trainer.ckpt_path)), self.epoch)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """After a training that was over when it was killed: no epoch has looked at the best, or made one.

        Raises:
            CheckpointError: as `on_train_start`.
        """
        earlier = Path(str(trainer.ckpt_path or "")).resolve()
        if earlier.parent != self.folder.resolve():
            return
        if not self._looked and self.epoch is not None:
            self._take_over(trainer, earlier, self.epoch)
        if self.epoch is None:
            self.warn(f"{LAST} stands in for {BEST}: no epoch is left to train.")
            self.epoch = trainer.current_epoch - 1
            if trainer.is_global_zero:
                link_or_copy(self.last, self.best)

    def _take_over(self, trainer: L.Trainer, earlier: Path, epoch: int) -> None:
        best, state, warning = find_best(earlier, epoch, self.state_key)
        if warning:
            self.warn(warning)
        # best.ckpt is written before last.ckpt: it may be of an epoch that died and is run again.
        self.score, self.epoch = state.get("score"), state.get("epoch")
        if not trainer.is_global_zero:
            return
        if best is None:
            self.best.unlink(missing_ok=True)
        elif best.resolve() != self.best.resolve():
            self.folder.mkdir(parents=True, exist_ok=True)
            link_or_copy(best, self.best)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Notes that there is a fresh score."""
        self._validated = not trainer.sanity_checking

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves within the epoch, when it is time."""
        if between_steps(trainer, batch_idx) and self._due(trainer, batch_idx):
            self._save(trainer, better=False)

    def _due(self, trainer: L.Trainer, batch_idx: int) -> bool:
        if self.every_steps is not None and trainer.global_step - self._saved_step >= self.every_steps:
            return True
        if self.every_s is None:
            return False
        late = time.monotonic() - self._saved_at >= self.every_s
        if trainer.world_size == 1:
            return late
        if batch_idx % CLOCK_EVERY:
            return False
        return bool(trainer.strategy.broadcast(late))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves the last, and the best if it is that."""
        score = self._fresh_score(trainer)
        if score is None:
            better = self.epoch is None
        else:
            better = self.score is None or (score > self.score if self.mode == "max" else score < self.score)
        if better:
            self.score, self.epoch = score, trainer.current_epoch
        self._save(trainer, better)

    def _save(self, trainer: L.Trainer, better: bool) -> None:
        start = time.perf_counter()
        if better:
            # First: a last.ckpt must never name a best that is not there.
            trainer.save_checkpoint(self.best)
            if self.best.is_dir():  # sharded: all processes write
                trainer.save_checkpoint(self.last)
            elif trainer.is_global_zero:
                self._best_is_last()
        else:
            trainer.save_checkpoint(self.last)
        if trainer.is_global_zero:
            self.saved()
        trainer.strategy.barrier()
        self.seconds += time.perf_counter() - start
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step

    def _best_is_last(self) -> None:
        if self.last.is_file():
            link_or_copy(self.last, self.last.with_name(PREVIOUS))
        link_or_copy(self.best, self.last)
        sync_folder(self.folder)

    def _fresh_score(self, trainer: L.Trainer) -> float | None:
        """The score of this epoch's validation; None without validation, or where it is not a number."""
        if not self._validated:
            return None
        self._validated = False
        score = float(trainer.callback_metrics[self.monitor])
        return score if math.isfinite(score) else None

    def end(self) -> None:
        """The run is over: the checkpoint before the last is of no use any more."""
        self.last.with_name(PREVIOUS).unlink(missing_ok=True)


def between_steps(trainer: L.Trainer, batch_idx: int) -> bool:
    """Whether a training can go on from the end of this batch: gradients are used up, no validation is due.

    The end of an epoch, which has its own checkpoint, does not count.
    """
    if getattr(trainer, "fast_dev_run", False) or batch_idx + 1 >= trainer.num_training_batches:
        return False
    if (batch_idx + 1) % trainer.accumulate_grad_batches:
        return False
    every = trainer.val_check_batch
    if every is None or not math.isfinite(every):
        return True
    done = batch_idx if trainer.check_val_every_n_epoch is not None else trainer.fit_loop.total_batch_idx
    return bool((done + 1) % every)
