"""Which calls the native backend does not serve, and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from nvsubq.ops.native.library import missing

_MOST_CUDA_STATES = 256  # N, of selective_scan
_SERVED = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128)


def declines(op: str, arguments: Mapping[str, Any]) -> str | None:
    """Say why a call of `op` with these arguments is not served, or give None.

    Every call that passes the checks of the public function is, but for tensors that are no plain memory of a
    device whose library has the op.

    Example:
        >>> declines("causal_conv1d", {"x": torch.ones(1, 2, 3), "weight": torch.ones(3, 4)})
        >>> declines("selective_scan", {"A": torch.ones(3, 4).to_sparse()})
        '`A` is a Tensor with layout torch.sparse_coo, not a plain tensor'
    """
    for name, value in arguments.items():
        if not isinstance(value, Tensor):
            continue
        reason = missing(op, value.device)
        if reason is not None:
            return f"`{name}` is on {value.device}; {reason}"
        if value.layout != torch.strided or type(value) not in (Tensor, Parameter):
            return f"`{name}` is a {type(value).__name__} with layout {value.layout}, not a plain tensor"
        if (value.is_floating_point() or value.is_complex()) and value.dtype not in _SERVED:
            return f"`{name}` has dtype {str(value.dtype).removeprefix('torch.')}"
    if op in ("selective_scan", "selective_state_update"):
        A = arguments["A"]
        if A.is_cuda and A.shape[1] > _MOST_CUDA_STATES:
            return f"`A` (shape {list(A.shape)}) has more than {_MOST_CUDA_STATES} states on {A.device}"
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "a transform of `torch.func` is active"
    if op.endswith("_update"):  # scans are operators of torch, updates are not
        if torch.compiler.is_compiling():
            return "`torch.compile` traces it"
        if torch._C._len_torch_dispatch_stack() > 0:
            return "a dispatch mode of torch is active"
    return None
