"""`causal_conv1d` and `causal_conv1d_update`: the depthwise convolution before a scan, for any walk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from nvsubq.ops.arguments import Arguments, one_of
from nvsubq.ops.call import Op, Output
from nvsubq.ops.update import Update
from nvsubq.ops.walks import check_walk

ACTIVATIONS = (None, "silu")


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
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Convolve each channel along the walk: y_k = act(bias + sum_j weight_j x_{k - (K-1-j) dilation}).

    Args:
        x: `[B, L, D]`.
        weight: `[D, K]`; the last tap is the cell itself.
        bias: `[D]`.
        activation: None or `silu`.
        dilation: steps of the walk from tap to tap.
        initial_state: `[B, D, W]`, W >= (K-1)·dilation, newest last: the inputs walked before the first cell.
        return_final_state: also return the inputs that the next cell of the walk would see.
        seq_idx: integers `[B, L]`: the sequence that a cell belongs to (taps do not reach into another one);
            negative: the cell is not there, and taps step over it.
        order: `[L]` or `[S, L]`, the cells in the order of the walk, by S equal blocks of channels.
        reverse: walk from the end of the order; one bool, or one for each block.
        backend: a name from `backends()`.

    Returns:
        y `[B, L, D]` in x's dtype, or (y, final state `[B, D, W]`) with W and dtype of `initial_state`,
        or (K-1)·dilation and x's dtype without it.

    Raises:
        ValueError: a shape, dtype, device or option that does not fit; the message names it.
        RuntimeError: the backend named is not active.

    Example:
        >>> import torch
        >>> x = torch.tensor([[[1.0], [2.0], [3.0]]])
        >>> causal_conv1d(x, torch.tensor([[10.0, 1.0]])).flatten().tolist()
        [1.0, 12.0, 23.0]
    """
    return CAUSAL_CONV1D.run(
        (x, weight, bias, initial_state),
        (activation, dilation),
        seq_idx, order, reverse, return_final_state, backend,
    )  # fmt: skip


def causal_conv1d_update(
    state: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    dilation: int = 1,
    backend: str | None = None,
) -> Tensor:
    """Advance `causal_conv1d` by one cell: x goes in at the end of `state`, which shifts by one, in place.

    Args:
        state: `[B, D, W]`, W >= (K-1)·dilation, newest last.
        x: `[B, D]`.
        weight: `[D, K]`.
        bias: `[D]`.
        activation: None or `silu`.
        dilation: steps from tap to tap.
        backend: a name from `backends()`.

    Returns:
        y `[B, D]` in x's dtype.

    Raises:
        ValueError: a shape, dtype, device or option that does not fit; the message names it.

    Example:
        >>> import torch
        >>> state = torch.tensor([[[1.0, 2.0]]])
        >>> y = causal_conv1d_update(state, torch.tensor([[3.0]]), torch.tensor([[10.0, 1.0]]))
        >>> y.item(), state.flatten().tolist()
        (23.0, [2.0, 3.0])
    """
    return CAUSAL_CONV1D_UPDATE.advance((state, x, weight, bias), (activation, dilation), backend)


def _check(check: Arguments, x, weight, bias, activation: str | None, dilation: int) -> int:
    """Check what scan and update share; give the reach of the taps, (K-1)·dilation."""
    one_of("activation", activation, ACTIVATIONS)
    if not (isinstance(dilation, int) and dilation >= 1):
        raise ValueError(f"`dilation` (={dilation!r}) must be an int of at least 1.")
    check.required(x=x, weight=weight)
    check.tensor("x", x, "B L D")
    check.tensor("weight", weight, "D K")
    check.tensor("bias", bias, "D")
    if check.sizes["K"] < 1:
        raise ValueError(f"`weight` (shape {list(weight.shape)}) must have at least one tap.")
    return (check.sizes["K"] - 1) * dilation


def _check_width(name: str, state: Tensor | None, reach: int) -> None:
    if state is not None and state.shape[2] < reach:
        raise ValueError(
            f"`{name}` (shape {list(state.shape)}) must hold at least (K-1)·dilation = {reach} inputs."
        )


def _check_call(given: Mapping[str, Any]) -> None:
    check = Arguments()
    reach = _check(check, given["x"], given["weight"], given["bias"], given["activation"], given["dilation"])
    check.tensor("initial_state", given["initial_state"], "B D W")
    _check_width("initial_state", given["initial_state"], reach)
    check_walk(check, given, "D")


def _outputs(given: Mapping[str, Any]) -> tuple[Output, Output]:
    x, weight, state = given["x"], given["weight"], given["initial_state"]
    width = (weight.shape[1] - 1) * given["dilation"] if state is None else state.shape[2]
    final = Output((x.shape[0], x.shape[2], width), x.dtype if state is None else state.dtype)
    return Output(x.shape, x.dtype), final


CAUSAL_CONV1D = Op(
    name="causal_conv1d",
    tensors=("x", "weight", "bias", "initial_state"),
    required=2,
    options={"activation": "str?", "dilation": "int"},
    check=_check_call,
    outputs=_outputs,
)


def _check_update(given: Mapping[str, Any]) -> None:
    check = Arguments(step=True)
    reach = _check(check, given["x"], given["weight"], given["bias"], given["activation"], given["dilation"])
    check.required(state=given["state"])
    check.tensor("state", given["state"], "B D W")
    _check_width("state", given["state"], reach)


CAUSAL_CONV1D_UPDATE = Update(
    CAUSAL_CONV1D, "causal_conv1d_update", ("activation", "dilation"), _check_update, over_cells={"x": (2,)}
)
