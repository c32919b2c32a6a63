"""`linear_scan` and `linear_state_update`: the first-order recurrence of S5 and S7, for any walk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from nvsubq.ops.arguments import COMPLEX, REAL, Arguments, one_of
from nvsubq.ops.call import Op, Output
from nvsubq.ops.numerics import accumulation_dtype, complex_of
from nvsubq.ops.update import Update
from nvsubq.ops.walks import check_walk

DISCRETIZATIONS = ("zoh", "bilinear")
INPUT_SCALES = ("none", "zoh", "bilinear", "sqrt")


def linear_scan(
    a: Tensor,
    b: Tensor,
    *,
    dt: Tensor | None = None,
    discretization: str = "zoh",
    input_scale: str = "none",
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    seq_idx: Tensor | None = None,
    order: Tensor | None = None,
    reverse: bool | Sequence[bool] = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Scan h_k = ā_k h_{k-1} + γ_k b_k along a walk, real or complex.

    Without `dt`, ā is `a`. With it `a` is a rate, and ā = exp(dt a), or, bilinear, (1 + dt a/2)/(1 - dt a/2).

    | input_scale | γ |
    |---|---|
    | `none` | 1 |
    | `zoh` | (exp(dt a) - 1)/a; needs `dt` |
    | `bilinear` | dt/(1 - dt a/2); needs `dt` |
    | `sqrt` | (1 - abs(ā)^2)^½, with a derivative of at most 1000 |

    Args:
        a: the decay, `[B, L, D]` or `[D]`; with `dt` the rate `[D]`.
        b: `[B, L, D]`; D is any trailing width (the state size, for S5).
        dt: real, `[B, L]` or `[B, L, D]`.
        discretization: with `dt`: `zoh` or `bilinear`.
        input_scale: one of the table.
        initial_state: `[B, D]`, fp32 or fp64, complex if a or b is; the state before the first visited cell.
        return_final_state: also return the state after the last visited cell that is there.
        seq_idx: integers `[B, L]`: the sequence that a cell belongs to; negative: the cell is not there.
        order: `[L]` or `[S, L]`, the cells in the order of the walk, by S equal blocks of channels.
        reverse: walk from the end of the order; one bool, or one for each block.
        backend: a name from `backends()`.

    Returns:
        h `[B, L, D]` in b's dtype (its complex partner if only `a` is complex), or (h, final state `[B, D]`).

    Raises:
        ValueError: a shape, dtype, device or option that does not fit; the message names it.
        RuntimeError: the backend named is not active.

    Example:
        >>> import torch
        >>> linear_scan(torch.tensor([0.5]), torch.ones(1, 3, 1)).flatten().tolist()
        [1.0, 1.5, 1.75]

    Reference: Smith et al., S5 (openreview Ai8Hw3AXqks).
    """
    return LINEAR_SCAN.run(
        (a, b, dt, initial_state),
        (discretization, input_scale),
        seq_idx, order, reverse, return_final_state, backend,
    )  # fmt: skip


def linear_state_update(
    state: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    dt: Tensor | None = None,
    discretization: str = "zoh",
    input_scale: str = "none",
    backend: str | None = None,
) -> Tensor:
    """Advance `linear_scan` by one cell: `state` changes in place, nothing is recorded for autograd.

    Args:
        state: `[B, D]`, fp32 or fp64, complex if a or b is.
        a: `[B, D]` or `[D]`; with `dt` the rate `[D]`.
        b: `[B, D]`.
        dt: real, `[B]` or `[B, D]`.
        discretization: as in `linear_scan`.
        input_scale: as in `linear_scan`.
        backend: a name from `backends()`.

    Returns:
        The new h `[B, D]`, a fresh tensor in b's dtype (its complex partner if only `a` is complex).

    Raises:
        ValueError: a shape, dtype, device or option that does not fit; the message names it.

    Example:
        >>> import torch
        >>> state = torch.ones(1, 1)
        >>> linear_state_update(state, torch.tensor([0.5]), torch.ones(1, 1)).item(), state.item()
        (1.5, 1.5)
    """
    return LINEAR_STATE_UPDATE.advance((state, a, b, dt), (discretization, input_scale), backend)


def _check(
    check: Arguments, a: Tensor, b: Tensor, dt: Tensor | None, discretization: str, input_scale: str
) -> None:
    one_of("discretization", discretization, DISCRETIZATIONS)
    one_of("input_scale", input_scale, INPUT_SCALES)
    check.required(a=a, b=b)
    check.tensor("b", b, "B L D", dtypes=(*REAL, *COMPLEX))
    if dt is not None:
        check.tensor("a", a, "D", dtypes=(*REAL, *COMPLEX))
        check.tensor("dt", dt, "B L", "B L D")
        return
    check.tensor("a", a, "D", "B L D", dtypes=(*REAL, *COMPLEX))
    if input_scale in ("zoh", "bilinear"):
        raise ValueError(
            f"`input_scale` (={input_scale!r}) needs `dt`; without it `a` is the decay, not a rate."
        )
    if discretization != "zoh":
        raise ValueError(
            f"`discretization` (={discretization!r}) needs `dt`; without it `a` is the decay itself."
        )


def _check_call(given: Mapping[str, Any]) -> None:
    check = Arguments()
    a, b = given["a"], given["b"]
    _check(check, a, b, given["dt"], given["discretization"], given["input_scale"])
    check.state("initial_state", given["initial_state"], "B D", is_complex=a.is_complex() or b.is_complex())
    check_walk(check, given, "D")


def _outputs(given: Mapping[str, Any]) -> tuple[Output, Output]:
    a, b = given["a"], given["b"]
    exact = accumulation_dtype(a, b, given["dt"], given["initial_state"])
    is_complex = a.is_complex() or b.is_complex()
    y = b.dtype if b.is_complex() or not is_complex else complex_of(b.dtype)
    return Output(b.shape, y), Output((b.shape[0], b.shape[2]), complex_of(exact) if is_complex else exact)


LINEAR_SCAN = Op(
    name="linear_scan",
    tensors=("a", "b", "dt", "initial_state"),
    required=2,
    options={"discretization": "str", "input_scale": "str"},
    check=_check_call,
    outputs=_outputs,
)


def _check_update(given: Mapping[str, Any]) -> None:
    check = Arguments(step=True)
    a, b = given["a"], given["b"]
    _check(check, a, b, given["dt"], given["discretization"], given["input_scale"])
    check.required_state(given["state"], "B D", is_complex=a.is_complex() or b.is_complex())


LINEAR_STATE_UPDATE = Update(
    LINEAR_SCAN,
    "linear_state_update",
    ("discretization", "input_scale"),
    _check_update,
    over_cells={"a": (2,), "b": (2,), "dt": (1, 2)},
)
