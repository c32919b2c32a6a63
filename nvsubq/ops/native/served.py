"""Which calls the native backend does not serve yet, and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

_SERVED = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def declines(op: str, arguments: Mapping[str, Any]) -> str | None:
    """Say why a call of `op` with these arguments is not served, or give None.

    Example:
        >>> declines("causal_conv1d", {"x": torch.ones(1, 2, 3), "weight": torch.ones(3, 4)})
        >>> declines("selective_scan", {"A": torch.ones(3, 4, dtype=torch.complex64)})
        '`A` is complex'
    """
    for name, value in arguments.items():
        if not isinstance(value, Tensor):
            continue
        if value.device.type != "cpu":
            return f"`{name}` is on {value.device}; its kernels are for the CPU"
        if value.is_complex():
            return f"`{name}` is complex"
        if value.layout != torch.strided or type(value) not in (Tensor, Parameter):
            return f"`{name}` is a {type(value).__name__} with layout {value.layout}, not a plain tensor"
        if value.is_floating_point() and value.dtype not in _SERVED:
            return f"`{name}` has dtype {str(value.dtype).removeprefix('torch.')}"
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "a transform of `torch.func` is active"
    if op != "selective_scan":
        return None
    if arguments.get("decay_gate") is not None:
        return "`decay_gate` is given"
    for name in ("B", "C"):
        if arguments[name].dim() == 2:
            return f"`{name}` is fixed over time"
    return None
