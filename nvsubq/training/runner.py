"""One training, from a composed config to a finished run folder."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.text import Text

from nvsubq.training import processes, system
from nvsubq.training.build import build_datamodule, build_task, check_config, core_name, core_target
from nvsubq.training.checkpoints import Checkpoints
from nvsubq.training.load import (
    BROKEN,
    LAST,
    PREVIOUS,
    CheckpointError,
    check_fits,
    load_weights,
    newest_checkpoint,
    read_checkpoint,
    resume_path,
)
from nvsubq.training.loggers import Loggers
from nvsubq.training.nan_watch import NAN_FILE
from nvsubq.training.position import Position
from nvsubq.training.run_folder import RunFolder, command_again
from nvsubq.training.sharded import is_sharded
from nvsubq.training.table import final_table, show
from nvsubq.training.task import Task
from nvsubq.training.trainer import build_trainer
from nvsubq.training.unfinished import fingerprint


class ReportError(RuntimeError):
    """The report could not be written; the run itself is whole."""


def train(
    config: DictConfig, folder: Path, *, command: Sequence[str] = (), console: Console | None = None
) -> dict:
    """Trains, tests and writes the run folder.

    Args:
        config: composed by Hydra (or loaded from a run folder); not changed.
        folder: where the run shall lie; the folder of all runs is `config.paths.runs`.
        command: the overrides as they were typed, for the record.
        console: where to write; standard output without it.

    Returns:
        The content of metrics.json, and ``folder``.

    Raises:
        ConfigError, ValueError, OSError: before the first step, and then the run folder is gone.
        ReportError: at the very end; everything else is written.
    """
    started = time.perf_counter()
    console = console or Console(file=sys.stdout)
    config = config.copy()
    OmegaConf.set_struct(config, True)
    check_config(config)
    run = None
    if processes.is_first():
        same = {"fingerprint": fingerprint(config), "resume": config.get("resume", True)}
        run = RunFolder(folder, Path(config.paths.runs), **same)
        processes.share_folder(run.path.resolve())
    else:
        folder = processes.share_folder(None) or folder
    training = _Training(config, run, folder, console)
    with training.loggers:
        try:
            training.prepare()
            training.fit()
        except BaseException as error:
            # Without a checkpoint there is nothing to look at, evaluate or resume.
            kept = run is not None and training.left_something()
            if run is not None and not kept:
                run.remove()
            elif run is not None:
                run.mark.release()
                if isinstance(error, OSError) and (run.checkpoints / LAST).is_file():
                    last = run.checkpoints / LAST
                    note = f"The last checkpoint, {last}, is whole; the same command goes on from it."
                    error.__notes__ = [*getattr(error, "__notes__", ()), note]  # type: ignore[attr-defined]
            if not isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            if kept:
                show(console, "the same command goes on from the last checkpoint")
                again = command_again(training.folder, resume=True)
                # Neither broken, nor read as markup: it is to be pasted.
                console.print(Text(f"to go on from the last epoch: {again}"), soft_wrap=True)
            # Lightning turns Ctrl-C into an exit.
            raise KeyboardInterrupt from None
        return training.finish(started, list(command))


class _Training:
    """The stages of `train`, and what they hand to each other."""

    def __init__(self, config: DictConfig, run: RunFolder | None, folder: Path, console: Console) -> None:
        self.config, self.run, self.console = config, run, console
        self.folder = run.path if run is not None else folder
        self.datamodule: Any = None
        self.task: Task
        self.trainer: L.Trainer
        self.checkpoints: Checkpoints
        self.position = Position()
        self.loggers = Loggers(self._warn)
        self.stopping: EarlyStopping | None = None
        self.resume: Path | None = None

    def prepare(self) -> None:
        """Builds everything, and writes the config with what was used."""
        config = self.config
        self.threads = system.set_threads(config.threads)
        system.keep_freed_memory()
        # Its messages are of no use here: the same seed is in the config.
        L.seed_everything(config.seed, workers=True, verbose=False)
        self.resume = self._own_checkpoint()
        self.position.same_run = self.resume is not None
        self.resume = self.resume or resume_path(config.ckpt_path, self._warn)
        self.datamodule = build_datamodule(config)
        self.datamodule.setup()
        self.task = build_task(config, self.datamodule)
        if self.resume is not None:
            check_fits(self.task, read_checkpoint(self.resume)["state_dict"], self.resume)
        if self.run is not None and not (self.run.resumed and (self.folder / "resolved.yaml").is_file()):
            self.run.write_config(OmegaConf.to_yaml(config), OmegaConf.to_yaml(config, resolve=True))
        built = build_trainer(
            config,
            self.task,
            self.folder,
            begins_with=[self.position],
            earlier=self.resume.parent.parent / "metrics.csv" if self.resume is not None else None,
            loggers=self.loggers,
            saved=self.run.link_latest if self.run is not None else lambda: None,
            warn=self._warn,
            console=self.console,
        )
        self.trainer, self.checkpoints, self.stopping = built
        # Filling fresh memory with NaN guards nothing here and costs time; the bits are the same without.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]

    def _own_checkpoint(self) -> Path | None:
        """The checkpoint of an unfinished run that this one goes on with."""
        if self.run is not None and not self.run.resumed:
            return None
        found, problems = newest_checkpoint(self.folder / "checkpoints")
        if self.run is None:
            return found
        for problem in problems:
            self._warn(f"{problem} Going on from {PREVIOUS}.")
            last = self.run.checkpoints / LAST
            last.replace(last.with_name(BROKEN))  # the next one must not push it into the place of a good one
        where = "from its beginning: it has no checkpoint" if found is None else f"from {found.name}"
        show(self.console, f"going on with {self.folder} {where} (resume=false begins a new run)")
        return found

    def _warn(self, text: str) -> None:
        if self.run is not None:
            show(self.console, f"warning: {text}")

    def left_something(self) -> bool:
        """Whether the run folder holds what a user wants after a failure."""
        return any(self.folder.glob("checkpoints/*.ckpt")) or (self.folder / NAN_FILE).is_file()

    def fit(self) -> None:
        """Trains."""
        self.parameters = sum(p.numel() for p in self.task.model.parameters())
        core = core_name(self.config)
        head = f"{self.config.name}: {core}, {self.parameters:,} parameters, {self.folder}"
        if self.trainer.is_global_zero:
            show(self.console, head)
        resume = str(self.resume) if self.resume is not None else None
        # Lightning loads a checkpoint first and converts then: under 64-true weights would come back in fp32.
        self.trainer.strategy.precision_plugin.convert_module(self.task)
        self.trainer.fit(self.task, datamodule=self.datamodule, ckpt_path=resume, weights_only=True)
        if not self.checkpoints.last.is_file():
            raise CheckpointError(
                f"`ckpt_path` (={self.resume}) is at epoch {self.trainer.current_epoch}, and "
                f"`trainer.max_epochs` (={self.trainer.max_epochs}) asks for no more."
            )

    def finish(self, started: float, command: list[str]) -> dict:
        """Tests, writes the final files, and shows the table."""
        start = time.perf_counter()
        last_epoch = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        last_epoch = self.position.metrics | last_epoch
        self.checkpoints.end()
        tested_with = self.config.test_with
        tested: dict[str, float] = {}
        if tested_with is not None:
            if is_sharded(self.trainer):
                self.task = self._whole(tested_with)
            elif tested_with == "best":
                load_weights(self.task, self.checkpoints.best)
            self.trainer.test(self.task, datamodule=self.datamodule, verbose=False)
            tested = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        test_seconds = time.perf_counter() - start
        figures = {
            "name": self.config.name,
            "task": self.task.kind,
            "model": type(self.task.model).__name__,
            "core": core_target(self.config),
            "core_name": core_name(self.config),
            "seed": self.config.seed,
            "epochs": self.trainer.current_epoch,
            "steps": self.trainer.global_step,
            "best_epoch": self.checkpoints.epoch,
            "tested_with": tested_with,
            "stopped_early": bool(self.stopping is not None and self.stopping.stopped_epoch),
            "metrics": last_epoch | tested,
            "baselines": {},
            "classes": self.task.class_names,
            "scored_classes": getattr(self.task, "scored_classes", None),
            "parameters": self.parameters,
            "train_s": self.position.seconds,
            "test_s": test_seconds,
            "total_s": time.perf_counter() - started,
            "peak_memory_bytes": system.peak_memory(),
            "peak_device_bytes": system.peak_device_memory(),
            "threads": self.threads,
            "device": str(self.trainer.strategy.root_device),
            "precision": str(self.trainer.precision),
            "processes": self.trainer.world_size,
            "data": self.datamodule.describe(),
            "versions": system.versions(),
            "command": command,
        }
        if self.run is None:
            return figures | {"folder": str(self.folder)}
        figures["fingerprint"] = self.run.fingerprint
        # The result is safe before the baselines, which fit models of their own, and the report are made.
        self.run.write_metrics(figures)
        if tested_with is not None:
            seen = self._reach(tested_with) if self.config.report else {}
            self.run.write_predictions(self.task.predictions() | seen)
            if self.config.baselines and not self.config.trainer.get("fast_dev_run", False):
                figures["baselines"] = self.datamodule.baselines()
        figures["total_s"] = time.perf_counter() - started
        self.run.write_metrics(figures)
        show(self.console, final_table(figures, str(self.folder)))
        try:
            if self.config.report:
                write_report(self.run.path)
                show(self.console, f"report: {self.run.path / 'report.html'}")
        except ReportError:
            self.run.mark.remove()
            raise
        self.run.mark.remove()
        return figures | {"folder": str(self.folder)}

    def _whole(self, tested_with: str) -> Task:
        """A fresh task with the weights of a checkpoint, where those of the trained one are in pieces."""
        task = build_task(self.config, self.datamodule)
        load_weights(task, self.checkpoints.best if tested_with == "best" else self.checkpoints.last)
        return task

    def _reach(self, tested_with: str) -> dict[str, Any]:
        from nvsubq.training.report_walks import reach

        sharded = is_sharded(self.trainer)
        model = self._whole(tested_with).model.to(self.task.device) if sharded else self.task.model
        return reach(model, self.datamodule, self.trainer.world_size)


def write_report(run: Path) -> None:
    """Writes report.html; what goes wrong there must not lose the run.

    Raises:
        ReportError: with the reason.
    """
    try:
        from nvsubq.training.report import write_report as write

        write(run)
    except Exception as error:
        raise ReportError(
            f"the run in {run} is complete, but its report could not be written: "
            f"{type(error).__name__}: {error}"
        ) from error
