"""One run of a study, in a process of its own."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from multiprocessing import parent_process
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from nvsubq.study.runs import DONE, FAILED, LOG

STOPPED = 130
"""Exit code of a run that was asked to stop, and can go on."""
TROUBLE = tuple(
    getattr(errno, name)
    for name in ("EIO", "ENOMEM", "ENFILE", "EMFILE", "EFBIG", "ENOSPC", "EROFS", "EDQUOT", "ESTALE")
    if hasattr(errno, name)
)
"""Errors that are the machine's, not the run's: its exit code then, as a full disk takes no failed.json."""


def main(config_text: str, folder: str, overrides: list[str]) -> None:
    """Trains, and leaves done.json or failed.json in the run's folder; the process ends here.

    Args:
        config_text: YAML of the run's config.
        folder: the run's.
        overrides: for the record.
    """
    # In the background of a shell Ctrl-C is ignored, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    path = Path(folder)
    code = 0
    try:
        path.mkdir(parents=True, exist_ok=True)
        _print_into(path / LOG)
        train_run(config_text, path, overrides)
    except KeyboardInterrupt:
        code = STOPPED
    except BaseException as error:
        code = _failed(path, error)
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    # Whatever a library still waits for, the run is over.
    os._exit(code)


def _failed(folder: Path, error: BaseException) -> int:
    """Says in the log and, unless it is the machine's trouble, in failed.json what went wrong.

    Returns:
        The exit code.
    """
    found = trouble(error)
    try:
        traceback.print_exc()
        if found is None:
            fail(folder, error)
    except OSError as full:  # the log lies on the same disk
        return found or trouble(full) or 1
    return found or 1


def trouble(error: BaseException | None) -> int | None:
    """The number of the machine's error that an exception is, or was raised from.

    Example:
        >>> trouble(OSError(errno.ENOSPC, "full")) == errno.ENOSPC, trouble(FileNotFoundError(2, "no file"))
        (True, None)
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in TROUBLE:
            return error.errno
        error = error.__cause__
    return None


def train_run(config_text: str, folder: Path, overrides: list[str]) -> None:
    """Trains or goes on, and marks the run as done."""
    from omegaconf import OmegaConf

    from nvsubq.training.durable import write_whole
    from nvsubq.training.quiet import quiet_lightning
    from nvsubq.training.runner import train

    started = time.time()
    config: Any = OmegaConf.create(config_text)
    quiet_lightning()
    if not complete(folder):
        config = as_begun(folder, config)
        clear_unless_same(folder, config)
        figures = train(config, folder, command=overrides)
        if Path(figures["folder"]).resolve() != folder.resolve():
            raise RuntimeError(f"the run went to {figures['folder']} instead of {folder}")
    done = {"seconds": time.time() - started, "ended": time.time()}
    write_whole(folder / DONE, (json.dumps(done) + "\n").encode())


def complete(folder: Path) -> bool:
    """Whether a run ended whole, and its process died before it could say so."""
    from nvsubq.training.unfinished import MARK

    return (folder / "metrics.json").is_file() and not (folder / MARK).is_file()


def as_begun(folder: Path, config: Any) -> Any:
    """The config with the threads that the run was begun with, which follow from the `--jobs` of that time.

    Sums, and so the bits of a run, can depend on their number: a run keeps it to its end.
    """
    from omegaconf import OmegaConf

    file = folder / "config.yaml"
    if not file.is_file():
        return config
    begun: Any = OmegaConf.load(file)  # empty where the process died before it was written
    config = config.copy()
    config.threads = begun.get("threads", config.threads)
    return config


def clear_unless_same(folder: Path, config: Any) -> None:
    """Empties the folder of a run that was begun with another config or in another place, and says so.

    The log stays: it is being written.
    """
    from nvsubq.training.unfinished import MARK, fingerprint

    mark = folder / MARK
    if mark.is_file() and mark.read_text() == fingerprint(config):
        return
    if mark.is_file():
        sys.stdout.write(f"begins anew: {folder} was begun with another config or in another place\n")
    for item in folder.iterdir():
        if item.name == LOG:
            continue
        if item.is_dir() and not item.is_symlink():
            shutil.rmtree(item)
        else:
            item.unlink()


def fail(folder: Path, error: BaseException) -> None:
    """Writes down why a run failed."""
    from nvsubq.cli.errors import HINT, message

    write_failure(folder, message(error).replace(f" {HINT}", ""))


def write_failure(folder: Path, reason: str) -> None:
    """Writes failed.json."""
    from nvsubq.training.durable import write_whole

    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / FAILED, (json.dumps({"reason": reason}) + "\n").encode())


def _print_into(file: Path) -> None:
    """Sends what is printed, by native code too, to the end of a file."""
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
    # A test may have put something else in their place.
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)


def _end_with_parent() -> None:
    """A study that is killed takes its runs along, so that the next one finds none at work."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(STOPPED)
