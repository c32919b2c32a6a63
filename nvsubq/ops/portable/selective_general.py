"""`selective_scan` with any option: complex A, every discretization, a decay gate, B and C fixed over time.

A block function under the blockwise engine: slower than the fast path, with the same bound on memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nvsubq.ops.numerics import cast
from nvsubq.ops.portable.blockwise import blockwise
from nvsubq.ops.portable.expm1 import expm1_over
from nvsubq.ops.portable.recurrence import Tiling, diagonal_recurrence, tile_elements
from nvsubq.ops.portable.selective_tensors import Tensors


@dataclass(frozen=True)
class _Block:
    """The op on one block of cells, walked forwards."""

    discretization: str
    softplus: bool
    dtype: torch.dtype

    def __call__(
        self, over_cells: list, shared: list, state: Tensor | None, leaves: bool
    ) -> tuple[Tensor, Tensor]:
        del leaves
        u, delta, z, B, C, gate, delta_a, timesteps, keep, present = cast(self.dtype, *over_cells)
        A, D, delta_bias, rate, B_fixed, C_fixed, gate_fixed = shared
        groups = _groups((B, C, gate))
        delta = delta if delta_bias is None else delta + delta_bias
        delta = F.softplus(delta) if self.softplus else delta
        if rate is not None:
            delta_a = timesteps.unsqueeze(-1) * rate
        delta_a = delta if delta_a is None else delta_a
        if present is not None:
            delta, delta_a = delta * present.unsqueeze(-1), delta_a * present.unsqueeze(-1)
        A, B_fixed, C_fixed, gate_fixed = (_by_group(t, groups) for t in (A, B_fixed, C_fixed, gate_fixed))
        u_ = u.unflatten(2, (groups, 1, -1))  # (B, L, G, 1, D/G)
        delta, delta_a = delta.unflatten(2, u_.shape[2:]), delta_a.unflatten(2, u_.shape[2:])
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

    def _discretize(
        self, delta_a: Tensor, delta: Tensor, A: Tensor, u: Tensor, b: Tensor
    ) -> tuple[Tensor, Tensor]:
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
        """Drop the state where a sequence starts; `keep` is `[B, L, S]` for S blocks of channels."""
        channels = decay.shape[-1] * groups
        wide = keep.repeat_interleave(channels // keep.shape[2], 2).unflatten(2, (groups, 1, -1))
        decay = decay * wide
        if present is None:
            return decay
        # whatever was read there, an absent cell passes the state on
        return torch.where(present[:, :, None, None, None] > 0, decay, torch.ones_like(decay))

    @staticmethod
    def _output(states: Tensor, C: Tensor | None, C_fixed: Any) -> Tensor:
        if C is None:
            y = (states * C_fixed).sum(-2)
        else:
            y = torch.matmul(C.unsqueeze(-2).to(states.dtype), states).squeeze(-2)
        return 2 * y.real if y.is_complex() else y


def general_scan(tensors: Tensors, softplus: bool, discretization: str) -> tuple[Tensor, Tensor]:
    """Run the op forwards.

    Returns:
        y `[B, L, D]` in the dtype of the recurrence and the final state `[B, D, N]`.
    """
    u, A, state = tensors.u, tensors.A, tensors.state
    dtype = A.real.dtype if A.is_complex() else A.dtype
    if u.numel() == 0:
        return u.to(dtype), A.new_zeros(u.shape[0], *A.shape) if state is None else state + 0
    over_cells, fixed = zip(*map(_split, (tensors.B, tensors.C, tensors.decay_gate)), strict=True)
    rate, delta_a = (tensors.delta_a, None) if tensors.timesteps is not None else (None, tensors.delta_a)
    groups = _groups(over_cells)
    if state is not None:
        state = state.unflatten(1, (groups, -1)).transpose(2, 3).contiguous()
    # autograd keeps a dozen temporaries alive, so each gets a fraction of the usual size
    tiling = Tiling.plan(u.shape[0], u.shape[1], A.numel(), tile_elements(u.device) // 4)
    per_cell = (delta_a, tensors.timesteps, tensors.keep, tensors.present)
    y, final = blockwise(
        _Block(discretization, softplus, dtype),
        tiling,
        state,
        [u, tensors.delta, tensors.z, *over_cells, *per_cell],
        [A, tensors.D, tensors.delta_bias, rate, *fixed],
    )
    assert final is not None
    return y, final.transpose(2, 3).flatten(1, 2)


def _by_group(tensor: Tensor | None, groups: int) -> Any:
    """`[D, N]` as `[G, N, D/G]`."""
    return None if tensor is None else tensor.unflatten(0, (groups, -1)).transpose(1, 2)


def _split(tensor: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Tell what belongs to the cells from what is fixed over time."""
    return (tensor, None) if tensor is None or tensor.dim() > 2 else (None, tensor)


def _groups(over_cells: Sequence[Tensor | None]) -> int:
    return next((t.shape[2] for t in over_cells if t is not None), 1)
