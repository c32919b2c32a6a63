"""`ssd_scan` and `ssd_state_update`: the recurrence of Mamba-2 with one decay per head, for any walk."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from nvsubq.ops.arguments import Arguments
from nvsubq.ops.call import Op, Output
from nvsubq.ops.numerics import accumulation_dtype
from nvsubq.ops.update import Update
from nvsubq.ops.walks import check_walk


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
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Scan s_k = exp(Δ_k A_h) s_{k-1} + Δ_k x_k B_kᵀ and read y_k = (s_k C_k + D x_k) SiLU(z_k), per head.

    Δ = dt + dt_bias, through softplus if asked, then kept within `dt_limit`.

    Args:
        x: `[B, L, H, P]`.
        dt: `[B, L, H]`.
        A: `[H]`.
        B: `[B, L, G, N]` (G divides H; neighbouring heads share a group).
        C: `[B, L, G, N]`.
        D: `[H]` or `[H, P]`.
        z: `[B, L, H, P]`.
        dt_bias: `[H]`, added to dt.
        dt_softplus: apply softplus to dt after the bias.
        dt_limit: lowest and highest Δ.
        chunk_size: a hint to backends that cut the walk into chunks; the answer does not depend on it.
        initial_state: `[B, H, P, N]`, fp32 or fp64; the state before the first visited cell.
        return_final_state: also return the state after the last visited cell that is there.
        seq_idx: integers `[B, L]`: the sequence that a cell belongs to; negative: the cell is not there.
        order: `[L]` or `[S, L]`, the cells in the order of the walk, by S equal blocks of heads.
        reverse: walk from the end of the order; one bool, or one for each block.
        backend: a name from `backends()`.

    Returns:
        y `[B, L, H, P]` in x's dtype, or (y, final state `[B, H, P, N]`).

    Raises:
        ValueError: a shape, dtype, device or option that does not fit; the message names it.
        RuntimeError: the backend named is not active.

    Example:
        >>> import torch
        >>> x, dt, B = torch.ones(1, 3, 2, 4), torch.full((1, 3, 2), 0.5), torch.ones(1, 3, 1, 1)
        >>> ssd_scan(x, dt, torch.zeros(2), B, B)[0, :, 0, 0].tolist()
        [0.5, 1.0, 1.5]

    Reference: Dao & Gu, Mamba-2 (arXiv:2405.21060).
    """
    return SSD_SCAN.run(
        (x, dt, A, B, C, D, z, dt_bias, initial_state),
        (dt_softplus, dt_limit, chunk_size),
        seq_idx, order, reverse, return_final_state, backend,
    )  # fmt: skip


def ssd_state_update(
    state: Tensor,
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
    backend: str | None = None,
) -> Tensor:
    """Advance `ssd_scan` by one cell: `state` changes in place, nothing is recorded for autograd.

    Args:
        state: `[B, H, P, N]`, fp32 or fp64.
        x: `[B, H, P]`.
        dt: `[B, H]`.
        A: `[H]`.
        B: `[B, G, N]`.
        C: `[B, G, N]`.
        D: `[H]` or `[H, P]`.
        z: `[B, H, P]`.
        dt_bias: `[H]`.
        dt_softplus: as in `ssd_scan`.
        dt_limit: as in `ssd_scan`.
        backend: a name from `backends()`.

    Returns:
        y `[B, H, P]` in x's dtype.

    Raises:
        ValueError: a shape, dtype, device or option that does not fit; the message names it.

    Example:
        >>> import torch
        >>> state, one = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1)
        >>> ssd_state_update(state, one, 0.5 * one[0], torch.zeros(1), one, one).item(), state.item()
        (0.5, 0.5)
    """
    return SSD_STATE_UPDATE.advance((state, x, dt, A, B, C, D, z, dt_bias), (dt_softplus, dt_limit), backend)


def _check(check: Arguments, x, dt, A, B, C, D, z, dt_bias, dt_limit: tuple[float, float]) -> None:
    if len(dt_limit) != 2 or not dt_limit[0] <= dt_limit[1]:
        raise ValueError(f"`dt_limit` (={dt_limit!r}) must be a pair (lowest, highest).")
    check.required(x=x, dt=dt, A=A, B=B, C=C)
    check.tensor("x", x, "B L H P")
    check.tensor("dt", dt, "B L H")
    check.tensor("A", A, "H")
    check.tensor("B", B, "B L G N")
    check.tensor("C", C, "B L G N")
    check.divides("G", "H", "the number of groups")
    check.tensor("D", D, "H", "H P")
    check.tensor("z", z, "B L H P")
    check.tensor("dt_bias", dt_bias, "H")


_TENSORS = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_state")


def _check_call(given: Mapping[str, Any]) -> None:
    check = Arguments()
    _check(check, *(given[name] for name in (*_TENSORS[:-1], "dt_limit")))
    size = given["chunk_size"]
    if size is not None and not (isinstance(size, int) and size > 0):
        raise ValueError(f"`chunk_size` (={size!r}) must be a positive int.")
    check.state("initial_state", given["initial_state"], "B H P N")
    check_walk(check, given, "H")


def _outputs(given: Mapping[str, Any]) -> tuple[Output, Output]:
    x = given["x"]
    batch, _, heads, width = x.shape
    exact = accumulation_dtype(*(given[name] for name in _TENSORS))
    return Output(x.shape, x.dtype), Output((batch, heads, width, given["B"].shape[3]), exact)


SSD_SCAN = Op(
    name="ssd_scan",
    tensors=_TENSORS,
    required=5,
    options={"dt_softplus": "bool", "dt_limit": "float[]", "chunk_size": "int?"},
    check=_check_call,
    outputs=_outputs,
)


def _check_update(given: Mapping[str, Any]) -> None:
    check = Arguments(step=True)
    _check(check, *(given[name] for name in (*_TENSORS[:-1], "dt_limit")))
    check.required_state(given["state"], "B H P N")


SSD_STATE_UPDATE = Update(
    SSD_SCAN,
    "ssd_state_update",
    ("dt_softplus", "dt_limit"),
    _check_update,
    over_cells={"x": (3,), "dt": (2,), "B": (3,), "C": (3,), "z": (3,)},
    fixed={"chunk_size": None},
)
