"""Finds and loads the native library, and packs the structs of its C interface (csrc/include/nvsubq.h)."""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import nvsubq

ABI = 1
# An environment variable: the file to load instead of the package's own, such as a build with sanitizers.
LIBRARY = "NVSUBQ_LIBRARY"
LEVELS = {"baseline": 1, "avx2": 2, "avx512": 3}
DTYPES = {
    torch.float32: 0,
    torch.float64: 1,
    torch.float16: 2,
    torch.bfloat16: 3,
    torch.int32: 4,
    torch.int64: 5,
}
DOUBLE, SOFTPLUS, SILU, GELU_TANH, UNSCALED_FIRST, FIXED_A, SHARED_DT = 1, 2, 4, 8, 16, 32, 64
PRESENT, COMPLEX = 1, 2

ABSENT = (0, 0, 0, 0, 0, 0, 0)
_TENSOR = "Q4q2i"
_RESULTS = {
    "nvsubq_build_info": ctypes.c_char_p,
    "nvsubq_last_error": ctypes.c_char_p,
    "nvsubq_level_name": ctypes.c_char_p,
}
_OPS = ("selective_scan", "conv1d", "linear_scan", "rglru_scan", "ssd_scan")
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
    return open_file(found[0])


def open_file(path: Path) -> tuple[ctypes.CDLL | None, str]:
    """Load a library; give None and the reason where that fails."""
    try:
        library = ctypes.CDLL(str(path))
        version = library.nvsubq_abi()
    except (OSError, AttributeError) as error:
        return None, f"the native library cannot be loaded: {error}"
    if version != ABI:
        return None, f"the native library speaks version {version} of its interface, nvsubq {ABI}"
    try:
        _declare(library)
    except AttributeError as error:  # a build of other sources, as after a change of branch
        return None, f"the native library is not of this version of nvsubq: {error}"
    return library, ""


def _declare(library: ctypes.CDLL) -> None:
    for name, result in _RESULTS.items():
        getattr(library, name).restype = result
    sizes = [f"nvsubq_{op}_{size}" for op in _OPS for size in ("workspace", "saved")]
    for name in (*sizes, *(f"nvsubq_{step}_workspace" for step in _STEPS)):
        getattr(library, name).restype = ctypes.c_int64
    library.nvsubq_level_name.argtypes = [ctypes.c_int64]


def folder() -> Path:
    """Where the library lies: in the package, of which an editable install has a part in site-packages."""
    places = [Path(place) / "lib" for place in nvsubq.__path__]
    return next((place for place in places if place.is_dir()), places[0])


@cache
def _opened() -> tuple[ctypes.CDLL | None, str]:
    named = os.environ.get(LIBRARY)
    return open_file(Path(named)) if named else open_library(folder())


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
    """

    scalars: tuple[str, ...]
    tensors: tuple[str, ...]

    def packer(self) -> struct.Struct:
        return struct.Struct(f"@2I{len(self.scalars)}qQqQQq{_TENSOR * len(self.tensors)}")


def describe(tensor: Tensor | None, seen: Callable[[Any], tuple[int, ...]] | None = None) -> tuple[int, ...]:
    """The seven fields of a tensor: address, four strides, dtype, flags; `seen` changes the strides."""
    if tensor is None:
        return ABSENT
    stride = tensor.stride() if seen is None else seen(tensor.stride())
    is_complex = tensor.is_complex()
    dtype = DTYPES[tensor.dtype.to_real() if is_complex else tensor.dtype]
    flags = PRESENT | COMPLEX if is_complex else PRESENT
    return tensor.data_ptr(), *stride, *(0,) * (4 - len(stride)), dtype, flags


_AS_DOUBLE, _AS_INTEGER = struct.Struct("=d"), struct.Struct("=q")


@lru_cache(256)
def bits(value: float) -> int:
    """A double as the integer of the same bits: the structs' scalars are integers."""
    found: int = _AS_INTEGER.unpack(_AS_DOUBLE.pack(value))[0]
    return found


def readable(tensor: Tensor | None) -> Tensor | None:
    """The tensor itself where kernels can read it (last axis contiguous, nothing lazy), or a copy."""
    if tensor is None:
        return None
    tensor = tensor.resolve_conj().resolve_neg()
    if tensor.dim() == 0 or tensor.stride(-1) == 1 or tensor.numel() == 0:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def threads(work: int) -> int:
    """How many threads a call may use: one where waking others would cost more than it saves."""
    return 1 if work < _WORK_OF_ONE_THREAD else max(1, torch.get_num_threads())


_WORK_OF_ONE_THREAD = 200_000  # states, or taps: about 0.1 ms


def has_level(level: int) -> bool:
    """Whether this machine can run one of LEVELS."""
    return inactive() is None and library().nvsubq_level_name(level) is not None
