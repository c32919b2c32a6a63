"""The best checkpoint of a run that is gone on with: which file holds it, and what to do where none does."""

from __future__ import annotations

import filecmp
from pathlib import Path
from typing import Any

from nvsubq.training.load import BEST, BROKEN, LAST, PREVIOUS, CheckpointError, read_checkpoint


def find_best(earlier: Path, epoch: int, key: str) -> tuple[Path | None, dict[str, Any], str]:
    """Looks for the best checkpoint so far, beside the one that a run goes on from.

    Args:
        earlier: the checkpoint that the run goes on from.
        epoch: the best epoch, as that checkpoint has it.
        key: of the state of `Checkpoints` in a checkpoint.

    Returns:
        The file, its state of `Checkpoints`, and a warning ("" where all is well). Without a file the best
        of the epochs that are left is kept.

    Raises:
        CheckpointError: the file is broken, and no other one holds the best epoch.
    """
    best = earlier.with_name(BEST)
    try:
        return best, _state(best, key), ""
    except CheckpointError as error:
        problem = str(error)
    for file in (earlier, earlier.with_name(LAST), earlier.with_name(PREVIOUS)):
        state = _end_of(file, epoch, key)
        if state is not None:
            warning = f"{problem} {file.name} is of the best epoch too and takes its place."
            return file, state, warning if best.exists() else ""
    if not best.exists():
        return None, {}, f"{problem} The best of the epochs that are left is kept."
    if _same(best, earlier.with_name(BROKEN)):
        return None, {}, f"{problem} It is of the epoch that is run again, as {LAST} was."
    raise CheckpointError(
        f"{problem} It held the best epoch so far (epoch {epoch + 1} or a later one), and no other file "
        "does. Delete it to go on without: the best of the epochs that are left is then kept."
    )


def _state(file: Path, key: str) -> dict[str, Any]:
    try:
        state: dict[str, Any] = read_checkpoint(file)["callbacks"][key]
    except KeyError:
        raise CheckpointError(f"checkpoint (={file}) does not say which epoch is the best.") from None
    return state


def _end_of(file: Path, epoch: int, key: str) -> dict[str, Any] | None:
    """The state in a checkpoint that was written at the end of that epoch and found it the best."""
    try:
        content = read_checkpoint(file)
        state: dict[str, Any] = content["callbacks"][key]
    except (CheckpointError, KeyError):
        return None
    # One that is written within an epoch has the number of that epoch, and an earlier best.
    return state if content["epoch"] == state["epoch"] == epoch else None


def _same(one: Path, other: Path) -> bool:
    """Whether both hold the same bytes; best.ckpt and last.ckpt of one epoch are one file with two names."""
    return other.is_file() and one.is_file() and filecmp.cmp(one, other, shallow=False)
