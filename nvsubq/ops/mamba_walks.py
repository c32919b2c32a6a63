"""`mamba_walks`: whole Mamba cores over the same cells, each on its own walk, as two nodes of autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nvsubq.ops.conv import CAUSAL_CONV1D
from nvsubq.ops.mamba_inner import kernels_serve
from nvsubq.ops.mamba_weights import Joined, MambaWeights, join_last, product
from nvsubq.ops.once import once_differentiable
from nvsubq.ops.selective import SELECTIVE_SCAN


class _Walks:
    """How the cores walk, and the calls of their ops.

    Args:
        dtype: of activations.
        order: `[L]`, of all cores.
        reverse: for each core, whether it walks from the end.
        discretization: of the scan.
    """

    def __init__(
        self, dtype: torch.dtype, order: Tensor | None, reverse: tuple[bool, ...], discretization: str
    ) -> None:
        self.dtype, self.order, self.reverse = dtype, order, reverse
        self.discretization = discretization

    def conv(self, tensors: tuple[Any, ...], s: int) -> Any:
        """The convolution's call of core s."""
        return CAUSAL_CONV1D.prepared(tensors, ("silu", 1), None, self.order, self.reverse[s], "native")

    def scan(self, tensors: tuple[Any, ...], s: int) -> Any:
        """The scan's call of core s."""
        options = True, self.discretization
        return SELECTIVE_SCAN.prepared(tensors, options, None, self.order, self.reverse[s], "native")


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
    if dtype is None or not kernels_serve(x, cores[0].A_log, backend):
        return None
    walks = _Walks(dtype, order, tuple(reverse), discretization)
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


def _run(walks: _Walks, x: Tensor, w: Joined, *, keep: bool) -> tuple[Tensor, list[Any], list[Any]]:
    """Give y `[B, L, S D]`; with `keep` x, xz and each core's x_dbl and states; and each core's calls."""
    batch, length, width = x.shape
    count, D = len(walks.reverse), w.width
    x = x.to(walks.dtype).view(-1, width) if x.is_contiguous() else x.to(walks.dtype).reshape(-1, width)
    xz = torch.mm(x, w.in_proj.t())  # (B L, S 2 D): of every core x and z
    halves = xz.view(batch, length, 2 * count, D).unbind(2)
    y = xz.new_empty(batch, length, count * D)
    kept, calls = [x, xz], []
    for s, own_y in enumerate(y.view(batch, length, count, D).unbind(2)):
        given = halves[2 * s], *w.conv[s], None
        conv = walks.conv(given, s)
        tables = conv.tables(None, walks.order)
        u = conv.run_forward(given, tables, keep=False, end=False)[0]
        x_dbl = torch.mm(u.view(-1, D), w.x_proj[s].t())
        low, B, C = _parts(w, x_dbl, batch, length)
        delta = torch.mm(low, w.dt_proj[s].t()).view(batch, length, D)
        tensors = u, delta, w.A[s], B, C, w.D[s], halves[2 * s + 1], w.dt_bias[s], None, None, None, None
        scan = walks.scan(tensors, s)
        saved = scan.run_forward(tensors, tables, keep=keep, end=False, into=own_y)[2]
        kept += [x_dbl, saved]
        calls.append((conv, tables))
    return y, kept, calls


def _parts(w: Joined, x_dbl: Tensor, batch: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of x_dbl, or its gradient, d `[B L, R + padding]`, B and C `[B, L, N]`."""
    columns, N, first = w.columns, w.states, x_dbl.storage_offset()
    rank = columns - 2 * N
    shape, strides = (batch, length, N), (length * columns, columns, 1)
    return (  # half the host's time of split and view
        x_dbl.as_strided((batch * length, rank), (columns, 1), first),
        x_dbl.as_strided(shape, strides, first + rank),
        x_dbl.as_strided(shape, strides, first + rank + N),
    )


class _Inner(torch.autograd.Function):
    """From x to y `[B, L, SD]`, which is gated; tensors: x, then every core's weights but `out_proj`."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx, walks: _Walks, cores: Sequence[MambaWeights], x: Tensor, *tensors: Tensor | None
    ):
        w = Joined(cores, walks.dtype)
        y, kept, calls = _run(walks, x, w, keep=True)
        # Of the weights those that the backward reads as they are: that they have not changed is checked.
        exact = [t for core in cores for t in (core.conv_weight, core.conv_bias, core.dt_bias, core.D)]
        ctx.save_for_backward(*kept, *exact)
        ctx.walks, ctx.weights, ctx.calls = walks, w, calls
        ctx.shape, ctx.dtype = x.shape, x.dtype
        ctx.dtypes = [None if t is None else t.dtype for t in cores[0][:-1]]
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, d_y: Tensor):  # type: ignore[override]
        w, (batch, length, _), count = ctx.weights, ctx.shape, len(ctx.calls)
        x, xz, *rest = ctx.saved_tensors
        halves = xz.view(batch, length, 2 * count, w.width).unbind(2)
        d_x: Any = None
        grads: list[Tensor | None] = []
        for s, own_d_y in enumerate(d_y.view(batch, length, count, w.width).unbind(2)):
            cells = halves[2 * s], halves[2 * s + 1], own_d_y, *rest[2 * s : 2 * s + 2]
            d_xz, more = _walk_back(ctx, s, cells)
            found = product(d_xz.t(), x, ctx.dtypes[0]), *more
            grads += [
                g if g is None or g.dtype == dtype else g.to(dtype)
                for g, dtype in zip(found, ctx.dtypes, strict=True)
            ]
            if ctx.needs_input_grad[2]:
                own = w.own_in_proj[s]
                d_x = torch.mm(d_xz, own) if d_x is None else d_x.addmm_(d_xz, own)
            del d_xz  # as large as two activations: the next core's takes its place
        return None, None, None if d_x is None else d_x.view(ctx.shape).to(ctx.dtype), *grads


def _walk_back(
    ctx: Any, s: int, cells: tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """Gradients of core s's x and z `[B L, 2D]`; of its weights between `in_proj` and `out_proj`.

    `cells`: x, z, the cotangent of y, x_dbl, the scan's states.
    """
    w, walks, (conv, tables) = ctx.weights, ctx.walks, ctx.calls[s]
    inputs, z, d_y, x_dbl, saved = cells
    (batch, length, _), D = inputs.shape, w.width
    given = inputs, *w.conv[s], None
    u = conv.run_forward(given, tables, keep=False, end=False)[0]
    low, B, C = _parts(w, x_dbl, batch, length)
    # Delta lies where the gradient of x will: it is not needed any more when that is made.
    d_xz = u.new_empty(batch * length, 2 * D)
    shape, strides = inputs.shape, (length * 2 * D, 2 * D, 1)
    left, d_z = d_xz.as_strided(shape, strides), d_xz.as_strided(shape, strides, D)
    torch.mm(low, w.dt_proj[s].t(), out=d_xz.as_strided((batch * length, D), strides[1:]))
    tensors = u, left, w.A[s], B, C, w.D[s], z, w.dt_bias[s], None, None, None, None
    d_x_dbl = torch.empty_like(x_dbl)
    d_low, d_B, d_C = _parts(w, d_x_dbl, batch, length)
    scan = walks.scan(tensors, s)
    into = {"B": d_B, "C": d_C, "z": d_z}
    if d_xz.is_cuda:
        into["delta"] = left  # whose gradient is used up before that of x is made
    found = scan.run_backward(d_y, None, saved, tensors, tables, into)
    d_u, d_delta, d_A, _, _, d_D, _, d_bias = found[:8]
    del tensors, found
    d_delta = d_delta.as_strided((batch * length, D), d_delta.stride()[1:])
    d_rows = d_u.view(-1, D)
    torch.mm(d_delta, w.dt_proj[s], out=d_low)
    d_dt_proj = product(d_delta.t(), low, ctx.dtypes[4])
    del d_delta
    d_x_proj = product(d_x_dbl.t(), u.view(-1, D), ctx.dtypes[3])
    d_rows.addmm_(d_x_dbl, w.x_proj[s])
    _, d_weight, d_conv_bias, _ = conv.run_backward(d_u, None, None, given, tables, {"x": left})
    d_low_weights = w.without_padding(d_x_proj, d_dt_proj)
    return d_xz, (d_weight[:, None], d_conv_bias, *d_low_weights, d_bias, d_A.mul_(w.A[s]), d_D)


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
        turned, count = rows.t(), len(ctx.needs_input_grad) - 1
        own = y.view(rows.shape[0], count, -1).unbind(1)
        return d_y, *(product(turned, cells, ctx.dtype) for cells in own)
