"""Loggers: what they get, where it lies, and that each ends with its run."""

from __future__ import annotations

import contextlib
import csv
import subprocess
import sys
from pathlib import Path

import pytest
from crash_driver import CONFIG
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from nvsubq.cli.paths import config_dir
from nvsubq.lazy_config import ConfigError
from nvsubq.training import train
from nvsubq.training.build import check_config
from nvsubq.training.loggers import Loggers


def composed(root: Path, *overrides: str):
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose("train", overrides=[*CONFIG, "epochs=2", f"paths.runs={root}", *overrides])


def test_logger_without_its_package(tmp_path, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for logger, package in (("tensorboard", "tensorboard"), ("wandb", "wandb")):
        text = rf"`logger` \(={logger}\) needs the package '{package}'.*: pip install 'nvsubq\[loggers\]'"
        with pytest.raises(ConfigError, match=text):
            check_config(composed(tmp_path, f"logger={logger}"))


def test_loggers_get_what_is_logged(tmp_path, monkeypatch):
    """A logger as a config group, here Lightning's CSV logger in the place of one that needs a package."""
    config = composed(tmp_path, "callbacks=all")
    OmegaConf.set_struct(config, False)
    config.logger = {"csv": {"_target_": "lightning.pytorch.loggers.CSVLogger", "name": "log", "version": ""}}
    train(config, tmp_path / "a")
    header = (tmp_path / "a" / "log" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"train/loss", "val/loss", "gradient/norm", "state/norm", "time/forward_s"} <= set(header)


def test_tensorboard_shows_what_metrics_csv_holds(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(composed(tmp_path, "logger=tensorboard"), tmp_path / "a")
    with (tmp_path / "a" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    shown = EventAccumulator(str(tmp_path / "a" / "tensorboard"))
    shown.Reload()
    for name in ("train/loss", "val/loss", "val/accuracy"):
        scalars = [event.value for event in shown.Scalars(name)]
        assert scalars == pytest.approx([float(row[name]) for row in rows], rel=1e-6), name


class Recorded:
    """A logger that keeps how it was ended; one that is `broken` cannot be."""

    def __init__(self, save_dir: str, broken: bool = False) -> None:
        self.broken, self.status = broken, ""

    def log_hyperparams(self, values: dict) -> None:
        self.values = values

    def finalize(self, status: str) -> None:
        self.status = status
        if self.broken:
            raise ConnectionError("no route")


def test_ended_with_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr("nvsubq.training.loggers.instantiate", lambda node, **late: Recorded(**node, **late))
    warnings: list[str] = []
    nodes = {"a": {"broken": True}, "b": {}}
    with Loggers(warnings.append) as loggers:
        built = loggers.build(nodes, tmp_path, {"seed": 0})
        assert [logger.values for logger in built] == [{"seed": 0}] * 2
    assert [logger.status for logger in built] == ["success", "success"]
    assert warnings == ["the logger Recorded was not ended: ConnectionError: no route"]


def test_ended_with_a_run_that_failed(tmp_path, monkeypatch):
    monkeypatch.setattr("nvsubq.training.loggers.instantiate", lambda node, **late: Recorded(**late))
    loggers = Loggers(lambda text: None)
    (logger,) = loggers.build({"a": {}}, tmp_path, {})
    with contextlib.suppress(KeyboardInterrupt), loggers:
        raise KeyboardInterrupt
    assert logger.status == "failed"


def test_a_run_of_the_callers_stays_open(monkeypatch):
    class Package:
        run = object()

    monkeypatch.setitem(sys.modules, "wandb", Package)
    warnings: list[str] = []
    with Loggers(warnings.append):
        pass
    assert warnings == []  # nothing was asked of it: it has no `finish`


@pytest.mark.slow
def test_wandb_without_a_network(tmp_path):
    """In a process of its own: it leaves another one behind that talks to the network, or here to a file."""
    command = [sys.executable, "-m", "nvsubq.cli.main", "train", "logger=wandb", "logger.wandb.offline=true"]
    done = subprocess.run(
        [*command, *CONFIG, "epochs=2", f"paths.runs={tmp_path}", "name=a"],
        capture_output=True, text=True, check=False, timeout=120, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (record,) = (tmp_path / "a" / "latest").glob("wandb/offline-run-*/run-*.wandb")
    names = {b"train/loss", b"val/loss", b"val/accuracy"}
    assert {name for name in names if name in record.read_bytes()} == names
    assert {path.name for path in tmp_path.iterdir()} == {"a", "latest"}  # nothing beside the run folder


@pytest.mark.slow
def test_each_job_of_a_sweep_has_its_wandb_run(tmp_path):
    command = [sys.executable, "-m", "nvsubq.cli.main", "train", "-m", "seed=0,1", "logger=wandb"]
    options = [*CONFIG, "logger.wandb.offline=true", "epochs=1", f"paths.runs={tmp_path}", "name=a"]
    command.append("hydra.sweep.subdir=${hydra.job.num}")  # the overrides together are too long a name
    done = subprocess.run(
        [*command, *options], capture_output=True, text=True, check=False, timeout=180, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    for number in (0, 1):
        (record,) = (tmp_path / "a").glob(f"sweep_*/{number}/wandb/offline-run-*/run-*.wandb")
        assert b"val/loss" in record.read_bytes()
