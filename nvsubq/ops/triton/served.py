"""Which calls the Triton backend does not serve, and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from nvsubq.ops.triton.found import missing

_MOST_STATES = 1024  # a tile of more states does not fit in the registers of a program


def declines(op: str, arguments: Mapping[str, Any]) -> str | None:
    """Say why a call of `op` with these arguments is not served, or give None.

    Example:
        >>> declines("selective_scan", {"A": torch.ones(3, 4).to_sparse()})
        '`A` is a Tensor with layout torch.sparse_coo, not a plain tensor'
    """
    for name, value in arguments.items():
        if not isinstance(value, Tensor):
            continue
        if value.layout != torch.strided or type(value) not in (Tensor, Parameter):
            return f"`{name}` is a {type(value).__name__} with layout {value.layout}, not a plain tensor"
        reason = missing(op, value.device)
        if reason is not None:
            return f"`{name}` is on {value.device}; {reason}"
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "a transform of `torch.func` is active"
    return _of_selective_scan(arguments) if op == "selective_scan" else None


def declines_complex(op: str) -> str | None:
    """Say why a call of `op` with complex tensors is not served, or give None."""
    return "its kernel knows real states alone" if op == "selective_scan" else None


def _of_selective_scan(arguments: Mapping[str, Any]) -> str | None:
    for name in ("A", "B", "C"):
        if arguments[name].is_complex():
            return f"`{name}` is complex; {declines_complex('selective_scan')}"
    states = arguments["A"].shape[1]
    if not 1 <= states <= _MOST_STATES:
        return f"`A` has N = {states} states, its kernel knows 1 to {_MOST_STATES}"
    return None
