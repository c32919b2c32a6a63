"""Reference of `linear_scan`: h = a h + b, real or complex."""

from __future__ import annotations

import torch
from torch import Tensor

from nvsubq.ops.numerics import (
    accumulation_dtype,
    bounded_sqrt,
    cast,
    complex_of,
    expm1_over,
    one_minus_square,
)
from nvsubq.ops.reference.walking import blocks_of, hide_absent, stack_cells, walk_cells


def decay_and_scale(
    a: Tensor, dt: Tensor | None, discretization: str, input_scale: str
) -> tuple[Tensor, Tensor | float]:
    """Give the decay ā and the factor of b for one cell: `a` is ā itself without `dt`, a rate with it."""
    if dt is None:
        square = a.real**2 + a.imag**2 if a.is_complex() else a**2
        return a, bounded_sqrt(1 - square) if input_scale == "sqrt" else 1.0
    z = dt * a
    bilinear = discretization == "bilinear"
    decay = (1 + z / 2) / (1 - z / 2) if bilinear else torch.exp(z)
    if input_scale == "zoh":
        return decay, dt * expm1_over(z)
    if input_scale == "bilinear":
        return decay, dt / (1 - z / 2)
    if input_scale == "sqrt":
        z_real = z.real if z.is_complex() else z
        # |1 - z/2|^2 - |1 + z/2|^2 = -2 Re z: 1 - |ā|^2 without the difference of two near-equal numbers
        inside = -2 * z_real / (1 - z / 2).abs() ** 2 if bilinear else one_minus_square(z_real)
        return decay, bounded_sqrt(inside)
    return decay, 1.0


def linear_scan(
    a: Tensor,
    b: Tensor,
    *,
    dt: Tensor | None = None,
    discretization: str = "zoh",
    input_scale: str = "none",
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    seq_idx: Tensor | None = None,
    order: Tensor | None = None,
    reverse=False,
):
    batch, length, width = b.shape
    dtype = accumulation_dtype(a, b, dt, initial_state)
    out_dtype = complex_of(b.dtype) if a.is_complex() and not b.is_complex() else b.dtype
    a, b_, dt, state = cast(dtype, a, b, dt, initial_state)
    if dt is not None and dt.dim() == 2:
        dt = dt[..., None].expand(b.shape)
    a, b_, dt = hide_absent(seq_idx, a, b_, dt)
    if state is None:
        state = torch.zeros(batch, width, dtype=torch.promote_types(a.dtype, b_.dtype), device=b.device)

    def one_block(cells, a, b, dt, state):
        def step(state: Tensor, cell: int, fresh: Tensor) -> tuple[Tensor, Tensor]:
            del fresh
            dt_here = None if dt is None else dt[:, cell] if dt.dim() == 3 else dt[:, cell, None]
            decay, scale = decay_and_scale(
                a if a.dim() == 1 else a[:, cell], dt_here, discretization, input_scale
            )
            state = decay * state + scale * b[:, cell]
            return state, state

        outputs, final = walk_cells(cells, state, initial_state is None, seq_idx, step)
        return stack_cells(outputs, state), final

    blocks = blocks_of(length, order, reverse, (a, -1), (b_, 2), (dt, 2), (state, 1))
    done = [one_block(*block) for block in blocks]
    y = torch.cat([y for y, _ in done], 2).to(out_dtype)
    return (y, torch.cat([state for _, state in done], 1)) if return_final_state else y


def linear_state_update(
    state: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    dt: Tensor | None = None,
    discretization: str = "zoh",
    input_scale: str = "none",
) -> Tensor:
    y, new = linear_scan(
        a if a.dim() == 1 else a[:, None],
        b[:, None],
        dt=None if dt is None else dt[:, None],
        discretization=discretization,
        input_scale=input_scale,
        initial_state=state,
        return_final_state=True,
    )
    state.copy_(new)
    return y[:, 0]
