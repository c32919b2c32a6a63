"""`rglru_scan` on the native library."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nvsubq.ops.native import library
from nvsubq.ops.native.library import DOUBLE, GELU_TANH, UNSCALED_FIRST, Call, Layout, rows
from nvsubq.ops.native.walking import Tables
from nvsubq.ops.numerics import accumulation_dtype

INPUTS = ("x", "r", "i", "a_log", "gate", "r_bias", "i_bias", "initial_state")
LAYOUT = Layout(
    scalars=("batch", "length", "width", "blocks", "c_bits", "flags", "device", "threads", "level"),
    tensors=(
        *INPUTS, "index", "segment", "count", "y", "final_state", "d_y", "d_final_state",
        "d_x", "d_r", "d_i", "d_a_log", "d_gate", "d_r_bias", "d_i_bias", "d_initial_state",
    ),
)  # fmt: skip
CALL = Call(LAYOUT, "nvsubq_rglru_scan")
_WORK = 4  # of one cell and channel, in states of `library.threads`


class Plan(NamedTuple):
    """What a call is besides its tensors."""

    c: float
    flags: int
    dtype: torch.dtype
    tables: Tables

    @classmethod
    def of(
        cls, c: float, normalize_first: bool, gelu: str, tables: Tables, tensors: Sequence[Tensor | None]
    ) -> Plan:
        dtype = accumulation_dtype(*tensors)
        flags = DOUBLE if dtype == torch.float64 else 0
        flags |= (GELU_TANH if gelu == "tanh" else 0) | (0 if normalize_first else UNSCALED_FIRST)
        return cls(c, flags, dtype, tables)

    def scalars(self, shape: Sequence[int]) -> tuple[int, ...]:
        batch, length, width = shape
        threads = library.threads(batch * length * width * _WORK)
        sizes = (batch, length, width, self.tables.blocks, _bits(self.c))
        return *sizes, self.flags, 0, threads, library.forced_level


@lru_cache(maxsize=64)
def _bits(value: float) -> int:
    return struct.unpack("q", struct.pack("d", value))[0]


def rglru_scan(
    x: Tensor,
    r: Tensor,
    i: Tensor,
    a_log: Tensor,
    gate: Tensor | None = None,
    *,
    r_bias: Tensor | None = None,
    i_bias: Tensor | None = None,
    c: float = 8.0,
    normalize_first: bool = True,
    gelu: str = "erf",
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    seq_idx: Tensor | None = None,
    order: Tensor | None = None,
    reverse: bool | Sequence[bool] = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Backend of `nvsubq.ops.rglru_scan`, with its arguments."""
    tensors = (x, r, i, a_log, gate, r_bias, i_bias, initial_state)
    plan = Plan.of(c, normalize_first, gelu, Tables(x.shape[1], order, reverse, seq_idx), tensors)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        y, final = _Scan.apply(plan, *tensors)
    else:
        y, final, _ = _forward(plan, [rows(t) for t in tensors], keep=False)
    return (y, final) if return_final_state else y


def _forward(
    plan: Plan, inputs: Sequence[Tensor | None], *, keep: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    x = inputs[0]
    assert x is not None
    y = torch.empty(x.shape, dtype=x.dtype)
    final = torch.empty(x.shape[0], x.shape[2], dtype=plan.dtype)
    tensors = [*inputs, *plan.tables.tensors, y, final, *[None] * 10]
    scalars = plan.scalars(x.shape)
    saved = CALL.saved(scalars, tensors) if keep else None
    CALL.run("forward", scalars, tensors, saved)
    return y, final, saved


class _Scan(torch.autograd.Function):
    """y and the final state from the plan and the inputs; keeps the inputs and the states at borders."""

    @staticmethod
    def forward(ctx, plan: Plan, *tensors: Tensor | None):  # type: ignore[override]
        inputs = [rows(t) for t in tensors]
        y, final, saved = _forward(plan, inputs, keep=True)
        ctx.save_for_backward(saved, *inputs)
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        return y, final

    @staticmethod
    @once_differentiable
    def backward(ctx, d_y: Tensor | None, d_final: Tensor | None):  # type: ignore[override]
        saved, *inputs = ctx.saved_tensors
        wanted = ctx.needs_input_grad[1:]
        grads = [
            torch.empty(t.shape, dtype=t.dtype) if t is not None and asked else None
            for t, asked in zip(inputs, wanted, strict=True)
        ]
        given = [*inputs, *ctx.plan.tables.tensors, None, None, rows(d_y), rows(d_final), *grads]
        CALL.run("backward", ctx.plan.scalars(inputs[0].shape), given, saved)
        return None, *grads
