"""Files that are there whole or not at all, whatever ends the process or the machine."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

PART = ".part"
"""Suffix of a file that is being written; one that is found later is the rest of a process that died."""


def write_whole(path: Path, data: bytes | memoryview) -> None:
    """Writes a file under a temporary name, waits until it is on the disk, and renames it.

    Raises:
        OSError: it cannot be written; an older file of that name is as it was.
    """
    part = write_part(path, data)
    os.replace(part, path)
    sync_folder(path.parent)


def write_part(path: Path, data: bytes | memoryview) -> Path:
    """The first half of `write_whole`: the temporary file, on the disk."""
    part = path.with_name(path.name + PART)
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # Python names the file where it is opened, not where it is written
        raise
    return part


def link_or_copy(source: Path, target: Path) -> None:
    """Lets `target` be `source` as it is now, in one step; costs no space where the system has hard links.

    `source` must never be written in place afterwards.
    """
    part = target.with_name(target.name + PART)
    part.unlink(missing_ok=True)
    try:
        os.link(source, part)
    except OSError:
        write_whole(target, source.read_bytes())
        return
    os.replace(part, target)


def sync_folder(folder: Path) -> None:
    """Waits until renames in a folder are on the disk, where the system can open folders."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return  # Windows
    try:
        os.fsync(handle)
    except OSError:
        pass  # some network file systems do not sync folders
    finally:
        os.close(handle)


def remove_parts(folder: Path) -> None:
    """Removes what a process that died had begun to write."""
    for part in folder.glob(f"*{PART}"):
        part.unlink(missing_ok=True)
