"""`ssd_scan` of the portable backend: chunks of cells as masked matrix products, one state passed between chunks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nvsubq.ops.numerics import accumulation_dtype, to_accumulate
from nvsubq.ops.portable.blockwise import blockwise
from nvsubq.ops.portable.recurrence import Tiling
from nvsubq.ops.portable.walking import gather, masks, plan

_CHUNK = 64


@dataclass(frozen=True)
class _Chunk:
    """The op on one chunk of cells, walked forwards."""

    softplus: bool
    limit: tuple[float, float]
    dtype: torch.dtype

    def __call__(self, over_cells: list, shared: list, state: Tensor) -> tuple[Tensor, Tensor]:
        x, dt, B, C, z, keep, present = (to_accumulate(t, self.dtype) for t in over_cells)
        A, D, dt_bias = shared
        heads, groups = x.shape[2], B.shape[2]
        dt = self._step(dt, dt_bias, present)
        log_decay = (dt * A).transpose(1, 2)  # (B, H, T)
        if keep is not None:
            keep = keep.transpose(1, 2).repeat_interleave(heads // keep.shape[2], 1)
            log_decay = log_decay.masked_fill(keep == 0, -math.inf)
        x_, B, C = (t.transpose(1, 2) for t in (x, B, C))  # (B, H, T, P), (B, G, T, N)
        between = _sums_between(log_decay)  # (B, H, T, T)
        inputs = x_ * dt.transpose(1, 2).unsqueeze(-1)
        weights = _per_head(torch.matmul(C, B.transpose(2, 3)), heads) * between.exp()
        since_start = log_decay.cumsum(2).exp().unsqueeze(-1)
        until_end = between[:, :, -1].exp().unsqueeze(-1)
        c, b = (_per_head(t, heads) for t in (C, B))
        y = torch.matmul(weights, inputs) + torch.matmul(c, state.transpose(2, 3)) * since_start
        state = since_start[:, :, -1:] * state + torch.matmul((inputs * until_end).transpose(2, 3), b)
        y = y.transpose(1, 2)
        y = y if D is None else y + D * x
        return y if z is None else y * F.silu(z), state

    def _step(self, dt: Tensor, bias: Tensor | None, present: Tensor | None) -> Tensor:
        dt = dt if bias is None else dt + bias
        dt = F.softplus(dt) if self.softplus else dt
        dt = dt if self.limit == (0.0, math.inf) and self.softplus else dt.clamp(*self.limit)
        return dt if present is None else dt * present.unsqueeze(-1)


def _sums_between(x: Tensor) -> Tensor:
    """`[..., T]` to `[..., T, T]`: the sum of x over the steps after j up to i, -inf for i < j.

    Each is summed on its own: a difference of two running sums would lose the small ones after a large step.
    """
    steps = x.shape[-1]
    lower = torch.ones(steps, steps, dtype=torch.bool, device=x.device).tril(-1)
    sums = torch.where(lower, x.unsqueeze(-1), 0).cumsum(-2)
    return sums.masked_fill(lower.t(), -math.inf)


def _per_head(x: Tensor, heads: int) -> Tensor:
    """Spread axis 1 from groups to heads."""
    return x if x.shape[1] == 1 else x.repeat_interleave(heads // x.shape[1], 1)


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
    reverse: bool | Sequence[bool] = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Backend of `nvsubq.ops.ssd_scan`, with its arguments; `chunk_size` is the number of cells in one product."""
    batch, length, heads, head_width = x.shape
    dtype = accumulation_dtype(x, dt, A, B, C, D, z, dt_bias, initial_state)
    A, D, dt_bias, state = (to_accumulate(t, dtype) for t in (A, D, dt_bias, initial_state))
    D = D[:, None] if D is not None and D.dim() == 1 else D
    walk, _ = plan(length, order, reverse, seq_idx, x.device, both_ways=False)
    keep, present = masks(walk, dtype)
    if state is None:
        state = x.new_zeros(batch, heads, head_width, B.shape[3], dtype=dtype)
    if x.numel() == 0:
        return (x + 0, state) if return_final_state else x + 0
    over_cells = gather(walk, x, dt, B, C, z)
    chunks = max(1, -(-length // (chunk_size or _CHUNK)))
    tiling = Tiling(batch, length, batch, -(-length // chunks))
    chunk = _Chunk(dt_softplus, tuple(dt_limit), dtype)
    y, final = blockwise(chunk, tiling, state, [*over_cells, keep, present], [A, D, dt_bias])
    y = (y if walk is None else walk.scatter(y)).to(x.dtype)
    return (y, final) if return_final_state else y
