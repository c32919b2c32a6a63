"""`mamba_inner`: what lies between Mamba's input and output projections, as one node of autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nvsubq.ops import dispatch
from nvsubq.ops.conv import CAUSAL_CONV1D, causal_conv1d
from nvsubq.ops.native.served import declines
from nvsubq.ops.once import once_differentiable
from nvsubq.ops.selective import SELECTIVE_SCAN, selective_scan
from nvsubq.ops.tracing import traced


def mamba_inner(
    xz: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    x_proj: Tensor,
    dt_proj: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    *,
    delta_a: Tensor | None = None,
    timesteps: Tensor | None = None,
    discretization: str = "mamba",
    seq_idx: Tensor | None = None,
    order: Tensor | None = None,
    reverse: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Run u = SiLU(conv(x)), (d, B, C) = W_x u, delta = softplus(W_dt d + b), y = scan(u, ...) SiLU(z).

    On a backend of compiled kernels the whole is one node, which keeps `xz`, (d, B, C) and the states at
    borders, makes u and delta anew in its backward, and writes gradients where they belong without copies.
    Elsewhere, and where nothing is recorded, it is the ops one after the other.

    Args:
        xz: `[B, L, 2D]`, x and z beside each other.
        conv_weight: `[D, K]`.
        conv_bias: `[D]`.
        x_proj: W_x `[R + 2N, D]`.
        dt_proj: W_dt `[D, R]`.
        dt_bias: `[D]`.
        A: `[D, N]`, real.
        D: `[D]`.
        delta_a: `[D]`, with `timesteps`: the rate of the decay's own clock.
        timesteps: `[B, L]`.
        discretization: as in `selective_scan`.
        seq_idx: as in `selective_scan`.
        order: `[L]`.
        reverse: walk from the end.
        backend: a name from `backends()`.

    Returns:
        y `[B, L, D]`.

    Raises:
        ValueError: a shape, dtype or option that does not fit.

    Reference: Gu & Dao, Mamba (arXiv:2312.00752).
    """
    x_proj, dt_proj = x_proj.to(xz.dtype), dt_proj.to(xz.dtype)  # as autocast has the activations
    tensors = (xz, conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A, D, delta_a, timesteps)
    walk = {"seq_idx": seq_idx, "order": order, "reverse": reverse}
    if _one_node(tensors, backend):
        return _Inner.apply(discretization, walk, backend, *tensors)  # type: ignore[no-any-return]
    x, z = xz.chunk(2, dim=-1)
    u: Any = causal_conv1d(x, conv_weight, conv_bias, activation="silu", backend=backend, **walk)  # type: ignore[arg-type]
    low, B, C = _split(F.linear(u, x_proj), dt_proj, A)
    y: Any = selective_scan(
        u, F.linear(low, dt_proj), A, B, C, D, z,
        delta_bias=dt_bias, delta_softplus=True, delta_a=delta_a, timesteps=timesteps,
        discretization=discretization, backend=backend, **walk,  # type: ignore[arg-type]
    )  # fmt: skip
    return y  # type: ignore[no-any-return]


def _one_node(tensors: tuple[Tensor | None, ...], backend: str | None) -> bool:
    """Whether autograd records this call, eagerly, and compiled kernels serve it."""
    if not torch.is_grad_enabled() or not any(t is not None and t.requires_grad for t in tensors):
        return False
    xz: Any = tensors[0]
    A: Any = tensors[6]
    return kernels_serve(xz, A, backend)


def kernels_serve(x: Tensor, A: Tensor, backend: str | None) -> bool:
    """Whether compiled kernels serve Mamba's two ops in an eager call, with A's shape `[D, N]`."""
    if traced() or torch._C._functorch.peek_interpreter_stack() is not None or x.numel() == 0:
        return False
    device = x.device.type
    native = all(
        dispatch.concrete(op, backend, device) == "native" for op in ("causal_conv1d", "selective_scan")
    )
    return native and declines("selective_scan", {"A": A}) is None


def _split(x_dbl: Tensor, dt_proj: Tensor, A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    low, B, C = x_dbl.split((dt_proj.shape[1], A.shape[1], A.shape[1]), dim=-1)
    return low, B, C


class _Calls:
    """The two ops of the node on its tensors, without autograd."""

    def __init__(
        self, discretization: str, walk: dict[str, Any], backend: str | None, tensors: Sequence[Any]
    ) -> None:
        xz, conv_weight, conv_bias, self.x_proj, self.dt_proj, self.dt_bias, self.A, self.D = tensors[:8]
        self.delta_a, self.timesteps = tensors[8:]
        self.tables = walk["seq_idx"], walk["order"]
        self.walk = *self.tables, walk["reverse"], backend
        self.discretization = discretization
        x, self.z = xz.chunk(2, dim=-1)
        self.conv_tensors = x, conv_weight, conv_bias, None
        self.conv: Any = CAUSAL_CONV1D.prepared(self.conv_tensors, ("silu", 1), *self.walk)

    def u(self) -> Tensor:
        """The convolved x `[B, L, D]`."""
        u: Tensor = self.conv.forward(self.conv_tensors, *self.tables, end=False)[0]
        return u

    def scan(self, u: Tensor, x_dbl: Tensor) -> tuple[Any, tuple[Tensor | None, ...]]:
        """The scan's call and its tensors, of which delta is made here."""
        low, B, C = _split(x_dbl, self.dt_proj, self.A)
        delta = F.linear(low, self.dt_proj)
        clock = self.dt_bias, self.delta_a, self.timesteps, None, None
        tensors = u, delta, self.A, B, C, self.D, self.z, *clock
        return SELECTIVE_SCAN.prepared(tensors, (True, self.discretization), *self.walk), tensors


class _Inner(torch.autograd.Function):
    """The node; its tensors are those of `mamba_inner`, in that order."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx, discretization: str, walk: dict[str, Any], backend: str | None, *tensors: Tensor | None
    ):
        calls = _Calls(discretization, walk, backend, tensors)
        u = calls.u()
        x_dbl = F.linear(u, calls.x_proj)
        scan, inputs = calls.scan(u, x_dbl)
        y, _, saved = scan.forward(inputs, *calls.tables, end=False)
        ctx.save_for_backward(x_dbl, saved, *tensors)
        ctx.options = discretization, walk, backend
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, d_y: Tensor):  # type: ignore[override]
        x_dbl, saved, *tensors = ctx.saved_tensors
        calls = _Calls(*ctx.options, tensors)  # type: ignore[call-arg]
        u = calls.u()
        scan, inputs = calls.scan(u, x_dbl)
        xz, x_proj, dt_proj = tensors[0], calls.x_proj, calls.dt_proj
        d_xz, d_x_dbl = torch.empty_like(xz), torch.empty_like(x_dbl)
        d_x, d_z = d_xz.chunk(2, dim=-1)
        d_low, d_B, d_C = _split(d_x_dbl, dt_proj, calls.A)
        into = {"B": d_B, "C": d_C, "z": d_z}
        grads = scan.backward(d_y, None, saved, inputs, *calls.tables, into)
        d_u, d_delta, d_A, _, _, d_D, _, d_bias, d_delta_a, d_timesteps, _, _ = grads

        # What follows is in rows of cells; the products go where they belong, and add where that is due.
        low = _rows(_split(x_dbl, dt_proj, calls.A)[0])
        torch.mm(_rows(d_delta), dt_proj, out=_rows(d_low))
        d_dt_proj = _rows(d_delta).t() @ low
        d_x_proj = _rows(d_x_dbl).t() @ _rows(u)
        _rows(d_u).addmm_(_rows(d_x_dbl), x_proj)
        _, d_weight, d_conv_bias, _ = calls.conv.backward(
            d_u, None, u.new_empty(0, dtype=saved.dtype), calls.conv_tensors, *calls.tables, {"x": d_x}
        )
        d_inputs = d_xz, d_weight, d_conv_bias, d_x_proj, d_dt_proj, d_bias, d_A, d_D, d_delta_a, d_timesteps
        return None, None, None, *d_inputs


def _rows(x: Tensor) -> Tensor:
    """`[B, L, W]` as `[B L, W]`, without a copy."""
    return x.view(-1, x.shape[-1])
