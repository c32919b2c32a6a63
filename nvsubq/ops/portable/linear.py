"""`linear_scan` of the portable backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nvsubq.ops.numerics import (
    accumulation_dtype,
    bounded_sqrt,
    cast,
    complex_of,
    one_minus_square,
)
from nvsubq.ops.portable.blockwise import blockwise
from nvsubq.ops.portable.expm1 import expm1_over
from nvsubq.ops.portable.recurrence import Tiling, diagonal_recurrence, first_cell, tile_elements
from nvsubq.ops.portable.walking import gather, masks, plan, widen


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
    reverse: bool | Sequence[bool] = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Backend of `nvsubq.ops.linear_scan`, with its arguments."""
    dtype = accumulation_dtype(a, b, dt, initial_state)
    if a.is_complex() or b.is_complex():
        dtype = complex_of(dtype)
    out_dtype = complex_of(b.dtype) if a.is_complex() and not b.is_complex() else b.dtype
    state: Any = None if initial_state is None else initial_state.to(dtype)
    direct = dt is None and input_scale == "none"
    walk, backwards = plan(b.shape[1], order, reverse, seq_idx, b.device, both_ways=direct)
    keep, present = masks(walk, dtype)
    (x,) = gather(walk, b)
    if a.dim() > 1:
        (a,) = gather(walk, a)
    if x.numel() == 0:
        state = x.new_zeros(len(b), b.shape[2], dtype=dtype) if state is None else state
        h = x.to(dtype)
    elif direct:
        decay, x = _masked(a.to(dtype), x.to(dtype), keep, present)
        h = diagonal_recurrence(decay, x, state, reverse=backwards)
        state = h[:, first_cell(not backwards)]
    else:
        if dt is not None and dt.dim() == 2 and walk is not None and walk.blocks > 1:
            # wide first: the gradient of the expansion is a sum over channels, too coarse in bf16
            dt = dt.to(dtype.to_real()).unsqueeze(2).expand(*dt.shape, b.shape[2])
        if dt is not None and walk is not None:
            dt = walk.gather(dt)
        h, state = _scaled(a, x, dt, discretization, input_scale, state, keep, present, dtype)
    y = (h if walk is None else walk.scatter(h)).to(out_dtype)
    return (y, state) if return_final_state else y


def _masked(decay: Tensor, b: Tensor, keep: Tensor | None, present: Tensor | None) -> tuple[Tensor, Tensor]:
    """Decays that drop the state where a sequence starts and keep it where there is no cell."""
    if keep is not None:
        decay = decay * widen(keep, b.shape[2])
    if present is not None:
        decay = torch.where(present.real.unsqueeze(-1) > 0, decay, 1)
        b = b * present.unsqueeze(-1)
    return decay, b


def _scaled(
    a, b, dt, discretization, input_scale, state, keep, present, dtype
) -> tuple[Tensor, Tensor | None]:
    def block(over_cells: list, shared: list, state: Tensor | None, leaves: bool) -> tuple[Tensor, Tensor]:
        del leaves
        a, b, dt, keep, present = over_cells
        a = shared[0] if a is None else a
        decay, scale = decay_and_scale(a, dt, discretization, input_scale)
        decay, b = _masked(decay.to(dtype), (scale * b).to(dtype), keep, present)
        h = diagonal_recurrence(decay, b, state)
        return h, h[:, -1]

    real = torch.float64 if dtype in (torch.float64, torch.complex128) else torch.float32
    a, b, dt = cast(real, a, b, dt)
    dt = dt.unsqueeze(-1) if dt is not None and dt.dim() == 2 else dt
    over_cells, shared = ([None], [a]) if a.dim() == 1 else ([a], [None])
    tiling = Tiling.plan(b.shape[0], b.shape[1], b.shape[2], tile_elements(b.device) // 2)
    return blockwise(block, tiling, state, [*over_cells, b, dt, keep, present], shared)


def decay_and_scale(
    a: Tensor, dt: Tensor | None, discretization: str, input_scale: str
) -> tuple[Tensor, Tensor | float]:
    """Give the decay and the factor of b: `a` is the decay itself without `dt`, a rate with it."""
    if dt is None:
        square = a.real.square() + a.imag.square() if a.is_complex() else a.square()
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
        # |1 - z/2|^2 - |1 + z/2|^2 = -2 Re z: 1 - |decay|^2 without the difference of two near-equal numbers
        inside = -2 * z_real / (1 - z / 2).abs().square() if bilinear else one_minus_square(z_real)
        return decay, bounded_sqrt(inside)
    return decay, 1.0
