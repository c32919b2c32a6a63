"""One table for every way of saying which cells belong together: `seq_idx`, `lengths`, `cu_seqlens`."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from nvsubq.ops.arguments import integers


def segments_of(
    batch: int,
    length: int,
    *,
    seq_idx: Tensor | None = None,
    lengths: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    device: torch.device | str | None = None,
) -> Tensor | None:
    """Merge sequence indices, lengths and packed borders into one `seq_idx` table.

    Args:
        batch: number of rows B.
        length: number of cells L of a row.
        seq_idx: `[B, L]` integers; a negative value marks a cell that is not there.
        lengths: `[B]` integers; the cells of row b from `lengths[b]` on, in memory order, are not there.
        cu_seqlens: `[n + 1]` integers from 0 to L, never falling: the borders of n sequences in one row.
        device: where the table is put; by default where the given tensor is.

    Returns:
        int32 `[B, L]` (int64 if `seq_idx` is), or None when none is given. `lengths` apply on top of the
        other two.

    Raises:
        ValueError: a wrong shape or dtype, lengths outside 0..L (looked at on the CPU only, as reading
            them back would stall a GPU, and not in compiled code), borders that are not 0..L, both `seq_idx`
            and `cu_seqlens`.

    Example:
        >>> import torch
        >>> segments_of(2, 3, lengths=torch.tensor([3, 1])).tolist()
        [[0, 0, 0], [0, -1, -1]]
        >>> segments_of(1, 5, cu_seqlens=torch.tensor([0, 2, 5])).tolist()
        [[0, 0, 1, 1, 1]]
    """
    if seq_idx is not None and cu_seqlens is not None:
        raise ValueError("`seq_idx` and `cu_seqlens` are both given; they say the same thing, so give one.")
    table = None
    if seq_idx is not None:
        integers("seq_idx", seq_idx, (batch, length), "[B, L]")
        table = seq_idx.to(device or seq_idx.device)
    if cu_seqlens is not None:
        table = _from_borders(batch, length, cu_seqlens, device)
    if lengths is not None:
        table = _cut(batch, length, table, lengths, device)
    return table


def _from_borders(batch: int, length: int, cu_seqlens: Tensor, device: torch.device | str | None) -> Tensor:
    integers("cu_seqlens", cu_seqlens, (None,), "[n + 1]")
    if batch != 1:
        raise ValueError(f"`cu_seqlens` packs sequences into one row, but the batch has B (={batch}) rows.")
    borders = cu_seqlens.tolist()
    rising = all(a <= b for a, b in pairwise(borders))
    if not borders or borders[0] != 0 or borders[-1] != length or not rising:
        raise ValueError(f"`cu_seqlens` (={borders}) must rise from 0 to L (={length}).")
    cells = torch.arange(length, device=cu_seqlens.device)
    inner = cu_seqlens[1:-1].to(cells.dtype).contiguous()
    table = torch.bucketize(cells, inner, right=True)
    return table.to(device=device or cu_seqlens.device, dtype=torch.int32)[None]


def _cut(
    batch: int, length: int, table: Tensor | None, lengths: Tensor, device: torch.device | str | None
) -> Tensor:
    integers("lengths", lengths, (batch,), "[B]")
    if lengths.device.type == "cpu" and lengths.numel() and not torch.compiler.is_compiling():
        low, high = (int(value) for value in lengths.aminmax())
        if low < 0 or high > length:
            raise ValueError(f"`lengths` (={lengths.tolist()}) must lie between 0 and L (={length}).")
    if table is None:
        table = torch.zeros(batch, length, dtype=torch.int32, device=device or lengths.device)
    cells = torch.arange(length, device=table.device)
    return table.masked_fill(cells >= lengths.to(table.device)[:, None], -1)
