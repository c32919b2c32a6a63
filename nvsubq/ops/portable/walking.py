"""Following a walk: a plain reversal is left to the scan, anything else becomes a gathered copy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nvsubq.ops.walks import Walk, plan_walk


def plan(
    length: int,
    order: Tensor | None,
    reverse: bool | Sequence[bool],
    seq_idx: Tensor | None,
    device: torch.device,
    *,
    both_ways: bool = True,
) -> tuple[Walk | None, bool]:
    """Give the walk to gather by, or None, and whether the scan runs backwards (if it goes `both_ways`)."""
    if order is None and seq_idx is None and (reverse is False or (reverse is True and both_ways)):
        return None, reverse
    walk = plan_walk(length, order, reverse, seq_idx=seq_idx, device=device)
    return (None, False) if walk.identity and walk.segment is None else (walk, False)


def masks(walk: Walk | None, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
    """Give `keep` `[B, L, S]`, 0 where a sequence starts, and `present` `[B, L]`, 0 for no cell."""
    if walk is None or walk.starts is None:
        return None, None
    present = walk.present
    return (~walk.starts).to(dtype), None if present is None else present.to(dtype)


def gather(walk: Walk | None, *tensors: Tensor | None) -> list[Any]:
    """Bring tensors `[B, L, D, ...]` from cells to steps."""
    return [t if t is None or walk is None else walk.gather(t) for t in tensors]


def widen(mask: Tensor, width: int) -> Tensor:
    """Spread a mask `[B, L, S]` of S blocks over `width` channels (or leave one block to broadcasting)."""
    return mask if mask.shape[2] == 1 else mask.repeat_interleave(width // mask.shape[2], 2)
