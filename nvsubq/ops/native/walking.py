"""The tables of a walk, as the C interface takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from nvsubq.ops.walks import Walk, plan_walk


class Tables:
    """The tables of a walk that are there, by their names in the structs.

    `index` `[B or 1, L, S]` int64, `segment` `[B, L, S]` int32 and `count` `[B]` int64.
    """

    def __init__(self, blocks: int = 1, **named: Tensor) -> None:
        self.blocks = blocks
        self.named: Mapping[str, Tensor] = named
        self.which = " ".join(named)


NO_TABLES = Tables()


def tables_of(
    length: int, order: Tensor | None, reverse: bool | Sequence[bool], seq_idx: Tensor | None
) -> Tables:
    """Check a walk and give its tables, which live as long as its plan."""
    walk = plan_walk(length, order, reverse, seq_idx=seq_idx, device="cpu")
    kept = vars(walk).get("_native")
    if kept is None:
        kept = vars(walk)["_native"] = _tables(walk)
    return kept


def _tables(walk: Walk) -> Tables:
    named = {"index": walk.index, "segment": walk.segment, "count": walk.count}
    if walk.index is not None:
        index = walk.index.contiguous()
        if index.dim() == 2:
            index = index.as_strided((1, *index.shape), (0, *index.stride()), index.storage_offset())
        named["index"] = index
    return Tables(walk.blocks, **{name: t for name, t in named.items() if t is not None})
