"""Loads a run folder again: config and checkpoint become a datamodule and a task."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from nvsubq.lazy_config import ConfigError, from_yaml
from nvsubq.training.build import build_datamodule, build_task
from nvsubq.training.task import Task

CHECKPOINTS = ("best", "last")
LAST, PREVIOUS, BEST, BROKEN = "last.ckpt", "previous.ckpt", "best.ckpt", "broken.ckpt"
"""Files of a run's folder `checkpoints`: the newest, the one before it, and a last that could not be read."""


class CheckpointError(ValueError):
    """A checkpoint that is missing, broken, or does not fit: the message names the file."""


@dataclass
class LoadedRun:
    """A run, built again.

    `config` is its config (interpolations kept, overrides applied), `datamodule` has not loaded any data yet,
    `task` is on the CPU in evaluation mode with the weights of `checkpoint`.
    """

    path: Path
    config: DictConfig
    datamodule: Any
    task: Task
    checkpoint: Path


def load_run(run: str | Path, *, checkpoint: str = "best", overrides: Sequence[str] = ()) -> LoadedRun:
    """Builds the datamodule and the trained task of a run folder.

    Args:
        run: the folder, `latest` links included.
        checkpoint: "best" or "last".
        overrides: ``key=value`` changes of the config, such as ``data.root=elsewhere``.

    Raises:
        CheckpointError: no run lies there, or its checkpoint is missing or does not fit.
        ConfigError: the config is not valid, or an override names no key of it.

    Example:
        >>> load_run("nowhere")
        Traceback (most recent call last):
        nvsubq.training.load.CheckpointError: `run` (=nowhere) is no run folder: it has no config.yaml.
    """
    path = Path(run)
    config = load_config(path, overrides)
    weights = find_checkpoint(path, checkpoint)
    datamodule = build_datamodule(config)
    task = build_task(config, datamodule)
    load_weights(task, weights)
    return LoadedRun(path.resolve(), config, datamodule, task.eval(), weights)


def load_config(run: str | Path, overrides: Sequence[str] = ()) -> DictConfig:
    """The config of a run folder, with ``key=value`` overrides applied."""
    file = Path(run) / "config.yaml"
    if not file.is_file():
        raise CheckpointError(f"`run` (={run}) is no run folder: it has no config.yaml.")
    config = from_yaml(file)
    if not isinstance(config, DictConfig):
        raise CheckpointError(f"`run` (={run}) is no run folder: its config.yaml is a list.")
    config.pop("defaults", None)
    OmegaConf.set_struct(config, True)
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals:
            raise ConfigError(f"override {override!r} must have the form key=value.")
        try:
            value = OmegaConf.select(OmegaConf.from_dotlist([override]), key)
            if isinstance(value, str) and isinstance(OmegaConf.select(config, key), DictConfig):
                raise ConfigError(
                    f"`{key}` (={value}) cannot be exchanged as a whole: the config of a run has no groups. "
                    f"Its keys can be changed ({key}.NAME=VALUE).",
                    key,
                )
            OmegaConf.update(config, key, value, merge=True)
        except (AttributeError, KeyError, TypeError) as error:
            raise ConfigError(f"override {override!r} names no key of the run's config.") from error
    return config


def find_checkpoint(run: str | Path, checkpoint: str = "best") -> Path:
    """The file of the "best" or "last" checkpoint of a run folder."""
    if checkpoint not in CHECKPOINTS:
        raise CheckpointError(f"`checkpoint` (={checkpoint!r}) must be one of {', '.join(CHECKPOINTS)}.")
    file = Path(run) / "checkpoints" / f"{checkpoint}.ckpt"
    if not file.is_file():
        raise CheckpointError(
            f"`run` (={run}) has no checkpoint {file.name}: its training did not finish an epoch."
        )
    return file


def newest_checkpoint(folder: str | Path) -> tuple[Path | None, list[CheckpointError]]:
    """The newest checkpoint of a folder `checkpoints` that is whole, and what is wrong with a newer one.

    Raises:
        CheckpointError: there are some, and none is whole.
    """
    problems: list[CheckpointError] = []
    for name in (LAST, PREVIOUS):
        file = Path(folder) / name
        if not file.exists():
            continue
        try:
            read_checkpoint(file)
            return file, problems
        except CheckpointError as error:
            problems.append(error)
    if problems:
        raise CheckpointError(
            "no checkpoint of this run is whole:\n  " + "\n  ".join(str(problem) for problem in problems)
        )
    return None, []


def resume_path(path: str | None, warn: Callable[[str], None] = lambda text: None) -> Path | None:
    """The checkpoint to resume: a file, or the newest one of a run folder that is whole.

    Raises:
        CheckpointError: it does not exist.
    """
    if path is None:
        return None
    found: Path | None = Path(path)
    if Path(path).is_dir():
        found, problems = newest_checkpoint(Path(path) / "checkpoints")
        for problem in problems:
            warn(f"{problem} Going on from {PREVIOUS}.")
    if found is None or not found.is_file():
        raise CheckpointError(
            f"`ckpt_path` (={path}) is neither a checkpoint nor a run folder with checkpoints/last.ckpt."
        )
    return found.resolve()


def check_container(path: Path) -> None:
    """Compares the parts of a checkpoint with their checksums: torch does not look at them.

    Raises:
        CheckpointError: a part is damaged, or compressed, which torch never writes: its size is then unknown.
    """
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"checkpoint (={path}) cannot be read: it is cut off, or no checkpoint at all.")
    with zipfile.ZipFile(path) as container:
        for part in container.infolist():
            if part.compress_type != zipfile.ZIP_STORED:
                raise CheckpointError(
                    f"checkpoint (={path}) is refused: its part {part.filename} is compressed."
                )
        damaged = container.testzip()
    if damaged is not None:
        raise CheckpointError(f"checkpoint (={path}) is broken: its part {damaged} has another checksum.")


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint of a training; runs no code from it."""
    try:
        if Path(path).is_file():  # else torch says what it is
            check_container(Path(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"checkpoint (={path}) does not exist.") from None
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"checkpoint (={path}) cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # zip, pickle and torch each have their own
        raise CheckpointError(
            f"checkpoint (={path}) cannot be read: it is broken, or holds more than tensors and plain values."
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise CheckpointError(f"checkpoint (={path}) is no checkpoint of a training: it has no `state_dict`.")
    return content


def check_fits(task: nn.Module, state: dict[str, Any], path: str | Path) -> None:
    """Compares names and shapes of a checkpoint's `state` with the model's.

    Raises:
        CheckpointError: they differ; the message names up to three of each kind.
    """
    own = task.state_dict()
    problems = []
    shapes = [
        f"{name} is {list(state[name].shape)} in the checkpoint and {list(own[name].shape)} in the model"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    for what, names in (
        ("of another shape", shapes),
        ("missing in the checkpoint", sorted(own.keys() - state.keys())),
        ("not in the model", sorted(state.keys() - own.keys())),
    ):
        if names:
            more = f", and {len(names) - 3} more" if len(names) > 3 else ""
            problems.append(f"  {what}: {', '.join(names[:3])}{more}")
    if problems:
        head = f"checkpoint (={path}) does not fit the model of this config:\n"
        raise CheckpointError(head + "\n".join(problems))


def load_weights(task: nn.Module, path: str | Path) -> None:
    """Loads a checkpoint's weights into a task.

    Raises:
        CheckpointError: the checkpoint cannot be read or does not fit.
    """
    state = read_checkpoint(path)["state_dict"]
    check_fits(task, state, path)
    task.load_state_dict(state)
