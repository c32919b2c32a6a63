"""`mamba_inner`: what lies between Mamba's input and output projections, as one node of autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nvsubq.ops import dispatch
from nvsubq.ops.autocast import autocast_off, backward_without_autocast
from nvsubq.ops.carry import Carry, Grads, SlabScan, carrying, last_walked
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
    with autocast_off(xz.device):
        return _inner(tensors, walk, discretization, backend)


def _inner(
    tensors: tuple[Any, ...], walk: dict[str, Any], discretization: str, backend: str | None
) -> Tensor:
    if _one_node(tensors, backend):
        carry = carrying()
        if carry is None or walk["seq_idx"] is None:  # which a slab has not: the ops say so
            return _Inner.apply(carry, discretization, walk, backend, *tensors)  # type: ignore[no-any-return]
    xz, conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A, D, delta_a, timesteps = tensors
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
    """The two ops of the node on its tensors, without autograd; with `carry` on one slab of a field."""

    def __init__(
        self,
        carry: Carry | None,
        discretization: str,
        walk: dict[str, Any],
        backend: str | None,
        tensors: Sequence[Any],
        before: Tensor | None = None,
    ) -> None:
        xz, conv_weight, conv_bias, self.x_proj, self.dt_proj, self.dt_bias, self.A, self.D = tensors[:8]
        self.delta_a, self.timesteps = tensors[8:]
        self.carry, self.order, self.reverse, self.backend = carry, walk["order"], walk["reverse"], backend
        self.tables = walk["seq_idx"], self.order
        self.walk = *self.tables, self.reverse, backend
        self.discretization = discretization
        self.x, self.z = xz.chunk(2, dim=-1)
        self.reach = conv_weight.shape[1] - 1
        if carry is not None and before is None:
            carry.check_length("mamba_inner", xz.shape[1])
            before = carry.inputs_before(self.end_of(self.x), self.reach, self.reverse).transpose(1, 2)
        self.before = before  # the convolution's inputs in the slabs before
        self.conv_tensors: Any = self.x, conv_weight, conv_bias, before
        self.conv: Any = CAUSAL_CONV1D.prepared(self.conv_tensors, ("silu", 1), *self.walk)

    def end_of(self, x: Tensor) -> Tensor:
        """What the convolution in the next slab sees of this one, newest last."""
        return last_walked(x, min(self.reach, x.shape[1]), self.order, self.reverse)

    def add_to_end(self, d_x: Tensor, d_before: Tensor) -> None:
        """Add to the gradient of x what the next slabs' convolutions ask for."""
        assert self.carry is not None
        kept = min(self.reach, d_x.shape[1])
        d_end = self.carry.inputs_back(d_before.transpose(1, 2), kept, self.reverse)
        cells = torch.arange(d_x.shape[1], device=d_x.device)[None, :, None]
        d_x.index_add_(1, last_walked(cells, kept, self.order, self.reverse).flatten(), d_end.to(d_x.dtype))

    def u(self) -> Tensor:
        """The convolved x `[B, L, D]`."""
        u: Tensor = self.conv.forward(self.conv_tensors, *self.tables, end=False)[0]
        return u

    def inputs(self, u: Tensor, x_dbl: Tensor) -> tuple[Tensor | None, ...]:
        """The scan's tensors but for its state; delta is made here."""
        low, B, C = _split(x_dbl, self.dt_proj, self.A)
        delta = F.linear(low, self.dt_proj)
        return u, delta, self.A, B, C, self.D, self.z, self.dt_bias, self.delta_a, self.timesteps, None

    def scan(self, inputs: tuple[Tensor | None, ...]) -> SlabScan:
        """The scan's call."""
        options = True, self.discretization
        return SlabScan(SELECTIVE_SCAN, options, self.order, self.reverse, self.backend, inputs)


class _Inner(torch.autograd.Function):
    """The node; its tensors are those of `mamba_inner`, in that order."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx,
        carry: Carry | None,
        discretization: str,
        walk: dict[str, Any],
        backend: str | None,
        *tensors: Tensor | None,
    ):
        calls = _Calls(carry, discretization, walk, backend, tensors)
        u = calls.u()
        x_dbl = F.linear(u, calls.x_proj)
        inputs = calls.inputs(u, x_dbl)
        state = decays = None
        if carry is None:
            given = (*inputs, None)
            scan: Any = SELECTIVE_SCAN.prepared(given, (True, discretization), *calls.walk)
            y, _, saved = scan.forward(given, *calls.tables, end=False)
        else:
            own = calls.scan(inputs)
            y, saved, state, decays = carry.enter(calls.reverse, own.zero, own.walk, own.end, own.decay)
        ctx.save_for_backward(x_dbl, saved, state, decays, calls.before, *tensors)
        ctx.options = carry, discretization, walk, backend
        return y

    @staticmethod
    @once_differentiable
    @backward_without_autocast
    def backward(ctx, d_y: Tensor):  # type: ignore[override]
        x_dbl, saved, state, decays, before, *tensors = ctx.saved_tensors
        carry = ctx.options[0]
        calls = _Calls(*ctx.options, tensors, before)  # type: ignore[call-arg]
        u = calls.u()
        inputs = calls.inputs(u, x_dbl)
        xz, x_proj, dt_proj = tensors[0], calls.x_proj, calls.dt_proj
        d_xz = torch.empty_like(xz, memory_format=torch.contiguous_format)  # its parts are written to
        d_x_dbl = torch.empty_like(x_dbl)
        d_x, d_z = d_xz.chunk(2, dim=-1)
        d_low, d_B, d_C = _split(d_x_dbl, dt_proj, calls.A)
        into: dict[str, Any] = {"B": d_B, "C": d_C, "z": d_z}
        if carry is None:
            given = (*inputs, None)
            if xz.is_cuda:
                into["delta"] = given[1]  # which is not needed any more
            scan: Any = SELECTIVE_SCAN.prepared(given, (True, calls.discretization), *calls.walk)
            grads = scan.backward(d_y, None, saved, given, *calls.tables, into)
        else:
            own = calls.scan(inputs)

            def back(d_final: Tensor | None) -> Grads:
                return own.back(d_y, d_final, saved, state, into)

            grads = carry.leave(calls.reverse, decays, own.zero, back)
        d_u, d_delta, d_A, _, _, d_D, _, d_bias, d_delta_a, d_timesteps, _, _ = grads

        # What follows is in rows of cells; the products go where they belong, and add where that is due.
        low = _rows(_split(x_dbl, dt_proj, calls.A)[0])
        torch.mm(_rows(d_delta), dt_proj, out=_rows(d_low))
        d_dt_proj = _rows(d_delta).t() @ low
        d_x_proj = _rows(d_x_dbl).t() @ _rows(u)
        _rows(d_u).addmm_(_rows(d_x_dbl), x_proj)
        _, d_weight, d_conv_bias, d_before = calls.conv.backward(
            d_u, None, u.new_empty(0, dtype=saved.dtype), calls.conv_tensors, *calls.tables, {"x": d_x}
        )
        if carry is not None:
            calls.add_to_end(d_x, d_before)
        d_inputs = d_xz, d_weight, d_conv_bias, d_x_proj, d_dt_proj, d_bias, d_A, d_D, d_delta_a, d_timesteps
        return None, None, None, None, *d_inputs


def _rows(x: Tensor) -> Tensor:
    """`[B, L, W]` as `[B L, W]`, without a copy."""
    return x.view(-1, x.shape[-1])
