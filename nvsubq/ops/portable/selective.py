"""`selective_scan` of the portable backend: follows the walk, then picks the fast or the general scan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nvsubq.ops.numerics import accumulation_dtype, cast
from nvsubq.ops.portable.recurrence import Tiling, tile_elements
from nvsubq.ops.portable.selective_fast import FastScan
from nvsubq.ops.portable.selective_general import general_scan
from nvsubq.ops.portable.selective_tensors import Tensors
from nvsubq.ops.portable.selective_tile import Options
from nvsubq.ops.portable.walking import gather, masks, plan
from nvsubq.ops.walks import Walk


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
    over_cells = (u, delta, B, C, z, delta_a, timesteps, decay_gate)
    dtype = accumulation_dtype(*over_cells, A, D, delta_bias, initial_state)
    A, D, delta_bias, state = cast(dtype, A, D, delta_bias, initial_state)
    exponential = discretization in ("mamba", "dirac") and not A.is_complex() and decay_gate is None
    fast = exponential and B.dim() > 2 and C.dim() > 2 and u.numel() > 0
    walk, backwards = plan(u.shape[1], order, reverse, seq_idx, u.device, both_ways=fast)
    keep, present = masks(walk, dtype)
    x, delta, z = gather(walk, u, delta, z)
    B, C, decay_gate = _grouped(walk, B, C, decay_gate)
    delta_a, timesteps = _decay_step(walk, dtype, delta_a, timesteps)
    tensors = Tensors(
        x, delta, A, B, C, D, z, delta_bias, delta_a, timesteps, decay_gate, state, keep, present
    )
    if fast:
        y, final = _fast(tensors, delta_softplus, discretization == "mamba", backwards)
    else:
        y, final = general_scan(tensors, delta_softplus, discretization)
    y = (y if walk is None else walk.scatter(y)).to(u.dtype)
    return (y, final) if return_final_state else y


def _fast(tensors: Tensors, softplus: bool, scaled_input: bool, reverse: bool) -> tuple[Tensor, Tensor]:
    batch, length, width = tensors.u.shape
    groups, d_state = tensors.B.shape[2:]
    keep, state = tensors.keep, tensors.state
    if keep is not None and keep.shape[2] > 1:
        keep = keep.repeat_interleave(groups // keep.shape[2], 2)
    if state is not None:
        state = state.unflatten(1, (groups, -1)).transpose(2, 3).contiguous()
    # the states at block borders take N/cells of the bytes of `u`, so the cells of a block grow with N
    least = min(max(16, 2 * d_state), 128)
    tiling = Tiling.plan(batch, length, width * d_state, tile_elements(tensors.u.device), least)
    options = Options(softplus, scaled_input, reverse, tiling)
    y, final = FastScan.apply(options, *tensors._replace(keep=keep, state=state))
    return y, final.transpose(2, 3).flatten(1, 2)


def _decay_step(
    walk: Walk | None, dtype: torch.dtype, delta_a: Tensor | None, timesteps: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """The step of the decay in walk order: `[B, L, D]`, or `[D]` with timesteps `[B, L]`."""
    delta_a, timesteps = cast(dtype, delta_a, timesteps)
    if walk is None or delta_a is None:
        return delta_a, timesteps
    if timesteps is None:
        return walk.gather(delta_a), None
    if walk.blocks == 1:
        return delta_a, walk.gather(timesteps)
    # The blocks meet a timestep at different steps, so here the product has to be written out.
    return walk.spread(timesteps).repeat_interleave(delta_a.shape[0] // walk.blocks, 2) * delta_a, None


def _grouped(walk: Walk | None, *tensors: Any) -> list[Any]:
    """B, C and the gate as `[B, L, G, N]` in walk order, with one G; `[D, N]` stays as it is."""
    over_cells = [t is not None and t.dim() > 2 for t in tensors]
    wide = [t.unsqueeze(2) if o and t.dim() == 3 else t for t, o in zip(tensors, over_cells, strict=True)]
    groups = max((t.shape[2] for t, o in zip(wide, over_cells, strict=True) if o), default=1)
    wide = [t.expand(-1, -1, groups, -1) if o else t for t, o in zip(wide, over_cells, strict=True)]
    return [walk.gather(t) if o and walk else t for t, o in zip(wide, over_cells, strict=True)]
