"""`mamba_walks`: whole Mamba cores over the same cells, each on its own walk, as two nodes of autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nvsubq.ops import dispatch
from nvsubq.ops.conv import CAUSAL_CONV1D
from nvsubq.ops.mamba_weights import Joined, MambaWeights, join_last
from nvsubq.ops.once import once_differentiable
from nvsubq.ops.selective import SELECTIVE_SCAN
from nvsubq.ops.tracing import traced


class _Walks:
    """How the cores walk, and the calls of their ops.

    Args:
        dtype: of activations.
        order: `[L]`, of all cores.
        reverse: for each core, whether it walks from the end.
        discretization: of the scan.
        backend: as the user named it.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        order: Tensor | None,
        reverse: tuple[bool, ...],
        discretization: str,
        backend: str | None,
    ) -> None:
        self.dtype, self.order, self.reverse = dtype, order, reverse
        self.discretization, self.backend = discretization, backend

    def conv(self, tensors: tuple[Any, ...], s: int) -> Any:
        """The convolution's call of core s."""
        return CAUSAL_CONV1D.prepared(tensors, ("silu", 1), None, self.order, self.reverse[s], self.backend)

    def scan(self, tensors: tuple[Any, ...], s: int) -> Any:
        """The scan's call of core s."""
        options = True, self.discretization
        return SELECTIVE_SCAN.prepared(tensors, options, None, self.order, self.reverse[s], self.backend)


def mamba_walks(
    x: Tensor,
    cores: Sequence[MambaWeights],
    *,
    order: Tensor | None = None,
    reverse: Sequence[bool],
    discretization: str = "mamba",
    backend: str | None = None,
) -> Tensor | None:
    """Run Mamba cores S times over the cells of `x` and add up what they give.

    The channels of all cores lie beside each other, so each product with `x`, the convolution, the scan and
    the last product, which adds up the cores, is one call. Weights are cast once. What is kept is `x` as
    the products took it, xz, (B, C, d) and the states at borders; the backward makes u and delta anew, one
    core after the other, so that at no time there is more than one core's share of them.

    Args:
        x: `[B, L, C]`.
        cores: the S cores' weights.
        order: `[L]`, as in `selective_scan`.
        reverse: for each core, whether it walks from the end.
        discretization: as in `selective_scan`.
        backend: a name from `backends()`.

    Returns:
        The sum `[B, L, C]`, in autocast's dtype where that is on; None where this is not the way to do it:
        no compiled kernels, something that looks on (a compiler, functorch), dtypes that do not fit.

    Reference: Gu & Dao, Mamba (arXiv:2312.00752).
    """
    dtype = _activations(x, cores)
    if dtype is None or not _served(x, backend):
        return None
    walks = _Walks(dtype, order, tuple(reverse), discretization, backend)
    inner = [tensor for core in cores for tensor in core[:-1]]  # all but `out_proj`
    last = [core.out_proj for core in cores]
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, *inner, *last)):
        y: Any = _Inner.apply(walks, cores, x, *inner)
        return _Sum.apply(y, *last)  # type: ignore[no-any-return]
    with torch.no_grad():
        y = _run(walks, x, Joined(cores, dtype), keep=False)[0]
        return y @ join_last(last, dtype).t()


def _activations(x: Tensor, cores: Sequence[MambaWeights]) -> torch.dtype | None:
    """What products are made in, or None where torch would refuse, or the cores differ in their sizes."""
    shapes = [[None if weight is None else weight.shape for weight in core] for core in cores]
    if shapes.count(shapes[0]) < len(shapes):
        return None
    device = x.device.type
    if torch.is_autocast_enabled(device):
        dtypes = {x.dtype, *(w.dtype for core in cores for w in core.products())}
        return None if torch.float64 in dtypes else torch.get_autocast_dtype(device)
    fits = all(weight.dtype == x.dtype for core in cores for weight in core.products())
    return x.dtype if fits else None


def _served(x: Tensor, backend: str | None) -> bool:
    if traced() or torch._C._functorch.peek_interpreter_stack() is not None or x.numel() == 0:
        return False
    device = x.device.type
    return all(
        dispatch.concrete(op, backend, device) == "native" for op in ("causal_conv1d", "selective_scan")
    )


def _run(walks: _Walks, x: Tensor, w: Joined, *, keep: bool) -> tuple[Tensor, list[Any], list[Any]]:
    """Give y `[B, L, S D]`; with `keep` x, xz and each core's x_dbl and states; and each core's calls."""
    batch, length, width = x.shape
    count = len(walks.reverse)
    x = x.to(walks.dtype).view(-1, width) if x.is_contiguous() else x.to(walks.dtype).reshape(-1, width)
    xz = torch.mm(x, w.in_proj.t())  # (B L, S 2 D): of every core x and z
    halves = xz.view(batch, length, 2 * count, -1).unbind(2)
    y = xz.new_empty(batch, length, count * w.width)
    kept, calls = [x, xz], []
    for s, own_y in enumerate(y.view(batch, length, count, -1).unbind(2)):
        given = halves[2 * s], *w.conv[s], None
        conv = walks.conv(given, s)
        tables = conv.tables(None, walks.order)
        u = conv.run_forward(given, tables, keep=False, end=False)[0]
        x_dbl = torch.mm(u.view(-1, w.width), w.x_proj[s].t())
        tensors = _scan_tensors(w, s, u, x_dbl, halves[2 * s + 1])
        scan = walks.scan(tensors, s)
        saved = scan.run_forward(tensors, tables, keep=keep, end=False, into=own_y)[2]
        kept += [x_dbl, saved]
        calls.append((conv, scan, tables))
    return y, kept, calls


def _scan_tensors(w: Joined, s: int, u: Tensor, x_dbl: Tensor, z: Tensor) -> tuple[Tensor | None, ...]:
    """Those of core s, of which delta is made here."""
    low, B, C = x_dbl.split(w.splits, dim=-1)
    batch, length, width = u.shape
    delta = torch.mm(low, w.dt_proj[s].t()).view(batch, length, width)
    B, C = B.unflatten(0, (batch, length)), C.unflatten(0, (batch, length))
    return u, delta, w.A[s], B, C, w.D[s], z, w.dt_bias[s], None, None, None, None


class _Inner(torch.autograd.Function):
    """From x to y `[B, L, SD]`, which is gated; tensors: x, then every core's weights but `out_proj`."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx, walks: _Walks, cores: Sequence[MambaWeights], x: Tensor, *tensors: Tensor | None
    ):
        w = Joined(cores, walks.dtype)
        y, kept, calls = _run(walks, x, w, keep=True)
        ctx.save_for_backward(*kept, *tensors)
        ctx.weights, ctx.calls, ctx.shape, ctx.dtype = w, calls, x.shape, x.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, d_y: Tensor):  # type: ignore[override]
        w, (batch, length, width), count = ctx.weights, ctx.shape, len(ctx.calls)
        x, xz, *rest = ctx.saved_tensors
        tensors = rest[2 * count :]
        halves = xz.view(batch, length, 2 * count, -1).unbind(2)
        d_x: Any = None
        d_in_proj = w.in_proj.new_empty(2 * count, w.width, width)
        into, weights = d_in_proj.unbind(), w.in_proj.view_as(d_in_proj).unbind()
        d_x_proj, d_dt_proj = (g.new_empty(count, *g.shape) for g in (w.x_proj[0], w.dt_proj[0]))
        others = []
        for s, own_d_y in enumerate(d_y.view(batch, length, count, -1).unbind(2)):
            x_dbl, saved = rest[2 * s : 2 * s + 2]
            cells = halves[2 * s], halves[2 * s + 1], own_d_y, x_dbl
            d_halves, more = _walk_back(w, s, ctx.calls[s], cells, saved, (d_x_proj[s], d_dt_proj[s]))
            others.append(more)
            for h in (2 * s, 2 * s + 1):
                d = d_halves.pop(0)
                torch.mm(d.t(), x, out=into[h])
                if ctx.needs_input_grad[2]:
                    d_x = d_x.addmm_(d, weights[h]) if h else torch.mm(d, weights[h])
            del d  # as large as an activation: the next core's take its place
        d_x_proj, d_dt_proj = w.without_padding(d_x_proj, d_dt_proj)
        named = dict(zip(MambaWeights._fields, tensors, strict=False))  # of the first core, but `out_proj`
        shared = (
            d_in_proj.to(named["in_proj"].dtype).view(count, -1, width),
            d_x_proj.to(named["x_proj"].dtype),
            d_dt_proj.to(named["dt_proj"].dtype),
        )
        grads: list[Tensor | None] = []
        for d_in, d_low, d_dt, more in zip(*(g.unbind() for g in shared), others, strict=True):
            d_weight, d_bias, *last = more
            found = d_in, d_weight[:, None], d_bias, d_low, d_dt, *last
            grads += [
                g if g is None or g.dtype == t.dtype else g.to(t.dtype)
                for g, t in zip(found, named.values(), strict=False)
            ]
        return None, None, None if d_x is None else d_x.view(ctx.shape).to(ctx.dtype), *grads


def _walk_back(
    w: Joined,
    s: int,
    calls: tuple[Any, ...],
    cells: tuple[Tensor, Tensor, Tensor, Tensor],
    saved: Tensor | None,
    into: tuple[Tensor, Tensor],
) -> tuple[list[Tensor], tuple[Tensor | None, ...]]:
    """Gradients of core s's x and z, in rows of cells; of its convolution, dt_bias, A_log and D.

    `cells`: x, z, the cotangent of y, x_dbl. `into`: where gradients of `x_proj` and `dt_proj` go.
    """
    conv, scan, tables = calls
    inputs, z, d_y, x_dbl = cells
    d_x_proj, d_dt_proj = into
    given = inputs, *w.conv[s], None
    u = conv.run_forward(given, tables, keep=False, end=False)[0]
    rows = u.view(-1, w.width)
    tensors = _scan_tensors(w, s, u, x_dbl, z)
    d_x_dbl = torch.empty_like(x_dbl)
    d_low, d_B, d_C = d_x_dbl.split(w.splits, dim=-1)
    to = {"B": d_B.unflatten(0, u.shape[:2]), "C": d_C.unflatten(0, u.shape[:2])}
    found = scan.run_backward(d_y, None, saved, tensors, tables, to)
    d_u, d_delta, d_A, _, _, d_D, d_z, d_bias = found[:8]
    del tensors, found  # and with them delta
    d_delta, d_rows = d_delta.view(-1, w.width), d_u.view(-1, w.width)
    torch.mm(d_delta, w.dt_proj[s], out=d_low)
    torch.mm(d_delta.t(), x_dbl[:, : w.splits[0]], out=d_dt_proj)
    del d_delta
    torch.mm(d_x_dbl.t(), rows, out=d_x_proj)
    d_rows.addmm_(d_x_dbl, w.x_proj[s])
    d_inputs, d_weight, d_conv_bias, _ = conv.run_backward(d_u, None, None, given, tables)
    d_halves = [d_inputs.view(-1, w.width), d_z.view(-1, w.width)]
    return d_halves, (d_weight, d_conv_bias, d_bias, d_A.mul_(w.A[s]), d_D)


class _Sum(torch.autograd.Function):
    """The last product, whose sum runs over the channels of all cores."""

    @staticmethod
    def forward(ctx, y: Tensor, *weights: Tensor):  # type: ignore[override]
        joined = join_last(weights, y.dtype)
        ctx.save_for_backward(y, joined)
        ctx.dtype = weights[0].dtype
        return y @ joined.t()

    @staticmethod
    @once_differentiable
    def backward(ctx, d_out: Tensor):  # type: ignore[override]
        y, joined = ctx.saved_tensors
        rows = d_out.reshape(-1, d_out.shape[-1])
        d_y = torch.mm(rows, joined).view_as(y)
        d_joined = torch.mm(rows.t(), y.view(-1, y.shape[-1])).to(ctx.dtype)
        return d_y, *(g.contiguous() for g in d_joined.chunk(len(ctx.needs_input_grad) - 1, dim=1))
