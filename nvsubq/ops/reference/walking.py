"""What the reference ops share: visiting the cells one after the other, for each block of channels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from nvsubq.ops.walks import plan_walk

# step(state, cell, fresh) -> (next state, output of the cell); fresh [B]: nothing came before in its sequence
Step = Callable[[Tensor, int, Tensor], tuple[Tensor, Tensor]]


def blocks_of(
    length: int,
    order: Tensor | None,
    reverse: bool | Sequence[bool],
    *channels: tuple[Tensor | None, int],
) -> Iterator[tuple]:
    """For each of S blocks yield the cells to visit, then its share of every (tensor, axis of channels)."""
    walk = plan_walk(length, order, reverse, device="cpu")
    for s in range(walk.blocks):
        cells = list(range(length)) if walk.index is None else walk.index[:, s].tolist()
        yield cells, *(t if t is None else t.chunk(walk.blocks, axis)[s] for t, axis in channels)


def hide_absent(seq_idx: Tensor | None, *tensors: Tensor | None) -> tuple[Any, ...]:
    """Put zeros where a cell is not there, so that its values are never read and get no gradient.

    Tensors `[B, L, ...]` have three axes or more; those with fewer are fixed over time and pass as they are.
    """
    if seq_idx is None:
        return tensors
    absent = seq_idx < 0  # (B, L)

    def hide(t: Tensor) -> Tensor:
        return t.masked_fill(absent.view(*absent.shape, *[1] * (t.dim() - 2)), 0)

    return tuple(t if t is None or t.dim() < 3 else hide(t) for t in tensors)


def walk_cells(
    cells: list[int], state: Tensor, fresh: bool, seq_idx: Tensor | None, step: Step
) -> tuple[list, Tensor]:
    """Visit the cells; give the outputs in memory order and the state after the last cell that is there.

    Args:
        cells: the cells in the order of the visit.
        state: `[B, ...]`, the state before the first cell.
        fresh: whether the walk begins without a given state, like a reset.
        seq_idx: `[B, L]` or None.
        step: what happens at a cell.
    """
    outputs: list[Tensor | None] = [None] * len(cells)
    batch = state.shape[0]
    is_fresh = torch.full((batch,), fresh, device=state.device)
    last = torch.full((batch,), -1, device=state.device)  # the sequence that the walk is in; -1: none yet
    for cell in cells:
        if seq_idx is None:
            state, outputs[cell] = step(state, cell, is_fresh)
            is_fresh = torch.zeros_like(is_fresh)
            continue
        here = seq_idx[:, cell]
        present = here >= 0
        reset = present & (last >= 0) & (here != last)
        stepped, output = step(_where(reset, torch.zeros_like(state), state), cell, is_fresh | reset)
        state = _where(present, stepped, state)
        outputs[cell] = _where(present, output, torch.zeros_like(output))
        last = torch.where(present, here, last)
        is_fresh = is_fresh & ~present
    return outputs, state


def _where(rows: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(rows.view(-1, *[1] * (yes.dim() - 1)), yes, no)


def stack_cells(outputs: list, like: Tensor) -> Tensor:
    """Stack the outputs of the cells along axis 1; `like` `[B, ...]` tells the shape where there are none."""
    return torch.stack(outputs, 1) if outputs else like.new_empty(like.shape[0], 0, *like.shape[1:])
