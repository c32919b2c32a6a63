"""How a step of a whole core reaches the native library: its struct is packed once for each signature.

A step of a small core takes some ten microseconds: a call only looks at its tensors, to see whether they are
plain, dense and of their shapes, and puts their addresses in.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.nn import Parameter

from nvsubq.ops.native import library
from nvsubq.ops.native.library import ABI, COMPLEX, DOUBLE, PRESENT, Layout

Shape = tuple[int, ...]

_ABSENT, _F32, _F64, _F16, _BF16, _C64, _C128 = -1, 0, 1, 2, 3, 4, 5
_CODES = {
    torch.float32: _F32, torch.float64: _F64, torch.float16: _F16, torch.bfloat16: _BF16,
    torch.complex64: _C64, torch.complex128: _C128,
}  # fmt: skip
_DOUBLES = (_F64, _C128)
_PLAIN = (Tensor, Parameter)
_STRIDED = torch.strided
KEPT = 1024  # signatures, of each step and thread


def strides(shape: Shape) -> tuple[int, ...]:
    """The four strides of a dense tensor, of which torch is free in those of an axis of one element.

    Example:
        >>> strides((2, 3))
        (3, 1, 0, 0)
    """
    found = [1]
    for size in reversed(shape[1:]):
        found.insert(0, found[0] * size)
    return (*found, 0, 0, 0)[:4]


class PackedStep:
    """A packed struct, complete but for the addresses of its tensors, and its own share of a workspace."""

    def __init__(self, packed: ctypes.Array, work: Tensor, first: int) -> None:
        self.packed, self.work = packed, work
        self.words = memoryview(packed).cast("B").cast("Q")
        self.first = first  # word of the first tensor's address; the next ones are six words apart

    def point(self, addresses: Sequence[int]) -> ctypes.Array:
        words, at = self.words, self.first
        for address in addresses:
            words[at] = address
            at += 6
        return self.packed


class StepCall:
    """One C function of a step.

    Args:
        name: of the function, without its prefix.
        layout: of its struct.
        alike: tensors that torch would multiply with x: they must have its dtype.
        is_complex: whether the recurrent state is.
    """

    def __init__(self, name: str, layout: Layout, alike: Sequence[str], *, is_complex: bool = False) -> None:
        self.name = f"nvsubq_{name}"
        self.layout = layout
        self.packer = layout.packer()
        self.alike = [layout.tensors.index(tensor) for tensor in alike]
        self.state = layout.tensors.index("state")
        self.is_complex = is_complex
        self.flags = layout.scalars.index("flags")
        self.local = threading.local()

    def __call__(self, scalars: tuple[int, ...], tensors: Sequence[Any], shapes: Sequence[Shape]) -> bool:
        """Run the step, or say that it is not served. `scalars` lack flags, device, threads and level."""
        codes: list[int | None] = []
        addresses = []
        for tensor, shape in zip(tensors, shapes, strict=True):
            if tensor is None:
                codes.append(_ABSENT)
                addresses.append(0)
                continue
            if (
                tensor.shape != shape
                or type(tensor) not in _PLAIN
                or not tensor.is_cpu
                or tensor.layout is not _STRIDED
                or not tensor.is_contiguous()
            ):
                return False
            codes.append(_CODES.get(tensor.dtype))
            addresses.append(tensor.data_ptr())
        local = self.local
        key = (scalars, tuple(codes), torch.get_num_threads(), library.forced_level)
        try:
            packed = local.structs[key]
        except (AttributeError, KeyError):
            packed = self._pack(key, shapes)
        if packed is None:
            return False
        if local.function(packed.point(addresses)):
            raise RuntimeError(f"{self.name}: {library.library().nvsubq_last_error().decode()}.")
        return True

    def _pack(self, key: tuple, shapes: Sequence[Shape]) -> PackedStep | None:
        """Make the struct of a signature, or None where it is not served; remember either."""
        local = self.local
        if not hasattr(local, "structs"):
            local.structs = {}
            local.function = getattr(library.library(), self.name)
            local.work = torch.empty(0, dtype=torch.uint8, device="cpu")
        if len(local.structs) >= KEPT:
            local.structs.clear()
        scalars, codes, threads, level = key
        packed = self._made(scalars, codes, threads, level, shapes) if self._serves(codes) else None
        local.structs[key] = packed
        return packed

    def _serves(self, codes: Sequence[int | None]) -> bool:
        if None in codes or any(codes[i] not in (_ABSENT, codes[0]) for i in self.alike):
            return False
        double = any(code in _DOUBLES for code in codes)
        exact = (_C128 if double else _C64) if self.is_complex else (_F64 if double else _F32)
        others = (code for i, code in enumerate(codes) if i != self.state)
        return codes[self.state] == exact and all(code not in (_C64, _C128) for code in others)

    def _made(
        self,
        scalars: tuple[int, ...],
        codes: Sequence[int],
        threads: int,
        level: int,
        shapes: Sequence[Shape],
    ) -> PackedStep:
        flags = DOUBLE if any(code in _DOUBLES for code in codes) else 0
        complete = (*scalars[: self.flags], flags, *scalars[self.flags :], 0, threads, level)
        fields: list[int] = []
        for code, shape in zip(codes, shapes, strict=True):
            if code == _ABSENT:
                fields += (0,) * 7
            else:
                dtype, flag = (code - _C64, PRESENT | COMPLEX) if code >= _C64 else (code, PRESENT)
                fields += (0, *strides(shape), dtype, flag)
        buffer = ctypes.create_string_buffer(self.packer.size)

        def pack(work: Tensor | None) -> None:
            memory = (0, 0) if work is None else (work.data_ptr(), work.numel())
            self.packer.pack_into(buffer, 0, self.packer.size, ABI, *complete, *memory, 0, 0, 0, *fields)

        pack(None)
        needed = getattr(library.library(), f"{self.name}_workspace")(buffer)
        if needed < 0:
            raise RuntimeError(f"{self.name}_workspace: {library.library().nvsubq_last_error().decode()}.")
        if needed > self.local.work.numel():
            self.local.work = torch.empty(needed, dtype=torch.uint8, device="cpu")
        pack(self.local.work)
        return PackedStep(buffer, self.local.work, 1 + len(self.layout.scalars) + 5)


def given(x: Any) -> Any:
    """Activations, or None, as a step reads them: dense, nothing lazy."""
    if x is None:
        return None
    return x.resolve_neg().contiguous() if x.is_neg() or not x.is_contiguous() else x


def written(*states: Tensor) -> None:
    """Tell autograd that the states have changed, so that a graph that kept one says so."""
    for state in states:
        if not state.is_inference():
            increment_version(state)
