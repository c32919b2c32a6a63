"""The tables of a walk, as the C interface takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from nvsubq.ops.walks import Walk, made, plan_walk


class Tables:
    """The tables of a walk that are there, by their names in the structs.

    `index` `[B or 1, L, S]` int64, `segment` `[B, L, S]` int32 and `count` `[B]` int64.
    """

    def __init__(self, blocks: int = 1, **named: Tensor) -> None:
        self.blocks = blocks
        self.named: Mapping[str, Tensor] = named
        self.which = " ".join(named)
        self._streams: set[int] = set()

    def used_on(self, device: torch.device, ready: torch.cuda.Event | None) -> None:
        """Make the current stream wait for the tables; their memory, should they go, then waits for it."""
        stream = torch.cuda.current_stream(device)
        if stream.cuda_stream in self._streams:
            return
        if ready is not None and not torch.cuda.is_current_stream_capturing():  # what is captured cannot wait
            stream.wait_event(ready)
            self._streams.add(stream.cuda_stream)
        for table in self.named.values():
            table.record_stream(stream)


NO_TABLES = Tables()


def tables_of(
    length: int,
    order: Tensor | None,
    reverse: bool | Sequence[bool],
    seq_idx: Tensor | None,
    device: torch.device,
) -> Tables:
    """Check a walk and give its tables, which live as long as its plan."""
    walk = plan_walk(length, order, reverse, seq_idx=seq_idx, device=device)
    kept = vars(walk).get("_native")
    if kept is None:
        kept = vars(walk)["_native"] = _tables(walk)
    if device.type == "cuda" and kept.named:
        kept.used_on(device, made(walk))
    return kept


def _tables(walk: Walk) -> Tables:
    named = {"index": walk.index, "segment": walk.segment, "count": walk.count}
    if walk.index is not None:
        index = walk.index.contiguous()
        if index.dim() == 2:
            index = index.as_strided((1, *index.shape), (0, *index.stride()), index.storage_offset())
        named["index"] = index
    return Tables(walk.blocks, **{name: t for name, t in named.items() if t is not None})
