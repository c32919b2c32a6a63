"""`mamba_shares`: whole Mamba cores, each on its share of the channels and on its own walk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nvsubq.ops.conv import CAUSAL_CONV1D
from nvsubq.ops.mamba_inner import kernels_serve
from nvsubq.ops.mamba_weights import MambaWeights
from nvsubq.ops.once import once_differentiable
from nvsubq.ops.selective import SELECTIVE_SCAN

_INNER = len(MambaWeights._fields) - 1  # weights of a core without the last, `out_proj`


class _Walks(NamedTuple):
    """How each core walks, and what their ops are told."""

    orders: tuple[Tensor | None, ...]
    reverse: tuple[bool, ...]
    discretization: str
    backend: str | None

    def conv(self, tensors: tuple[Any, ...], s: int) -> Any:
        """The convolution's call of core s."""
        told = None, self.orders[s], self.reverse[s], self.backend
        return CAUSAL_CONV1D.prepared(tensors, ("silu", 1), *told)

    def scan(self, tensors: tuple[Any, ...], s: int) -> Any:
        """The scan's call of core s."""
        told = None, self.orders[s], self.reverse[s], self.backend
        return SELECTIVE_SCAN.prepared(tensors, (True, self.discretization), *told)


def mamba_shares(
    x: Tensor,
    cores: Sequence[MambaWeights],
    *,
    orders: Sequence[Tensor | None],
    reverse: Sequence[bool],
    discretization: str = "mamba",
    backend: str | None = None,
) -> Tensor | None:
    """Run S Mamba cores, each over its share of the channels, and lay their outputs side by side.

    The products of all cores are one batched product each: with a quarter of the width they are small, and
    what splits one among threads waits at its end for the last of them, which on a busy machine is most of
    the time. Convolutions and scans are one call for each core, in one block of memory for all.

    Args:
        x: `[B, L, S C]`.
        cores: the S cores' weights.
        orders: of each core, `[L]` or None.
        reverse: for each core, whether it walks from the end.
        discretization: as in `selective_scan`.
        backend: a name from `backends()`.

    Returns:
        `[B, L, S C]`; None where this is not the way to do it: no compiled kernels, autocast, something that
        looks on (a compiler, functorch), cores of several sizes, dtypes that do not fit.

    Reference: Gu & Dao, Mamba (arXiv:2312.00752).
    """
    if (
        not _fits(x, cores)
        or torch.is_autocast_enabled(x.device.type)
        or not kernels_serve(x, cores[0].A_log, backend)
    ):
        return None
    walks = _Walks(tuple(orders), tuple(reverse), discretization, backend)
    weights = [tensor for core in cores for tensor in core[:_INNER]]
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, *weights)):
        y: Any = _Inner.apply(walks, x, *weights)
    else:
        with torch.no_grad():
            y = _Run(walks, x, weights).forward(keep=False)
    # Apart from the node, so that y is gone when the node's backward needs the room.
    out = torch.bmm(y, torch.stack([core.out_proj for core in cores]).mT)  # (S, M, C)
    return out.transpose(0, 1).reshape(x.shape)


def _fits(x: Tensor, cores: Sequence[MambaWeights]) -> bool:
    shapes = [[None if weight is None else weight.shape for weight in core] for core in cores]
    if shapes.count(shapes[0]) < len(shapes) or x.dtype not in (torch.float32, torch.float64):
        return False
    return all(weight is None or weight.dtype == x.dtype for core in cores for weight in core)


class _Run:
    """One call: its weights stacked, and both passes. All cells of all batches are rows, `M = B L`."""

    def __init__(self, walks: _Walks, x: Tensor, weights: Sequence[Any]) -> None:
        self.walks, self.shape, count = walks, x.shape, len(walks.reverse)
        each = [weights[s * _INNER : (s + 1) * _INNER] for s in range(count)]
        self.cores = [dict(zip(MambaWeights._fields, inner, strict=False)) for inner in each]
        self.x = x.reshape(-1, count, x.shape[-1] // count).transpose(0, 1)  # (S, M, C)
        self.in_proj = torch.stack([core["in_proj"] for core in self.cores])  # (S, 2D, C)
        self.x_proj = torch.stack([core["x_proj"] for core in self.cores])  # (S, R + 2N, D)
        self.dt_proj = torch.stack([core["dt_proj"] for core in self.cores])  # (S, D, R)
        self.A = [core["A_log"].exp().neg_() for core in self.cores]
        self.width, self.rank = self.dt_proj.shape[1:]

    def forward(self, *, keep: bool) -> Tensor:
        """Give y `[S, M, D]`; with `keep` leave xz, x_dbl and the states at borders for the backward."""
        xz = torch.bmm(self.x, self.in_proj.mT)  # (S, M, 2D)
        u = self._convolved(xz)
        x_dbl = torch.bmm(u, self.x_proj.mT)  # (S, M, R + 2N)
        y, saved = self._scan(xz, u, x_dbl, keep)
        if keep:
            self.kept = xz, x_dbl, *saved
        return y

    def backward(self, d_y: Tensor, kept: Sequence[Tensor], needs_x: bool) -> list[Tensor | None]:
        """Gradients of x and of the cores' weights, in their order."""
        xz, x_dbl, *saved = kept
        u = self._convolved(xz)
        d_xz, d_x_dbl = torch.empty_like(xz), torch.empty_like(x_dbl)
        d_u, d_delta, scanned = self._scan_back(d_y, xz, u, x_dbl, saved, d_xz, d_x_dbl)
        d_dt_proj = torch.bmm(d_delta.mT, x_dbl[..., : self.rank])
        d_x_dbl[..., : self.rank].copy_(torch.bmm(d_delta, self.dt_proj))
        del d_delta
        d_x_proj = torch.bmm(d_x_dbl.mT, u)
        del u
        d_u.baddbmm_(d_x_dbl, self.x_proj)
        convolved = self._convolve_back(d_u, xz, d_xz)
        del d_u, d_x_dbl
        d_in_proj = torch.bmm(d_xz.mT, self.x)
        found: list[Tensor | None] = [self._beside(torch.bmm(d_xz, self.in_proj)) if needs_x else None]
        for s, ((d_weight, d_bias), (d_A_log, d_D, d_dt_bias)) in enumerate(
            zip(convolved, scanned, strict=True)
        ):
            found += [d_in_proj[s], d_weight, d_bias, d_x_proj[s], d_dt_proj[s], d_dt_bias, d_A_log, d_D]
        return found

    def _scan(self, xz: Tensor, u: Tensor, x_dbl: Tensor, keep: bool) -> tuple[Tensor, list[Tensor]]:
        """All y `[S, M, D]`, and the states that each core's backward needs."""
        delta, y, saved = self._delta(x_dbl), torch.empty_like(u), []
        for s, order in enumerate(self.walks.orders):
            tensors = self._scanned(s, xz, u, x_dbl, delta)
            scan = self.walks.scan(tensors, s)
            into = self._cells(y[s])
            saved.append(scan.forward(tensors, None, order, end=False, keep=keep, into=into)[2])
        return y, saved

    def _scan_back(
        self,
        d_y: Tensor,
        xz: Tensor,
        u: Tensor,
        x_dbl: Tensor,
        saved: Sequence[Tensor],
        d_xz: Tensor,
        d_x_dbl: Tensor,
    ) -> tuple[Tensor, Tensor, list[tuple[Any, ...]]]:
        """Gradients of u and delta, and of each core's A_log, D and dt_bias; those of z, B and C in place."""
        delta = self._delta(x_dbl)
        d_u, d_delta, found = torch.empty_like(u), torch.empty_like(delta), []
        for s, order in enumerate(self.walks.orders):
            tensors = self._scanned(s, xz, u, x_dbl, delta)
            _, d_B, d_C = self._parts(d_x_dbl[s])
            d_z = self._cells(d_xz[s])[..., self.width :]
            cells = {"u": self._cells(d_u[s]), "delta": self._cells(d_delta[s])}
            into = cells | {"B": d_B, "C": d_C, "z": d_z}
            scan = self.walks.scan(tensors, s)
            grads = scan.backward(self._cells(d_y[s]), None, saved[s], tensors, None, order, into)
            found.append((grads[2].mul_(self.A[s]), grads[5], grads[7]))
        return d_u, d_delta, found

    def _convolve_back(self, d_u: Tensor, xz: Tensor, d_xz: Tensor) -> list[tuple[Any, ...]]:
        """Gradients of each core's weight and bias; those of x in place."""
        found = []
        for s, order in enumerate(self.walks.orders):
            tensors = self._inputs(s, xz)
            conv = self.walks.conv(tensors, s)
            into = {"x": self._cells(d_xz[s])[..., : self.width]}
            nothing = d_u.new_empty(0)
            grads = conv.backward(self._cells(d_u[s]), None, nothing, tensors, None, order, into)
            found.append((grads[1][:, None], grads[2]))
        return found

    def _convolved(self, xz: Tensor) -> Tensor:
        """All u, `[S, M, D]`."""
        u = xz.new_empty(*xz.shape[:2], self.width)
        for s, order in enumerate(self.walks.orders):
            tensors = self._inputs(s, xz)
            conv = self.walks.conv(tensors, s)
            conv.forward(tensors, None, order, end=False, keep=False, into=self._cells(u[s]))
        return u

    def _inputs(self, s: int, xz: Tensor) -> tuple[Tensor | None, ...]:
        core = self.cores[s]
        return self._cells(xz[s])[..., : self.width], core["conv_weight"][:, 0], core["conv_bias"], None

    def _delta(self, x_dbl: Tensor) -> Tensor:
        return torch.bmm(x_dbl[..., : self.rank], self.dt_proj.mT)

    def _scanned(
        self, s: int, xz: Tensor, u: Tensor, x_dbl: Tensor, delta: Tensor
    ) -> tuple[Tensor | None, ...]:
        """The scan's tensors of core s."""
        core, (_, B, C) = self.cores[s], self._parts(x_dbl[s])
        z = self._cells(xz[s])[..., self.width :]
        clock = core["dt_bias"], None, None, None, None
        return self._cells(u[s]), self._cells(delta[s]), self.A[s], B, C, core["D"], z, *clock

    def _parts(self, x_dbl: Tensor) -> tuple[Tensor, ...]:
        states = self.A[0].shape[1]
        return self._cells(x_dbl).split((self.rank, states, states), dim=-1)

    def _cells(self, rows: Tensor) -> Tensor:
        """`[M, W]` as `[B, L, W]`."""
        return rows.view(*self.shape[:2], rows.shape[-1])

    def _beside(self, rows: Tensor) -> Tensor:
        """`[S, M, C]` as `[B, L, S C]`."""
        return rows.transpose(0, 1).reshape(self.shape)


class _Inner(torch.autograd.Function):
    """From x to y `[S, M, D]`, which is gated; tensors: x, then every core's weights but `out_proj`."""

    @staticmethod
    def forward(ctx, walks: _Walks, x: Tensor, *weights: Tensor | None):  # type: ignore[override]
        run = _Run(walks, x, weights)
        y = run.forward(keep=True)
        ctx.save_for_backward(x, *weights, *run.kept)
        ctx.walks = walks
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, d_y: Tensor):  # type: ignore[override]
        x, *rest = ctx.saved_tensors
        count = _INNER * len(ctx.walks.reverse)
        run = _Run(ctx.walks, x, rest[:count])
        grads = run.backward(d_y.contiguous(), rest[count:], ctx.needs_input_grad[1])
        wanted = ctx.needs_input_grad[1:]
        return None, *(g if needed else None for g, needed in zip(grads, wanted, strict=True))
