"""The ops for `torch.export`: as torch's own operators and its `scan`, so that the length may be dynamic.

A Python loop over cells would fix the length, and our operators exist only where nvsubq is installed. What is
exported here runs anywhere, in onnxruntime for one; each recurrence is the reference's step under
`torch._higher_order_ops.scan`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nvsubq.ops.numerics import (
    accumulation_dtype,
    bounded_sqrt,
    cast,
    complex_of,
    one_minus_square,
)

__all__ = ["exported"]

Given = dict[str, Any]
# step(state, the cell's tensors by name) -> (next state, output of the cell)
Step = Callable[[Tensor, dict[str, Tensor]], tuple[Tensor, Tensor]]


def exported(
    name: str,
    given: Mapping[str, Any],
    seq_idx: Tensor | None,
    order: Tensor | None,
    reverse: bool | Sequence[bool],
) -> tuple[Tensor, Tensor]:
    """What the op `name` gives for tensors and options by name: y and the final state.

    Raises:
        ValueError: sequences, or several walks in one call, which an exported program does not have.
    """
    if seq_idx is not None:
        raise ValueError("`seq_idx` and `lengths` must be None in torch.export: rows are whole there.")
    if not isinstance(reverse, bool) and len(reverse) == 1:
        reverse = reverse[0]
    if not isinstance(reverse, bool) or (order is not None and order.dim() == 2):
        raise ValueError("`order` and `reverse` must name one walk in torch.export.")
    return _OPS[name](_Walk(order, reverse), dict(given))


class _Walk:
    """Tensors in the order of a walk, and back."""

    def __init__(self, order: Tensor | None, reverse: bool) -> None:
        self.order, self.reverse = order, reverse

    def gather(self, x: Tensor) -> Tensor:
        """`[B, L, ...]` from cells to steps."""
        x = x if self.order is None else x.index_select(1, self.order)
        return x.flip(1) if self.reverse else x

    def scatter(self, y: Tensor) -> Tensor:
        """`[B, L, ...]` from steps back to cells."""
        y = y.flip(1) if self.reverse else y
        return y if self.order is None else y.index_select(1, self.order.argsort())

    def scan(
        self, step: Step, state: Tensor, over_cells: Mapping[str, Tensor | None]
    ) -> tuple[Tensor, Tensor]:
        """Step through the cells; tensors `[B, L, ...]` are given to `step` one cell at a time."""
        from torch._higher_order_ops.scan import scan

        names = [name for name, x in over_cells.items() if x is not None]
        steps = [self.gather(over_cells[name]).movedim(1, 0) for name in names]  # type: ignore[arg-type]

        def combine(carried: Tensor, here: list[Tensor]) -> tuple[Tensor, Tensor]:
            carried, y = step(carried, dict(zip(names, here)))  # noqa: B905  (Dynamo knows no `strict`)
            return carried, y.clone()  # outputs may not be the state itself

        state, y = scan(combine, state, steps)
        return self.scatter(y.movedim(0, 1)), state


def _exact(given: Given, *names: str) -> Given:
    """The tensors among `names` in the dtype in which recurrences run, fp32 at least."""
    dtype = accumulation_dtype(*(given[name] for name in names))
    return given | dict(zip(names, cast(dtype, *(given[name] for name in names)), strict=True))


def _state(given: Given, shape: Sequence[int], like: Tensor, dtype: torch.dtype) -> Tensor:
    state = given["initial_state"]
    return torch.zeros(tuple(shape), dtype=dtype, device=like.device) if state is None else state.clone()


def _cell(x: Tensor, channels: int) -> Tensor:
    """B, C or the gate of a cell, `[B, N]` or `[B, G, N]`, or fixed `[1, D, N]`, for each channel."""
    return x[:, None] if x.dim() == 2 else x.repeat_interleave(channels // x.shape[1], 1)


def _selective_scan(walk: _Walk, given: Given) -> tuple[Tensor, Tensor]:
    from nvsubq.ops.reference.selective import discretize  # imports the ops, which import this file

    out_dtype, (batch, _, width) = given["u"].dtype, given["u"].shape
    g = _exact(given, "u", "delta", "A", "B", "C", "D", "z", "delta_bias", "delta_a", "timesteps",
               "decay_gate", "initial_state")  # fmt: skip
    A, D, bias = g["A"], g["D"], g["delta_bias"]
    if g["timesteps"] is not None:
        g["delta_a"] = g["timesteps"][..., None] * g["delta_a"]
    over_cells = {name: g[name] for name in ("u", "delta", "z", "delta_a")}
    fixed: dict[str, Tensor] = {}
    for name in ("B", "C", "decay_gate"):
        (fixed if g[name] is not None and g[name].dim() == 2 else over_cells)[name] = g[name]

    def step(state: Tensor, cell: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        def at(name: str) -> Tensor:
            return _cell(fixed[name][None] if name in fixed else cell[name], width)

        delta = cell["delta"] if bias is None else cell["delta"] + bias
        delta = F.softplus(delta) if g["delta_softplus"] else delta
        decay, factor = discretize(g["discretization"], cell.get("delta_a", delta), delta, A)
        if "decay_gate" in fixed or "decay_gate" in cell:
            decay = decay * at("decay_gate")
        state = decay * state + factor * at("B") * cell["u"][..., None]
        y = (at("C") * state).sum(-1)
        y = 2 * y.real if y.is_complex() else y
        y = y if D is None else y + D * cell["u"]
        return state, y * F.silu(cell["z"]) if "z" in cell else y

    dtype = complex_of(g["u"].dtype) if A.is_complex() else g["u"].dtype
    y, state = walk.scan(step, _state(g, (batch, *A.shape), A, dtype), over_cells)
    return y.to(out_dtype), state


def _linear_scan(walk: _Walk, given: Given) -> tuple[Tensor, Tensor]:
    from nvsubq.ops.reference.linear import decay_and_scale  # as above

    a, b = given["a"], given["b"]
    is_complex = a.is_complex() or b.is_complex()
    out_dtype = complex_of(b.dtype) if a.is_complex() and not b.is_complex() else b.dtype
    g = _exact(given, "a", "b", "dt", "initial_state")
    a, b, dt = g["a"], g["b"], g["dt"]
    kind = torch.promote_types(a.dtype, b.dtype)
    dt = dt[..., None] if dt is not None and dt.dim() == 2 else dt
    decay, scale = decay_and_scale(a, dt, g["discretization"], g["input_scale"])
    b = b if g["input_scale"] == "none" else scale * b
    state = _state(g, (b.shape[0], b.shape[2]), b, kind)
    if is_complex:  # `scan` has no complex numbers: real pairs
        decay, b, state = (torch.view_as_real(t.to(kind)) for t in (decay, b, state))
    fixed = decay if a.dim() == 1 and dt is None else None

    def step(state: Tensor, cell: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        by = cell["decay"] if fixed is None else fixed
        kept = _product(by, state) if is_complex else by * state
        state = kept + cell["b"]
        return state, state

    y, state = walk.scan(step, state, {"b": b, "decay": decay if fixed is None else None})
    if is_complex:
        y, state = torch.view_as_complex(y.contiguous()), torch.view_as_complex(state.contiguous())
    return y.to(out_dtype), state


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Of complex numbers as real pairs `[..., 2]`."""
    real = a[..., 0] * b[..., 0] - a[..., 1] * b[..., 1]
    return torch.stack([real, a[..., 0] * b[..., 1] + a[..., 1] * b[..., 0]], -1)


def _rglru_scan(walk: _Walk, given: Given) -> tuple[Tensor, Tensor]:
    out_dtype = given["x"].dtype
    g = _exact(given, "x", "r", "i", "a_log", "gate", "r_bias", "i_bias", "initial_state")
    approximate = "tanh" if g["gelu"] == "tanh" else "none"
    x = g["x"]
    if not g["normalize_first"] and given["initial_state"] is None:
        first = torch.zeros_like(x[:1, :, 0]).cumsum(1)  # 0 at every cell
        first = walk.scatter((torch.ones_like(first).cumsum(1) == 1).to(x))
        g["fresh"] = first.expand(x.shape[0], -1)

    def step(state: Tensor, cell: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        r = cell["r"] if g["r_bias"] is None else cell["r"] + g["r_bias"]
        i = cell["i"] if g["i_bias"] is None else cell["i"] + g["i_bias"]
        log_a = g["c"] * torch.sigmoid(r) * F.logsigmoid(g["a_log"])
        norm = bounded_sqrt(one_minus_square(log_a))
        if "fresh" in cell:
            norm = torch.where(cell["fresh"][:, None] > 0, torch.ones_like(norm), norm)
        state = log_a.exp() * state + norm * torch.sigmoid(i) * cell["x"]
        return state, state * F.gelu(cell["gate"], approximate=approximate) if "gate" in cell else state

    over_cells = {name: g.get(name) for name in ("x", "r", "i", "gate", "fresh")}
    y, state = walk.scan(step, _state(g, (x.shape[0], x.shape[2]), x, x.dtype), over_cells)
    return y.to(out_dtype), state


def _ssd_scan(walk: _Walk, given: Given) -> tuple[Tensor, Tensor]:
    out_dtype, (batch, _, heads, width) = given["x"].dtype, given["x"].shape
    g = _exact(given, "x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_state")
    A, D, bias = g["A"], g["D"], g["dt_bias"]
    D = D[:, None] if D is not None and D.dim() == 1 else D

    def step(state: Tensor, cell: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        dt = cell["dt"] if bias is None else cell["dt"] + bias
        dt = (F.softplus(dt) if g["dt_softplus"] else dt).clamp(*g["dt_limit"])[
            ..., None, None
        ]  # (B, H, 1, 1)
        B, C = (_cell(cell[name], heads)[:, :, None] for name in ("B", "C"))  # (B, H, 1, N)
        state = torch.exp(dt * A[:, None, None]) * state + dt * cell["x"][..., None] * B
        y = (state * C).sum(-1)
        y = y if D is None else y + D * cell["x"]
        return state, y * F.silu(cell["z"]) if "z" in cell else y

    shape = (batch, heads, width, g["B"].shape[3])
    over_cells = {name: g[name] for name in ("x", "dt", "B", "C", "z")}
    y, state = walk.scan(step, _state(g, shape, g["x"], g["x"].dtype), over_cells)
    return y.to(out_dtype), state


def _causal_conv1d(walk: _Walk, given: Given) -> tuple[Tensor, Tensor]:
    out_dtype = given["x"].dtype
    g = _exact(given, "x", "weight", "bias", "initial_state")
    x, weight = walk.gather(g["x"]).mT, g["weight"]  # (B, D, L)
    reach = (weight.shape[1] - 1) * g["dilation"]
    before = g["initial_state"]
    x = F.pad(x, (reach, 0)) if before is None else torch.cat([before, x], 2)
    width = reach if before is None else before.shape[2]
    y = F.conv1d(
        x[:, :, width - reach :], weight[:, None], g["bias"], dilation=g["dilation"], groups=weight.shape[0]
    )
    y = F.silu(y) if g["activation"] == "silu" else y
    final = x[:, :, x.shape[2] - width :]
    kind = out_dtype if given["initial_state"] is None else given["initial_state"].dtype
    return walk.scatter(y.mT).to(out_dtype), final.to(kind)


_OPS: dict[str, Callable[[_Walk, Given], tuple[Tensor, Tensor]]] = {
    "selective_scan": _selective_scan,
    "linear_scan": _linear_scan,
    "rglru_scan": _rglru_scan,
    "ssd_scan": _ssd_scan,
    "causal_conv1d": _causal_conv1d,
}
