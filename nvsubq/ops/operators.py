"""The ops as operators of torch (`torch.ops.nvsubq`), for `torch.compile`, export and dispatch modes.

Each op is two functional operators, a forward and a backward. Their arguments are positional:

    nvsubq::linear_scan(a, b, dt?, initial_state?, seq_idx?, order?, reverse[], <options>, complex, backend)
        -> (y, final_state, saved)
    nvsubq::linear_scan_backward(d_y?, d_final_state?, saved, <the same>) -> a gradient for each tensor

Complex tensors travel as real pairs, `complex` has the bit of each; an absent gradient has size 0; `saved` is
what the backend keeps for its backward. In eager mode the public functions reach it without this detour.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nvsubq.ops import dispatch
from nvsubq.ops.call import Op, Output, Tensors
from nvsubq.ops.once import once_differentiable

_LIBRARY = torch.library.Library("nvsubq", "DEF")


def register(op: Op) -> None:
    """Define both operators of an op, and the function by which `op.run` calls them."""
    inputs = [f"Tensor{'' if i < op.required else '?'} {name}" for i, name in enumerate(op.tensors)]
    options = [f"{kind} {name}" for name, kind in op.options.items()]
    walk = ["Tensor? seq_idx", "Tensor? order", "bool[] reverse"]
    arguments = ", ".join([*inputs, *walk, *options, "int complex", "str backend"])
    gradients = ", ".join("Tensor" for _ in inputs)
    _LIBRARY.define(f"{op.name}({arguments}) -> (Tensor, Tensor, Tensor)")
    _LIBRARY.define(
        f"{op.name}_backward(Tensor? d_y, Tensor? d_final_state, Tensor saved, {arguments}) -> ({gradients})"
    )
    operators = _Operators(op)
    _LIBRARY.impl(op.name, operators.forward, "CompositeExplicitAutograd")
    _LIBRARY.impl(f"{op.name}_backward", operators.backward, "CompositeExplicitAutograd")
    _LIBRARY.impl(op.name, operators.recorded, "Autograd")
    torch.library.register_fake(f"nvsubq::{op.name}", operators.fake_forward, lib=_LIBRARY)
    torch.library.register_fake(f"nvsubq::{op.name}_backward", operators.fake_backward, lib=_LIBRARY)
    op.operate = _operate_on(op)


def _operate_on(op: Op) -> Any:
    operator = getattr(torch.ops.nvsubq, op.name).default

    def operate(
        tensors: Tensors,
        options: tuple[Any, ...],
        seq_idx: Tensor | None,
        order: Tensor | None,
        reverse: bool | Sequence[bool],
        backend: str | None,
    ) -> tuple[Tensor, Tensor]:
        """Call the forward operator. Dynamo traces this, so it is plain."""
        pairs: list[Tensor | None] = []
        is_complex = 0
        for i, t in enumerate(tensors):
            if t is not None and t.is_complex():
                is_complex |= 1 << i
                pairs.append(torch.view_as_real(t.resolve_conj()))
            else:
                pairs.append(t)
        directions = [reverse] if isinstance(reverse, bool) else list(reverse)
        first = tensors[0]
        assert first is not None
        serving = dispatch.concrete(op.name, backend, first.device.type, is_complex != 0)
        y, final, _ = operator(*pairs, seq_idx, order, directions, *options, is_complex, serving)
        expected = op.outputs(op.named(tensors, options))
        if expected[0].dtype.is_complex:
            y = torch.view_as_complex(y)
        if expected[1].dtype.is_complex:
            final = torch.view_as_complex(final)
        return y, final

    return operate


def _as_pairs(t: Tensor) -> Tensor:
    return torch.view_as_real(t) if t.is_complex() else t


class _Operators:
    """The kernels behind the two operators of an op."""

    def __init__(self, op: Op) -> None:
        self.op = op
        self.count = len(op.tensors)

    def tensors(self, pairs: Sequence[Tensor | None], is_complex: int) -> Tensors:
        """The tensors as the public function takes them."""
        return tuple(
            torch.view_as_complex(t) if t is not None and is_complex >> i & 1 else t
            for i, t in enumerate(pairs)
        )

    def split(self, arguments: Sequence[Any]) -> tuple[Tensors, Any, Any, Any, tuple[Any, ...], str]:
        """Tensors, seq_idx, order, reverse, options and backend, from the arguments of an operator."""
        n = self.count
        *options, is_complex, backend = arguments[n + 3 :]
        reverse = arguments[n + 2]
        reverse = reverse[0] if len(reverse) == 1 else tuple(reverse)
        given = tuple(tuple(o) if isinstance(o, list) else o for o in options)
        return self.tensors(arguments[:n], is_complex), *arguments[n : n + 2], reverse, given, backend

    def forward(self, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        tensors, seq_idx, order, reverse, options, backend = self.split(arguments)
        call = self.op.prepared(tensors, options, seq_idx, order, reverse, backend)
        y, final, saved = call.forward(tensors, seq_idx, order)
        return _as_pairs(y), _as_pairs(final), saved

    def backward(self, d_y: Tensor | None, d_final: Tensor | None, saved: Tensor, *arguments: Any) -> Any:
        tensors, seq_idx, order, reverse, options, backend = self.split(arguments)
        call = self.op.prepared(tensors, options, seq_idx, order, reverse, backend)
        y, final = self.op.outputs(self.op.named(tensors, options))
        d_y = torch.view_as_complex(d_y.contiguous()) if d_y is not None and y.dtype.is_complex else d_y
        d_final = (
            torch.view_as_complex(d_final.contiguous())
            if d_final is not None and final.dtype.is_complex
            else d_final
        )
        grads = call.backward(d_y, d_final, saved, tensors, seq_idx, order)
        return tuple(saved.new_empty(0) if g is None else _as_pairs(g) for g in grads)

    def fake_forward(self, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        first = arguments[0]
        tensors, *_, options, backend = self.split(arguments)
        named = self.op.named(tensors, options)
        y, final = (_fake(first, output) for output in self.op.outputs(named))
        served = getattr(dispatch.module(backend), self.op.name)
        if not hasattr(served, "saved"):
            return y, final, first.new_empty(0, dtype=torch.float32)
        count, dtype = served.saved(named)
        return y, final, first.new_empty(count, dtype=dtype)

    def fake_backward(self, d_y: Any, d_final: Any, saved: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        del d_y, d_final
        given = arguments[: self.count]
        return tuple(saved.new_empty(0) if t is None else t.new_empty(t.shape) for t in given)

    def recorded(self, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        return _Recorded.apply(self, *arguments)


def _fake(like: Tensor, output: Output) -> Tensor:
    if output.dtype.is_complex:
        return like.new_empty((*output.shape, 2), dtype=output.dtype.to_real())
    return like.new_empty(output.shape, dtype=output.dtype)


class _Recorded(torch.autograd.Function):
    """A forward operator whose gradient is the backward operator."""

    @staticmethod
    def forward(ctx, operators: _Operators, *arguments: Any):  # type: ignore[override]
        name, n = operators.op.name, operators.count
        with torch._C._AutoDispatchBelowAutograd():
            y, final, saved = getattr(torch.ops.nvsubq, name).default(*arguments)
        ctx.save_for_backward(saved, *arguments[: n + 2])
        ctx.operators, ctx.rest = operators, arguments[n + 2 :]
        ctx.mark_non_differentiable(saved)
        ctx.set_materialize_grads(False)
        return y, final, saved

    @staticmethod
    @once_differentiable
    def backward(ctx, d_y: Tensor | None, d_final: Tensor | None, _: Tensor | None):  # type: ignore[override]
        saved, *tensors = ctx.saved_tensors
        operators, rest = ctx.operators, ctx.rest
        nothing = [None] * (2 + len(rest))
        if d_y is None and d_final is None:
            return None, *[None] * operators.count, *nothing
        backward = getattr(torch.ops.nvsubq, f"{operators.op.name}_backward").default
        grads = backward(d_y, d_final, saved, *tensors, *rest)
        inputs = tensors[: operators.count]
        return None, *[None if t is None else g for t, g in zip(inputs, grads, strict=True)], *nothing
