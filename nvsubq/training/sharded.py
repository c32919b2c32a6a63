"""Strategies that cut the weights themselves into pieces, one in each process (FSDP)."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.strategies import FSDPStrategy

__all__ = ["is_sharded"]


def is_sharded(trainer: L.Trainer) -> bool:
    """Whether each process has a piece of each weight: a model that was trained so can't be used as it is."""
    return isinstance(trainer.strategy, FSDPStrategy)
