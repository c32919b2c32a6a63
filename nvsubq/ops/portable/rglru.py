"""`rglru_scan` of the portable backend: gates, decay and normaliser are made block by block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nvsubq.ops.numerics import accumulation_dtype, bounded_sqrt, cast, one_minus_square
from nvsubq.ops.portable.blockwise import blockwise
from nvsubq.ops.portable.recurrence import Tiling, diagonal_recurrence, tile_elements
from nvsubq.ops.portable.walking import gather, masks, plan, widen


@dataclass(frozen=True)
class _Block:
    """The op on one block of cells, walked forwards."""

    c: float
    gelu: str
    dtype: torch.dtype

    def __call__(
        self, over_cells: list, shared: list, state: Tensor | None, leaves: bool
    ) -> tuple[Tensor, Tensor]:
        del leaves
        x, r, i, gate, keep, present, fresh = cast(self.dtype, *over_cells)
        log_rate, r_bias, i_bias = shared
        r = r if r_bias is None else r + r_bias
        i = i if i_bias is None else i + i_bias
        log_a = torch.sigmoid(r) * log_rate
        norm = bounded_sqrt(one_minus_square(log_a))
        if fresh is not None:
            norm = torch.where(fresh > 0, 1, norm)
        decay, b = log_a.exp(), norm * torch.sigmoid(i) * x
        if keep is not None:
            decay = decay * keep
        if present is not None:
            decay = torch.where(present.unsqueeze(-1) > 0, decay, 1)
        h = diagonal_recurrence(decay, b, state)
        y = h if gate is None else h * F.gelu(gate, approximate="tanh" if self.gelu == "tanh" else "none")
        return y, h[:, -1]


def rglru_scan(
    x: Tensor,
    r: Tensor,
    i: Tensor,
    a_log: Tensor,
    gate: Tensor | None = None,
    *,
    r_bias: Tensor | None = None,
    i_bias: Tensor | None = None,
    c: float = 8.0,
    normalize_first: bool = True,
    gelu: str = "erf",
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    seq_idx: Tensor | None = None,
    order: Tensor | None = None,
    reverse: bool | Sequence[bool] = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Backend of `nvsubq.ops.rglru_scan`, with its arguments."""
    batch, length, width = x.shape
    dtype = accumulation_dtype(x, r, i, a_log, gate, r_bias, i_bias, initial_state)
    a_log, r_bias, i_bias, state = cast(dtype, a_log, r_bias, i_bias, initial_state)
    walk, _ = plan(length, order, reverse, seq_idx, x.device, both_ways=False)
    keep, present = masks(walk, dtype)
    keep = None if keep is None else widen(keep, width)
    fresh = None if normalize_first else _fresh(x, keep, initial_state is None)
    over_cells = gather(walk, x, r, i, gate)
    if x.numel() == 0:
        return (x + 0, _or_zeros(state, x, dtype)) if return_final_state else x + 0
    # autograd keeps about a dozen temporaries alive, so each gets a fraction of the usual size
    tiling = Tiling.plan(batch, length, width, tile_elements(x.device) // 2)
    y, final = blockwise(
        _Block(c, gelu, dtype),
        tiling,
        state,
        [*over_cells, keep, present, fresh],
        [c * F.logsigmoid(a_log), r_bias, i_bias],
        final=return_final_state,
    )
    y = (y if walk is None else walk.scatter(y)).to(x.dtype)
    return y if final is None else (y, final)


def _or_zeros(state: Tensor | None, x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.new_zeros(x.shape[0], x.shape[2], dtype=dtype) if state is None else state + 0


def _fresh(x: Tensor, keep: Tensor | None, at_first: bool) -> Tensor:
    """1 at the steps before which there is no state: `[B, L, 1]` or `[B, L, D]`."""
    fresh = x.new_zeros(*x.shape[:2], 1, dtype=torch.float32) if keep is None else 1 - keep
    if at_first and fresh.shape[1]:
        fresh[:, 0] = 1
    return fresh
