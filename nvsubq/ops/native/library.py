"""Finds and loads the native library, and packs the structs of its C interface (csrc/include/nvsubq.h)."""

from __future__ import annotations

import ctypes
import struct
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

import nvsubq

ABI = 1
LEVELS = {"baseline": 1, "avx2": 2, "avx512": 3}
DTYPES = {
    torch.float32: 0,
    torch.float64: 1,
    torch.float16: 2,
    torch.bfloat16: 3,
    torch.int32: 4,
    torch.int64: 5,
}
DOUBLE, SOFTPLUS, SILU = 1, 2, 4
PRESENT = 1

_ABSENT = (0, 0, 0, 0, 0, 0, 0)
_TENSOR = "Q4q2i"
_RESULTS = {
    "nvsubq_build_info": ctypes.c_char_p,
    "nvsubq_last_error": ctypes.c_char_p,
    "nvsubq_level_name": ctypes.c_char_p,
}
_OPS = ("selective_scan", "conv1d")
_STEPS = ("mamba_step", "mamba2_step", "rglru_step", "s5_step")

# 0: the best instruction set that the machine has and NVSUBQ_CPU_ISA allows; else one of LEVELS (for tests).
forced_level = 0


def file_name() -> str:
    """Name of the library's file on this system."""
    return "libnvsubq_cpu.dylib" if sys.platform == "darwin" else "libnvsubq_cpu.so"


def open_library(folder: Path) -> tuple[ctypes.CDLL | None, str]:
    """Load the library in a folder; give None and the reason where that fails."""
    found = [path for path in (folder / file_name(), folder / "libnvsubq_cpu.so") if path.is_file()]
    if not found:
        why = folder / "why_not_native.txt"
        if why.is_file():
            return None, f"the native library was not built: {why.read_text(encoding='utf-8').strip()}"
        return None, f"there is no {file_name()} in the installed package"
    try:
        library = ctypes.CDLL(str(found[0]))
        version = library.nvsubq_abi()
    except (OSError, AttributeError) as error:
        return None, f"the native library cannot be loaded: {error}"
    if version != ABI:
        return None, f"the native library speaks version {version} of its interface, nvsubq {ABI}"
    for name, result in _RESULTS.items():
        getattr(library, name).restype = result
    for op in _OPS:
        for size in ("workspace", "saved"):
            getattr(library, f"nvsubq_{op}_{size}").restype = ctypes.c_int64
    for step in _STEPS:
        getattr(library, f"nvsubq_{step}_workspace").restype = ctypes.c_int64
    library.nvsubq_level_name.argtypes = [ctypes.c_int64]
    return library, ""


def folder() -> Path:
    """Where the library lies: in the package, of which an editable install has a part in site-packages."""
    places = [Path(place) / "lib" for place in nvsubq.__path__]
    return next((place for place in places if place.is_dir()), places[0])


@cache
def _opened() -> tuple[ctypes.CDLL | None, str]:
    return open_library(folder())


def inactive() -> str | None:
    """Why the backend cannot be used here, or None."""
    library, reason = _opened()
    return reason if library is None else None


def library() -> ctypes.CDLL:
    """The loaded library.

    Raises:
        RuntimeError: it cannot be loaded.
    """
    found, reason = _opened()
    if found is None:
        raise RuntimeError(f"backend 'native' is not active: {reason}.")
    return found


def about() -> str:
    """One line on the library: instruction set and compiler."""
    level, info = library().nvsubq_level_name(0), library().nvsubq_build_info()
    return f"compiled kernels for CPU tensors ({level.decode()}; {info.decode()})"


@dataclass(frozen=True)
class Layout:
    """A struct of the C interface: its scalars in order, its memory fields, then its tensors.

    Args:
        scalars: int64 fields after `size` and `abi`.
        tensors: names of the tensors.
        reals: double fields after the scalars.
    """

    scalars: tuple[str, ...]
    tensors: tuple[str, ...]
    reals: tuple[str, ...] = ()

    def packer(self) -> struct.Struct:
        head = f"2I{len(self.scalars)}q{len(self.reals)}d"
        return struct.Struct(f"@{head}QqQQq{_TENSOR * len(self.tensors)}")


def describe(tensor: Tensor | None) -> tuple[int, ...]:
    """The seven fields of a tensor: address, four strides, dtype, flags."""
    if tensor is None:
        return _ABSENT
    stride = tensor.stride()
    return tensor.data_ptr(), *stride, *(0,) * (4 - len(stride)), DTYPES[tensor.dtype], PRESENT


def rows(tensor: Tensor | None) -> Tensor | None:
    """The tensor itself where its last axis is contiguous, as kernels need it, else a copy."""
    if tensor is None or tensor.dim() == 0 or tensor.stride(-1) == 1 or tensor.shape[-1] <= 1:
        return tensor
    return tensor.contiguous()


class Call:
    """One struct, packed anew for each call into memory of this thread.

    Args:
        layout: of the struct.
        name: of the C functions, without their ending.
    """

    def __init__(self, layout: Layout, name: str) -> None:
        self.layout, self.name = layout, name
        self.packer = layout.packer()
        self.local = threading.local()

    def run(
        self,
        direction: str,
        scalars: Sequence[int],
        tensors: Sequence[Tensor | None],
        saved: Tensor | None = None,
    ) -> None:
        """Allocate the workspace and run `forward` or `backward`.

        Raises:
            RuntimeError: the library refuses the call; its message is passed on.
        """
        fields = [field for tensor in tensors for field in describe(tensor)]
        buffer = self._pack(scalars, fields, None, saved)
        work = torch.empty(self.ask("workspace", buffer), dtype=torch.uint8)
        buffer = self._pack(scalars, fields, work, saved)
        if getattr(library(), f"{self.name}_{direction}")(buffer):
            raise RuntimeError(f"{self.name}_{direction}: {library().nvsubq_last_error().decode()}.")

    def saved(self, scalars: Sequence[int], tensors: Sequence[Tensor | None]) -> Tensor:
        """Memory for what a forward leaves to its backward."""
        fields = [field for tensor in tensors for field in describe(tensor)]
        return torch.empty(self.ask("saved", self._pack(scalars, fields, None, None)), dtype=torch.uint8)

    def ask(self, what: str, buffer: ctypes.Array) -> int:
        """Bytes that a call needs."""
        count = getattr(library(), f"{self.name}_{what}")(buffer)
        if count < 0:
            raise RuntimeError(f"{self.name}_{what}: {library().nvsubq_last_error().decode()}.")
        return count

    def _pack(
        self, scalars: Sequence[int], fields: Sequence[int], work: Tensor | None, saved: Tensor | None
    ) -> ctypes.Array:
        buffer = getattr(self.local, "buffer", None)
        if buffer is None:
            buffer = self.local.buffer = ctypes.create_string_buffer(self.packer.size)
        memory = (*_memory(work), 0, *_memory(saved))
        self.packer.pack_into(buffer, 0, self.packer.size, ABI, *scalars, *memory, *fields)
        return buffer


def _memory(block: Tensor | None) -> tuple[int, int]:
    return (0, 0) if block is None else (block.data_ptr(), block.numel())


def threads(work: int) -> int:
    """How many threads a call may use: one where waking others would cost more than it saves."""
    return 1 if work < _WORK_OF_ONE_THREAD else max(1, torch.get_num_threads())


_WORK_OF_ONE_THREAD = 200_000  # states, or taps: about 0.1 ms


def has_level(level: int) -> bool:
    """Whether this machine can run one of LEVELS."""
    return inactive() is None and library().nvsubq_level_name(level) is not None
