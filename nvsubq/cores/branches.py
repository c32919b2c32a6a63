"""The causal convolution in front of a scan: one, or several of different dilations, mixed by learnt gates.

Reference: the front end of lite-mamba (its `conv1d_layers` and `conv_gates`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvsubq.ops import causal_conv1d, causal_conv1d_update

States = Tensor | list[Tensor]  # of one branch, or by branch


def parse_dilations(conv_dilations: Sequence[int]) -> tuple[int, ...]:
    """The dilations as a tuple.

    Raises:
        ValueError: none at all, or one that is no positive integer.
    """
    found = tuple(conv_dilations) if isinstance(conv_dilations, Iterable) else (conv_dilations,)
    if not found or not all(type(dilation) is int and dilation >= 1 for dilation in found):
        raise ValueError(f"`conv_dilations` (={found}) must be one or more positive integers.")
    return found


def make_branches(
    width: int, taps: int, dilations: tuple[int, ...], bias: bool, made: Mapping[str, Any]
) -> list[nn.Conv1d]:
    """Depthwise convolutions, one for each dilation."""
    return [
        nn.Conv1d(width, width, taps, groups=width, padding=d * (taps - 1), dilation=d, bias=bias, **made)
        for d in dilations
    ]


def make_states(branches: Sequence[nn.Conv1d], batch: int, taken: Mapping[str, Any]) -> States:
    """Inputs before the first cell, `[B, D, (K-1) dilation + 1]` for each branch."""
    states = []
    for conv in branches:
        width, _, taps = conv.weight.shape
        states.append(torch.zeros(batch, width, (taps - 1) * _dilation(conv) + 1, **taken))
    return states[0] if len(states) == 1 else states


def convolve(
    branches: Sequence[nn.Conv1d],
    gates: Tensor | None,
    x: Tensor,
    walk: Mapping[str, Any],
    states: Any = None,
) -> tuple[Tensor, Any]:
    """Run the branches along the walk, each through SiLU, and mix them by `softmax(gates)`.

    Args:
        branches: from `make_branches`.
        gates: one for each branch; None for one branch.
        x: `[B, L, D]`.
        walk: the walk's arguments of an op.
        states: from `make_states`, or None.

    Returns:
        `[B, L, D]`, and the states after the walk, None without `states`.
    """
    outputs, after = [], []
    for conv, state in zip(branches, _listed(states, len(branches)), strict=True):
        options = {"activation": "silu", "dilation": _dilation(conv), **walk}
        if states is None:
            y: Any = causal_conv1d(x, conv.weight[:, 0], conv.bias, **options)
        else:
            options |= {"initial_state": state, "return_final_state": True}
            y, left = causal_conv1d(x, conv.weight[:, 0], conv.bias, **options)
            after.append(left)
        outputs.append(y)
    if states is None:
        return _mixed(outputs, gates), None
    return _mixed(outputs, gates), after[0] if gates is None else after


def convolve_step(
    branches: Sequence[nn.Conv1d], gates: Tensor | None, x: Tensor, states: States, backend: str | None
) -> Tensor:
    """Advance the branches by one cell `[B, D]`; the states change in place."""
    outputs = [
        causal_conv1d_update(
            state,
            x,
            conv.weight[:, 0],
            conv.bias,
            activation="silu",
            dilation=_dilation(conv),
            backend=backend,
        )
        for conv, state in zip(branches, _listed(states, len(branches)), strict=True)
    ]
    return _mixed(outputs, gates)


def _dilation(conv: nn.Conv1d) -> int:
    return conv.dilation[0]


def _listed(states: Any, count: int) -> list:
    if states is None:
        return [None] * count
    return states if isinstance(states, list) else [states]


def _mixed(outputs: list[Tensor], gates: Tensor | None) -> Tensor:
    if gates is None:
        return outputs[0]
    shares = F.softmax(gates, dim=0).to(outputs[0].dtype)
    return sum(share * y for share, y in zip(shares.unbind(), outputs, strict=True))  # type: ignore[return-value]
