"""Where a row's sequence begins, for a walk in chunks: a first cell that an op has to know as the first.

An op takes a given `initial_state` for one that something led to. Rows that have not begun, as after a ragged
prefill that had no cell for them, have a state as well: it is zero. So the op is shown one more cell, walked
first: it is there, and of another sequence than the next one, only in rows that have not begun.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def lead_in(begun: Tensor, length: int, seq_idx: Tensor | None, order: Tensor | None) -> dict[str, Any]:
    """The walk of an op over `1 + L` cells, of which cell 0 parts a row that has not begun from its state.

    Args:
        begun: `[B]` bool, rows whose state something led to.
        length: number of cells `L`.
        seq_idx: `[B, L]`, the sequence of each cell, or None.
        order: `[L]`, the cells in the order of the walk, or None.

    Returns:
        `seq_idx` `[B, 1 + L]` and `order` `[1 + L]` or None, as keywords.
    """
    if seq_idx is None:
        seq_idx = torch.zeros(len(begun), length, dtype=torch.int32, device=begun.device)
    walked = seq_idx if order is None else seq_idx[:, order.long()]
    if length:
        first = walked.gather(1, (walked >= 0).int().argmax(1, keepdim=True)).clamp(min=0)
    else:
        first = seq_idx.new_zeros(len(begun), 1)
    opening = torch.where(begun[:, None], -1, first ^ 1)  # any sequence but the next one
    if order is not None:
        order = F.pad(order + 1, (1, 0))
    return {"seq_idx": torch.cat((opening.to(seq_idx.dtype), seq_idx), 1), "order": order}


def has_begun(begun: Tensor, length: int, seq_idx: Tensor | None) -> Tensor:
    """`begun` `[B]` after a walk over L cells: a row begins at its first cell that is there."""
    if seq_idx is None:
        return begun | (length > 0)
    return begun | (seq_idx >= 0).any(1)
