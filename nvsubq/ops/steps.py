"""One token of a whole core, in one native call where that serves.

Each function gives None where it does not: another backend is asked for, grad mode, autocast, a transform, a
mode or a compiler is on, or a tensor is not what the kernel takes. The core then composes its ops, which
define the step (and find what is wrong with a call).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nvsubq.ops.dispatch import fused_step
from nvsubq.ops.tracing import traced


def mamba_step(
    x: Tensor,
    conv_state: Tensor,
    state: Tensor,
    *,
    in_weight: Tensor,
    in_bias: Tensor | None,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    x_proj: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    out_weight: Tensor,
    out_bias: Tensor | None,
    timesteps: Tensor | None = None,
    discretization: str = "mamba",
    backend: str | None = None,
) -> Tensor | None:
    """Advance Mamba by one cell; both states change in place.

    Args:
        x: `[B, 1, C]`; all projections have its dtype.
        conv_state: `[B, D, K]`, newest last, in any real dtype.
        state: `[B, D, N]`, fp32, or fp64 where anything is.
        in_weight: `[2D, C]`; its rows give x and z.
        in_bias: `[2D]`.
        conv_weight: `[D, 1, K]`.
        conv_bias: `[D]`.
        x_proj: `[R + 2N, D]`; its rows give dt, B and C.
        dt_weight: `[D, R]`.
        dt_bias: `[D]`.
        A_log: `[D, N]`, A = -exp(A_log).
        D: `[D]`.
        out_weight: `[C, D]`.
        out_bias: `[C]`.
        timesteps: `[B]`; the decay then uses timestep * softplus(dt_bias).
        discretization: "mamba", "zoh", "bilinear" or "dirac".
        backend: as in the ops.

    Returns:
        `[B, 1, C]` in the dtype of x, or None.
    """
    step = _served("mamba_step", backend, x)
    if step is None:
        return None
    return step(
        x, conv_state, state, in_weight, in_bias, conv_weight, conv_bias, x_proj, dt_weight, dt_bias, A_log,
        D, out_weight, out_bias, timesteps, discretization,
    )  # fmt: skip


def mamba2_step(
    x: Tensor,
    conv_state: Tensor,
    state: Tensor,
    *,
    in_weight: Tensor,
    in_bias: Tensor | None,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    dt_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    norm_weight: Tensor | None,
    out_weight: Tensor,
    out_bias: Tensor | None,
    norm_eps: float = 1e-5,
    norm_before_gate: bool = False,
    groups: int = 1,
    channel_skip: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    backend: str | None = None,
) -> Tensor | None:
    """Advance Mamba2 by one cell; both states change in place.

    Args:
        x: `[B, 1, C]`; the projections have its dtype.
        conv_state: `[B, H P + 2 G N, K]`, newest last, in any real dtype.
        state: `[B, H, P, N]`, fp32, or fp64 where anything is.
        in_weight: `[2 mlp + 2 H P + 2 G N + H, C]`; its rows give z0 and x0 of the MLP (which may have none),
            z, x, B, C and dt.
        in_bias: one for each of these rows.
        conv_weight: `[H P + 2 G N, 1, K]`.
        conv_bias: `[H P + 2 G N]`.
        dt_bias: `[H]`.
        A_log: `[H]`, A = -exp(A_log).
        D: `[H]`, or `[H P]` with `channel_skip`.
        norm_weight: `[H P]`; None: only gate.
        out_weight: `[C, mlp + H P]`.
        out_bias: `[C]`.
        norm_eps: added to the mean of squares.
        norm_before_gate: norm(y) SiLU(z) in place of norm(y SiLU(z)).
        groups: `G`, of B, C and the norm.
        channel_skip: D is by channels.
        dt_limit: delta is clamped to this range.
        backend: as in the ops.

    Returns:
        `[B, 1, C]` in the dtype of x, or None.
    """
    step = _served("mamba2_step", backend, x)
    if step is None:
        return None
    return step(
        x, conv_state, state, in_weight, in_bias, conv_weight, conv_bias, dt_bias, A_log, D, norm_weight,
        out_weight, out_bias, norm_eps, norm_before_gate, groups, channel_skip, dt_limit,
    )  # fmt: skip


def rglru_step(
    x: Tensor,
    conv_state: Tensor,
    state: Tensor,
    *,
    in_weight: Tensor,
    in_bias: Tensor | None,
    gate_weight: Tensor,
    gate_bias: Tensor | None,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    r_weight: Tensor,
    r_bias: Tensor,
    i_weight: Tensor,
    i_bias: Tensor,
    a_log: Tensor,
    out_weight: Tensor,
    out_bias: Tensor | None,
    c: float = 8.0,
    backend: str | None = None,
) -> Tensor | None:
    """Advance the RG-LRU by one cell; both states change in place.

    Args:
        x: `[B, 1, C]`; all projections have its dtype.
        conv_state: `[B, D, K]`, newest last, in any real dtype.
        state: `[B, D, 1]`, fp32, or fp64 where anything is.
        in_weight: `[D, C]`.
        in_bias: `[D]`.
        gate_weight: `[D, C]`; GELU (by erf) follows.
        gate_bias: `[D]`.
        conv_weight: `[D, 1, K]`.
        conv_bias: `[D]`.
        r_weight: of the recurrence gate, `[D, D]`.
        r_bias: `[D]`.
        i_weight: of the input gate, `[D, D]`.
        i_bias: `[D]`.
        a_log: `[D, 1]`, a = sigmoid(a_log).
        out_weight: `[C, D]`.
        out_bias: `[C]`.
        c: factor of the recurrence gate.
        backend: as in the ops.

    Returns:
        `[B, 1, C]` in the dtype of x, or None.
    """
    step = _served("rglru_step", backend, x)
    if step is None:
        return None
    return step(
        x, conv_state, state, in_weight, in_bias, gate_weight, gate_bias, conv_weight, conv_bias, r_weight,
        r_bias, i_weight, i_bias, a_log, out_weight, out_bias, c,
    )  # fmt: skip


def s5_step(
    u: Tensor,
    state: Tensor,
    *,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    log_dt: Tensor,
    timesteps: Tensor | None = None,
    discretization: str = "zoh",
    step_rescale: float = 1.0,
    conj_sym: bool = False,
    backend: str | None = None,
) -> Tensor | None:
    """Advance S5 by one cell; the state changes in place.

    Args:
        u: `[B, 1, C]`.
        state: `[B, N]`, complex64, or complex128 where anything is fp64.
        A: `[N, 2]`, real and imaginary parts, as in B and C.
        B: `[N, C, 2]`, in the dtype of u, as `C`.
        C: `[C, N, 2]`.
        D: `[C]`.
        log_dt: `[N]`.
        timesteps: `[B]`; the decay is then that of timestep * dt.
        discretization: "zoh" or "async" (the same), "bilinear" or "dirac".
        step_rescale: factor on dt = exp(log_dt).
        conj_sym: twice the real part.
        backend: as in the ops.

    Returns:
        y `[B, 1, C]` in the dtype of u, or None.
    """
    step = _served("s5_step", backend, u)
    if step is None:
        return None
    return step(u, state, A, B, C, D, log_dt, timesteps, discretization, step_rescale, conj_sym)


def _served(name: str, backend: str | None, x: Tensor) -> Any:
    """The fused step, where nothing watches the ops that it would hide."""
    if not x.is_cpu and not x.is_cuda:
        return None
    if traced() or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu" if x.is_cpu else "cuda"):
        return None
    if torch._C._functorch.peek_interpreter_stack() is not None or torch._C._get_tracing_state() is not None:
        return None
    if torch._C._len_torch_function_stack():
        return None
    return fused_step(name, backend, x.device if x.is_cuda else None)
