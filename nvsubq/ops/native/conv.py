"""`causal_conv1d` on the native library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nvsubq.ops.native import library
from nvsubq.ops.native.library import DOUBLE, SILU, Call, Layout, rows
from nvsubq.ops.native.walking import Tables
from nvsubq.ops.numerics import accumulation_dtype

LAYOUT = Layout(
    scalars=(
        "batch", "length", "width", "taps", "dilation", "state_width", "blocks",
        "flags", "device", "threads", "level",
    ),
    tensors=(
        "x", "weight", "bias", "initial_state", "index", "segment", "count", "y", "final_state",
        "d_y", "d_final_state", "d_x", "d_weight", "d_bias", "d_initial_state",
    ),
)  # fmt: skip
CALL = Call(LAYOUT, "nvsubq_conv1d")


class _Plan(NamedTuple):
    """What a call is besides its tensors."""

    silu: bool
    dilation: int
    state_width: int
    dtype: torch.dtype
    tables: Tables

    def scalars(self, x: Tensor, weight: Tensor) -> tuple[int, ...]:
        batch, length, width = x.shape
        taps = weight.shape[1]
        flags = (DOUBLE if self.dtype == torch.float64 else 0) | (SILU if self.silu else 0)
        threads = library.threads(batch * length * width * taps)
        sizes = (batch, length, width, taps, self.dilation, self.state_width, self.tables.blocks)
        return *sizes, flags, 0, threads, library.forced_level


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    dilation: int = 1,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    seq_idx: Tensor | None = None,
    order: Tensor | None = None,
    reverse: bool | Sequence[bool] = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Backend of `nvsubq.ops.causal_conv1d`, with its arguments."""
    tensors = (x, weight, bias, initial_state)
    reach = (weight.shape[1] - 1) * dilation
    state_width = reach if initial_state is None else initial_state.shape[2]
    tables = Tables(x.shape[1], order, reverse, seq_idx)
    plan = _Plan(activation == "silu", dilation, state_width, accumulation_dtype(*tensors), tables)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        y, final = _Conv.apply(plan, *tensors)
    else:
        y, final = _forward(plan, *map(rows, tensors))  # type: ignore[arg-type]
    return (y, final) if return_final_state else y


def _forward(
    plan: _Plan, x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    y = torch.empty(x.shape, dtype=x.dtype)
    kept = x.dtype if state is None else state.dtype
    final = torch.empty(x.shape[0], x.shape[2], plan.state_width, dtype=kept)
    tensors = [x, weight, bias, state, *plan.tables.tensors, y, final, *[None] * 6]
    CALL.run("forward", plan.scalars(x, weight), tensors)
    return y, final


class _Conv(torch.autograd.Function):
    """y and the final state from the plan and the inputs; a backward makes the rest again."""

    @staticmethod
    def forward(ctx, plan: _Plan, *tensors: Tensor | None):  # type: ignore[override]
        inputs = [rows(t) for t in tensors]
        ctx.save_for_backward(*inputs)
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        return _forward(plan, *inputs)  # type: ignore[arg-type]

    @staticmethod
    @once_differentiable
    def backward(ctx, d_y: Tensor | None, d_final: Tensor | None):  # type: ignore[override]
        inputs = ctx.saved_tensors
        x, weight = inputs[:2]
        d_y = torch.zeros(x.shape, dtype=x.dtype) if d_y is None else rows(d_y)
        grads = [None if t is None else torch.empty(t.shape, dtype=t.dtype) for t in inputs]
        given = [*inputs, *ctx.plan.tables.tensors, None, None, d_y, rows(d_final), *grads]
        CALL.run("backward", ctx.plan.scalars(x, weight), given)
        return None, *grads
