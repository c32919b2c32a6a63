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
    """A packed struct, complete but for the addresses of its tensors.

    Args:
        packed: the struct.
        scalars: how many it has.
        function: that takes it.
        needed: bytes of workspace.
        work: memory for it that all calls of a thread share, or None: then each call takes its own, as calls
            on several streams may run at once.
        index: of the CUDA device, -1 for CPUs.
    """

    def __init__(
        self, packed: ctypes.Array, scalars: int, function: Any, needed: int, work: Tensor | None, index: int
    ) -> None:
        self.packed, self.function, self.needed, self.work, self.index = packed, function, needed, work, index
        self.words = memoryview(packed).cast("B").cast("Q")
        self.workspace = 1 + scalars  # address, bytes; then comes the stream
        self.first = self.workspace + 5  # the first tensor's address; the next ones are six words apart
        self.place = None if index < 0 else torch.device("cuda", index)
        if work is not None:
            self.words[self.workspace] = work.data_ptr()
            self.words[self.workspace + 1] = work.numel()

    def call(self, addresses: Sequence[int]) -> int:
        """Run it; gives the status. A workspace goes back to what comes later on the same stream."""
        words, at = self.words, self.first
        for address in addresses:
            words[at] = address
            at += 6
        if self.place is None:
            return int(self.function(self.packed))
        own = torch.empty(self.needed, dtype=torch.uint8, device=self.place)
        at = self.workspace
        words[at] = own.data_ptr()
        words[at + 1] = self.needed
        words[at + 2] = library.current_stream(self.index)  # type: ignore[misc]
        return int(self.function(self.packed))


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
        index = tensors[0].get_device() if tensors[0].is_cuda else -1
        for tensor, shape in zip(tensors, shapes, strict=True):
            if tensor is None:
                codes.append(_ABSENT)
                addresses.append(0)
                continue
            if (
                tensor.shape != shape
                or type(tensor) not in _PLAIN
                or not (tensor.is_cpu if index < 0 else tensor.is_cuda and tensor.get_device() == index)
                or tensor.layout is not _STRIDED
                or not tensor.is_contiguous()
            ):
                return False
            codes.append(_CODES.get(tensor.dtype))
            addresses.append(tensor.data_ptr())
        local = self.local
        if index < 0:
            key = (scalars, tuple(codes), index, torch.get_num_threads(), library.forced_level)
        else:
            key = (scalars, tuple(codes), index, 0, 0)
        try:
            packed = local.structs[key]
        except (AttributeError, KeyError):
            packed = self._pack(key, shapes)
        if packed is None:
            return False
        if packed.call(addresses):
            raise RuntimeError(f"{self.name}: {_library(index).nvsubq_last_error().decode()}.")
        return True

    def _pack(self, key: tuple, shapes: Sequence[Shape]) -> PackedStep | None:
        """Make the struct of a signature, or None where it is not served; remember either."""
        local = self.local
        if not hasattr(local, "structs"):
            local.structs = {}
            local.work = torch.empty(0, dtype=torch.uint8, device="cpu")
        if len(local.structs) >= KEPT:
            local.structs.clear()
        scalars, codes, index, *machine = key
        serves = self._serves(codes) and (index < 0 or self._serves_on_cuda(codes))
        packed = self._made(scalars, codes, (max(index, 0), *machine), shapes, index) if serves else None
        local.structs[key] = packed
        return packed

    def _serves(self, codes: Sequence[int | None]) -> bool:
        if None in codes or any(codes[i] not in (_ABSENT, codes[0]) for i in self.alike):
            return False
        double = any(code in _DOUBLES for code in codes)
        exact = (_C128 if double else _C64) if self.is_complex else (_F64 if double else _F32)
        others = (code for i, code in enumerate(codes) if i != self.state)
        return codes[self.state] == exact and all(code not in (_C64, _C128) for code in others)

    def _serves_on_cuda(self, codes: Sequence[int | None]) -> bool:
        """Whether all is in fp64 where anything is: the projections decide how a kernel computes."""
        return codes[0] == _F64 or not any(code in _DOUBLES for code in codes)

    def _made(
        self,
        scalars: tuple[int, ...],
        codes: Sequence[int],
        machine: tuple[int, ...],
        shapes: Sequence[Shape],
        index: int,
    ) -> PackedStep:
        flags = DOUBLE if any(code in _DOUBLES for code in codes) else 0
        complete = (*scalars[: self.flags], flags, *scalars[self.flags :], *machine)
        fields: list[int] = []
        for code, shape in zip(codes, shapes, strict=True):
            if code == _ABSENT:
                fields += (0,) * 7
            else:
                dtype, flag = (code - _C64, PRESENT | COMPLEX) if code >= _C64 else (code, PRESENT)
                fields += (0, *strides(shape), dtype, flag)
        buffer = ctypes.create_string_buffer(self.packer.size)

        found = _library(index)
        self.packer.pack_into(buffer, 0, self.packer.size, ABI, *complete, 0, 0, 0, 0, 0, *fields)
        needed = getattr(found, f"{self.name}_workspace")(buffer)
        if needed < 0:
            raise RuntimeError(f"{self.name}_workspace: {found.nvsubq_last_error().decode()}.")
        work: Tensor | None = None
        if index < 0:
            if needed > self.local.work.numel():
                self.local.work = torch.empty(needed, dtype=torch.uint8, device="cpu")
            work = self.local.work
        function = getattr(found, self.name)
        return PackedStep(buffer, len(self.layout.scalars), function, needed, work, index)


def _library(index: int) -> ctypes.CDLL:
    """The library for CPUs, or for the CUDA device of a number."""
    return library.library("cpu" if index < 0 else "cuda")


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
