"""`selective_scan` with any option: complex A, every discretization, a decay gate, B and C fixed over time.

A block function under the blockwise engine: slower than the fast path, with the same bound on memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nvsubq.ops.numerics import to_accumulate
from nvsubq.ops.portable.blockwise import blockwise
from nvsubq.ops.portable.expm1 import expm1_over
from nvsubq.ops.portable.recurrence import Tiling, diagonal_recurrence, tile_elements


@dataclass(frozen=True)
class _Block:
    """The op on one block of cells, walked forwards."""

    discretization: str
    softplus: bool
    dtype: torch.dtype

    def __call__(self, over_cells: list, shared: list, state: Tensor | None, leaves: bool) -> tuple[Tensor, Tensor]:
        del leaves
        u, delta, B, C, z, delta_a, timesteps, gate, keep, present = (
            to_accumulate(t, self.dtype) for t in over_cells
        )
        A, D, delta_bias, B_fixed, C_fixed, rate, gate_fixed = shared
        groups = next((t.shape[2] for t in (B, C, gate) if t is not None), 1)
        delta = delta if delta_bias is None else delta + delta_bias
        delta = F.softplus(delta) if self.softplus else delta
        if rate is not None:
            delta_a = timesteps.unsqueeze(-1) * rate
        delta_a = delta if delta_a is None else delta_a
        if present is not None:
            delta, delta_a = delta * present.unsqueeze(-1), delta_a * present.unsqueeze(-1)
        A, B_fixed, C_fixed, gate_fixed = (
            t if t is None else t.unflatten(0, (groups, -1)).transpose(1, 2) for t in (A, B_fixed, C_fixed, gate_fixed)
        )  # (G, N, D/G)
        u_, delta, delta_a = (t.unflatten(2, (groups, 1, -1)) for t in (u, delta, delta_a))  # (B, L, G, 1, D/G)
        b = B_fixed if B is None else B.unsqueeze(-1)
        decay, inputs = self._discretize(delta_a, delta, A, u_, b)
        if gate is not None or gate_fixed is not None:
            decay = decay * (gate_fixed if gate is None else gate.unsqueeze(-1))
        if keep is not None:
            decay = self._reset(decay, keep, present, groups)
        decay, inputs = torch.broadcast_tensors(decay, inputs)
        states = diagonal_recurrence(decay, inputs, state)
        y = self._output(states, C, C_fixed).flatten(2)
        y = y if D is None else y + D * u
        return y if z is None else y * F.silu(z), states[:, -1]

    def _discretize(self, delta_a: Tensor, delta: Tensor, A: Tensor, u: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        if self.discretization == "no_discretization":
            return A.expand(*u.shape[:2], *A.shape), u * b + torch.zeros_like(A)
        if self.discretization == "bilinear":
            half = delta_a * A / 2
            return (1 + half) / (1 - half), delta * u * b / (1 - delta * A / 2)
        decay = torch.exp(delta_a * A)
        if self.discretization == "dirac":
            return decay, (u * b).to(decay.dtype)
        if self.discretization == "mamba":
            return decay, (delta * u * b).to(decay.dtype)
        return decay, delta * u * b * expm1_over(delta * A)

    def _reset(self, decay: Tensor, keep: Tensor, present: Tensor | None, groups: int) -> Tensor:
        """Drop the state where a sequence starts; `keep` is [B, L, S], S blocks of the groups or, with one, channels."""
        channels = decay.shape[-1] * groups
        wide = keep.repeat_interleave(channels // keep.shape[2], 2).unflatten(2, (groups, 1, -1))
        decay = decay * wide
        if present is None:
            return decay
        # whatever was read there, an absent cell passes the state on
        return torch.where(present[:, :, None, None, None] > 0, decay, torch.ones_like(decay))

    @staticmethod
    def _output(states: Tensor, C: Tensor | None, C_fixed: Tensor | None) -> Tensor:
        if C is None:
            y = (states * C_fixed).sum(-2)
        else:
            y = torch.matmul(C.unsqueeze(-2).to(states.dtype), states).squeeze(-2)
        return 2 * y.real if y.is_complex() else y


def general_scan(
    u, delta, A, B, C, D, z, delta_bias, delta_a, timesteps, decay_gate, state, keep, present, *, softplus, discretization
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Run the op forwards on tensors in walk order; B, C and the gate are `[B, L, G, N]` or `[D, N]`.

    `state` is `[B, D, N]` or None; `keep` `[B, L, S]` is 0 where a sequence starts, `present` `[B, L]` where there is no
    cell; `delta_a` is `[D]` with `timesteps`, else `[B, L, D]`.

    Returns:
        y `[B, L, D]` in the dtype of the recurrence and the final state `[B, D, N]`.
    """
    batch, length, width = u.shape
    dtype = A.real.dtype if A.is_complex() else A.dtype
    (B, B_fixed), (C, C_fixed), (gate, gate_fixed) = (
        (t, None) if t is None or t.dim() > 2 else (None, t) for t in (B, C, decay_gate)
    )
    rate, delta_a = (delta_a, None) if timesteps is not None else (None, delta_a)
    groups = next((t.shape[2] for t in (B, C, gate) if t is not None), 1)
    if u.numel() == 0:
        return u.to(dtype), A.new_zeros(batch, *A.shape) if state is None else state + 0
    if state is not None:
        state = state.unflatten(1, (groups, -1)).transpose(2, 3).contiguous()
    # autograd keeps a dozen temporaries alive, so each gets a fraction of the usual size
    tiling = Tiling.plan(batch, length, A.numel(), tile_elements(u.device) // 4)
    y, final = blockwise(
        _Block(discretization, softplus, dtype),
        tiling,
        state,
        [u, delta, B, C, z, delta_a, timesteps, gate, keep, present],
        [A, D, delta_bias, B_fixed, C_fixed, rate, gate_fixed],
    )
    return y, final.transpose(2, 3).flatten(1, 2)
