"""Who looks on while an op is called: compiler, exporter, tracer, dispatch mode, forward-mode autograd."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad

__all__ = ["exporting", "jit_traced", "traced"]

# Up to torch 2.12 Dynamo answers `is_exporting()` with True in `torch.compile` too (pytorch#176347).
_DYNAMO_TELLS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)


def traced() -> bool:
    """Whether an operator is due, because somebody records or transforms what is called."""
    return (
        torch.compiler.is_compiling()
        or jit_traced()
        or torch._C._len_torch_dispatch_stack() > 0
        or forward_ad._current_level >= 0
    )


def jit_traced() -> bool:
    """Whether `torch.jit.trace` records, which sees torch's own operators alone."""
    return torch._C._get_tracing_state() is not None


def exporting() -> bool:
    """Whether `torch.export` traces.

    Not with its `strict=True` up to torch 2.12: Dynamo traces then, and can't tell it from `torch.compile`.
    """
    return torch.compiler.is_exporting() and (_DYNAMO_TELLS or not torch.compiler.is_dynamo_compiling())
