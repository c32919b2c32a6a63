"""One step of each op: the state changes in place, nothing is recorded for autograd."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from nvsubq.ops.numerics import (
    accumulation_dtype,
    bounded_sqrt,
    cast,
    complex_of,
    expm1_over,
    one_minus_square,
)
from nvsubq.ops.portable.linear import decay_and_scale


@torch.no_grad()
def selective_state_update(
    state: Tensor,
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
) -> Tensor:
    """Backend of `nvsubq.ops.selective_state_update`, with its arguments."""
    given = (u, delta, A, B, C, D, z, delta_bias, delta_a, timesteps, decay_gate)
    dtype, out_dtype = accumulation_dtype(*given, state), u.dtype
    u, delta, A, B, C, D, z, delta_bias, delta_a, timesteps, decay_gate = cast(dtype, *given)
    delta = delta if delta_bias is None else delta + delta_bias
    delta = F.softplus(delta) if delta_softplus else delta
    if timesteps is not None:
        delta_a = timesteps.unsqueeze(-1) * delta_a
    delta, delta_a = delta.unsqueeze(-1), (delta if delta_a is None else delta_a).unsqueeze(-1)  # (B, D, 1)
    inputs = _per_channel(B, u.shape[1]) * u.unsqueeze(-1)
    decay, factor = _discretize(discretization, delta_a, delta, A)
    if decay_gate is not None:
        decay = decay * _per_channel(decay_gate, u.shape[1])
    state.copy_(decay * state + factor * inputs)
    y = (_per_channel(C, u.shape[1]) * state).sum(-1)
    y = 2 * y.real if y.is_complex() else y
    y = y if D is None else y + D * u
    return (y if z is None else y * F.silu(z)).to(out_dtype)


def _discretize(kind: str, delta_a: Tensor, delta: Tensor, A: Tensor) -> tuple[Tensor, Tensor | float]:
    """Give the decay and the factor of B u, which broadcast to `[B, D, N]`."""
    if kind == "no_discretization":
        return A, 1.0
    if kind == "bilinear":
        half = delta_a * A / 2
        return (1 + half) / (1 - half), delta / (1 - delta * A / 2)
    decay = torch.exp(delta_a * A)
    if kind == "dirac":
        return decay, 1.0
    return decay, delta if kind == "mamba" else delta * expm1_over(delta * A)


def _per_channel(x: Tensor, width: int) -> Tensor:
    """`[B, N]` or `[B, G, N]` as `[B, 1 or D, N]`."""
    return x.unsqueeze(1) if x.dim() == 2 else x.repeat_interleave(width // x.shape[1], 1)


@torch.no_grad()
def linear_state_update(
    state: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    dt: Tensor | None = None,
    discretization: str = "zoh",
    input_scale: str = "none",
) -> Tensor:
    """Backend of `nvsubq.ops.linear_state_update`, with its arguments."""
    dtype = accumulation_dtype(a, b, dt, state)
    out_dtype = b.dtype if b.is_complex() or not a.is_complex() else complex_of(b.dtype)
    a, b, dt = cast(dtype, a, b, dt)
    dt = dt.unsqueeze(-1) if dt is not None and dt.dim() == 1 else dt
    decay, scale = decay_and_scale(a, dt, discretization, input_scale)
    h = decay * state + scale * b
    state.copy_(h)
    return h.to(out_dtype)


@torch.no_grad()
def rglru_state_update(
    state: Tensor,
    x: Tensor,
    r: Tensor,
    i: Tensor,
    a_log: Tensor,
    gate: Tensor | None = None,
    *,
    r_bias: Tensor | None = None,
    i_bias: Tensor | None = None,
    c: float = 8.0,
    gelu: str = "erf",
) -> Tensor:
    """Backend of `nvsubq.ops.rglru_state_update`, with its arguments."""
    given = (x, r, i, a_log, gate, r_bias, i_bias)
    dtype, out_dtype = accumulation_dtype(*given, state), x.dtype
    x, r, i, a_log, gate, r_bias, i_bias = cast(dtype, *given)
    r = r if r_bias is None else r + r_bias
    i = i if i_bias is None else i + i_bias
    log_a = c * torch.sigmoid(r) * F.logsigmoid(a_log)
    norm = bounded_sqrt(one_minus_square(log_a))
    h = log_a.exp() * state + norm * torch.sigmoid(i) * x
    state.copy_(h)
    y = h if gate is None else h * F.gelu(gate, approximate="tanh" if gelu == "tanh" else "none")
    return y.to(out_dtype)


@torch.no_grad()
def ssd_state_update(
    state: Tensor,
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
) -> Tensor:
    """Backend of `nvsubq.ops.ssd_state_update`, with its arguments."""
    given = (x, dt, A, B, C, D, z, dt_bias)
    dtype, out_dtype = accumulation_dtype(*given, state), x.dtype
    x, dt, A, B, C, D, z, dt_bias = cast(dtype, *given)
    dt = dt if dt_bias is None else dt + dt_bias
    dt = (F.softplus(dt) if dt_softplus else dt).clamp(*dt_limit)  # (B, H)
    per_group = x.shape[1] // B.shape[1]
    b, c = (t.repeat_interleave(per_group, 1).unsqueeze(2) for t in (B, C))  # (B, H, 1, N)
    decay = torch.exp(dt * A)[..., None, None]
    state.copy_(decay * state + (dt.unsqueeze(-1) * x).unsqueeze(-1) * b)
    y = (state * c).sum(-1)
    if D is not None:
        y = y + (D[:, None] if D.dim() == 1 else D) * x
    return (y if z is None else y * F.silu(z)).to(out_dtype)


@torch.no_grad()
def causal_conv1d_update(
    state: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    dilation: int = 1,
) -> Tensor:
    """Backend of `nvsubq.ops.causal_conv1d_update`, with its arguments."""
    dtype = accumulation_dtype(x, weight, bias, state)
    taps = weight.shape[1]
    window = torch.cat([state, x.unsqueeze(-1).to(state.dtype)], -1)
    seen = window[..., window.shape[-1] - 1 - (taps - 1) * dilation :: dilation].to(dtype)
    seen[..., -1] = x  # as it is, where the state is kept in a narrower dtype
    y = (seen * weight.to(dtype)).sum(-1)
    y = y if bias is None else y + bias.to(dtype)
    state.copy_(window[..., 1:])
    return (F.silu(y) if activation == "silu" else y).to(x.dtype)
