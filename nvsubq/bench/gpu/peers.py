"""Ops of other packages, each given our tensors in the layout that it likes best. Imported when asked for."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nvsubq.bench.gpu.inputs import Tensors
from nvsubq.bench.gpu.measure import Absent

Peer = tuple[Tensors, Callable[..., Tensor]]
"""Leaves, and the function that takes them by name."""


def _cells_last(tensors: Tensors) -> Tensors:
    """`[B, L, ...]` as `[B, ..., L]` in memory too; parameters as they are."""
    return {n: t.movedim(1, -1).contiguous() if t.dim() > 2 else t for n, t in tensors.items()}


class _Allocation(torch.autograd.Function):
    """Memory for an output like the first tensor and for every gradient; nothing is written to it."""

    @staticmethod
    def forward(ctx, *tensors: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(*tensors)
        return torch.empty_like(tensors[0])

    @staticmethod
    def backward(ctx, cotangent: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors)


def allocation(tensors: Tensors) -> Peer:
    """What autograd takes for an op with these tensors, whoever computes it: no kernel is queued."""
    return tensors, lambda **given: _Allocation.apply(*given.values())  # type: ignore[no-untyped-call]


def mamba_ssm_scan(tensors: Tensors) -> Peer:
    """mamba-ssm's `selective_scan_fn`."""
    _compiled_scan()
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    def run(**given: Tensor) -> Tensor:
        return selective_scan_fn(**given, delta_softplus=True)

    return _cells_last(tensors), run


def _compiled_scan() -> None:
    from nvsubq.ops.mamba_ssm import inactive

    reason = inactive()
    if reason is not None:
        raise Absent(f"not installed: {reason}")


def causal_conv1d(tensors: Tensors) -> Peer:
    """causal-conv1d's `causal_conv1d_fn`, in the layout in which mamba-ssm calls it."""
    from causal_conv1d import causal_conv1d_fn

    def run(**given: Tensor) -> Tensor:
        return causal_conv1d_fn(**given, activation="silu")

    return _cells_last(tensors), run


def accelerated_scan(tensors: Tensors) -> Peer:
    """accelerated-scan's kernel of warps, which knows lengths that are a power of two."""
    from accelerated_scan.warp import scan

    length = tensors["a"].shape[1]
    if length & (length - 1):
        raise Absent(f"not there: the package knows lengths that are a power of two, not {length}")
    return _cells_last(tensors), lambda a, b: scan(a, b)


def lrnnx_rglru(tensors: Tensors) -> Peer:
    """lrnnx's RG-LRU kernel, which is the scan alone: gates are made before it, and are not timed."""
    from lrnnx.ops.rglru_scan import rglru_scan_fn

    gates = {name: tensors[name].float() + tensors[f"{name}_bias"] for name in ("r", "i")}
    made = {
        "u": gates["i"].sigmoid() * tensors["x"].float(),
        "delta": 8 * gates["r"].sigmoid(),
        "A": tensors["a_log"].sigmoid()[:, None].contiguous(),
    }
    return _cells_last(made), rglru_scan_fn
