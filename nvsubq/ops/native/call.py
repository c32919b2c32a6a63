"""Ops and their calls on the native library."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import get_ident
from typing import Any

import torch
from torch import Tensor

from nvsubq.ops.call import Op, Tensors
from nvsubq.ops.native import library
from nvsubq.ops.native.library import Layout, describe, readable
from nvsubq.ops.native.struct import Strides, Struct
from nvsubq.ops.native.walking import NO_TABLES, Tables, tables_of
from nvsubq.ops.numerics import accumulation_dtype
from nvsubq.ops.once import once_differentiable


@dataclass(frozen=True)
class Described:
    """A call in the terms of its struct.

    Args:
        scalars: by name; `blocks`, `device`, `threads` and `level` come from elsewhere.
        work: states or taps that are visited, to decide how many threads are worth it.
        strides: how the struct sees an input (and its gradient) that has other axes there, from its strides.
    """

    scalars: Mapping[str, int]
    work: int
    strides: Mapping[str, Callable[[Strides], Strides]] = field(default_factory=dict)


@dataclass(frozen=True)
class NativeOp:
    """An op of the native library.

    Args:
        name: of its C functions, `nvsubq_<name>_forward` and so on.
        layout: of its struct.
        describe: from the arguments of the public function, by name.
        saved_elements: how many numbers a forward leaves to its backward, from the same arguments: at least
            what the library of their device asks for. Sizes may be symbols of a traced call.
    """

    name: str
    layout: Layout
    describe: Callable[[Mapping[str, Any]], Described]
    saved_elements: Callable[[Mapping[str, Any]], int]

    def prepare(self, op: Op, arguments: Mapping[str, Any]) -> NativeCall:
        """Make what serves all calls of this signature."""
        return NativeCall(self, op, arguments)

    def saved(self, arguments: Mapping[str, Any]) -> tuple[int, torch.dtype]:
        """How many numbers of which dtype a forward leaves to its backward."""
        floats = (
            t for name, t in arguments.items() if isinstance(t, Tensor) and name not in ("seq_idx", "order")
        )
        return self.saved_elements(arguments), accumulation_dtype(*floats)


def borders(length: int, cells: int) -> int:
    """How many borders there are between segments of so many cells."""
    return (length - 1) // cells if length else 0


def strides_of(tensors: Sequence[Tensor | None]) -> list[Strides | None]:
    """How each tensor lies in memory."""
    return [None if t is None else t.stride() for t in tensors]


def _like(tensor: Any) -> Tensor:
    """A dense tensor of this shape and dtype, in half the time that `new_empty` takes."""
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


_MOST_THREADS = 16  # whose structs a call keeps


class NativeCall:
    """A checked call of tensors of one signature."""

    def __init__(self, native: NativeOp, op: Op, arguments: Mapping[str, Any]) -> None:
        tensors = tuple(arguments[name] for name in op.tensors)
        self.native, self.names = native, op.tensors
        self.options = {name: arguments[name] for name in op.options}
        self.reverse = arguments["reverse"]
        self.y, self.final = op.outputs(arguments)
        alike = (i for i, t in enumerate(tensors) if t is not None and (t.shape, t.dtype) == self.y)
        self.like_y = next(alike, None)
        self.length = self.y.shape[1]
        self.device = arguments[op.tensors[0]].device
        self.walks = self.reverse is not False or any(arguments[n] is not None for n in ("seq_idx", "order"))
        self.saved_elements, self.dtype = native.saved(arguments)
        given = [readable(t) for t in tensors]
        self.odd = any(t is not own for t, own in zip(given, tensors, strict=True))
        self.strides = strides_of(given)
        # By pass and by the tables that a walk has. Of each thread, since a call writes to them: the backward
        # of CUDA tensors runs on one of autograd's.
        self.packed: dict[int, dict[tuple[str, str], Struct]] = {}

    def __call__(
        self, tensors: Tensors, seq_idx: Tensor | None, order: Tensor | None, final: bool
    ) -> Tensor | tuple[Tensor, Tensor]:
        tables = self.tables(seq_idx, order)
        if torch.is_grad_enabled() and True in [t is not None and t.requires_grad for t in tensors]:
            y, state = _Recorded.apply(self, tables, final, *tensors)
        else:
            y, state, _ = self.run_forward(self.readable(tensors), tables, keep=False, end=final)
        return (y, state) if final else y  # type: ignore[return-value]

    def forward(
        self,
        tensors: Tensors,
        seq_idx: Tensor | None,
        order: Tensor | None,
        *,
        end: bool = True,
        keep: bool = True,
        into: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Give y, the final state (empty unless `end`) and what `backward` needs (empty unless `keep`).

        y is written to `into` where that is given.
        """
        y, final, saved = self.run_forward(
            self.readable(tensors), self.tables(seq_idx, order), keep=keep, end=end, into=into
        )
        if final is None:
            final = y.new_empty(0, dtype=self.final.dtype)
        return y, final, y.new_empty(0, dtype=self.dtype) if saved is None else saved

    def backward(
        self,
        d_y: Tensor | None,
        d_final: Tensor | None,
        saved: Tensor,
        tensors: Tensors,
        seq_idx: Tensor | None,
        order: Tensor | None,
        into: Mapping[str, Tensor] | None = None,
    ) -> list[Tensor | None]:
        """Give the gradients of the tensors; those named in `into` are written there."""
        tables = self.tables(seq_idx, order)
        return self.run_backward(d_y, d_final, saved, self.readable(tensors), tables, into)

    def structs(self) -> dict[tuple[str, str], Struct]:
        """Those of this thread."""
        thread = get_ident()
        found = self.packed.get(thread)
        if found is None:
            if len(self.packed) >= _MOST_THREADS:
                self.packed = {}
            found = self.packed[thread] = {}
        return found

    def tables(self, seq_idx: Tensor | None, order: Tensor | None) -> Tables:
        """The walk, checked."""
        return tables_of(self.length, order, self.reverse, seq_idx, self.device) if self.walks else NO_TABLES

    def readable(self, tensors: Tensors) -> Tensors:
        """The tensors as the library can read them."""
        return tuple([readable(t) for t in tensors]) if self.odd else tensors

    def restored(self, tensors: Tensors) -> tuple[Tensors, str]:
        """Tensors that autograd kept, and how they lie where a hook gave back others (`save_on_cpu` does)."""
        if strides_of(tensors) == self.strides:
            return tensors, ""
        tensors = tuple([readable(t) for t in tensors])
        return tensors, f" laid {strides_of(tensors)}"

    def run_forward(
        self, tensors: Tensors, tables: Tables, *, keep: bool, end: bool = True, into: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Give y, with `end` the final state and, if it is kept and not empty, what `run_backward` needs."""
        like: Any = tensors[0]
        if into is not None:
            y = into
        elif self.like_y is None:
            y = like.new_empty(self.y.shape, dtype=self.y.dtype)
        else:
            y = _like(tensors[self.like_y])
        final = like.new_empty(self.final.shape, dtype=self.final.dtype) if end else None
        saved = None
        if keep and self.saved_elements:
            # Where cells are absent a walk ends before some borders: an operator's output has to be defined.
            make = like.new_zeros if "count" in tables.named else like.new_empty
            saved = make(self.saved_elements, dtype=self.dtype)
        which = "forward" if end else "forward without state"
        if into is not None:
            which += " into"
        packed = self.structs().get((which, tables.which))
        if packed is None:
            packed = self._pack(which, tensors, tables, {"y": y, "final_state": final})
        if into is not None:
            packed.set_strides("y", into)
        packed.run([*tensors, y, final], tables, saved)
        return y, final, saved

    def run_backward(
        self,
        d_y: Tensor | None,
        d_final: Tensor | None,
        saved: Tensor | None,
        tensors: Tensors,
        tables: Tables,
        into: Mapping[str, Tensor] | None = None,
        laid: str = "",
    ) -> list[Tensor | None]:
        """As `backward`, of tensors that the library can read; `laid` as `restored` says."""
        like: Any = tensors[0]
        d_y = like.new_zeros(self.y.shape, dtype=self.y.dtype) if d_y is None else readable(d_y)
        d_final = readable(d_final)
        if into is None:
            grads = [None if t is None else _like(t) for t in tensors]
        else:
            named = zip(self.names, tensors, strict=True)
            grads = [into[n] if n in into else None if t is None else _like(t) for n, t in named]
        which = "backward" if d_final is None else "backward with final"
        if into is not None:
            which += " into " + " ".join(into)
        which += laid
        packed = self.structs().get((which, tables.which))
        if packed is None:
            others = {f"d_{name}": grad for name, grad in zip(self.names, grads, strict=True)}
            packed = self._pack(which, tensors, tables, others | {"d_y": d_y, "d_final_state": d_final})
        packed.set_strides("d_y", d_y)
        packed.set_strides("d_final_state", d_final)
        for name in into or ():
            packed.set_strides(f"d_{name}", into[name])  # type: ignore[index]
        packed.run([*tensors, *grads, d_y, d_final], tables, saved)
        return grads

    def _pack(
        self, which: str, tensors: Tensors, tables: Tables, others: Mapping[str, Tensor | None]
    ) -> Struct:
        named = dict(zip(self.names, tensors, strict=True)) | dict(others)
        described = self.native.describe(named | self.options)
        fields = {
            name: describe(t, described.strides.get(name.removeprefix("d_")))
            for name, t in (named | dict(tables.named)).items()
        }
        flags = library.DOUBLE if self.dtype == torch.float64 else 0
        scalars = {**described.scalars, "blocks": tables.blocks}
        scalars["flags"] = scalars.get("flags", 0) | flags
        function = f"nvsubq_{self.native.name}_{which.split()[0]}"
        packed = Struct(
            self.native.name,
            self.native.layout,
            function,
            scalars,
            fields,
            list(named),
            described.work,
            self.device,
        )
        packed.seen = {f"d_{name}": seen for name, seen in described.strides.items()}
        self.structs()[which, tables.which] = packed
        return packed


class _Recorded(torch.autograd.Function):
    """y and the final state, or None; keeps the inputs and what the library saved."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx, call: NativeCall, tables: Tables, end: bool, *tensors: Tensor | None
    ):
        inputs = call.readable(tensors)
        y, final, saved = call.run_forward(inputs, tables, keep=True, end=end)
        ctx.save_for_backward(saved, *inputs)
        ctx.call, ctx.tables = call, tables
        ctx.set_materialize_grads(False)
        return y, final

    @staticmethod
    @once_differentiable
    def backward(ctx, d_y: Tensor | None, d_final: Tensor | None):  # type: ignore[override]
        saved, *kept = ctx.saved_tensors
        inputs, laid = ctx.call.restored(tuple(kept))
        return None, None, None, *ctx.call.run_backward(d_y, d_final, saved, inputs, ctx.tables, laid=laid)
