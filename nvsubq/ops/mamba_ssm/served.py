"""Which calls the packages' kernels do not serve, and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

_HALF_OR_SINGLE = (torch.float32, torch.float16, torch.bfloat16)
_MOST_STATES = 256
_MOST_ELEMENTS = 2**31 - 1
_CHUNK = 2048  # cells between two states that its forward keeps

_UNKNOWN = {
    "selective_scan": ("initial_state", "seq_idx", "order", "decay_gate", "delta_a", "timesteps"),
    "causal_conv1d": ("initial_state", "seq_idx", "order"),
}


def declines(op: str, arguments: Mapping[str, Any]) -> str | None:
    """Say why a call of `op` with these arguments is not served, or give None.

    Example:
        >>> x = torch.ones(1, 2, 8)
        >>> declines("causal_conv1d", {"x": x, "weight": torch.ones(8, 4), "dilation": 2})
        '`dilation` is 2, its kernel knows 1 alone'
        >>> declines("causal_conv1d", {"x": x, "weight": torch.ones(8, 4), "dilation": 1, "order": x})
        'its kernel knows no `order`'
    """
    for name in _UNKNOWN[op]:
        if arguments.get(name) is not None:
            return f"its kernel knows no `{name}`"
    reverse = arguments.get("reverse", False)
    if reverse if isinstance(reverse, bool) else any(reverse) or len(reverse) > 1:
        return "its kernel knows no `reverse`"
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            reason = _of_tensor(name, value)
            if reason is not None:
                return reason
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "a transform of `torch.func` is active"
    return (_of_scan if op == "selective_scan" else _of_conv)(arguments)


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _of_tensor(name: str, tensor: Tensor) -> str | None:
    if tensor.layout != torch.strided or type(tensor) not in (Tensor, Parameter):
        return f"`{name}` is a {type(tensor).__name__} with layout {tensor.layout}, not a plain tensor"
    if tensor.dtype not in _HALF_OR_SINGLE:
        return f"`{name}` has dtype {_dtype(tensor)}; its kernels know real float32, float16 and bfloat16"
    if tensor.numel() > _MOST_ELEMENTS:
        return f"`{name}` has {tensor.numel()} elements, more than its 32-bit offsets reach"
    return f"`{name}` is empty" if tensor.numel() == 0 else None


def _of_scan(arguments: Mapping[str, Any]) -> str | None:
    u, A, B, C = (arguments[name] for name in ("u", "A", "B", "C"))
    if arguments["discretization"] != "mamba":
        return f"its kernel knows no `discretization` {arguments['discretization']!r}, 'mamba' alone"
    if A.shape[1] > _MOST_STATES:
        return f"`A` has N = {A.shape[1]} states, its kernel at most {_MOST_STATES}"
    chunks = -(-u.shape[1] // _CHUNK)
    if u.shape[0] * u.shape[2] * chunks * 2 * A.shape[1] > _MOST_ELEMENTS:
        return "the states that its forward keeps are more than its 32-bit offsets reach"
    alike = {name: arguments[name] for name in ("delta", "z")}
    alike |= {name: t for name, t in (("B", B), ("C", C)) if t.dim() > 2}
    for name, tensor in alike.items():
        if tensor is not None and tensor.dtype != u.dtype:
            return f"`{name}` has dtype {_dtype(tensor)} and `u` {_dtype(u)}; its kernel wants them alike"
    single = {name: arguments[name] for name in ("A", "D", "delta_bias")}
    single |= {name: t for name, t in (("B", B), ("C", C)) if t.dim() == 2}
    for name, tensor in single.items():
        if tensor is not None and tensor.dtype != torch.float32:
            return f"`{name}` has dtype {_dtype(tensor)}; its kernel wants float32"
    if B.dim() == 2 and C.dim() == 4 and C.shape[2] > 1:
        return "`C` has groups while `B` [D, N] is fixed over time"
    return None


def _of_conv(arguments: Mapping[str, Any]) -> str | None:
    weight, bias = arguments["weight"], arguments.get("bias")
    if arguments["dilation"] != 1:
        return f"`dilation` is {arguments['dilation']}, its kernel knows 1 alone"
    if not 2 <= weight.shape[1] <= 4:
        return f"`weight` has K = {weight.shape[1]} taps, its kernel knows 2 to 4"
    if bias is not None and bias.dtype != weight.dtype:
        return f"`bias` has dtype {_dtype(bias)} and `weight` {_dtype(weight)}; its kernel wants them alike"
    return None
