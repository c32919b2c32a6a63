"""Reference of `causal_conv1d`: y_k = act(bias + sum_j weight_j x_{k - (K-1-j) dilation})."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nvsubq.ops.numerics import accumulation_dtype, cast
from nvsubq.ops.reference.walking import blocks_of, hide_absent, stack_cells, walk_cells


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
    reverse=False,
):
    batch, length, width = x.shape
    taps = weight.shape[1]
    dtype = accumulation_dtype(x, weight, bias, initial_state)
    x_, weight, bias, state = cast(dtype, x, weight, bias, initial_state)
    (x_,) = hide_absent(seq_idx, x_)
    if state is None:
        state = torch.zeros(batch, width, (taps - 1) * dilation, dtype=dtype, device=x.device)

    def one_block(cells, x, weight, bias, state):
        # The state is the window of the last W inputs, newest last; a reset clears it, which cuts the taps.
        def step(state: Tensor, cell: int, fresh: Tensor) -> tuple[Tensor, Tensor]:
            del fresh
            window = torch.cat([state, x[:, cell, :, None]], 2)
            y = (window[..., window.shape[2] - 1 - (taps - 1) * dilation :: dilation] * weight).sum(-1)
            y = y if bias is None else y + bias
            return window[..., 1:], F.silu(y) if activation == "silu" else y

        outputs, final = walk_cells(cells, state, initial_state is None, seq_idx, step)
        return stack_cells(outputs, x.new_empty(batch, x.shape[2])), final

    blocks = blocks_of(length, order, reverse, (x_, 2), (weight, 0), (bias, 0), (state, 1))
    done = [one_block(*block) for block in blocks]
    y = torch.cat([y for y, _ in done], 2).to(x.dtype)
    if not return_final_state:
        return y
    final = torch.cat([state for _, state in done], 1)
    return y, final.to(x.dtype if initial_state is None else initial_state.dtype)


def causal_conv1d_update(
    state: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    dilation: int = 1,
) -> Tensor:
    y, new = causal_conv1d(
        x[:, None],
        weight,
        bias,
        activation=activation,
        dilation=dilation,
        initial_state=state,
        return_final_state=True,
    )
    state.copy_(new)
    return y[:, 0]
