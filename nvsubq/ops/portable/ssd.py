"""`ssd_scan` of the portable backend: chunks as masked matrix products, a state passed between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nvsubq.ops.numerics import accumulation_dtype, cast
from nvsubq.ops.once import once_differentiable
from nvsubq.ops.portable.blockwise import blockwise
from nvsubq.ops.portable.recurrence import Tiling, even_part, tile_elements
from nvsubq.ops.portable.walking import gather, masks, plan

_CHUNK = 64


class _Decays(torch.autograd.Function):
    """Decays over the steps after j up to i, `[B, H, T, T]` (0 for i < j), and from the start, `[B, H, T]`.

    The running sums of `log_decay` `[B, H, T]` are kept in double precision: in fp32 the difference of two of
    them would lose the small steps after a large one. `same` `[B, H, T, T]` is False where i and j belong to
    different sequences, which then do not share a bit.
    """

    @staticmethod
    def forward(ctx, log_decay: Tensor, same: Tensor | None):  # type: ignore[override]
        steps = log_decay.shape[-1]
        upto = torch.ones(steps, steps, dtype=torch.bool, device=log_decay.device).tril()
        upto = upto if same is None else upto & same
        sums = _sums(upto, log_decay)
        decays = (sums.unsqueeze(-1) - sums.unsqueeze(-2)).to(log_decay.dtype)
        decays.masked_fill_(~upto, -math.inf).exp_()
        since_start = sums.exp().to(log_decay.dtype)
        ctx.save_for_backward(upto, decays, since_start)
        return decays, since_start

    @staticmethod
    @once_differentiable
    def backward(ctx, d_decays: Tensor, d_since: Tensor):  # type: ignore[override]
        upto, decays, since_start = ctx.saved_tensors
        parts = (d_decays * decays).tril_(-1)  # on the diagonal the sum is empty
        d_sums = parts.sum(-1, dtype=_wide(parts)) - parts.sum(-2, dtype=_wide(parts))
        d_log = _sums(upto.transpose(-1, -2), d_sums + d_since * since_start)
        return d_log.to(decays.dtype), None


def _sums(which: Tensor, x: Tensor) -> Tensor:
    """Sum `x` `[B, H, T]` over the steps that `which` names; cumsum is not deterministic on CUDA."""
    x = x.to(_wide(x))
    if which.dim() == 2:
        return x @ which.t().to(x.dtype)
    return torch.matmul(which.to(x.dtype), x.unsqueeze(-1)).squeeze(-1)


def _wide(x: Tensor) -> torch.dtype:
    return x.dtype if x.device.type == "mps" else torch.float64  # MPS has no double precision


@dataclass(frozen=True)
class _Chunk:
    """The op on one chunk of cells, walked forwards. Heads are split into groups: `[B, G, H/G, ...]`."""

    softplus: bool
    limit: tuple[float, float]
    dtype: torch.dtype

    def __call__(
        self, over_cells: list, shared: list, state: Tensor | None, leaves: bool
    ) -> tuple[Tensor, Tensor | None]:
        x, dt, B, C, z, keep, present = cast(self.dtype, *over_cells)
        A, D, dt_bias = shared
        groups = B.shape[2]
        dt = self._step(dt, dt_bias, present)
        log_decay = (dt * A).transpose(1, 2)  # (B, H, T)
        same, first = _sequences(keep, x.shape[2])
        decays, since_start = _Decays.apply(log_decay, same)  # (B, H, T, T), (B, H, T)
        B, C = (t.transpose(1, 2) for t in (B, C))  # (B, G, T, N)
        inputs = x.transpose(1, 2) * dt.transpose(1, 2).unsqueeze(-1)  # (B, H, T, P)
        scores = torch.matmul(C, B.transpose(2, 3)).unsqueeze(2)  # (B, G, 1, T, T)
        weights = scores * decays.unflatten(1, (groups, -1))
        y = torch.matmul(weights.flatten(1, 2), inputs)
        leaving = None
        if leaves:
            leaving = _outer(inputs * decays[:, :, -1].unsqueeze(-1), B)
        if state is not None:
            since_start = since_start.unsqueeze(-1) if first is None else since_start.unsqueeze(-1) * first
            y = y + _read(state, C) * since_start
            leaving = leaving + since_start[:, :, -1:] * state if leaves else None
        y = y.transpose(1, 2)
        y = y if D is None else y + D * x
        return y if z is None else y * F.silu(z), leaving

    def _step(self, dt: Tensor, bias: Tensor | None, present: Tensor | None) -> Tensor:
        dt = dt if bias is None else dt + bias
        dt = F.softplus(dt) if self.softplus else dt
        dt = dt if self.softplus and self.limit == (0.0, math.inf) else dt.clamp(*self.limit)
        return dt if present is None else dt * present.unsqueeze(-1)


def _sequences(keep: Tensor | None, heads: int) -> tuple[Tensor | None, Tensor | None]:
    """Which steps share a sequence `[B, H, T, T]`, and which are in the one that entered `[B, H, T, 1]`."""
    if keep is None:
        return None, None
    number = (keep == 0).cumsum(1).transpose(1, 2).repeat_interleave(heads // keep.shape[2], 1)
    return number.unsqueeze(-1) == number.unsqueeze(-2), (number == 0).to(keep.dtype).unsqueeze(-1)


def _outer(inputs: Tensor, B: Tensor) -> Tensor:
    """Sum x B^T over steps: `[B, H, T, P]` and `[B, G, T, N]` give `[B, H, P, N]`, a group at once."""
    batch, heads, steps, width = inputs.shape
    groups = B.shape[1]
    rows = (
        inputs.unflatten(1, (groups, -1)).transpose(3, 4).reshape(batch, groups, -1, steps)
    )  # (B, G, H/G P, T)
    return torch.matmul(rows, B).view(batch, heads, width, -1)


def _read(state: Tensor, C: Tensor) -> Tensor:
    """Read the entering state at each step: `[B, H, P, N]` and `[B, G, T, N]` give `[B, H, T, P]`."""
    batch, _, width, n = state.shape
    columns = state.reshape(batch, C.shape[1], -1, n).transpose(2, 3)  # (B, G, N, H/G P)
    read = torch.matmul(C, columns).unflatten(3, (-1, width))  # (B, G, T, H/G, P)
    return read.transpose(2, 3).flatten(1, 2)


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
    """Backend of `nvsubq.ops.ssd_scan`, with its arguments; `chunk_size` is the most cells in one product."""
    batch, length, heads, head_width = x.shape
    dtype = accumulation_dtype(x, dt, A, B, C, D, z, dt_bias, initial_state)
    A, D, dt_bias, state = cast(dtype, A, D, dt_bias, initial_state)
    D = D[:, None] if D is not None and D.dim() == 1 else D
    walk, _ = plan(length, order, reverse, seq_idx, x.device, both_ways=False)
    keep, present = masks(walk, dtype)
    if x.numel() == 0:
        empty = x.new_zeros(batch, heads, head_width, B.shape[3], dtype=dtype) if state is None else state + 0
        return (x + 0, empty) if return_final_state else x + 0
    over_cells = gather(walk, x, dt, B, C, z)
    chunks = max(1, -(-length // (chunk_size or _CHUNK)))
    cells = -(-length // chunks)
    widest = heads * max(cells * cells, cells * head_width, head_width * B.shape[3])
    tiling = Tiling(batch, length, even_part(batch, tile_elements(x.device) // widest), cells)
    chunk = _Chunk(dt_softplus, (dt_limit[0], dt_limit[1]), dtype)
    y, final = blockwise(
        chunk, tiling, state, [*over_cells, keep, present], [A, D, dt_bias], final=return_final_state
    )
    y = (y if walk is None else walk.scatter(y)).to(x.dtype)
    return y if final is None else (y, final)
