"""Runs that were begun and not ended: which process has one, and which one a command goes on with.

Sweeps as well, in `nvsubq.cli.sweep_resume`.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

try:
    import fcntl
except ImportError:  # Windows: a run is found again, two processes are not kept apart
    fcntl = None  # type: ignore[assignment]

MARK = ".unfinished"
"""The file in a run folder from the claim to the end of the run."""


def fingerprint(config: DictConfig) -> str:
    """What two commands share that ask for the same training."""
    values: Any = OmegaConf.to_container(config, resolve=True)
    values.pop("resume", None)
    text = OmegaConf.to_yaml(OmegaConf.create(values), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class Mark:
    """The mark of an unfinished run, locked by the process that works on it.

    The lock belongs to the process and goes with it, however it ends; a forked worker does not inherit it.

    Args:
        folder: the run folder.
        handle: the open mark.
    """

    def __init__(self, folder: Path, handle: int) -> None:
        self.folder = folder
        self._handle: int | None = handle

    @classmethod
    def make(cls, folder: Path, text: str) -> Mark:
        """Marks a run folder that this process has claimed."""
        handle = os.open(folder / MARK, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        _lock(handle)
        os.write(handle, text.encode())
        os.fsync(handle)
        return cls(folder, handle)

    def remove(self) -> None:
        """The run has ended."""
        (self.folder / MARK).unlink(missing_ok=True)
        self.release()

    def release(self) -> None:
        """Another process may go on with the run."""
        if self._handle is not None:
            os.close(self._handle)
        self._handle = None


def find(wanted: Path, text: str) -> Mark | None:
    """The unfinished run that a command goes on with, locked: `wanted` itself or the newest beside it.

    Args:
        wanted: the folder that the command would make.
        text: the `fingerprint` of its config.
    """
    for folder in candidates(wanted, text):
        handle = os.open(folder / MARK, os.O_RDWR)
        if _lock(handle):
            return Mark(folder, handle)
        os.close(handle)
    return None


def candidates(wanted: Path, text: str) -> list[Path]:
    """Folders of unfinished runs with that fingerprint, whether or not a process works on them."""
    beside = [path.parent for path in wanted.parent.glob(f"*/{MARK}") if not path.parent.is_symlink()]
    newest = sorted((path for path in beside if path != wanted), reverse=True)
    return [path for path in (wanted, *newest) if _text(path) == text]


def _text(folder: Path) -> str | None:
    try:
        return (folder / MARK).read_text()
    except OSError:
        return None


def _lock(handle: int) -> bool:
    """Whether this process has the lock now."""
    if fcntl is None:
        return True
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except PermissionError:  # POSIX allows this one as well
        return False
    except OSError:
        return True  # a file system without locks
    return True
