"""`selective_scan` on the native library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nvsubq.ops.native import library
from nvsubq.ops.native.library import DOUBLE, SOFTPLUS, Call, Layout, rows
from nvsubq.ops.native.walking import Tables
from nvsubq.ops.numerics import accumulation_dtype

KINDS = {"mamba": 0, "zoh": 1, "async": 1, "bilinear": 2, "dirac": 3, "no_discretization": 4}
INPUTS = (
    "u", "delta", "A", "B", "C", "D", "z", "delta_bias", "delta_a", "timesteps", "initial_state",
)  # fmt: skip
LAYOUT = Layout(
    scalars=(
        "batch", "length", "width", "states", "groups", "blocks",
        "flags", "discretization", "device", "threads", "level",
    ),
    tensors=(
        *INPUTS, "index", "segment", "count", "y", "final_state", "d_y", "d_final_state",
        "d_u", "d_delta", "d_A", "d_B", "d_C", "d_D", "d_z", "d_delta_bias", "d_delta_a", "d_timesteps",
        "d_initial_state",
    ),
)  # fmt: skip
CALL = Call(LAYOUT, "nvsubq_selective_scan")


class _Inputs(NamedTuple):
    """The tensors of a call that carry gradients, in the order of the struct."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None
    delta_a: Tensor | None
    timesteps: Tensor | None
    initial_state: Tensor | None


class _Plan(NamedTuple):
    """What a call is besides its tensors."""

    softplus: bool
    kind: int
    dtype: torch.dtype
    tables: Tables

    def scalars(self, inputs: _Inputs) -> tuple[int, ...]:
        batch, length, width = inputs.u.shape
        states = inputs.A.shape[1]
        groups = max((t.shape[2] for t in (inputs.B, inputs.C) if t.dim() == 4), default=1)
        flags = (DOUBLE if self.dtype == torch.float64 else 0) | (SOFTPLUS if self.softplus else 0)
        threads = library.threads(batch * length * width * states)
        sizes = (batch, length, width, states, groups, self.tables.blocks)
        return *sizes, flags, self.kind, 0, threads, library.forced_level


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    *,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    delta_a: Tensor | None = None,
    timesteps: Tensor | None = None,
    decay_gate: Tensor | None = None,
    discretization: str = "mamba",
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    seq_idx: Tensor | None = None,
    order: Tensor | None = None,
    reverse: bool | Sequence[bool] = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Backend of `nvsubq.ops.selective_scan`, with its arguments; `declines` has refused a `decay_gate`."""
    del decay_gate
    tensors = (u, delta, A, B, C, D, z, delta_bias, delta_a, timesteps, initial_state)
    tables = Tables(u.shape[1], order, reverse, seq_idx)
    plan = _Plan(delta_softplus, KINDS[discretization], accumulation_dtype(*tensors), tables)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        y, final = _Scan.apply(plan, *tensors)
    else:
        y, final, _ = _forward(plan, _contiguous(tensors), keep=False)
    return (y, final) if return_final_state else y


def _contiguous(tensors: Sequence[Tensor | None]) -> _Inputs:
    return _Inputs(*(rows(t) for t in tensors))  # type: ignore[arg-type]


def _over_groups(inputs: _Inputs) -> list[Tensor | None]:
    """The inputs as the struct has them: B and C `[B, L, G, N]`, with stride 0 where there is one group."""
    given: list[Tensor | None] = list(inputs)
    for i in (3, 4):
        t: Any = given[i]
        if t.dim() == 3:
            given[i] = _one_group(t)
    return given


def _one_group(t: Tensor) -> Tensor:
    batch, length, states = t.shape
    stride = t.stride()
    return t.as_strided((batch, length, 1, states), (*stride[:2], 0, stride[2]), t.storage_offset())


def _forward(plan: _Plan, inputs: _Inputs, *, keep: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    u = inputs.u
    y = torch.empty(u.shape, dtype=u.dtype)
    final = torch.empty(u.shape[0], *inputs.A.shape, dtype=plan.dtype)
    tensors = [*_over_groups(inputs), *plan.tables.tensors, y, final, *[None] * 13]
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
        inputs = _Inputs(*tensors)
        d_y = torch.zeros(inputs.u.shape, dtype=inputs.u.dtype) if d_y is None else rows(d_y)
        grads = [None if t is None else torch.empty(t.shape, dtype=t.dtype) for t in inputs]
        groups = _over_groups(_Inputs(*grads))  # type: ignore[arg-type]
        given = [*_over_groups(inputs), *ctx.plan.tables.tensors, None, None, d_y, rows(d_final), *groups]
        CALL.run("backward", ctx.plan.scalars(inputs), given, saved)
        return None, *grads
