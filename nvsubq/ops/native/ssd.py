"""`ssd_scan` on the native library."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nvsubq.ops.native import library
from nvsubq.ops.native.library import DOUBLE, SOFTPLUS, Call, Layout, rows
from nvsubq.ops.native.walking import Tables
from nvsubq.ops.numerics import accumulation_dtype

INPUTS = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_state")
LAYOUT = Layout(
    scalars=(
        "batch", "length", "width", "heads", "head_width", "states", "groups", "blocks",
        "flags", "lowest", "highest", "device", "threads", "level",
    ),
    tensors=(
        *INPUTS, "index", "segment", "count", "y", "final_state", "d_y", "d_final_state",
        "d_x", "d_dt", "d_A", "d_B", "d_C", "d_D", "d_z", "d_dt_bias", "d_initial_state",
    ),
)  # fmt: skip
CALL = Call(LAYOUT, "nvsubq_ssd_scan")


class _Inputs(NamedTuple):
    """The tensors of a call that carry gradients, in the order of the struct."""

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    dt_bias: Tensor | None
    initial_state: Tensor | None


class _Plan(NamedTuple):
    """What a call is besides its tensors."""

    softplus: bool
    limit: tuple[float, float]
    final: bool
    dtype: torch.dtype
    tables: Tables

    def scalars(self, inputs: _Inputs) -> tuple[int, ...]:
        batch, length, heads, head_width = inputs.x.shape
        groups, states = inputs.B.shape[2:]
        flags = (DOUBLE if self.dtype == torch.float64 else 0) | (SOFTPLUS if self.softplus else 0)
        threads = library.threads(batch * length * heads * head_width * states)
        sizes = (batch, length, heads * head_width, heads, head_width, states, groups, self.tables.blocks)
        return *sizes, flags, *map(_bits, self.limit), 0, threads, library.forced_level

    def state_shape(self, inputs: _Inputs) -> tuple[int, ...]:
        batch, _, heads, head_width = inputs.x.shape
        return batch, heads, head_width, inputs.B.shape[3]


def ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    *,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    chunk_size: int | None = None,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    seq_idx: Tensor | None = None,
    order: Tensor | None = None,
    reverse: bool | Sequence[bool] = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Backend of `nvsubq.ops.ssd_scan`, with its arguments; it picks the chunks itself."""
    del chunk_size
    tensors = (x, dt, A, B, C, D, z, dt_bias, initial_state)
    tables = Tables(x.shape[1], order, reverse, seq_idx)
    limit = (dt_limit[0], dt_limit[1])
    plan = _Plan(dt_softplus, limit, return_final_state, accumulation_dtype(*tensors), tables)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        y, final = _Scan.apply(plan, *tensors)
    else:
        y, final, _ = _forward(plan, _contiguous(tensors), keep=False)
    return (y, final) if return_final_state else y


def _bits(value: float) -> int:
    """A double as the integer of the same bits: the struct's scalars are integers."""
    bits: int = struct.unpack("q", struct.pack("d", value))[0]
    return bits


def _contiguous(tensors: Sequence[Tensor | None]) -> _Inputs:
    return _Inputs(*(rows(t) for t in tensors))  # type: ignore[arg-type]


def _forward(plan: _Plan, inputs: _Inputs, *, keep: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """y, the final state (no elements where it is not asked for), and what a backward needs."""
    y = torch.empty(inputs.x.shape, dtype=inputs.x.dtype)
    final = torch.empty(plan.state_shape(inputs) if plan.final else 0, dtype=plan.dtype)
    tensors = [*inputs, *plan.tables.tensors, y, final if plan.final else None, *[None] * 11]
    scalars = plan.scalars(inputs)
    saved = CALL.saved(scalars, tensors) if keep else None
    CALL.run("forward", scalars, tensors, saved)
    return y, final, saved


class _Scan(torch.autograd.Function):
    """y and the final state from the plan and the inputs; keeps the inputs and the states at borders."""

    @staticmethod
    def forward(ctx, plan: _Plan, *tensors: Tensor | None):  # type: ignore[override]
        inputs = _contiguous(tensors)
        y, final, saved = _forward(plan, inputs, keep=True)
        ctx.save_for_backward(saved, *inputs)
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        return y, final

    @staticmethod
    @once_differentiable
    def backward(ctx, d_y: Tensor | None, d_final: Tensor | None):  # type: ignore[override]
        saved, *tensors = ctx.saved_tensors
        plan, inputs = ctx.plan, _Inputs(*tensors)
        d_y = torch.zeros(inputs.x.shape, dtype=inputs.x.dtype) if d_y is None else rows(d_y)
        d_final = rows(d_final) if plan.final else None
        grads = [None if t is None else torch.empty(t.shape, dtype=t.dtype) for t in inputs]
        given = [*inputs, *plan.tables.tensors, None, None, d_y, d_final, *grads]
        CALL.run("backward", plan.scalars(inputs), given, saved)
        return None, *grads
