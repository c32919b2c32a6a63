"""`selective_scan` on the native library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nvsubq.ops.native import library
from nvsubq.ops.native.library import DOUBLE, SOFTPLUS, Call, Layout, rows
from nvsubq.ops.native.walking import Tables
from nvsubq.ops.numerics import accumulation_dtype, complex_of

FIXED_B, FIXED_C, FIXED_GATE = 256, 512, 1024
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
        "d_initial_state", "decay_gate", "d_decay_gate",
    ),
)  # fmt: skip
CALL = Call(LAYOUT, "nvsubq_selective_scan")


class _Inputs(NamedTuple):
    """The tensors of a call that carry gradients, in the order of the struct but for the last."""

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
    decay_gate: Tensor | None


class _Plan(NamedTuple):
    """What a call is besides its tensors."""

    softplus: bool
    kind: int
    dtype: torch.dtype
    tables: Tables

    def scalars(self, inputs: _Inputs) -> tuple[int, ...]:
        batch, length, width = inputs.u.shape
        states = inputs.A.shape[1]
        grouped = (t.shape[2] for t in (inputs.B, inputs.C) if t.dim() == 4)
        groups = max(grouped, default=self.tables.blocks)
        flags = (DOUBLE if self.dtype == torch.float64 else 0) | (SOFTPLUS if self.softplus else 0)
        for t, flag in ((inputs.B, FIXED_B), (inputs.C, FIXED_C), (inputs.decay_gate, FIXED_GATE)):
            flags |= flag if t is not None and t.dim() == 2 else 0
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
    """Backend of `nvsubq.ops.selective_scan`, with its arguments."""
    tensors = (u, delta, A, B, C, D, z, delta_bias, delta_a, timesteps, initial_state, decay_gate)
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
    """The inputs as the struct has them: B, C, gate `[B, L, G, N]`, with stride 0 where there is one group."""
    given: list[Tensor | None] = list(inputs)
    for i in (3, 4, 11):
        t = given[i]
        if t is not None and t.dim() == 3:
            given[i] = _one_group(t)
    return given


def _one_group(t: Tensor) -> Tensor:
    batch, length, states = t.shape
    stride = t.stride()
    return t.as_strided((batch, length, 1, states), (*stride[:2], 0, stride[2]), t.storage_offset())


def _forward(plan: _Plan, inputs: _Inputs, *, keep: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    u = inputs.u
    y = torch.empty(u.shape, dtype=u.dtype)
    kept = complex_of(plan.dtype) if inputs.A.is_complex() else plan.dtype
    final = torch.empty(u.shape[0], *inputs.A.shape, dtype=kept)
    *given, gate = _over_groups(inputs)
    tensors = [*given, *plan.tables.tensors, y, final, *[None] * 13, gate, None]
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
        *over_groups, d_gate = _over_groups(_Inputs(*grads))  # type: ignore[arg-type]
        *given, gate = _over_groups(inputs)
        cotangents = (d_y, rows(d_final))
        given += [*ctx.plan.tables.tensors, None, None, *cotangents, *over_groups, gate, d_gate]
        CALL.run("backward", ctx.plan.scalars(inputs), given, saved)
        return None, *grads
