"""What a checkpoint of Lightning lacks: random states, the means of a begun epoch, and the time so far."""

from __future__ import annotations

import random
import time
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

KEY = "nvsubq"
"""Of what is added to a checkpoint."""


class Position(Callback):
    """Lets a training go on at any batch as if nothing had happened.

    Weights, optimizer, schedule and counters are Lightning's to save. This adds the rest: the place in the
    data (Lightning saves a loader's as well, and forgets it where the length of the training was asked for
    before), the random state of each process, sums of metrics that are logged as means of the epoch, the
    figures that callbacks look at, the seconds of training, and whether a callback had ended it.
    """

    def __init__(self) -> None:
        self.same_run = False
        """Whether the checkpoint is this very run's: another one may have been ended by other limits."""
        self._loaded: dict[str, Any] = {}
        self._sums: dict[str, Any] = {}
        self._random: dict[str, Any] | None = None
        self._seconds = 0.0
        self._started: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds of training, those before a restart included."""
        return self._seconds + (time.perf_counter() - self._started if self._started is not None else 0.0)

    @property
    def metrics(self) -> dict[str, float]:
        """The figures at the checkpoint that was loaded."""
        return dict(self._loaded.get("metrics", {}))

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds to the checkpoint, in every process: some of it is gathered."""
        loader: Any = trainer.train_dataloader
        checkpoint[KEY] = {
            "data": loader.state_dict() if hasattr(loader, "state_dict") else None,
            "random": _gathered(trainer, random_state()),
            "sums": {} if _epoch_is_over(trainer) else _epoch_sums(trainer),
            "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
            "seconds": self.seconds,
            "stop": bool(trainer.should_stop),
        }

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keeps it until the training begins."""
        self._loaded = checkpoint.get(KEY, {})
        self._seconds = self._loaded.get("seconds", 0.0)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Gives the figures back, and starts the clock."""
        self._started = time.perf_counter()
        if not self._loaded:
            return
        if self.same_run and self._loaded.get("stop", False):
            # Lightning forgets it, and would train one epoch more than a run that nothing has killed.
            trainer.should_stop = _epoch_is_over(trainer) or not trainer.fit_loop._can_stop_early
        if trainer.fit_loop.restarting and _epoch_is_over(trainer):
            _begin_next_epoch(trainer)
        figures = {name: torch.tensor(value) for name, value in self.metrics.items()}
        trainer.callback_metrics.update(figures)
        loader: Any = trainer.train_dataloader
        if self._loaded["data"] is not None and hasattr(loader, "load_state_dict"):
            loader.load_state_dict(self._loaded["data"])
        states = self._loaded["random"]
        # With another number of processes no state is anybody's.
        self._random = states[trainer.global_rank] if len(states) == trainer.world_size else None
        self._sums = self._loaded["sums"] if trainer.is_global_zero else {}

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Gives the random state back, right before the first draw of the model."""
        if self._random is not None:
            set_random_state(self._random)
            self._random = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Adds the sums of the batches before the restart to those of the first one after it."""
        if self._sums:
            for name, metric in _means(trainer):
                if name in self._sums:
                    metric.value += torch.tensor(self._sums[name][0]).to(metric.value)
                    count = torch.tensor(self._sums[name][1])
                    metric.cumulated_batch_size += count.to(metric.cumulated_batch_size)
            self._sums = {}

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stops the clock."""
        self._seconds, self._started = self.seconds, None


def random_state() -> dict[str, Any]:
    """The states of all global generators, as plain values and tensors."""
    numpy_state: Any = np.random.get_state()
    name, keys, place, gauss, cached = numpy_state
    version, words, python_gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "numpy": [str(name), torch.from_numpy(keys.astype(np.int64)), int(place), int(gauss), float(cached)],
        "python": [version, torch.tensor(words), python_gauss],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """What `random_state` gave."""
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([one.cpu() for one in state["cuda"]])
    name, keys, place, gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), place, gauss, cached))
    version, words, python_gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), python_gauss))


def _gathered(trainer: L.Trainer, own: Any) -> list[Any]:
    states: list[Any] = [own]
    if trainer.world_size > 1:
        states = [None] * trainer.world_size
        torch.distributed.all_gather_object(states, own)
    return states


def _epoch_is_over(trainer: L.Trainer) -> bool:
    progress: Any = trainer.fit_loop.epoch_progress.current
    return bool(progress.processed == progress.started)


def _begin_next_epoch(trainer: L.Trainer) -> None:
    """Has Lightning begin the next epoch where the checkpoint was written at the end of one.

    With an end by `max_steps` it takes every checkpoint for one within an epoch: it would end the epoch a
    second time, and leave one out. There is no public way to tell it.
    """
    loop: Any = trainer.fit_loop
    loop.epoch_progress.increment_completed()
    for part in (loop, loop.epoch_loop, loop.epoch_loop.val_loop):
        part._restarting = False
        part.reset_restart_stage()


def _means(trainer: L.Trainer) -> list[tuple[str, Any]]:
    """The metrics of this epoch that are logged as means over it, with their names in Lightning's table."""
    results = trainer.fit_loop.epoch_loop._results  # Lightning has no public way to a begun mean
    return [
        (name, metric)
        for name, metric in results.items()
        if metric.meta.on_epoch and metric.is_tensor and metric.meta.is_mean_reduction
    ]


def _epoch_sums(trainer: L.Trainer) -> dict[str, list[float]]:
    def over_processes(value: Tensor) -> float:
        reduced: Any = trainer.strategy.reduce(value.clone(), reduce_op="sum")
        return float(reduced)

    return {
        name: [over_processes(metric.value), over_processes(metric.cumulated_batch_size)]
        for name, metric in _means(trainer)
    }
