"""How a public function reaches its backend: a call is checked once for each signature, then remembered."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import Parameter

from nvsubq.ops import dispatch
from nvsubq.ops.autocast import autocast_off
from nvsubq.ops.carry import carry_on, carrying
from nvsubq.ops.export import exported
from nvsubq.ops.tracing import exporting, jit_traced, traced

Tensors = tuple[Tensor | None, ...]

_MOST_REMEMBERED = 2048  # signatures of all ops, by thread; each holds a few kilobytes


class Output(NamedTuple):
    """What an output is, before it is made."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class Prepared(Protocol):
    """A call that has been checked, for all tensors of one signature."""

    def __call__(
        self, tensors: Tensors, seq_idx: Tensor | None, order: Tensor | None, final: bool
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Give y, or y and the final state; autograd records it."""
        ...

    def forward(
        self, tensors: Tensors, seq_idx: Tensor | None, order: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Give y, the final state and what `backward` wants to find; autograd does not see it."""
        ...

    def backward(
        self,
        d_y: Tensor | None,
        d_final: Tensor | None,
        saved: Tensor,
        tensors: Tensors,
        seq_idx: Tensor | None,
        order: Tensor | None,
    ) -> list[Tensor | None]:
        """Give the gradient of each tensor, None where there is no tensor."""
        ...


@dataclass(eq=False)
class Op:
    """What the public function of an op, its backends and its operators share.

    Args:
        name: of the public function.
        tensors: names of the arguments that carry gradients, in the order of the operators.
        required: how many of them are never None; they come first.
        options: the other arguments (but for the walk's, `return_final_state` and `backend`), each with its
            type in an operator's schema.
        check: raises for arguments, by name, that do not fit.
        outputs: y and the final state, from the tensors and options by name; of tensors it reads shapes and
            dtypes alone.
    """

    name: str
    tensors: tuple[str, ...]
    required: int
    options: Mapping[str, str]
    check: Callable[[Mapping[str, Any]], object]
    outputs: Callable[[Mapping[str, Any]], tuple[Output, Output]]
    operate: Callable[..., tuple[Tensor, Tensor]] = field(init=False)  # set by `operators.register`

    def run(
        self,
        tensors: Tensors,
        options: tuple[Any, ...],
        seq_idx: Tensor | None,
        order: Tensor | None,
        reverse: bool | Sequence[bool],
        return_final_state: bool,
        backend: str | None,
    ) -> Any:
        """Serve a call of the public function."""
        carry = None if torch.compiler.is_compiling() else carrying()
        if carry is not None:
            call = tensors, options, seq_idx, order, reverse, return_final_state, backend
            return carry_on(self, carry, *call)
        if traced():
            if jit_traced():
                raise RuntimeError(f"`torch.jit.trace` cannot record `{self.name}`; `torch.export` can.")
            if exporting():  # an exported program has torch's operators alone
                y, final = exported(self.name, self.named(tensors, options), seq_idx, order, reverse)
            else:
                y, final = self.operate(tensors, options, seq_idx, order, reverse, backend)
            return (y, final) if return_final_state else y
        prepared = self.prepared(tensors, options, seq_idx, order, reverse, backend)
        return prepared(tensors, seq_idx, order, return_final_state)

    def prepared(
        self,
        tensors: Tensors,
        options: tuple[Any, ...],
        seq_idx: Tensor | None,
        order: Tensor | None,
        reverse: bool | Sequence[bool],
        backend: str | None,
    ) -> Prepared:
        """Check a call and choose who serves it, or remember that.

        Raises:
            ValueError: an argument that does not fit.
            RuntimeError: the backend named cannot serve the call.
        """
        key = None
        if torch._C._functorch.peek_interpreter_stack() is None:
            try:
                given = (*tensors, seq_idx, order)
                key = (
                    self.name, backend or dispatch.asked(), dispatch.generation(), options, reverse,
                    tuple([
                        None if t is None else
                        (type(t), t.shape, t.stride(), t.dtype, t.device, t.is_conj(), t.is_neg())
                        for t in given
                    ]),
                )  # fmt: skip
                return _memory.calls[key]
            except KeyError:
                pass  # new
            except (AttributeError, TypeError, RuntimeError):
                key = None  # nothing that can be a key: no tensor, a list, a tensor without strides
        prepared = self._prepare(tensors, options, seq_idx, order, reverse, backend)
        if key is not None and all(t is None or type(t) in (Tensor, Parameter) for t in given):
            _memory.remember(key, prepared)
        return prepared

    def named(self, tensors: Sequence[Tensor | None], options: Sequence[Any]) -> dict[str, Any]:
        """The arguments by name, but for the walk's."""
        names = [*self.tensors, *self.options]
        return dict(zip(names, [*tensors, *options]))  # noqa: B905  (Dynamo, which traces it, knows no `strict`)

    def _prepare(
        self,
        tensors: Tensors,
        options: tuple[Any, ...],
        seq_idx: Tensor | None,
        order: Tensor | None,
        reverse: bool | Sequence[bool],
        backend: str | None,
    ) -> Prepared:
        arguments = self.named(tensors, options) | {"seq_idx": seq_idx, "order": order, "reverse": reverse}
        self.check(arguments)
        device = arguments[self.tensors[0]].device
        served = getattr(dispatch.resolve(self.name, backend, device, arguments), self.name)
        prepare = getattr(served, "prepare", None)
        return PlainCall(self, served, options, reverse) if prepare is None else prepare(self, arguments)


class _Memory(threading.local):
    """Prepared calls of this thread, by signature: they own memory that a call writes to."""

    def __init__(self) -> None:
        self.calls: dict[tuple, Prepared] = {}

    def remember(self, key: tuple, prepared: Prepared) -> None:
        if len(self.calls) >= _MOST_REMEMBERED:
            self.calls.clear()
        self.calls[key] = prepared


_memory = _Memory()


@dataclass(frozen=True)
class PlainCall:
    """A call of a backend that is written in PyTorch: a function with the public signature."""

    op: Op
    function: Callable[..., Any]
    options: tuple[Any, ...]
    reverse: bool | Sequence[bool]

    def __call__(
        self, tensors: Tensors, seq_idx: Tensor | None, order: Tensor | None, final: bool
    ) -> Tensor | tuple[Tensor, Tensor]:
        given = tensors[0]
        assert given is not None  # the first is required
        with autocast_off(given.device):
            return self.function(
                **self.op.named(tensors, self.options),
                return_final_state=final,
                seq_idx=seq_idx,
                order=order,
                reverse=self.reverse,
            )

    def forward(
        self, tensors: Tensors, seq_idx: Tensor | None, order: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad():
            y, final = self(tensors, seq_idx, order, True)
        # An operator's outputs share no memory with each other or an input, and lie as its fakes do.
        y = y if y.is_contiguous() and y.numel() else y.clone(memory_format=torch.contiguous_format)
        final = final.clone(memory_format=torch.contiguous_format)
        return y, final, y.new_empty(0, dtype=torch.float32)

    def backward(
        self,
        d_y: Tensor | None,
        d_final: Tensor | None,
        saved: Tensor,
        tensors: Tensors,
        seq_idx: Tensor | None,
        order: Tensor | None,
    ) -> list[Tensor | None]:
        """Run the forward again, this time recorded."""
        del saved
        leaves = [None if t is None else t.detach().requires_grad_() for t in tensors]
        with torch.enable_grad():
            outputs = self(tuple(leaves), seq_idx, order, True)
        pairs = [
            (o, g) for o, g in zip(outputs, (d_y, d_final), strict=True) if g is not None and o.requires_grad
        ]
        wanted = [t for t in leaves if t is not None]
        grads = iter(
            torch.autograd.grad([o for o, _ in pairs], wanted, [g for _, g in pairs], allow_unused=True)
            if pairs
            else [None] * len(wanted)
        )
        return [None if t is None else _or_zeros(next(grads), t) for t in tensors]


def _or_zeros(grad: Tensor | None, like: Tensor) -> Tensor:
    """The gradient, dense as an operator's outputs are."""
    return (
        torch.zeros(like.shape, dtype=like.dtype, device=like.device) if grad is None else grad.contiguous()
    )
