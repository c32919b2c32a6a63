"""Walks that go on in other processes: convolutions and scans over one slab, as a part of the whole walk.

While `carried` is on, every op starts from what the slabs walked before left, and leaves what the next needs.
A linear recurrence needs no pass after another for that: each slab is walked from a zero state at the same
time, the final states and the products of decays (both as small as a state) are exchanged, and with the state
that then follows each slab is walked for good. The first slab's only walk is the first, the last slab's the
second. The backward is the same from the other end, with cotangents of states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nvsubq.ops.decays import total_decay
from nvsubq.ops.once import once_differentiable
from nvsubq.ops.slabs import Slabs

if TYPE_CHECKING:
    from nvsubq.ops.call import Op

__all__ = ["Carry", "carried", "carry_on", "carrying"]

Grads = Sequence[Tensor | None]
_carry: ContextVar[Carry | None] = ContextVar("nvsubq_carry", default=None)


def carrying() -> Carry | None:
    """How the ops called here carry their states on, None where a walk is whole."""
    return _carry.get()


@contextmanager
def carried(carry: Carry) -> Iterator[None]:
    """Inside, each op's walk is one slab's part of a walk through all slabs."""
    token = _carry.set(carry)
    try:
        yield
    finally:
        _carry.reset(token)


class Carry:
    """The walks through all slabs of one field, in the order of the ranks or, reversed, from the last.

    Args:
        slabs: the processes.
        lengths: cells of each slab.
    """

    def __init__(self, slabs: Slabs, lengths: Sequence[int]) -> None:
        self.slabs, self.lengths, self.count = slabs, list(lengths), slabs.count

    def rank_at(self, place: int, reverse: bool) -> int:
        """Which rank has the slab walked at this place; of a rank, its place."""
        return self.count - 1 - place if reverse else place

    def place(self, reverse: bool) -> int:
        """How many slabs are walked before this one."""
        return self.rank_at(self.slabs.rank, reverse)

    def check_length(self, name: str, length: int) -> None:
        """Refuse an op over other cells than those of the slab."""
        if length != self.lengths[self.slabs.rank]:
            raise ValueError(
                f"`{name}` walks {length} cells of a slab that has {self.lengths[self.slabs.rank]}: "
                "its walk can't go on in the next slab."
            )

    def _taken(self, place: int, reach: int, reverse: bool) -> Iterator[tuple[int, int, int]]:
        """Of the `reach` inputs before a place: from which place, how many, and where they end."""
        end = reach
        for before in range(place - 1, -1, -1):
            taken = min(end, self.lengths[self.rank_at(before, reverse)])
            if not taken:
                return
            yield before, taken, end
            end -= taken

    def inputs_before(self, tail: Tensor, reach: int, reverse: bool) -> Tensor:
        """The inputs walked before this slab, `[B, reach, D]`, newest last, from all slabs' ends.

        Args:
            tail: the last `min(L, reach)` inputs walked here, newest last.
        """
        padded = tail.new_zeros(tail.shape[0], reach, tail.shape[2])
        padded[:, reach - tail.shape[1] :] = tail
        ends = self.slabs.gather(padded, reverse)
        state = torch.zeros_like(padded)
        for before, taken, end in self._taken(self.place(reverse), reach, reverse):
            state[:, end - taken : end] = ends[self.rank_at(before, reverse)][:, reach - taken :]
        return state

    def inputs_back(self, d_state: Tensor, kept: int, reverse: bool) -> Tensor:
        """The gradient of `tail`, `[B, kept, D]`, from those of all slabs' states `[B, reach, D]`."""
        cotangents = self.slabs.gather(d_state, reverse)
        d_tail = d_state.new_zeros(d_state.shape[0], kept, d_state.shape[2])
        own, reach = self.place(reverse), d_state.shape[1]
        for place in range(own + 1, self.count):
            for before, taken, end in self._taken(place, reach, reverse):
                if before == own:
                    part = cotangents[self.rank_at(place, reverse)][:, end - taken : end]
                    d_tail[:, kept - taken :] += part
        return d_tail

    def enter(
        self,
        reverse: bool,
        zero: Callable[[], Tensor],
        walk: Callable[[Tensor | None], tuple[Tensor, Tensor, Tensor]],
        end: Callable[[Tensor], Tensor],
        decay: Callable[[], Tensor],
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Walk this slab from the state that the slabs before it leave.

        Args:
            reverse: from the last slab.
            zero: makes a zero state.
            walk: gives y, the final state and what the backward needs, from a state.
            end: gives the final state alone.
            decay: gives the product of this slab's decays, broadcastable to the state.

        Returns:
            y, what the backward needs, the state (None in the slab walked first), and the decays of all slabs
            (None where there are but two).
        """
        place, last = self.place(reverse), self.count - 1
        y: Any = None
        saved: Any = None
        if place == 0:
            y, final, saved = walk(None)
        else:
            final = end(zero()) if place < last else zero()
        decays = None
        if self.count == 2:
            finals = self.slabs.gather(final, reverse)
        else:
            total = decay() if 0 < place < last else zero()
            both = torch.stack((final, total.to(final.dtype).expand_as(final)))
            finals, decays = self.slabs.gather(both, reverse).unbind(1)
        if place == 0:
            return y, saved, None, decays
        state = finals[self.rank_at(0, reverse)]
        for before in range(1, place):
            rank = self.rank_at(before, reverse)
            state = decays[rank] * state + finals[rank]  # type: ignore[index]
        y, _, saved = walk(state)
        return y, saved, state, decays

    def leave(
        self,
        reverse: bool,
        decays: Tensor | None,
        zero: Callable[[], Tensor],
        back: Callable[[Tensor | None], Grads],
    ) -> Grads:
        """Gradients of one slab's scan, with the cotangent of its final state from the slabs after it.

        Args:
            reverse: as in `enter`.
            decays: what `enter` gave.
            zero: makes a zero state.
            back: gives the gradients, that of the initial state last, from the final state's cotangent.
        """
        place, last = self.place(reverse), self.count - 1
        grads: Grads = ()
        own: Any = zero() if place == 0 else None
        if place > 0:
            grads = back(None)
            own = grads[-1]
        cotangents = self.slabs.gather(own, reverse)
        if place == last:
            return grads
        del grads, own
        d_final = cotangents[self.rank_at(last, reverse)]
        for after in range(last - 1, place, -1):
            rank = self.rank_at(after, reverse)
            d_final = decays[rank].conj() * d_final + cotangents[rank]  # type: ignore[index]
        return back(d_final)


def last_walked(x: Tensor, kept: int, order: Tensor | None, reverse: bool) -> Tensor:
    """The cells of `x` `[B, L, D]` that a walk visits last, newest last: a view, or a copy where it must."""
    length = x.shape[1]
    if order is None:
        return x[:, :kept].flip(1) if reverse else x[:, length - kept :]
    cells = order[:kept].flip(0) if reverse else order[length - kept :]
    return x.index_select(1, cells)


def carry_on(
    op: Op,
    carry: Carry,
    tensors: tuple[Tensor | None, ...],
    options: tuple[Any, ...],
    seq_idx: Tensor | None,
    order: Tensor | None,
    reverse: Any,
    return_final_state: bool,
    backend: str | None,
) -> Tensor:
    """Serve a call of an op's public function as one slab's part of a walk through all.

    Raises:
        ValueError: packed sequences, states from outside or several walks in one call, or other cells.
    """
    *inputs, state = tensors
    if seq_idx is not None or state is not None or return_final_state or not isinstance(reverse, bool):
        raise ValueError(
            f"`{op.name}` can't go on in the next slab with `seq_idx`, `initial_state`, `return_final_state` "
            "or several walks in one call."
        )
    if order is not None and order.dim() != 1:
        raise ValueError(
            f"`order` (shape {list(order.shape)}) must have shape [L]: a slab's part of one walk."
        )
    op.check(op.named(tensors, options) | {"seq_idx": None, "order": order, "reverse": reverse})
    if op.name == "causal_conv1d":
        x, weight = inputs[0], inputs[1]
        assert x is not None
        assert weight is not None
        carry.check_length(op.name, x.shape[1])
        reach = (weight.shape[1] - 1) * options[1]
        tail = last_walked(x, min(reach, x.shape[1]), order, reverse)
        before = _Before.apply(carry, reach, reverse, tail).transpose(1, 2)
        given = (*inputs, before)
        return op.prepared(given, options, None, order, reverse, backend)(given, None, order, False)  # type: ignore[return-value]
    carry.check_length(op.name, op.outputs(op.named(tensors, options))[0].shape[1])
    return _Scan.apply(carry, op, options, order, reverse, backend, *inputs)  # type: ignore[no-any-return]


class _Before(torch.autograd.Function):
    """From the inputs walked last in each slab to those walked before this one."""

    @staticmethod
    def forward(ctx, carry: Carry, reach: int, reverse: bool, tail: Tensor) -> Tensor:  # type: ignore[override]
        ctx.carry, ctx.kept, ctx.reverse = carry, tail.shape[1], reverse
        return carry.inputs_before(tail, reach, reverse)

    @staticmethod
    @once_differentiable
    def backward(ctx, d_state: Tensor):  # type: ignore[override]
        return None, None, None, ctx.carry.inputs_back(d_state, ctx.kept, ctx.reverse)


class _Scan(torch.autograd.Function):
    """A scan of one slab; its tensors are the op's but for `initial_state`."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx,
        carry: Carry,
        op: Op,
        options: tuple[Any, ...],
        order: Tensor | None,
        reverse: bool,
        backend: str | None,
        *inputs: Tensor | None,
    ) -> Tensor:
        scan = SlabScan(op, options, order, reverse, backend, inputs)
        y, saved, state, decays = carry.enter(reverse, scan.zero, scan.walk, scan.end, scan.decay)
        ctx.save_for_backward(saved, state, decays, order, *inputs)
        ctx.carry, ctx.how = carry, (op, options, reverse, backend)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, d_y: Tensor):  # type: ignore[override]
        saved, state, decays, order, *inputs = ctx.saved_tensors
        op, options, reverse, backend = ctx.how
        scan = SlabScan(op, options, order, reverse, backend, tuple(inputs))

        def back(d_final: Tensor | None) -> Grads:
            return scan.back(d_y, d_final, saved, state)

        grads = ctx.carry.leave(reverse, decays, scan.zero, back)
        return None, None, None, None, None, None, *grads[:-1]


class SlabScan:
    """One scan of one slab, from whatever state."""

    def __init__(
        self,
        op: Op,
        options: tuple[Any, ...],
        order: Tensor | None,
        reverse: bool,
        backend: str | None,
        inputs: tuple[Tensor | None, ...],
    ) -> None:
        self.op, self.options, self.inputs, self.order = op, options, inputs, order
        self.how = None, order, reverse, backend
        self.state = op.outputs(op.named((*inputs, None), options))[1]

    def zero(self) -> Tensor:
        """A state of zeros."""
        first: Any = self.inputs[0]
        return first.new_zeros(self.state.shape, dtype=self.state.dtype)

    def walk(self, state: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """y, the final state, and what `back` needs."""
        given = (*self.inputs, state)
        return self.op.prepared(given, self.options, *self.how).forward(given, None, self.order)

    def end(self, state: Tensor) -> Tensor:
        """The final state."""
        return self._end((*self.inputs, state))

    def decay(self) -> Tensor:
        """The product of all decays."""
        total = total_decay(self.op.name, self.op.named((*self.inputs, None), self.options))
        if total is not None:
            return total
        # What becomes of a state of ones where nothing comes in.
        silent = "u" if self.op.name == "selective_scan" else "b"
        inputs = [
            torch.zeros_like(t) if name == silent and t is not None else t
            for name, t in zip(self.op.tensors, self.inputs, strict=False)
        ]
        return self._end((*inputs, self.zero().fill_(1)))

    def _end(self, given: tuple[Tensor | None, ...]) -> Tensor:
        with torch.no_grad():
            return self.op.prepared(given, self.options, *self.how)(given, None, self.order, True)[1]

    def back(
        self, d_y: Tensor, d_final: Tensor | None, saved: Tensor, state: Tensor | None, *into: Any
    ) -> Grads:
        """The gradients of the inputs and of the state; `into`, a mapping, where some are to lie."""
        given = (*self.inputs, state)
        prepared = self.op.prepared(given, self.options, *self.how)
        return prepared.backward(d_y, d_final, saved, given, None, self.order, *into)
