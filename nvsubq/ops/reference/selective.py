"""Reference of `selective_scan`: s = Ā s + (B̄ B) u, y = C s + D u, gated by SiLU(z)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nvsubq.ops.numerics import accumulation_dtype, cast, complex_of, expm1_over
from nvsubq.ops.reference.walking import blocks_of, hide_absent, stack_cells, walk_cells


def discretize(discretization: str, delta_a: Tensor, delta: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    """Give the decay Ā and the factor that multiplies B u, both `[B, D, N]`, for one cell.

    `delta_a` `[B, D]` acts in the decay, `delta` `[B, D]` in the factor, `A` is `[D, N]`.
    """
    delta_a, delta = delta_a[..., None], delta[..., None]
    if discretization == "no_discretization":
        return A.expand(*delta.shape[:-1], -1), torch.ones_like(delta * A)
    if discretization == "bilinear":
        return (1 + delta_a * A / 2) / (1 - delta_a * A / 2), delta / (1 - delta * A / 2)
    factors = {
        "mamba": lambda: delta.expand_as(delta * A),
        "zoh": lambda: delta * expm1_over(delta * A),
        "async": lambda: delta * expm1_over(delta * A),
        "dirac": lambda: torch.ones_like(delta * A),
    }
    return torch.exp(delta_a * A), factors[discretization]()


def _per_channel(x: Tensor, channels: int) -> Tensor:
    """Spread B, C or the gate of one cell, `[B, N]`, `[B, G, N]` or fixed `[1, D, N]`, to channels."""
    if x.dim() == 2:
        return x[:, None]
    return x.repeat_interleave(channels // x.shape[1], 1)


def _axis(x: Tensor | None) -> int:
    """Where B, C or the gate holds the blocks; with `[B, L, N]` there is but one."""
    return 0 if x is not None and x.dim() == 2 else 2


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
    reverse=False,
):
    batch, length, width = u.shape
    given = (u, delta, A, B, C, D, z, delta_bias, delta_a, timesteps, decay_gate, initial_state)
    dtype = accumulation_dtype(*given)
    u_, delta, A, B, C, D, z, delta_bias, delta_a, timesteps, decay_gate, state = cast(dtype, *given)
    u_, delta, B, C, z, delta_a, decay_gate = hide_absent(seq_idx, u_, delta, B, C, z, delta_a, decay_gate)
    if timesteps is not None:
        (timesteps,) = hide_absent(seq_idx, timesteps[..., None])
        delta_a = timesteps * delta_a
    if state is None:
        state_dtype = complex_of(dtype) if A.is_complex() else dtype
        state = torch.zeros(batch, width, A.shape[1], dtype=state_dtype, device=u.device)

    def one_block(cells, u, delta, A, B, C, D, z, delta_bias, delta_a, decay_gate, state):
        def at(x: Tensor, cell: int) -> Tensor:
            return _per_channel(x[None] if x.dim() == 2 else x[:, cell], u.shape[2])

        def step(state: Tensor, cell: int, fresh: Tensor) -> tuple[Tensor, Tensor]:
            del fresh
            d = delta[:, cell] if delta_bias is None else delta[:, cell] + delta_bias
            d = F.softplus(d) if delta_softplus else d
            decay, factor = discretize(discretization, d if delta_a is None else delta_a[:, cell], d, A)
            if decay_gate is not None:
                decay = decay * at(decay_gate, cell)
            state = decay * state + factor * at(B, cell) * u[:, cell, :, None]
            y = (at(C, cell) * state).sum(-1)
            y = 2 * y.real if y.is_complex() else y
            y = y if D is None else y + D * u[:, cell]
            return state, y if z is None else y * F.silu(z[:, cell])

        outputs, state = walk_cells(cells, state, initial_state is None, seq_idx, step)
        return stack_cells(outputs, u.new_empty(batch, u.shape[2])), state

    rates = (A, 0), (B, _axis(B)), (C, _axis(C)), (D, 0)
    decays = (delta_bias, 0), (delta_a, 2), (decay_gate, _axis(decay_gate)), (state, 1)
    blocks = blocks_of(length, order, reverse, (u_, 2), (delta, 2), *rates, (z, 2), *decays)
    done = [one_block(*block) for block in blocks]
    y = torch.cat([y for y, _ in done], 2).to(u.dtype)
    return (y, torch.cat([state for _, state in done], 1)) if return_final_state else y


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
    def one_cell(x: Tensor | None) -> Tensor | None:
        return None if x is None else x[:, None]

    y, new = selective_scan(
        u[:, None],
        delta[:, None],
        A,
        B[:, None],
        C[:, None],
        D,
        one_cell(z),
        delta_bias=delta_bias,
        delta_softplus=delta_softplus,
        delta_a=one_cell(delta_a) if timesteps is None else delta_a,
        timesteps=one_cell(timesteps),
        decay_gate=one_cell(decay_gate),
        discretization=discretization,
        initial_state=state,
        return_final_state=True,
    )
    state.copy_(new)
    return y[:, 0]
