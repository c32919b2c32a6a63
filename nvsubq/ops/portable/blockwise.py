"""Any block function carried along the sequence, with memory for one block only.

The forward keeps the states between blocks; the backward runs each block again under autograd, from the last to the
first, and hands the gradient of the entering state on to the block before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nvsubq.ops.portable.recurrence import Tiling

# (tensors with a batch and a length axis, tensors without, entering state) -> (outputs [b, t, ...], leaving state)
BlockFunction = Callable[[list[Tensor | None], list[Tensor | None], Tensor], tuple[Tensor, Tensor]]


class _Blockwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, function: BlockFunction, tiling: Tiling, cells: int, state: Tensor, *tensors):  # type: ignore[override]
        over_cells, shared = list(tensors[:cells]), list(tensors[cells:])
        final = torch.empty_like(state)
        borders = state.new_empty(tiling.blocks, *state.shape)
        outputs = None
        for rows in tiling.row_tiles():
            carry = state[rows]
            for k, block in enumerate(tiling.cell_blocks()):
                borders[k, rows] = carry
                y, carry = function([_cut(t, rows, block) for t in over_cells], shared, carry)
                if outputs is None:
                    outputs = y.new_empty(tiling.batch, tiling.length, *y.shape[2:])
                outputs[rows, block] = y
            final[rows] = carry
        ctx.save_for_backward(borders, *tensors)
        ctx.function, ctx.tiling, ctx.cells = function, tiling, cells
        return outputs, final

    @staticmethod
    @once_differentiable
    def backward(ctx, d_outputs: Tensor, d_final: Tensor):  # type: ignore[override]
        borders, *tensors = ctx.saved_tensors
        needed = ctx.needs_input_grad[4:]
        over_cells, shared = tensors[: ctx.cells], tensors[ctx.cells :]
        d_cells = [torch.empty_like(t) if n else None for t, n in zip(over_cells, needed, strict=False)]
        d_shared = [
            torch.zeros_like(t) if n else None for t, n in zip(shared, needed[ctx.cells :], strict=True)
        ]
        d_state = torch.empty_like(d_final)
        blocks = list(enumerate(ctx.tiling.cell_blocks()))
        for rows in ctx.tiling.row_tiles():
            carry = d_final[rows]
            for k, block in reversed(blocks):
                cut = [_leaf(_cut(t, rows, block), n) for t, n in zip(over_cells, needed, strict=False)]
                fixed = [_leaf(t, n) for t, n in zip(shared, needed[ctx.cells :], strict=True)]
                entering = borders[k, rows].requires_grad_()
                with torch.enable_grad():
                    y, leaving = ctx.function(cut, fixed, entering)
                wanted = [t for t in [*cut, *fixed] if t is not None and t.requires_grad] + [entering]
                found = iter(_gradients([y, leaving], wanted, [d_outputs[rows, block], carry]))
                for whole in d_cells:
                    if whole is not None:
                        whole[rows, block] = next(found)
                for whole in d_shared:
                    if whole is not None:
                        whole += next(found)
                carry = next(found)
            d_state[rows] = carry
        return None, None, None, d_state, *d_cells, *d_shared


def _cut(tensor: Tensor | None, rows: slice, cells: slice) -> Tensor | None:
    return None if tensor is None else tensor[rows, cells]


def _leaf(tensor: Tensor | None, wanted: bool) -> Tensor | None:
    return None if tensor is None else tensor.detach().requires_grad_(wanted)


def _gradients(outputs: list[Tensor], inputs: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
    live = [(o, g) for o, g in zip(outputs, gradients, strict=True) if o.requires_grad]
    return torch.autograd.grad([o for o, _ in live], inputs, [g for _, g in live], materialize_grads=True)


def blockwise(
    function: BlockFunction,
    tiling: Tiling,
    state: Tensor,
    over_cells: Sequence[Tensor | None],
    shared: Sequence[Tensor | None],
) -> tuple[Tensor, Tensor]:
    """Run `function` block by block along the cells; differentiable once, without keeping what it computes.

    Args:
        function: maps the cuts of `over_cells`, `shared` and the entering state to outputs and the leaving state.
        tiling: the cut; the batch and length are its own.
        state: the state `[B, ...]` that enters the first block.
        over_cells: tensors `[B, L, ...]` that are cut, None where absent.
        shared: tensors that every block sees whole, None where absent.

    Returns:
        outputs `[B, L, ...]` and the final state `[B, ...]`.
    """
    return _Blockwise.apply(function, tiling, len(over_cells), state, *over_cells, *shared)
