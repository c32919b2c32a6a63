"""Any block function carried along the sequence, with memory for one block only.

The forward keeps the states between blocks; the backward runs each block again under autograd, from the last
to the first, and hands the gradient of the entering state on to the block before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nvsubq.ops.autocast import backward_without_autocast
from nvsubq.ops.once import once_differentiable
from nvsubq.ops.portable.recurrence import Tiling

# (cuts of the tensors over cells, shared tensors, entering state, whether the leaving state is wanted)
# -> (outputs [b, t, ...], leaving state)
BlockFunction = Callable[
    [list[Tensor | None], list[Tensor | None], Tensor | None, bool], tuple[Tensor, Tensor | None]
]


@dataclass(frozen=True)
class _Run:
    """How to run: the function, the cut, how many tensors are over cells, whether to give the final state."""

    function: BlockFunction
    tiling: Tiling
    over_cells: int
    final: bool

    def leaves(self, k: int) -> bool:
        """Whether the state that leaves block k is wanted."""
        return self.final or k + 1 < self.tiling.blocks


class _Blockwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, run: _Run, state: Tensor | None, *tensors: Tensor | None):  # type: ignore[override]
        over_cells, shared = list(tensors[: run.over_cells]), list(tensors[run.over_cells :])
        tiling = run.tiling
        borders: list[Any] = [None] * (tiling.blocks + 1)  # entering states; the last one is the final state
        borders[0] = state
        outputs: Any = None
        for rows in tiling.row_tiles():
            for k, block in enumerate(tiling.cell_blocks()):
                entering = _rows(borders[k], rows)
                cut = [_cut(t, rows, block) for t in over_cells]
                y, leaving = run.function(cut, shared, entering, run.leaves(k))
                if outputs is None:
                    outputs = y.new_empty(tiling.batch, tiling.length, *y.shape[2:])
                outputs[rows, block] = y
                if leaving is not None and run.leaves(k):
                    if borders[k + 1] is None:
                        borders[k + 1] = leaving.new_empty(tiling.batch, *leaving.shape[1:])
                    borders[k + 1][rows] = leaving
        ctx.save_for_backward(*borders[:-1], *tensors)
        ctx.run = run
        return outputs, borders[-1]

    @staticmethod
    @once_differentiable
    @backward_without_autocast
    def backward(ctx, d_outputs: Tensor, d_final: Any):  # type: ignore[override]
        run, tiling = ctx.run, ctx.run.tiling
        borders, tensors = ctx.saved_tensors[: tiling.blocks], ctx.saved_tensors[tiling.blocks :]
        n = run.over_cells
        needed = ctx.needs_input_grad[2:]
        d_cells = [_empty(t) if wanted else None for t, wanted in zip(tensors[:n], needed[:n], strict=True)]
        d_shared = [
            torch.zeros_like(t) if wanted else None for t, wanted in zip(tensors[n:], needed[n:], strict=True)
        ]
        d_state = None if borders[0] is None else _empty(borders[0])
        blocks = list(enumerate(tiling.cell_blocks()))
        for rows in tiling.row_tiles():
            arriving: Any = d_final[rows] if run.final else None
            for k, block in reversed(blocks):
                cut = [_leaf(_cut(t, rows, block), w) for t, w in zip(tensors[:n], needed[:n], strict=True)]
                shared = [_leaf(t, w) for t, w in zip(tensors[n:], needed[n:], strict=True)]
                entering = _leaf(_rows(borders[k], rows), True)
                with torch.enable_grad():
                    y, leaving = run.function(cut, shared, entering, run.leaves(k))
                wanted = [t for t in [*cut, *shared, entering] if t is not None and t.requires_grad]
                found = iter(_gradients([(y, d_outputs[rows, block]), (leaving, arriving)], wanted))
                for whole in d_cells:
                    if whole is not None:
                        whole[rows, block] = next(found)
                for whole in d_shared:
                    if whole is not None:
                        whole += next(found)
                arriving = None if entering is None else next(found)
            if d_state is not None:
                d_state[rows] = arriving
        return None, d_state, *d_cells, *d_shared


def _empty(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def _rows(tensor: Tensor | None, rows: slice) -> Tensor | None:
    return None if tensor is None else tensor[rows]


def _cut(tensor: Tensor | None, rows: slice, cells: slice) -> Tensor | None:
    return None if tensor is None else tensor[rows, cells]


def _leaf(tensor: Tensor | None, wanted: bool) -> Tensor | None:
    return None if tensor is None else tensor.detach().requires_grad_(wanted)


def _gradients(pairs: list[tuple[Tensor | None, Tensor | None]], inputs: list[Tensor]) -> Sequence[Tensor]:
    live = [(o, g) for o, g in pairs if o is not None and g is not None and o.requires_grad]
    return torch.autograd.grad([o for o, _ in live], inputs, [g for _, g in live], materialize_grads=True)


def blockwise(
    function: BlockFunction,
    tiling: Tiling,
    state: Tensor | None,
    over_cells: Sequence[Tensor | None],
    shared: Sequence[Tensor | None],
    *,
    final: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Run `function` block by block along the cells; differentiable once, without keeping what it computes.

    Args:
        function: maps the cuts of `over_cells`, `shared`, the entering state and whether the leaving state is
            wanted to outputs and the leaving state.
        tiling: the cut; the batch and length are its own.
        state: the state `[B, ...]` that enters the first block; None where there is none.
        over_cells: tensors `[B, L, ...]` that are cut, None where absent.
        shared: tensors that every block sees whole, None where absent.
        final: whether the final state is wanted.

    Returns:
        outputs `[B, L, ...]` and the final state `[B, ...]`, or None.
    """
    return _Blockwise.apply(_Run(function, tiling, len(over_cells), final), state, *over_cells, *shared)
