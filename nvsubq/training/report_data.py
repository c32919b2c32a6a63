"""What a run folder holds, for the report and `nvsubq evaluate`; missing files are gaps, not errors."""

from __future__ import annotations

import csv
import datetime
import json
import re
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

RUN_FILES = ("config.yaml", "metrics.csv", "metrics.json")
DAMAGED = (OSError, ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What numpy and zipfile raise of damaged bytes: of the table, a header, the data; RuntimeError of a flag."""
STAMP = re.compile(r"(\d{4}-\d\d-\d\d)_(\d\d)-(\d\d)-(\d\d)")


class RunError(ValueError):
    """A run folder that cannot be read: the message names the file."""


@dataclass
class Record:
    """The files of a run.

    `figures` is metrics.json (empty where the run did not finish), `rows` are those of metrics.csv with None
    where nothing was measured, `predictions` is predictions.npz, `config` the text of resolved.yaml.
    """

    path: Path
    figures: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, float | None]] = field(default_factory=list)
    predictions: dict[str, np.ndarray] = field(default_factory=dict)
    config: str = ""

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return bool(self.figures)

    def column(self, name: str) -> list[float | None]:
        """One value of metrics.csv for each epoch."""
        return [row.get(name) for row in self.rows]

    def has(self, name: str) -> bool:
        """Whether `name` was measured in any epoch."""
        return any(value is not None for value in self.column(name))

    @property
    def epochs(self) -> list[int]:
        """Numbers of the epochs in metrics.csv, from 0."""
        return [int(row["epoch"] or 0) for row in self.rows]

    def settings(self) -> DictConfig:
        """The resolved config; empty where it is not there."""
        try:
            config = OmegaConf.create(self.config or "{}")
        except Exception as error:  # yaml's errors and OmegaConf's have no common base
            raise RunError(f"{self.path / 'resolved.yaml'} is not valid YAML.") from error
        return config if isinstance(config, DictConfig) else OmegaConf.create({})

    def setting(self, key: str) -> Any:
        """A value of the resolved config, such as ``data.resolution``; None where it is not there."""
        try:
            return OmegaConf.select(self.settings(), key)
        except OmegaConfBaseException:
            return None

    def date(self) -> datetime.datetime | None:
        """When the run began: its folder's name says, or else its config's time."""
        found = STAMP.search(self.path.resolve().name)
        if found:
            day, *clock = found.groups()
            try:
                return datetime.datetime.fromisoformat(f"{day}T{':'.join(clock)}")
            except ValueError:
                pass  # a name that only looks like a date
        file = self.path / "config.yaml"
        return datetime.datetime.fromtimestamp(file.stat().st_mtime) if file.is_file() else None


def read_record(run: str | Path) -> Record:
    """Reads the files of a run folder.

    Raises:
        RunError: it is no run folder, or one of its files is broken.

    Example:
        >>> read_record("nowhere")
        Traceback (most recent call last):
        nvsubq.training.report_data.RunError: `run` (=nowhere) does not exist.
    """
    path = check_run(run)
    return Record(path, _figures(path), _rows(path), _predictions(path), _text(path / "resolved.yaml"))


def check_run(run: str | Path) -> Path:
    """The path of a run folder.

    Raises:
        RunError: it is none; the message says what is missing, and where runs are if they are near.
    """
    path = Path(run)
    if not path.exists() and not path.is_symlink():
        raise RunError(f"`run` (={run}) does not exist.")
    if not path.exists():
        raise RunError(f"`run` (={run}) is a link to {path.readlink()}, which does not exist.")
    if not path.is_dir():
        raise RunError(f"`run` (={run}) is a file; a run is a folder with config.yaml and checkpoints/.")
    if any((path / name).is_file() for name in RUN_FILES):
        return path
    near = path / "latest"
    hint = f" Did you mean {near}?" if near.is_dir() else ""
    raise RunError(f"`run` (={run}) is no run folder: it has none of {', '.join(RUN_FILES)}.{hint}")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError as error:
        raise RunError(f"{path} is not text in UTF-8.") from error


def _figures(path: Path) -> dict[str, Any]:
    file = path / "metrics.json"
    text = _text(file)
    if not text:
        return {}
    try:
        figures = json.loads(text)
    except json.JSONDecodeError as error:
        raise RunError(f"{file} is broken: {error}.") from error
    if not isinstance(figures, dict):
        raise RunError(f"{file} must hold one object, not {type(figures).__name__}.")
    return figures


def _rows(path: Path) -> list[dict[str, float | None]]:
    file = path / "metrics.csv"
    rows = list(csv.DictReader(_text(file).splitlines()))
    try:
        numbers = [{name: float(value) if value else None for name, value in row.items()} for row in rows]
    except (TypeError, ValueError) as error:
        raise RunError(f"{file} is broken: {error}.") from error
    if any(row.get("epoch") is None for row in numbers):
        raise RunError(f"{file} is broken: it has a row without an epoch.")
    return numbers


def _predictions(path: Path) -> dict[str, np.ndarray]:
    file = path / "predictions.npz"
    return read_arrays(file) if file.is_file() else {}


def read_arrays(file: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz file.

    Raises:
        RunError: it is broken, or cannot be read.
    """
    try:
        # Opened here: of a damaged file numpy would leave it open.
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except DAMAGED as error:
        raise RunError(f"{file} is broken: {str(error).rstrip('.')}.") from error
