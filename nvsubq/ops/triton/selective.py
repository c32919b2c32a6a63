"""`selective_scan` of the Triton backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nvsubq.ops.native.walking import tables_of
from nvsubq.ops.numerics import accumulation_dtype
from nvsubq.ops.once import once_differentiable
from nvsubq.ops.triton.launch import readable
from nvsubq.ops.triton.selective_launch import NAMES, SelectiveScan


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
    """Backend of `nvsubq.ops.selective_scan`, with its arguments; none is given that `declines` refuses."""
    tensors = (u, delta, A, B, C, D, z, delta_bias, delta_a, timesteps, decay_gate, initial_state)
    tables = tables_of(u.shape[1], order, reverse, seq_idx, u.device)
    options = (delta_softplus, discretization, tables, accumulation_dtype(*tensors))
    y, final = _Scan.apply(options, *tensors)
    return (y, final) if return_final_state else y


class _Scan(torch.autograd.Function):
    """y and the final state; keeps the inputs and the states at the borders of pieces."""

    @staticmethod
    def forward(ctx: Any, options: tuple, *tensors: Tensor | None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        read = [None if t is None else readable(t) for t in tensors]
        scan = SelectiveScan(dict(zip(NAMES, read, strict=True)), *options)
        y, final, saved = scan.forward(keep=any(ctx.needs_input_grad))
        ctx.save_for_backward(saved, *read)
        ctx.options = options
        ctx.set_materialize_grads(False)
        return y, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor | None, d_final: Tensor | None) -> Any:  # type: ignore[override]
        saved, *tensors = ctx.saved_tensors
        scan = SelectiveScan(dict(zip(NAMES, tensors, strict=True)), *ctx.options)
        d_y = torch.zeros_like(tensors[0]) if d_y is None else readable(d_y)
        found = scan.backward(d_y, d_final, saved)
        return None, *(found[name] for name in NAMES)
