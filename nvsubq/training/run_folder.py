"""The run folder: what a training leaves behind, and where.

::

    runs/<name>/<date_time>/
      config.yaml        the config, interpolations kept: `nvsubq train --config-dir RUN --config-name config`
      resolved.yaml      the same with every interpolation resolved
      metrics.csv        one row for each epoch: epoch, step, train/loss, val/..., lr, epoch_s, cells_per_s
      metrics.json       final figures, see below
      predictions.npz    what the test predicted, see below
      checkpoints/       last.ckpt and best.ckpt, both load with ``weights_only=True``; previous.ckpt until
                         the run has ended
      report.html        written by `nvsubq.training.report`
      fit-profile.txt    with `trainer.profiler=simple`; test-profile.txt of the test
      nan_batch.pt       where a figure was not finite, see `nvsubq.training.nan_watch`
      .unfinished        until the run has ended, see `nvsubq.training.unfinished`
    runs/<name>/latest, runs/latest    links to the newest run

**metrics.json** is one object:

* ``name task model core core_name seed epochs steps best_epoch tested_with stopped_early``: what was run
  (``tested_with`` is "best", "last" or null; ``best_epoch`` counts from 0, like the column ``epoch``)
* ``metrics``: metric -> value, the test's and those of the last epoch; null where a value is not finite
* ``baselines``: name -> metric without ``test/`` -> value; ``classes``: class names; ``scored_classes``:
  class numbers (segmentation, else null)
* ``parameters``, ``train_s``, ``test_s``, ``total_s``, ``peak_memory_bytes`` (of the process),
  ``peak_device_bytes`` (CUDA, or null), ``threads``, ``device``, ``precision``, ``processes``
* ``data``: ``datamodule.describe()``; ``versions``: package -> version; ``command``: the overrides as typed;
  ``fingerprint``: of the config that was asked for, see `nvsubq.training.unfinished`

**predictions.npz** holds plain arrays (``allow_pickle=False``). Classification, N test items, M shown ones:

* ``indices`` int64 [N] item numbers in the test split, ``labels`` int64 [N],
  ``probabilities`` float32 [N, classes]
* ``shown`` int64 [M] item numbers, those whose own class got the lowest probability first,
  ``images`` float32 [M, C, *spatial], normalised

Segmentation, N test items and M shown ones, those with the lowest Dice first:

* ``indices`` int64 [N], ``confusion`` int64 [N, classes, classes] (true, predicted), ``shown`` int64 [M]
* for each row i < M ``image_i`` float16 [C, *spatial], ``label_i`` and ``prediction_i`` uint8 (int32 above
  256 classes) [*spatial]

Forecasting, N test items of T steps in time:

* ``indices`` int64 [N], ``squares`` float64 [N, T] (sums of weighted squared errors), ``weights`` [N, T]

Regression, N test items and the first M of them:

* ``indices`` int64 [N], ``squares`` float64 [N] (mean squared error of each), ``shown`` int64 [M],
  ``inputs`` float32 [M, C, *canvas], ``targets`` and ``answers`` float32 [M, K, *readout]
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from nvsubq.training import unfinished
from nvsubq.training.durable import PART, write_whole

FILES = ("config.yaml", "resolved.yaml", "metrics.csv", "metrics.json", "predictions.npz", "report.html")
PARTS = tuple(name + PART for name in FILES)
CONFIG_HEADER = "# Run it again: {command}\n"
# What makes the saved file a primary config of Hydra: the run folder's place is set by the group `hydra`.
DEFAULTS = "defaults:\n- hydra: default\n- _self_\n"


class RunFolder:
    """The folder of one run, claimed so that no two runs share one.

    Args:
        wanted: where the run shall lie. If a run lies there, ``_2``, ``_3``, ... is appended.
        root: the folder of all runs; it and folders below it go when a failed run leaves them empty.
        fingerprint: of the config; the run is marked as unfinished with it.
        resume: go on with the newest unfinished run of that fingerprint, if there is one; `resumed` tells.

    Raises:
        OSError: the folder cannot be made or written.
    """

    def __init__(self, wanted: Path, root: Path, *, fingerprint: str = "", resume: bool = False) -> None:
        self.root, self.fingerprint = Path(root), fingerprint
        mark = unfinished.find(Path(wanted), fingerprint) if resume else None
        self.resumed = mark is not None
        if mark is not None:
            self.path = mark.folder
        else:
            self._claim(Path(wanted))
            mark = unfinished.Mark.make(self.path, fingerprint)
        self.mark = mark

    def _claim(self, wanted: Path) -> None:
        number = 1
        while True:
            self.path = wanted if number == 1 else wanted.with_name(f"{wanted.name}_{number}")
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                # Making config.yaml is the claim: of two runs that begin in one second, one gets it.
                os.close(os.open(self.path / "config.yaml", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                return
            except FileExistsError:
                number += 1

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints lie."""
        return self.path / "checkpoints"

    def write_config(self, config: str, resolved: str) -> None:
        """Writes config.yaml and resolved.yaml from their YAML text."""
        header = CONFIG_HEADER.format(command=command_again(self.path))
        write_whole(self.path / "config.yaml", (header + DEFAULTS + config).encode())
        write_whole(self.path / "resolved.yaml", resolved.encode())

    def write_metrics(self, figures: dict[str, Any]) -> None:
        """Writes metrics.json; numbers that are not finite become null."""
        text = json.dumps(_finite(figures), indent=2, allow_nan=False) + "\n"
        write_whole(self.path / "metrics.json", text.encode())

    def write_predictions(self, arrays: dict[str, np.ndarray]) -> None:
        """Writes predictions.npz."""
        memory = io.BytesIO()
        np.savez_compressed(memory, **arrays)  # type: ignore[arg-type]
        write_whole(self.path / "predictions.npz", memory.getbuffer())

    def link_latest(self) -> None:
        """Lets ``latest``, in the folder of all runs and in the experiment's, name this run."""
        root, path = self.root.resolve(), self.path.resolve()
        if root not in path.parents:
            return
        experiment = root / path.relative_to(root).parts[0]
        for folder in {root, experiment} - {path}:
            link, part = folder / "latest", folder / f".latest_{os.getpid()}"
            if link.exists() and not link.is_symlink():
                continue
            part.unlink(missing_ok=True)
            part.symlink_to(os.path.relpath(path, folder), target_is_directory=True)
            os.replace(part, link)

    def remove(self) -> None:
        """Removes what this run wrote, and folders that are empty then. Files of others stay."""
        for name in (*FILES, *PARTS):
            (self.path / name).unlink(missing_ok=True)
        self.mark.remove()
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        remove_empty(self.path, self.root)


def command_again(folder: Path, *, resume: bool = False) -> str:
    """The command that trains with the config of a run, to be pasted into a shell.

    Args:
        folder: the run's; that of a sweep's job holds characters that Hydra reads as its own.
        resume: go on from the run's last checkpoint.

    Example:
        >>> print(command_again(Path("runs/core=s5,seed=0"), resume=True))
        nvsubq train --config-dir runs/core=s5,seed=0 --config-name config 'ckpt_path="runs/core=s5,seed=0"'
    """
    place = str(folder)
    words = ["nvsubq", "train", "--config-dir", place, "--config-name", "config"]
    if resume:
        plain = re.fullmatch(r"[\w./-]+", place)
        quoted = place.replace('"', '\\"')
        words.append(f"ckpt_path={place}" if plain else f'ckpt_path="{quoted}"')
    return shlex.join(words)


def remove_empty(folder: Path, root: Path) -> None:
    """Removes `folder` if it is empty, then each empty folder above it up to and with `root`."""
    folder, root = Path(folder).resolve(), Path(root).resolve()
    while True:
        try:
            folder.rmdir()
        except OSError:
            return
        if folder == root or root not in folder.parents:
            return
        folder = folder.parent


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
