"""One process at a time works on the folder of a study."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: nothing keeps two studies apart
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder; it goes with the process, however that ends.

    Raises:
        ValueError: another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if fcntl is not None:
            try:
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                raise ValueError(f"`--folder` (={folder}): another process runs this study.") from None
        yield
    finally:
        os.close(handle)
