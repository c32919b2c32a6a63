"""`selective_scan` on mamba-ssm's kernel: its layout is `[B, D, L]`, with L contiguous."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nvsubq.ops.mamba_ssm.found import module
from nvsubq.ops.once import once_differentiable


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
    del delta_a, timesteps, decay_gate, discretization, initial_state, seq_idx, order, reverse
    B, C = _grouped(B, C)
    y, final = _Scan.apply(delta_softplus, u, delta, A, B, C, D, z, delta_bias)
    return (y, final) if return_final_state else y


def _grouped(*tensors: Tensor) -> list[Tensor]:
    """B and C with a common number of groups, `[B, L, G, N]`; `[D, N]` stays as it is."""
    wide = [t.unsqueeze(2) if t.dim() == 3 else t for t in tensors]
    groups = max((t.shape[2] for t in wide if t.dim() == 4), default=1)
    return [t.expand(-1, -1, groups, -1) if t.dim() == 4 else t for t in wide]


def _theirs(t: Tensor | None) -> Tensor | None:
    """`[B, L, D]` as `[B, D, L]`, `[B, L, G, N]` as `[B, G, N, L]`; parameters contiguous."""
    if t is None or t.dim() < 3:
        return None if t is None else t.contiguous()
    return t.movedim(1, -1).contiguous()


def _ours(t: Tensor) -> Tensor:
    return t.movedim(-1, 1)


class _Scan(torch.autograd.Function):
    """y and the final state, which has no gradient in this kernel."""

    @staticmethod
    def forward(ctx, softplus: bool, *given: Tensor | None):  # type: ignore[override]
        u, delta, A, B, C, D, z, delta_bias = theirs = [_theirs(t) for t in given]
        out, states, *gated = module("selective_scan").fwd(*theirs, softplus)
        ctx.softplus = softplus
        ctx.save_for_backward(u, delta, A, B, C, D, z, delta_bias, states, out)
        ctx.set_materialize_grads(False)
        # Of each chunk of cells it keeps for every state the product of the decays, and the state at its end.
        final = states[:, :, -1, 1::2].contiguous()
        return _ours(out if z is None else gated[0]), final

    @staticmethod
    @once_differentiable
    def backward(ctx, d_y: Tensor | None, d_final: Tensor | None) -> Any:  # type: ignore[override]
        if d_final is not None:
            raise RuntimeError(
                "backend 'mamba_ssm' has no gradient of the final state of `selective_scan`; "
                "detach it, or use another backend."
            )
        if d_y is None:
            return (None,) * 9
        u, delta, A, B, C, D, z, delta_bias, states, out = ctx.saved_tensors
        inputs = (u, delta, A, B, C, D, z, delta_bias)
        d_u, d_delta, d_A, d_B, d_C, d_D, d_bias, *d_z = module("selective_scan").bwd(
            *inputs, _theirs(d_y.to(u.dtype)), states, None if z is None else out, None, ctx.softplus, False
        )
        found = (d_u, d_delta, d_A, d_B, d_C, d_D, d_z[0] if d_z else None, d_bias)
        return None, *[
            None if t is None else (_ours(grad) if t.dim() > 2 else grad).to(t.dtype)
            for t, grad in zip(inputs, found, strict=True)
        ]
