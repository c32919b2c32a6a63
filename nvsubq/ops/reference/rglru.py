"""Reference of `rglru_scan`: s = ā s + sqrt(1 - ā^2) (σ(i) x), ā = σ(a_log)^(c σ(r)), times GELU(gate)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nvsubq.ops.numerics import accumulation_dtype, bounded_sqrt, cast, one_minus_square
from nvsubq.ops.reference.walking import blocks_of, hide_absent, stack_cells, walk_cells


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
    reverse=False,
):
    batch, length, width = x.shape
    given = (x, r, i, a_log, gate, r_bias, i_bias, initial_state)
    dtype = accumulation_dtype(*given)
    x_, r, i, a_log, gate, r_bias, i_bias, state = cast(dtype, *given)
    x_, r, i, gate = hide_absent(seq_idx, x_, r, i, gate)
    if state is None:
        state = torch.zeros(batch, width, dtype=dtype, device=x.device)

    def one_block(cells, x, r, i, a_log, gate, r_bias, i_bias, state):
        def step(state: Tensor, cell: int, fresh: Tensor) -> tuple[Tensor, Tensor]:
            r_here = r[:, cell] if r_bias is None else r[:, cell] + r_bias
            i_here = i[:, cell] if i_bias is None else i[:, cell] + i_bias
            log_a = c * torch.sigmoid(r_here) * F.logsigmoid(a_log)
            norm = bounded_sqrt(one_minus_square(log_a))
            if not normalize_first:
                norm = torch.where(fresh[:, None], torch.ones_like(norm), norm)
            state = log_a.exp() * state + norm * torch.sigmoid(i_here) * x[:, cell]
            if gate is None:
                return state, state
            return state, state * F.gelu(gate[:, cell], approximate="tanh" if gelu == "tanh" else "none")

        outputs, final = walk_cells(cells, state, initial_state is None, seq_idx, step)
        return stack_cells(outputs, state), final

    per_cell = ((t, 2) for t in (x_, r, i))
    biases = (gate, 2), (r_bias, 0), (i_bias, 0)
    blocks = blocks_of(length, order, reverse, *per_cell, (a_log, 0), *biases, (state, 1))
    done = [one_block(*block) for block in blocks]
    y = torch.cat([y for y, _ in done], 2).to(x.dtype)
    return (y, torch.cat([state for _, state in done], 1)) if return_final_state else y


def rglru_state_update(
    state: Tensor,
    x: Tensor,
    r: Tensor,
    i: Tensor,
    a_log: Tensor,
    gate: Tensor | None = None,
    *,
    r_bias: Tensor | None = None,
    i_bias: Tensor | None = None,
    c: float = 8.0,
    gelu: str = "erf",
) -> Tensor:
    y, new = rglru_scan(
        x[:, None],
        r[:, None],
        i[:, None],
        a_log,
        None if gate is None else gate[:, None],
        r_bias=r_bias,
        i_bias=i_bias,
        c=c,
        gelu=gelu,
        initial_state=state,
        return_final_state=True,
    )
    state.copy_(new)
    return y[:, 0]
