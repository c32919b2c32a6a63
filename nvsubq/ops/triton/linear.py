"""`linear_scan` of the Triton backend: decays and scales by torch, the recurrence by the kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nvsubq.ops.native.walking import Tables, tables_of
from nvsubq.ops.numerics import accumulation_dtype, cast, complex_of
from nvsubq.ops.once import once_differentiable
from nvsubq.ops.portable.linear import decay_and_scale
from nvsubq.ops.triton.launch import readable
from nvsubq.ops.triton.recurrence import Recurrence


def linear_scan(
    a: Tensor,
    b: Tensor,
    *,
    dt: Tensor | None = None,
    discretization: str = "zoh",
    input_scale: str = "none",
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    seq_idx: Tensor | None = None,
    order: Tensor | None = None,
    reverse: bool | Sequence[bool] = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Backend of `nvsubq.ops.linear_scan`, with its arguments; none is given that `declines` refuses."""
    dtype = accumulation_dtype(a, b, dt, initial_state)
    out_dtype = complex_of(b.dtype) if a.is_complex() and not b.is_complex() else b.dtype
    tables = tables_of(b.shape[1], order, reverse, seq_idx, b.device)
    if dt is not None or input_scale == "sqrt":
        a, b, dt = _present(seq_idx, *cast(dtype, a, b, dt))
        decay, scale = decay_and_scale(a, dt, discretization, input_scale)
        a, b = decay, scale * b
        b = b.to(complex_of(dtype)) if a.is_complex() else b
    y, final = _Scan.apply(tables, dtype, out_dtype, a, b, initial_state)
    return (y, final) if return_final_state else y


def _present(seq_idx: Tensor | None, a: Tensor, b: Tensor, dt: Tensor | None) -> tuple[Any, Any, Any]:
    """The arguments with zeros where a cell is not there, and dt `[B, L, 1 or D]`."""
    dt = dt.unsqueeze(-1) if dt is not None and dt.dim() == 2 else dt
    if seq_idx is None:
        return a, b, dt
    absent = (seq_idx < 0).unsqueeze(-1)
    over_cells = (t if t is None or t.dim() < 3 else t.masked_fill(absent, 0) for t in (a, b, dt))
    return tuple(over_cells)  # type: ignore[return-value]


class _Scan(torch.autograd.Function):
    """h and the final state; keeps the inputs and the states at the borders of pieces."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        tables: Tables,
        dtype: torch.dtype,
        out_dtype: torch.dtype,
        a: Tensor,
        b: Tensor,
        initial: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        a, b = readable(a), readable(b)
        keep = any(ctx.needs_input_grad)
        y, final, saved = Recurrence(a, b, dtype, tables).forward(initial, out_dtype, keep=keep)
        ctx.save_for_backward(a, b, saved)
        ctx.tables, ctx.dtype = tables, dtype
        ctx.initial = None if initial is None else initial.dtype
        ctx.set_materialize_grads(False)
        return y, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor | None, d_final: Tensor | None) -> Any:  # type: ignore[override]
        a, b, saved = ctx.saved_tensors
        recurrence = Recurrence(a, b, ctx.dtype, ctx.tables)
        if d_y is None:
            d_y = b.new_zeros(b.shape, dtype=recurrence.kind)
        d_a, d_b, d_initial = recurrence.backward(readable(d_y), d_final, saved)
        return None, None, None, d_a, d_b, None if ctx.initial is None else d_initial.to(ctx.initial)
