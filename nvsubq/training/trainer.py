"""Lightning's Trainer of a run, with what watches it, what it keeps and what it logs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from nvsubq.lazy_config import ConfigError, instantiate
from nvsubq.training.callbacks import EpochFigures, FiniteLoss, MetricsFile
from nvsubq.training.checkpoints import Checkpoints
from nvsubq.training.loggers import Loggers
from nvsubq.training.progress import EpochProgress
from nvsubq.training.scores import lower_is_better
from nvsubq.training.task import Task


class BuiltTrainer(NamedTuple):
    """A trainer, and the two of its callbacks that are asked afterwards."""

    trainer: L.Trainer
    checkpoints: Checkpoints
    stopping: EarlyStopping | None


def build_trainer(
    config: DictConfig,
    task: Task,
    folder: Path,
    *,
    begins_with: Sequence[L.Callback],
    earlier: Path | None,
    loggers: Loggers,
    saved: Callable[[], None],
    warn: Callable[[str], None],
    console: Console,
) -> BuiltTrainer:
    """Builds `config.trainer`.

    Args:
        config: of the run.
        task: whose scores are watched.
        folder: of the run.
        begins_with: callbacks that come before all others.
        earlier: the metrics.csv of the run that this one goes on with.
        loggers: builds those of `config.logger`.
        saved: called after each checkpoint.
        warn: is told what goes wrong with a checkpoint.
        console: where progress is shown.

    Raises:
        ConfigError: of `checkpoint`, `callbacks` or `trainer`.
    """
    monitor, mode = _watched(config, task)
    checkpoints = Checkpoints(
        folder / "checkpoints",
        monitor,
        mode,
        saved,
        warn=warn,
        every_s=config.checkpoint.get("every_s"),
        every_steps=config.checkpoint.get("every_steps"),
    )
    callbacks: list[Any] = [*begins_with, EpochFigures(), FiniteLoss()]
    stopping = None
    if config.early_stopping.patience is not None:
        stopping = EarlyStopping(
            monitor,
            mode=mode,
            patience=config.early_stopping.patience,
            min_delta=config.early_stopping.min_delta,
        )
        callbacks.append(stopping)
    callbacks += _own_callbacks(config)
    if config.metrics_csv:
        callbacks.append(MetricsFile(folder / "metrics.csv", earlier))
    if config.trainer.get("enable_progress_bar", True) is not False:
        callbacks.append(EpochProgress(console))
    callbacks.append(checkpoints)
    built = loggers.build(config.logger or {}, folder, OmegaConf.to_container(config, resolve=True))
    try:
        trainer = instantiate(
            config.trainer,
            callbacks=callbacks,
            logger=built or False,
            enable_checkpointing=True,
            enable_model_summary=False,
            default_root_dir=str(folder),
        )
    except TypeError as error:  # Lightning's, of an option of a wrong type
        raise ConfigError(f"`trainer`: {error}") from error
    if config.trainer.get("profiler") is not None and trainer.profiler.filename is None:
        # Lightning would log what it measured, which is quiet here.
        trainer.profiler.dirpath, trainer.profiler.filename = str(folder), "profile"
    return BuiltTrainer(trainer, checkpoints, stopping)


def _watched(config: DictConfig, task: Task) -> tuple[str, str]:
    """The score that chooses the best checkpoint, and whether that is its max or its min."""
    monitor = config.checkpoint.monitor or task.monitor
    if monitor not in task.scores:
        raise ConfigError(f"`checkpoint.monitor` (={monitor!r}) must be one of {', '.join(task.scores)}.")
    mode = config.checkpoint.mode or ("min" if lower_is_better(monitor) else "max")
    if mode not in ("max", "min"):
        raise ConfigError(f"`checkpoint.mode` (={mode!r}) must be max, min or null.")
    return monitor, mode


def _own_callbacks(config: DictConfig) -> list[L.Callback]:
    """Those of `config.callbacks`."""
    built = {name: instantiate(node) for name, node in (config.get("callbacks") or {}).items()}
    for name, callback in built.items():
        if not isinstance(callback, L.Callback):
            kind = type(callback).__name__
            raise ConfigError(f"`callbacks.{name}` builds a {kind}, which is no lightning.Callback.")
    return list(built.values())
