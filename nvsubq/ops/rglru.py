"""`rglru_scan` and `rglru_state_update`: the real-gated linear recurrent unit of Griffin, for any walk."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from nvsubq.ops.arguments import Arguments, one_of
from nvsubq.ops.call import Op, Output
from nvsubq.ops.numerics import accumulation_dtype
from nvsubq.ops.update import Update
from nvsubq.ops.walks import check_walk

GELUS = ("erf", "tanh")


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
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Scan s_k = ā_k s_{k-1} + (1 - ā_k^2)^½ σ(i_k + i_bias) x_k, log ā_k = c σ(r_k + r_bias) log σ(a_log).

    The output is s, or GELU(gate) s. The derivative of the square root is bounded by 1000.

    Args:
        x: `[B, L, D]`.
        r: `[B, L, D]`, logits of the recurrence gate.
        i: `[B, L, D]`, logits of the input gate.
        a_log: `[D]`, logits of the decay.
        gate: `[B, L, D]`, before its GELU.
        r_bias: `[D]`, added to r.
        i_bias: `[D]`, added to i.
        c: positive; the sharpness of the recurrence gate.
        normalize_first: False: where nothing came before (at a reset, and at the first cell of a walk without
            `initial_state`) the input is not scaled by the square root.
        gelu: `erf` or `tanh`.
        initial_state: `[B, D]`, fp32 or fp64; the state before the first visited cell.
        return_final_state: also return the state after the last visited cell that is there.
        seq_idx: integers `[B, L]`: the sequence that a cell belongs to; negative: the cell is not there.
        order: `[L]` or `[S, L]`, the cells in the order of the walk, by S equal blocks of channels.
        reverse: walk from the end of the order; one bool, or one for each block.
        backend: a name from `backends()`.

    Returns:
        y `[B, L, D]` in x's dtype, or (y, final state `[B, D]`).

    Raises:
        ValueError: a shape, dtype, device or option that does not fit; the message names it.
        RuntimeError: the backend named is not active.

    Example:
        >>> import torch
        >>> x, opened = torch.ones(1, 2, 1), torch.full((1, 2, 1), 50.0)
        >>> rglru_scan(x, opened, opened, torch.tensor([-50.0])).flatten().tolist()  # decay 0: y is x
        [1.0, 1.0]
        >>> rglru_scan(x, -opened, opened, torch.tensor([0.0])).max().item() < 1e-9  # decay 1: no input
        True

    Reference: De et al., Griffin (arXiv:2402.19427).
    """
    return RGLRU_SCAN.run(
        (x, r, i, a_log, gate, r_bias, i_bias, initial_state),
        (c, normalize_first, gelu),
        seq_idx, order, reverse, return_final_state, backend,
    )  # fmt: skip


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
    backend: str | None = None,
) -> Tensor:
    """Advance `rglru_scan` by one cell: `state` changes in place, nothing is recorded for autograd.

    A step always has a state before it, so its input is scaled; the first cell of a sequence with
    `normalize_first=False` is `rglru_scan` with L = 1 and no `initial_state`.

    Args:
        state: `[B, D]`, fp32 or fp64.
        x: `[B, D]`; `r`, `i` and `gate` alike.
        r: `[B, D]`.
        i: `[B, D]`.
        a_log: `[D]`.
        gate: `[B, D]`.
        r_bias: `[D]`.
        i_bias: `[D]`.
        c: as in `rglru_scan`.
        gelu: as in `rglru_scan`.
        backend: a name from `backends()`.

    Returns:
        y `[B, D]` in x's dtype.

    Raises:
        ValueError: a shape, dtype, device or option that does not fit; the message names it.

    Example:
        >>> import torch
        >>> state, one = torch.zeros(1, 1), torch.ones(1, 1)
        >>> rglru_state_update(state, one, 50 * one, 50 * one, torch.tensor([-50.0])).item(), state.item()
        (1.0, 1.0)
    """
    tensors = (state, x, r, i, a_log, gate, r_bias, i_bias)
    return RGLRU_STATE_UPDATE.advance(tensors, (c, gelu), backend)


def _check(check: Arguments, x, r, i, a_log, gate, r_bias, i_bias, c: float, gelu: str) -> None:
    one_of("gelu", gelu, GELUS)
    if not (c > 0 and math.isfinite(c)):
        raise ValueError(f"`c` (={c!r}) must be positive and finite.")
    check.required(x=x, r=r, i=i, a_log=a_log)
    for name, tensor in {"x": x, "r": r, "i": i, "gate": gate}.items():
        check.tensor(name, tensor, "B L D")
    for name, tensor in {"a_log": a_log, "r_bias": r_bias, "i_bias": i_bias}.items():
        check.tensor(name, tensor, "D")


_TENSORS = ("x", "r", "i", "a_log", "gate", "r_bias", "i_bias", "initial_state")


def _check_call(given: Mapping[str, Any]) -> None:
    check = Arguments()
    _check(check, *(given[name] for name in (*_TENSORS[:-1], "c", "gelu")))
    check.state("initial_state", given["initial_state"], "B D")
    check_walk(check, given, "D")


def _outputs(given: Mapping[str, Any]) -> tuple[Output, Output]:
    x = given["x"]
    exact = accumulation_dtype(*(given[name] for name in _TENSORS))
    return Output(x.shape, x.dtype), Output((x.shape[0], x.shape[2]), exact)


RGLRU_SCAN = Op(
    name="rglru_scan",
    tensors=_TENSORS,
    required=4,
    options={"c": "float", "normalize_first": "bool", "gelu": "str"},
    check=_check_call,
    outputs=_outputs,
)


def _check_update(given: Mapping[str, Any]) -> None:
    check = Arguments(step=True)
    _check(check, *(given[name] for name in (*_TENSORS[:-1], "c", "gelu")))
    check.required_state(given["state"], "B D")


RGLRU_STATE_UPDATE = Update(
    RGLRU_SCAN,
    "rglru_state_update",
    ("c", "gelu"),
    _check_update,
    over_cells=dict.fromkeys(("x", "r", "i", "gate"), (2,)),
    fixed={"normalize_first": True},
)
