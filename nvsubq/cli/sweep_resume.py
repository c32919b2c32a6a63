"""Sweeps that were begun and not ended: which one a command goes on with, and which of its jobs are done.

A sweep's folder is marked like a run's (`nvsubq.training.unfinished`), from the first job until all have
ended well. The same command then works in that folder: each job finds its own run there by itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from nvsubq.training import unfinished
from nvsubq.training.unfinished import MARK, Mark


def begin(config: DictConfig, jobs: Sequence[DictConfig]) -> tuple[Path, Mark | None]:
    """The folder of a sweep, that of an unfinished one where there is one; Hydra is told of it.

    Args:
        config: of the sweep, with Hydra's own part; changed to name the folder.
        jobs: the configs of its jobs; none where only the sweeper knows them.

    Returns:
        The folder, and its mark; without one nothing is gone on with: a folder that the user has named and
        that holds a sweep already, or one that cannot be written, which Hydra will say.
    """
    wanted = Path(config.hydra.sweep.dir)
    if not jobs:
        return wanted, None
    text = _fingerprint(config, jobs)
    with contextlib.suppress(OSError):
        mark = unfinished.find(wanted, text) if all(job.get("resume", True) for job in jobs) else None
        if mark is not None:
            _redirect(config, mark.folder)
            return mark.folder, mark
        wanted.mkdir(parents=True, exist_ok=True)
        if not any(wanted.iterdir()):
            return wanted, Mark.make(wanted, text)
    return wanted, None


def finished_job(sweep: Path, wanted: Path, config: DictConfig) -> dict[str, Any] | None:
    """What `train` returned for a job of an unfinished sweep, if that has ended and had this very config.

    Args:
        sweep: the folder of the sweep; without a mark in it, what lies there is another sweep's.
        wanted: the folder of the job's run.
        config: of the job.
    """
    if not config.get("resume", True) or not (sweep / MARK).is_file() or not wanted.parent.is_dir():
        return None
    text = unfinished.fingerprint(config)
    for folder in sorted(wanted.parent.iterdir()):
        if folder.name != wanted.name and not folder.name.startswith(f"{wanted.name}_"):
            continue
        with contextlib.suppress(OSError, ValueError):
            figures: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
            if figures.get("fingerprint") == text and not (folder / MARK).exists():
                return figures | {"folder": str(folder)}
    return None


def _fingerprint(config: DictConfig, jobs: Sequence[DictConfig]) -> str:
    """What two commands share that ask for the same jobs; an experiment can name some to Hydra alone."""
    params = OmegaConf.select(config, "hydra.sweeper.params")
    parts = [str(params), *(unfinished.fingerprint(job) for job in jobs)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _redirect(config: DictConfig, folder: Path) -> None:
    """Hydra reads the folder here, and composes it anew for each job, from its overrides."""
    text = str(folder).replace("'", r"\'")
    with read_write(config), open_dict(config):
        config.hydra.sweep.dir = str(folder)
        config.hydra.overrides.hydra.append(f"hydra.sweep.dir='{text}'")
