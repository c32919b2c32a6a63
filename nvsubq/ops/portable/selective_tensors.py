"""The tensors of one `selective_scan`, brought into walk order, as its two scans take them."""

from __future__ import annotations

from typing import Any, NamedTuple


class Tensors(NamedTuple):
    """Tensors or None.

    Args:
        u, delta, z: `[B, L, D]`, in their own dtype.
        A: `[D, N]`, in the dtype of the recurrence, like the parameters and states below.
        B, C, decay_gate: `[B, L, G, N]` in their own dtype, or `[D, N]`, fixed over time.
        D, delta_bias: `[D]`.
        delta_a: `[B, L, D]`, or `[D]` with `timesteps` `[B, L]`.
        state: `[B, D, N]`, for the fast scan `[B, G, N, D/G]`.
        keep: `[B, L, S]`, 0 where a sequence starts.
        present: `[B, L]`, 0 where a step visits no cell.
    """

    u: Any
    delta: Any
    A: Any
    B: Any
    C: Any
    D: Any
    z: Any
    delta_bias: Any
    delta_a: Any
    timesteps: Any
    decay_gate: Any
    state: Any
    keep: Any
    present: Any
