"""The tables of a walk, as the C interface takes them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nvsubq.ops.walks import plan_walk


class Tables:
    """`index` `[B or 1, L, S]`, `segment` `[B, L, S]` and `count` `[B]` of a walk; each may be None.

    Args:
        length: number of cells L.
        order: as the ops take it.
        reverse: as the ops take it.
        seq_idx: as the ops take it.
    """

    def __init__(
        self, length: int, order: Tensor | None, reverse: bool | Sequence[bool], seq_idx: Tensor | None
    ) -> None:
        walk = plan_walk(length, order, reverse, seq_idx=seq_idx, device="cpu")
        self.blocks = walk.blocks
        self.index = walk.index
        if self.index is not None and self.index.dim() == 2:
            self.index = self.index.as_strided(
                (1, *self.index.shape), (0, *self.index.stride()), self.index.storage_offset()
            )
        self.segment = None if walk.segment is None else walk.segment.to(torch.int32)
        self.count = walk.count

    @property
    def tensors(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        return self.index, self.segment, self.count
