"""`causal_conv1d` of the portable backend: K shifted multiply-adds, tile by tile, both passes by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nvsubq.ops.numerics import accumulation_dtype, to_accumulate
from nvsubq.ops.once import once_differentiable
from nvsubq.ops.portable.recurrence import Tiling, tile_elements
from nvsubq.ops.portable.walking import plan, widen
from nvsubq.ops.walks import Walk


@dataclass(frozen=True)
class _Plan:
    """Activation, distance of taps, direction, cut over the outputs, inputs before the first output."""

    silu: bool
    dilation: int
    reverse: bool
    tiling: Tiling
    before: int

    def source(self, cells: slice, lag: int) -> tuple[slice, slice]:
        """Outputs (relative to the block) and inputs that a tap `lag` steps back connects."""
        if self.reverse:
            stop = min(cells.stop, self.tiling.length - lag)
            return slice(0, max(0, stop - cells.start)), slice(
                cells.start + lag, max(stop, cells.start) + lag
            )
        start = max(cells.start, lag - self.before)
        shift = self.before - lag
        start = min(start, cells.stop)
        return slice(start - cells.start, cells.stop - cells.start), slice(start + shift, cells.stop + shift)


class _Conv(torch.autograd.Function):
    """x `[B, W + L, D]`, taps `[K, D]` oldest first, bias `[D]`, a mask `[B, L, 1 or D]` per tap or none."""

    @staticmethod
    def forward(ctx, plan: _Plan, x: Tensor, taps: Tensor, bias: Tensor | None, *masks: Tensor):  # type: ignore[override]
        y = x.new_empty(x.shape[0], plan.tiling.length, x.shape[2])
        for rows in plan.tiling.row_tiles():
            for cells in plan.tiling.cell_blocks():
                out = _sum_of_taps(plan, x, taps, bias, masks, rows, cells)
                y[rows, cells] = F.silu(out) if plan.silu else out
        ctx.save_for_backward(x, taps, bias, *masks)
        ctx.plan = plan
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, d_y: Tensor):  # type: ignore[override]
        x, taps, bias, *masks = ctx.saved_tensors
        plan = ctx.plan
        d_x = torch.zeros(x.shape, dtype=taps.dtype, device=x.device)
        d_taps = torch.zeros_like(taps)
        d_bias = None if bias is None else torch.zeros_like(bias)
        for rows in plan.tiling.row_tiles():
            for cells in plan.tiling.cell_blocks():
                g = d_y[rows, cells].to(taps.dtype)
                if plan.silu:
                    out = _sum_of_taps(plan, x, taps, bias, masks, rows, cells)
                    g = torch.ops.aten.silu_backward(g, out)
                if d_bias is not None:
                    d_bias += g.sum((0, 1))
                for k, tap in enumerate(taps):
                    to, source = plan.source(cells, (len(taps) - 1 - k) * plan.dilation)
                    here = g[:, to] * masks[k][rows, cells][:, to] if masks else g[:, to]
                    d_taps[k] += (here * x[rows, source]).sum((0, 1))
                    d_x[rows, source].addcmul_(here, tap)
        return None, d_x.to(x.dtype), d_taps, d_bias, *[None] * len(masks)


def _sum_of_taps(
    plan: _Plan, x: Tensor, taps: Tensor, bias: Tensor | None, masks, rows: slice, cells: slice
) -> Tensor:
    newest = x[rows, plan.source(cells, 0)[1]].to(taps.dtype)
    out = newest * taps[-1] if bias is None else torch.addcmul(bias, newest, taps[-1])
    for k in range(len(taps) - 1):
        to, source = plan.source(cells, (len(taps) - 1 - k) * plan.dilation)
        old = x[rows, source].to(taps.dtype)
        out[:, to].addcmul_(old * masks[k][rows, cells][:, to] if masks else old, taps[k])
    return out


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    dilation: int = 1,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    seq_idx: Tensor | None = None,
    order: Tensor | None = None,
    reverse: bool | Sequence[bool] = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Backend of `nvsubq.ops.causal_conv1d`, with its arguments."""
    batch, length, width = x.shape
    reach = (weight.shape[1] - 1) * dilation
    dtype = accumulation_dtype(x, weight, bias, initial_state)
    plain = initial_state is None and not return_final_state
    walk, backwards = plan(length, order, reverse, seq_idx, x.device, both_ways=plain)
    walked = x if walk is None else walk.gather(x)
    window, before = walked, 0
    if initial_state is not None:
        window = torch.cat([initial_state.transpose(1, 2).to(dtype), walked.to(dtype)], 1)
        before = initial_state.shape[2]
    y = walked
    if x.numel():
        tiling = Tiling.plan(batch, length, width, tile_elements(x.device) // 4)
        masks = _tap_masks(walk, weight.shape[1], dilation, before, width, dtype)
        run = _Plan(activation == "silu", dilation, backwards, tiling, before)
        taps = weight.to(dtype).t().contiguous()
        y = _Conv.apply(run, window, taps, to_accumulate(bias, dtype), *masks).to(x.dtype)
    y = y if walk is None else walk.scatter(y)
    if not return_final_state:
        return y
    kept = reach if initial_state is None else before
    final_dtype = x.dtype if initial_state is None else initial_state.dtype
    return y, _last_inputs(walk, window, before, kept).to(final_dtype)


def _tap_masks(
    walk: Walk | None, taps: int, dilation: int, before: int, width: int, dtype: torch.dtype
) -> list[Tensor]:
    """For each tap, oldest first: 1 where it stays in the sequence of its output. None without sequences."""
    if walk is None or walk.segment is None:
        return []
    number = F.pad(
        walk.segment, (0, 0, before, 0)
    )  # what came before belongs to the first sequence, number 0
    length = walk.length
    masks = []
    for k in range(taps):
        lag = (taps - 1 - k) * dilation
        mask = torch.zeros(walk.segment.shape, dtype=dtype, device=number.device)
        start = max(0, lag - before)
        if start < length:
            old = number[:, start + before - lag : length + before - lag]
            mask[:, start:] = (walk.segment[:, start:] == old).to(dtype)
        masks.append(widen(mask, width))
    return masks


def _last_inputs(walk: Walk | None, window: Tensor, before: int, kept: int) -> Tensor:
    """The last `kept` inputs of the sequence that the walk ends in: `[B, D, kept]`, 0 where it had fewer."""
    batch, total, width = window.shape
    if walk is None or walk.segment is None:
        tail = window[:, max(0, total - kept) :].transpose(1, 2)
        return F.pad(tail, (kept - tail.shape[2], 0))
    device = window.device
    count = torch.full((batch,), walk.length, device=device) if walk.count is None else walk.count
    at = (
        (before + count)[:, None] - kept + torch.arange(kept, device=device)
    )  # (B, kept), positions in the window
    inside = at >= 0
    at = at.clamp(min=0)
    number = F.pad(walk.segment, (0, 0, before, 0))  # (B, W + L, S)
    if not total:
        return window.new_zeros(batch, width, kept)
    last = (before + count - 1).clamp(min=0)
    rows = torch.arange(batch, device=device)
    same = inside[..., None] & (number[rows[:, None], at] == number[rows, last][:, None])  # (B, kept, S)
    taken = window[rows[:, None], at] * widen(same.to(window.dtype), width)
    return taken.transpose(1, 2)
