"""Reference of `ssd_scan`: s = exp(Δ A_h) s + Δ x Bᵀ, y = s C + D x, gated by SiLU(z); one decay per head."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from nvsubq.ops.numerics import accumulation_dtype, cast
from nvsubq.ops.reference.walking import blocks_of, hide_absent, stack_cells, walk_cells


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
    reverse=False,
):
    del chunk_size  # how a backend cuts the walk; the answer does not depend on it
    batch, length, heads, head_width = x.shape
    given = (x, dt, A, B, C, D, z, dt_bias, initial_state)
    dtype = accumulation_dtype(*given)
    x_, dt, A, B, C, D, z, dt_bias, state = cast(dtype, *given)
    x_, dt, B, C, z = hide_absent(seq_idx, x_, dt, B, C, z)
    if state is None:
        state = torch.zeros(batch, heads, head_width, B.shape[3], dtype=dtype, device=x.device)
    if D is not None and D.dim() == 1:
        D = D[:, None]

    def one_block(cells, x, dt, A, B, C, D, z, dt_bias, state):
        heads_per_group = x.shape[2] // B.shape[2]

        def step(state: Tensor, cell: int, fresh: Tensor) -> tuple[Tensor, Tensor]:
            del fresh
            d = dt[:, cell] if dt_bias is None else dt[:, cell] + dt_bias
            d = (F.softplus(d) if dt_softplus else d).clamp(*dt_limit)[..., None, None]  # (B, H, 1, 1)
            b = B[:, cell].repeat_interleave(heads_per_group, 1)[:, :, None]  # (B, H, 1, N)
            c = C[:, cell].repeat_interleave(heads_per_group, 1)[:, :, None]
            state = torch.exp(d * A[:, None, None]) * state + d * x[:, cell, ..., None] * b
            y = (state * c).sum(-1)
            y = y if D is None else y + D * x[:, cell]
            return state, y if z is None else y * F.silu(z[:, cell])

        outputs, final = walk_cells(cells, state, initial_state is None, seq_idx, step)
        return stack_cells(outputs, x.new_empty(batch, x.shape[2], head_width)), final

    channels = (x_, 2), (dt, 2), (A, 0), (B, 2), (C, 2), (D, 0), (z, 2), (dt_bias, 0), (state, 1)
    done = [one_block(*block) for block in blocks_of(length, order, reverse, *channels)]
    y = torch.cat([y for y, _ in done], 2).to(x.dtype)
    return (y, torch.cat([state for _, state in done], 1)) if return_final_state else y


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
    y, new = ssd_scan(
        x[:, None],
        dt[:, None],
        A,
        B[:, None],
        C[:, None],
        D,
        None if z is None else z[:, None],
        dt_bias=dt_bias,
        dt_softplus=dt_softplus,
        dt_limit=dt_limit,
        initial_state=state,
        return_final_state=True,
    )
    state.copy_(new)
    return y[:, 0]
