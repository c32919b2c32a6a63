"""Strategies that cut the weights themselves into pieces, one in each process (FSDP)."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.strategies import FSDPStrategy

__all__ = ["clip_sharded", "is_sharded"]


def is_sharded(trainer: L.Trainer) -> bool:
    """Whether each process has a piece of each weight: a model that was trained so can't be used as it is."""
    return isinstance(trainer.strategy, FSDPStrategy)


def clip_sharded(trainer: L.Trainer, value: float | None, algorithm: str | None) -> None:
    """Clip gradients by their norm over all pieces, which no process knows alone.

    Raises:
        ValueError: `algorithm` is not the norm.
    """
    if not value:
        return
    if algorithm not in (None, "norm"):
        raise ValueError(
            f"`trainer.gradient_clip_algorithm` (={algorithm!r}) must be norm where weights are sharded."
        )
    root: Any = trainer.strategy.model
    root.clip_grad_norm_(value)
