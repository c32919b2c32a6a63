"""Bilinear forms of two vectors at every cell, without the matrix that one of them makes there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from nvsubq.ops.once import once_differentiable
from nvsubq.ops.tracing import exporting

_MATRIX_ELEMENTS = 2**20  # laid out at a time: they stay in a CPU's cache, and fill a GPU


def bilinear_form(v: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """`out_o = sum_i v_i M_oi` with `M = weight x`, the matrix `[O, I]` that x makes.

    Only a few cells' matrices exist at a time, forwards and backwards. torch's `bilinear` keeps none either,
    but takes O small products for it.

    Args:
        v: `[..., I]`.
        x: `[..., J]`, of the same leading shape and dtype.
        weight: `[O, I, J]`.

    Returns:
        `[..., O]`; once differentiable.

    Example:
        >>> import torch
        >>> v, x, weight = torch.ones(2, 3), torch.ones(2, 4), torch.ones(5, 3, 4)
        >>> bilinear_form(v, x, weight)[0].tolist()
        [12.0, 12.0, 12.0, 12.0, 12.0]
    """
    if exporting():  # pieces would fix the number of cells
        matrices = (x @ weight.flatten(0, 1).t()).unflatten(-1, weight.shape[:2])
        return torch.matmul(matrices, v.unsqueeze(-1)).squeeze(-1)
    rows: Any = _BilinearForm.apply(v.reshape(-1, v.shape[-1]), x.reshape(-1, x.shape[-1]), weight)
    return rows.reshape(*v.shape[:-1], len(weight))  # type: ignore[no-any-return]


def _cells(count: int, each: int) -> Iterator[slice]:
    run = max(1, _MATRIX_ELEMENTS // max(1, each))
    return (slice(first, min(first + run, count)) for first in range(0, count, run))


class _BilinearForm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, v: Tensor, x: Tensor, weight: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(v, x, weight)
        rows = weight.flatten(0, 1)  # (O I, J)
        out = v.new_empty(len(v), len(weight))
        for cells in _cells(len(v), len(rows)):
            matrices = (x[cells] @ rows.t()).unflatten(1, weight.shape[:2])
            out[cells] = torch.matmul(matrices, v[cells].unsqueeze(-1)).squeeze(-1)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, d_out: Tensor):  # type: ignore[override]
        v, x, weight = ctx.saved_tensors
        rows = weight.flatten(0, 1)
        d_v, d_x = torch.empty_like(v), torch.empty_like(x)
        # Summed over chunks, so not in half precision.
        d_rows = torch.zeros_like(rows, dtype=torch.promote_types(rows.dtype, torch.float32))
        for cells in _cells(len(v), len(rows)):
            matrices = (x[cells] @ rows.t()).unflatten(1, weight.shape[:2])
            d_v[cells] = torch.matmul(d_out[cells].unsqueeze(-2), matrices).squeeze(-2)
            d_matrices = (d_out[cells].unsqueeze(-1) * v[cells].unsqueeze(-2)).flatten(1)
            d_x[cells] = d_matrices @ rows
            d_rows += d_matrices.t() @ x[cells]
        return d_v, d_x, d_rows.to(rows.dtype).view_as(weight)
